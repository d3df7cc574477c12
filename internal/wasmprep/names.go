package wasmprep

import (
	"strings"
	"unicode"
)

// nameSection gives the custom section that names the functions, for the messages of traps. A section of the input that
// is not well formed counts as none.
func (m *module) nameSection(c *coder) []byte {
	n, names := m.functionNames()
	for i, name := range []string{wrapName, chargeName, growName} {
		names = putBytes(putU32(names, c.wrap+uint32(i)), name)
	}
	sub := append(putU32(nil, uint32(n+3)), names...)
	return putBytes(append(putBytes(nil, "name"), 1), sub)
}

// functionNames gives the input's entries, renumbered.
func (m *module) functionNames() (n int, names []byte) {
	r := &reader{b: m.names, f: &failure{}}
	for r.more() {
		id := r.u8()
		sub := r.part(int(r.u32()))
		if id != 1 || !r.ok() {
			continue
		}
		n, names = sub.count(m.fnCount(), "names"), nil
		next := 0
		for i := 0; i < n && r.ok(); i++ {
			fn, name := sub.index(m.fnCount(), "function"), sub.name()
			if int(fn) < next {
				sub.invalid(sub.p, "names are not in order")
			}
			next = int(fn) + 1
			names = putBytes(putU32(names, m.shift(fn)), name)
		}
		sub.end("names")
		if r.ok() {
			return n, names
		}
	}
	return 0, nil
}

// producers reads what a module claims to be made with. The strings are a stranger's: short, printable ones are kept.
func producers(section []byte) (language string, tools []string) {
	const most = 16
	clean := func(s string) string {
		if len(s) > 100 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return ""
		}
		return s
	}
	r := &reader{b: section, f: &failure{}}
	for fields := r.count(most, "fields"); fields > 0 && r.ok(); fields-- {
		field := r.name()
		for n := r.count(most, "values"); n > 0 && r.ok(); n-- {
			name, version := clean(r.name()), clean(r.name())
			switch {
			case !r.ok() || name == "":
			case field == "language" && language == "":
				language = name
			case field == "processed-by":
				tools = append(tools, strings.TrimSpace(name+" "+version))
			}
		}
	}
	return language, tools
}

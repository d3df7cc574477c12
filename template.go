package crowd

import (
	"encoding/binary"
	"math"
	"math/bits"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Templates of args and env: {unit} {units} {seed} {job}, with Units.Files also {input} {stem}, and the names of a grid's axes. {{ is a
// literal brace; a closing brace needs no escape. What a template yields is never read for templates again.

// soonTemplates belong to units.lines and units.bytes.
var soonTemplates = []string{"offset", "length"}

const filesOnly = "is for units that are files"

// NumUnits is how many units the job has: Count, the product of the grid's axes, or N. It saturates at 2^64-1; a spec without units has 0.
func (s *JobSpec) NumUnits() uint64 {
	switch u := s.Units; {
	case u.Count > 0:
		return u.Count
	case len(u.Grid) > 0:
		n := uint64(1)
		for _, a := range u.Grid {
			hi, lo := bits.Mul64(n, uint64(len(a.Values)))
			if n = lo; hi > 0 {
				return math.MaxUint64
			}
		}
		return n
	default:
		return u.N
	}
}

// templateNames lists what the spec's args and env may name, in the order in which people are told.
func (s *JobSpec) templateNames() []string {
	names := []string{"unit", "units"}
	if s.Units.Files != "" || !s.Units.Items.IsZero() {
		names = append(names, "input", "stem")
	}
	names = append(names, "seed", "job")
	for _, a := range s.Units.Grid {
		names = append(names, a.Name)
	}
	return names
}

// expand fills in the templates of text. bad is told of each name that value doesn't know ("{" for a brace that isn't closed).
func expand(text string, value func(name string) (string, bool), bad func(name string)) string {
	if !strings.Contains(text, "{") {
		return text
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if text, found = strings.CutPrefix(rest, "{"); found {
			b.WriteByte('{')
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			bad("{")
			return b.String()
		}
		if v, ok := value(name); ok {
			b.WriteString(v)
		} else {
			bad(name)
		}
		text = after
	}
}

// templateFault says what is wrong with a template name.
func (s *JobSpec) templateFault(at, name string) Fault {
	const literal = "a literal brace is {{"
	names := s.templateNames()
	f := Fault{Path: at, Text: "no template {" + clip(name, 40) + "}", Hint: "{" + strings.Join(names, "} {") + "}; " + literal}
	switch near := nearest(name, names); {
	case name == "{":
		f.Text, f.Hint = "a { that nothing closes", literal
	case slices.Contains(soonTemplates, name):
		f.Text = "{" + name + "} is not built yet"
	case name == "input" || name == "stem":
		f.Text = "{" + name + "} " + filesOnly
	case near != "":
		f.Hint = "{" + near + "}; " + literal
	}
	return f
}

// Plan fills in the templates of unit u: what a guest is started with. item is the unit's own file, with Units.Items only. The same
// spec, job, unit and item give the same plan everywhere. argv[0] is the program's base name, or "program" when the spec names
// a digest, as it always does at the broker and on hosts. An error (Invalid) means that u or item don't belong to a checked spec.
func (s *JobSpec) Plan(job JobID, u uint64, item *Input) (Plan, error) {
	files := !s.Units.Items.IsZero() || s.Units.Files != ""
	if n := s.NumUnits(); u >= n {
		return Plan{}, Errorf(Invalid, CustomerFile, "unit %d of %d: no such unit", u, n)
	}
	if files != (item != nil) {
		return Plan{}, Errorf(Invalid, CustomerFile, "unit %d: its own file is missing, or the job has none", u)
	}
	p := Plan{Unit: u, Seed: UnitSeed(job, u), Inputs: slices.Clone(s.Inputs)}
	values := s.templateValues(job, &p)
	if item != nil {
		for _, in := range s.Inputs {
			if _, err := CaseClash([]string{in.As, item.As}); err != nil {
				return Plan{}, Errorf(Invalid, CustomerFile, "unit %d: its own file and an input: %w", u, err)
			}
		}
		p.Inputs = append(p.Inputs, *item)
		values["input"] = "/in/" + item.As
		base := path.Base(item.As)
		values["stem"] = base
		if stem := strings.TrimSuffix(base, path.Ext(base)); stem != "" {
			values["stem"] = stem
		}
	}
	var unknown []string
	fill := func(text string) string {
		return expand(text, func(name string) (string, bool) { v, ok := values[name]; return v, ok },
			func(name string) { unknown = append(unknown, name) })
	}
	p.Args = append(p.Args, s.programName())
	for _, a := range s.Args {
		p.Args = append(p.Args, fill(a))
	}
	for k, v := range s.Env {
		p.Env = append(p.Env, k+"="+fill(v))
	}
	slices.Sort(p.Env)
	if len(unknown) > 0 {
		return Plan{}, Errorf(Invalid, CustomerFile, "unit %d: %s", u, s.templateFault("", unknown[0]).Text)
	}
	return p, nil
}

// templateValues are those that need no file.
func (s *JobSpec) templateValues(job JobID, p *Plan) map[string]string {
	values := map[string]string{
		"unit":  strconv.FormatUint(p.Unit, 10),
		"units": strconv.FormatUint(s.NumUnits(), 10),
		"seed":  strconv.FormatUint(binary.BigEndian.Uint64(p.Seed[:8])>>1, 10),
		"job":   job.String(),
	}
	rest := p.Unit
	for _, a := range slices.Backward(s.Units.Grid) { // the last axis is the fastest
		n := uint64(len(a.Values))
		values[a.Name] = a.Values[rest%n]
		rest /= n
	}
	return values
}

// programName is argv[0].
func (s *JobSpec) programName() string {
	base := path.Base(strings.ReplaceAll(s.Program, `\`, "/"))
	if strings.HasPrefix(s.Program, "b3:") || base == "." || base == "/" {
		return "program"
	}
	return base
}

// longest bounds what the args and env of any unit come to in bytes, once filled in.
func (s *JobSpec) longest() int {
	most := map[string]int{"unit": 13, "units": 13, "seed": 19, "job": len(JobID{}.String()), "input": len("/in/") + Limits.PathBytes, "stem": Limits.PathBytes}
	for _, a := range s.Units.Grid {
		for _, v := range a.Values {
			most[a.Name] = max(most[a.Name], len(v))
		}
	}
	total := 0
	count := func(text string) {
		filled := 0
		plain := expand(text, func(name string) (string, bool) { filled += most[name]; return "", true }, func(string) {})
		total += len(plain) + filled
	}
	for _, a := range s.Args {
		count(a)
	}
	for k, v := range s.Env {
		total += len(k) + 1
		count(v)
	}
	return total
}

// nearest finds the word that somebody meant: the one within a third of its letters by insertions, deletions, changes and swaps, or "".
func nearest(word string, words []string) string {
	best, least := "", 0
	for _, w := range words {
		limit := max(1, max(len(w), len(word))/3)
		if d := distance(strings.ToLower(word), strings.ToLower(w), limit); d <= limit && (best == "" || d < least) {
			best, least = w, d
		}
	}
	return best
}

// distance is the number of edits between a and b, or limit+1 if there are more (optimal string alignment).
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	rows := [3][]int{}
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		two, one, row := rows[(i+1)%3], rows[(i+2)%3], rows[i%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			same := 1
			if a[i-1] == b[j-1] {
				same = 0
			}
			row[j] = min(one[j]+1, row[j-1]+1, one[j-1]+same)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
	}
	return rows[len(a)%3][len(b)]
}

// CleanName holds a path that a stranger sends to what every system can store under one folder, and returns it unchanged, or an Invalid
// error that says why not. Clean is: relative, slash-separated, valid UTF-8, at most Limits.PathBytes and PathDepth; no empty, "." or
// ".." element; no control character or bidirectional override; none of \ : * ? " < > | (drives and streams included); no element that
// Windows reserves or that ends in a dot or a space. Letters must be composed (NFC): the combining accents and jamo of decomposed forms are
// refused. Names of one folder tree are also held against each other: CaseClash.
func CleanName(name string) (string, error) {
	bad := func(hint, format string, args ...any) (string, error) {
		return "", Errorf(Invalid, CustomerFile, "the name "+strconv.Quote(clip(name, 60))+" "+format, args...).WithHint("%s", hint)
	}
	switch {
	case name == "":
		return bad("", "is empty")
	case len(name) > Limits.PathBytes:
		return bad("", "is longer than %d bytes", Limits.PathBytes)
	case !utf8.ValidString(name):
		return bad("", "isn't UTF-8")
	case strings.HasPrefix(name, "/"):
		return bad("without the first /", "isn't relative")
	case strings.Count(name, "/") >= Limits.PathDepth:
		return bad("", "is deeper than %d folders", Limits.PathDepth)
	}
	for _, r := range name {
		switch {
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029':
			return bad("", "holds a control character")
		case r == '\\':
			return bad("folders are separated by /", `holds a \`)
		case strings.ContainsRune(`:*?"<>|`, r):
			return bad("", "holds a %c, which some systems can't store", r)
		case r >= 0x300 && r <= 0x36f || r == 0x3099 || r == 0x309a || r >= 0x1100 && r <= 0x11ff:
			return bad("write it with composed letters (NFC)", "holds a letter taken apart")
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		stem, _, _ := strings.Cut(part, ".")
		switch {
		case part == "" || part == "." || part == "..":
			return bad("", "has an element %q", part)
		case len(part) > 255:
			return bad("", "has an element of more than 255 bytes")
		case strings.HasSuffix(part, ".") || strings.HasSuffix(part, " "):
			return bad("", "has an element that ends in a dot or a space")
		case deviceForm.MatchString(stem):
			return bad("", "has the element %q, which Windows reserves", part)
		}
	}
	return name, nil
}

var deviceForm = regexp.MustCompile(`(?i)^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *$`)

// CaseClash finds the first of names, each clean, that can't stand in one folder tree with those before it on every system: it is the same,
// differs by case only, or needs a folder where a file is. It returns its index and an Invalid error, or -1 and nil.
func CaseClash(names []string) (int, error) {
	type place struct {
		name string
		file bool
	}
	seen := map[string]place{}
	for i, name := range names {
		for end := 0; end < len(name); {
			if next := strings.IndexByte(name[end+1:], '/'); next >= 0 {
				end += 1 + next
			} else {
				end = len(name)
			}
			part := name[:end]
			folded := strings.ToLower(strings.ToUpper(part))
			was, ok := seen[folded]
			now := place{part, end == len(name)}
			switch {
			case !ok:
				seen[folded] = now
			case was.name != part:
				return i, Errorf(Invalid, CustomerFile, "%q and %q differ by case only", was.name, part)
			case was.file && now.file:
				return i, Errorf(Invalid, CustomerFile, "%q stands twice", part)
			case was.file || now.file:
				return i, Errorf(Invalid, CustomerFile, "%q is a file and a folder", part)
			}
		}
	}
	return -1, nil
}

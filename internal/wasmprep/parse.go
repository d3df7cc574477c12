package wasmprep

// module is what the rewrite needs of an input that passed: what its sections declare, and their entries with functions
// already renumbered.
type module struct {
	types    []funcType
	importFn []uint32 // type of each imported function
	funcs    []uint32 // type of each defined function
	start    int      // function by the input's numbering, or -1
	main     int      // function exported as _start, or -1
	memMin   uint32   // pages
	memMax   uint32
	hasMem   bool // exported as "memory"
	needs    []string

	typeSec, importSec, funcSec, tableSec, memorySec, globalSec, exportSec, elemSec, dataSec section

	codeN     int
	codes     reader // at the first body
	dataCount int    // as announced, or -1
	producers []byte
	names     []byte
}

// section is the entries of one section and how many they are.
type section struct {
	n    int
	body []byte
}

type funcType struct{ params, results []byte }

const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
	secTag
)

// rank orders the sections that may appear, by id.
var rank = [...]int{secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secGlobal: 6, secExport: 7,
	secStart: 8, secElement: 9, secDataCount: 10, secCode: 11, secData: 12, secTag: 0}

const (
	kindFunc = iota
	kindTable
	kindMemory
	kindGlobal
)

const maxPages = 1 << 16

func (m *module) fnCount() int { return len(m.importFn) + len(m.funcs) }

// shift gives the number in the output of a function of the input: the added import comes after the other imports.
func (m *module) shift(fn uint32) uint32 {
	if int(fn) >= len(m.importFn) {
		return fn + 1
	}
	return fn
}

// fnType gives the type of a function by the input's numbering, which must be in bounds.
func (m *module) fnType(i int) funcType {
	if i < len(m.importFn) {
		return m.types[m.importFn[i]]
	}
	return m.types[m.funcs[i-len(m.importFn)]]
}

// parse reads everything but the code, and checks it.
func parse(src []byte, lim Limits) (*module, error) {
	if err := header(src, lim); err != nil {
		return nil, err
	}
	m := &module{start: -1, main: -1, dataCount: -1}
	r := &reader{b: src, p: 8, f: &failure{}}
	last := 0
	for r.more() {
		at := r.p
		id := r.u8()
		body := r.part(int(r.u32()))
		switch {
		case !r.ok():
		case id == secTag:
			r.unsupported(at, "build without them", "exceptions (tag section) are not supported")
		case id > secTag:
			r.unsupported(at, "", "unknown section %d", id)
		case id == secCustom:
			m.custom(&body)
		case rank[id] <= last:
			r.invalid(at, "section %d is repeated or out of order", id)
		default:
			last = rank[id]
			m.section(id, &body, lim)
			body.end("section")
		}
	}
	m.whole(r)
	if !r.ok() {
		return nil, r.f.err
	}
	return m, nil
}

func header(src []byte, lim Limits) error {
	switch {
	case len(src) < 4 || string(src[:4]) != "\x00asm":
		return &Error{Kind: ErrNotWasm, What: "not wasm: the file does not start with \\0asm"}
	case len(src) < 8:
		return &Error{Offset: len(src), Kind: ErrTruncated, What: "ends inside the header"}
	case src[6] == 1 && src[7] == 0:
		return &Error{Offset: 4, Kind: ErrNotWasm, What: "this is a component", Hint: "build for wasm32-wasip1"}
	case string(src[4:8]) != "\x01\x00\x00\x00":
		return &Error{Offset: 4, Kind: ErrNotWasm, What: "unknown version of wasm", Hint: "build for wasm32-wasip1"}
	case len(src) > lim.ModuleBytes:
		return &Error{Kind: ErrTooBig, What: "the module has more bytes than are allowed",
			Hint: "build with -Os and strip debug information"}
	}
	return nil
}

func (m *module) section(id byte, r *reader, lim Limits) {
	switch id {
	case secType:
		m.readTypes(r, lim)
	case secImport:
		m.readImports(r, lim)
	case secFunction:
		m.readFunctions(r, lim)
	case secTable:
		m.readTables(r, lim)
	case secMemory:
		m.readMemory(r, lim)
	case secGlobal:
		m.readGlobals(r, lim)
	case secExport:
		m.readExports(r, lim)
	case secStart:
		m.start = m.entry(r, r.p, r.index(m.fnCount(), "function"), "the start function")
	case secElement:
		m.readElements(r, lim)
	case secDataCount:
		m.dataCount = r.countAhead(lim.Segments, "data segments")
	case secCode:
		m.codeN = r.count(lim.Functions, "function bodies")
		m.codes = *r
		r.p = len(r.b)
	case secData:
		m.readData(r, lim)
	}
}

// custom keeps what is known and looks at nothing else: the content of a custom section cannot make a module invalid.
func (m *module) custom(r *reader) {
	switch name := r.name(); {
	case !r.ok():
	case name == "name":
		m.names = r.b[r.p:]
	case name == "producers":
		m.producers = r.b[r.p:]
	}
}

// entry passes a function through that must be callable by nobody's arguments.
func (m *module) entry(r *reader, at int, fn uint32, what string) int {
	if !r.ok() {
		return -1
	}
	if t := m.fnType(int(fn)); len(t.params)+len(t.results) > 0 {
		r.invalid(at, "%s has parameters or results", what)
	}
	return int(fn)
}

// whole checks what spans sections.
func (m *module) whole(r *reader) {
	at := len(r.b)
	if m.codeN != len(m.funcs) {
		r.invalid(at, "%d functions are declared, %d have a body", len(m.funcs), m.codeN)
	}
	if m.dataCount >= 0 && m.dataCount != m.dataSec.n {
		r.invalid(at, "%d data segments are announced, %d are there", m.dataCount, m.dataSec.n)
	}
	if !m.hasMem {
		r.fail(at, ErrImport, "build for wasm32-wasip1", "does not export a memory named \"memory\"")
	}
	if m.main < 0 {
		r.fail(at, ErrImport, "build a command, not a library or reactor", "does not export a function named \"_start\"")
	}
}

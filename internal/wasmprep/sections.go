package wasmprep

import "slices"

// Each of these reads one section and leaves its entries ready for the output.

func (r *reader) valTypes(lim Limits) []byte {
	n := r.count(lim.Params, "parameters or results")
	at := r.p
	b := r.take(n)
	for i, t := range b {
		r.checkValType(at+i, t)
	}
	return b
}

func (r *reader) checkValType(at int, t byte) {
	switch t {
	case 0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x70, 0x6f:
	case 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x71, 0x72, 0x73:
		r.unsupported(at, "", "garbage collected or typed references (type %#x) are not supported", t)
	case 0x69, 0x74:
		r.unsupported(at, "build without them", "exceptions (type %#x) are not supported", t)
	default:
		r.invalid(at, "unknown type %#x", t)
	}
}

func (r *reader) refType() byte {
	at := r.p
	t := r.u8()
	if r.checkValType(at, t); r.ok() && t != 0x70 && t != 0x6f {
		r.invalid(at, "type %#x is no reference", t)
	}
	return t
}

// sizes reads the limits of a memory or table; without a maximum, max is all ones.
func (r *reader) sizes() (min, max uint32) {
	at := r.p
	flags := r.u8()
	switch {
	case flags > 7:
		r.invalid(at, "unknown form of size %#x", flags)
	case flags&4 != 0:
		r.unsupported(at, "build for wasm32", "memory64 is not supported")
	case flags&2 != 0:
		r.unsupported(at, "build without -pthread", "threads (shared memory) are not supported")
	}
	min, max = r.u32(), 1<<32-1
	if flags&1 != 0 {
		max = r.u32()
	}
	if max < min {
		r.invalid(at, "maximum size %d is below the initial size %d", max, min)
	}
	return min, max
}

// constExpr reads one constant and its end, and appends them to out. No longer form can occur: there are no
// imported globals to get, and arithmetic in constants is a later feature.
func (m *module) constExpr(r *reader, out []byte) []byte {
	const hint = "build without extended constants"
	at := r.p
	op := r.u8()
	switch op {
	case 0x41:
		r.signed(32)
	case 0x42:
		r.signed(64)
	case 0x43:
		r.take(4)
	case 0x44:
		r.take(8)
	case 0xd0:
		r.refType()
	case 0xd2:
		fn := r.index(m.fnCount(), "function")
		out = putU32(append(out, op), m.shift(fn))
	case 0xfd:
		if r.u32() != simdConst {
			r.invalid(at, "vector instruction in a constant")
		}
		out = append(append(out, op, simdConst), r.take(16)...)
	default:
		r.unsupported(at, hint, "instruction %#x in a constant is not supported", op)
	}
	if op != 0xd2 && op != 0xfd {
		out = append(out, r.b[at:r.p]...)
	}
	at = r.p
	if op := r.u8(); op != opEnd {
		r.unsupported(at, hint, "instruction %#x in a constant is not supported", op)
	}
	return append(out, opEnd)
}

func (m *module) readTypes(r *reader, lim Limits) {
	s := &m.typeSec
	s.n = r.count(lim.Types, "types")
	start := r.p
	m.types = make([]funcType, 0, s.n)
	for i := 0; i < s.n && r.ok(); i++ {
		at := r.p
		switch form := r.u8(); form {
		case 0x60:
		case 0x4e, 0x4f, 0x50, 0x5e, 0x5f:
			r.unsupported(at, "", "garbage collection (type form %#x) is not supported", form)
		default:
			r.invalid(at, "unknown form of type %#x", form)
		}
		m.types = append(m.types, funcType{r.valTypes(lim), r.valTypes(lim)})
	}
	s.body = r.b[start:r.p]
}

func (m *module) readImports(r *reader, lim Limits) {
	s := &m.importSec
	s.n = r.count(lim.Imports, "imports")
	start := r.p
	var foreign []string
	for i := 0; i < s.n && r.ok(); i++ {
		at := r.p
		mod, name, kind := r.name(), r.name(), r.u8()
		if kind != kindFunc && r.ok() {
			what := map[byte]string{kindTable: "table", kindMemory: "memory", kindGlobal: "global"}[kind]
			if what == "" {
				what = "unknown kind of thing"
			}
			r.fail(at, ErrImport, "a module must bring its own", "imports the %s %s.%s", what, mod, name)
		}
		m.importFn = append(m.importFn, r.index(len(m.types), "type"))
		if mod == wasiModule {
			m.needs = append(m.needs, name)
		} else {
			foreign = append(foreign, mod)
		}
	}
	s.body = r.b[start:r.p]
	slices.Sort(m.needs)
	m.needs = slices.Compact(m.needs)
	if len(foreign) > 0 && r.ok() {
		r.f.err = importError(start, foreign)
	}
}

func (m *module) readFunctions(r *reader, lim Limits) {
	s := &m.funcSec
	s.n = r.count(lim.Functions, "functions")
	start := r.p
	m.funcs = make([]uint32, 0, s.n)
	for i := 0; i < s.n && r.ok(); i++ {
		m.funcs = append(m.funcs, r.index(len(m.types), "type"))
	}
	s.body = r.b[start:r.p]
}

func (m *module) readTables(r *reader, lim Limits) {
	s := &m.tableSec
	s.n = r.count(lim.Tables, "tables")
	for i := 0; i < s.n && r.ok(); i++ {
		at := r.p
		if r.more() && r.b[r.p] == 0x40 {
			r.unsupported(at, "", "tables with an initializer are not supported")
		}
		t := r.refType()
		lo, hi := r.sizes()
		if most := min(lim.TableElems, tableCap); int64(lo) > int64(most) {
			r.fail(at, ErrTooBig, "", "a table of %d elements, at most %d are allowed", lo, most)
		}
		s.body = putU32(putU32(append(s.body, t, 1), lo), min(hi, tableCap))
	}
}

func (m *module) readMemory(r *reader, lim Limits) {
	s := &m.memorySec
	at := r.p
	s.n = r.count(1<<20, "memories")
	if s.n > 1 {
		r.unsupported(at, "", "more than one memory is not supported")
	}
	if s.n == 0 || !r.ok() {
		return
	}
	at = r.p
	m.memMin, m.memMax = r.sizes()
	if s.body = r.b[at:r.p]; r.ok() && s.body[0] == 0 {
		m.memMax = maxPages
	}
	if m.memMin > maxPages || m.memMax > maxPages {
		r.invalid(at, "memory of more than %d pages", maxPages)
	}
	if int64(m.memMin) > int64(lim.MemoryPages) {
		r.fail(at, ErrTooBig, "", "initial memory of %d pages, at most %d are allowed", m.memMin, lim.MemoryPages)
	}
}

func (m *module) readGlobals(r *reader, lim Limits) {
	s := &m.globalSec
	s.n = r.count(lim.Globals, "globals")
	for i := 0; i < s.n && r.ok(); i++ {
		at := r.p
		t, mutable := r.u8(), r.u8()
		r.checkValType(at, t)
		switch {
		case mutable > 3:
			r.invalid(at, "unknown form of global %#x", mutable)
		case mutable > 1:
			r.unsupported(at, "build without -pthread", "threads (shared global) are not supported")
		}
		s.body = m.constExpr(r, append(s.body, t, mutable))
	}
}

func (m *module) readExports(r *reader, lim Limits) {
	s := &m.exportSec
	s.n = r.count(lim.Exports, "exports")
	space := [...]int{kindFunc: m.fnCount(), kindTable: m.tableSec.n, kindMemory: m.memorySec.n, kindGlobal: m.globalSec.n}
	seen := make(map[string]bool, s.n)
	for i := 0; i < s.n && r.ok(); i++ {
		at := r.p
		name, kind := r.name(), r.u8()
		if kind > kindGlobal {
			r.invalid(at, "unknown kind of export %d", kind)
			return
		}
		index := r.index(space[kind], "exported index")
		switch {
		case seen[name]:
			r.invalid(at, "two exports are named %q", name)
		case name == FuelGlobal:
			r.fail(at, ErrImport, "rename it", "the export name %q is reserved", name)
		case name == "memory":
			m.hasMem = kind == kindMemory
		case name == "_start" && kind == kindFunc:
			m.main = m.entry(r, at, index, "_start")
		}
		seen[name] = true
		if kind == kindFunc {
			index = m.shift(index)
		}
		s.body = putU32(append(putBytes(s.body, name), kind), index)
	}
}

// readElements knows the eight forms. Bit 0 of the form: not placed in a table (passive or declared); bit 1: names its
// table, or is declared; bit 2: entries are constants, not numbers of functions.
func (m *module) readElements(r *reader, lim Limits) {
	s := &m.elemSec
	s.n = r.count(lim.Segments, "element segments")
	left := lim.Elems
	for i := 0; i < s.n && r.ok(); i++ {
		at := r.p
		form := r.u32()
		if form > 7 {
			r.invalid(at, "unknown form of element segment %d", form)
			return
		}
		s.body = putU32(s.body, form)
		if placed := form&1 == 0; placed {
			table := 0
			if form&2 != 0 {
				table = int(r.u32())
				s.body = putU32(s.body, uint32(table))
			}
			if table >= m.tableSec.n {
				r.invalid(at, "table %d of %d", table, m.tableSec.n)
			}
			s.body = m.constExpr(r, s.body)
		}
		if form&3 != 0 {
			s.body = append(s.body, m.elemType(r, form))
		}
		n := r.count(left, "elements")
		left -= n
		s.body = putU32(s.body, uint32(n))
		for ; n > 0 && r.ok(); n-- {
			if form&4 != 0 {
				s.body = m.constExpr(r, s.body)
			} else {
				s.body = putU32(s.body, m.shift(r.index(m.fnCount(), "function")))
			}
		}
	}
}

func (m *module) elemType(r *reader, form uint32) byte {
	if form&4 != 0 {
		return r.refType()
	}
	at := r.p
	kind := r.u8()
	if kind != 0 {
		r.invalid(at, "unknown kind of elements %d", kind)
	}
	return kind
}

func (m *module) readData(r *reader, lim Limits) {
	s := &m.dataSec
	s.n = r.count(lim.Segments, "data segments")
	for i := 0; i < s.n && r.ok(); i++ {
		at := r.p
		form := r.u32()
		if form > 2 {
			r.invalid(at, "unknown form of data segment %d", form)
		}
		if form == 2 && r.u32() != 0 {
			r.unsupported(at, "", "more than one memory is not supported")
		}
		s.body = append(s.body, byte(form&1)) // naming memory 0 is the short form
		if form != 1 {
			if m.memorySec.n == 0 {
				r.invalid(at, "data segment without a memory")
			}
			s.body = m.constExpr(r, s.body)
		}
		s.body = putBytes(s.body, r.take(int(r.u32())))
	}
}

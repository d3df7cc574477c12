package wasmprep

type stats struct{ loops, nans int }

// rewrite writes the module anew. The added import is the last of the imports, so that only defined functions move; the
// added types, global and functions are the last of their kinds.
func (m *module) rewrite(lim Limits) ([]byte, stats, error) {
	poll := uint32(len(m.importFn))
	end := m.shift(uint32(m.fnCount())) // one past the defined functions, which may be none
	c := &coder{m: m, lim: lim, fuel: uint32(m.globalSec.n), wrap: end, charge: end + 1, grow: end + 2}
	typeNone := uint32(m.typeSec.n)
	typeI32toI32 := typeNone + 1

	w := &writer{b: append([]byte(nil), "\x00asm\x01\x00\x00\x00"...)}
	w.section(secType, m.typeSec, 2, []byte{0x60, 0, 0, 0x60, 1, typeI32, 1, typeI32})
	imp := append(putBytes(putBytes(nil, PollModule), PollName), kindFunc)
	w.section(secImport, m.importSec, 1, putU32(imp, typeNone))
	w.section(secFunction, m.funcSec, 3, putU32(putU32(putU32(nil, typeNone), typeI32toI32), typeI32toI32))
	w.section(secTable, m.tableSec, 0, nil)
	w.section(secMemory, m.memorySec, 0, nil)
	w.section(secGlobal, m.globalSec, 1, []byte{typeI64, 1, opI64Const, 0, opEnd})
	w.section(secExport, m.exportSec, 1, putU32(append(putBytes(nil, FuelGlobal), kindGlobal), c.fuel))
	if m.start >= 0 {
		w.bytes(secStart, putU32(nil, m.shift(uint32(m.start))))
	}
	w.section(secElement, m.elemSec, 0, nil)
	if m.dataCount >= 0 {
		w.bytes(secDataCount, putU32(nil, uint32(m.dataCount)))
	}
	code, err := m.bodies(c)
	if err != nil {
		return nil, stats{}, err
	}
	w.section(secCode, code, 3, c.helpers(poll))
	w.section(secData, m.dataSec, 0, nil)
	w.bytes(secCustom, m.nameSection(c))
	if len(w.b) > lim.OutputBytes {
		return nil, stats{}, &Error{Kind: ErrTooBig, What: "the rewritten module has more bytes than are allowed"}
	}
	return w.b, stats{c.loops, c.nans}, nil
}

// bodies rewrites every function.
func (m *module) bodies(c *coder) (section, error) {
	s := section{n: m.codeN}
	r := m.codes
	if m.codeN == 0 {
		return s, nil
	}
	var body []byte
	for i := 0; i < m.codeN && r.ok(); i++ {
		c.r = r.part(int(r.u32()))
		body = c.function(body[:0], len(m.types[m.funcs[i]].params))
		s.body = putBytes(s.body, body)
		if len(s.body) > c.lim.OutputBytes {
			r.fail(r.p, ErrTooBig, "", "the rewritten code has more than %d bytes", c.lim.OutputBytes)
		}
	}
	r.end("section")
	if !r.ok() {
		return section{}, r.f.err
	}
	return s, nil
}

// helpers gives the bodies of the three added functions.
func (c *coder) helpers(poll uint32) []byte {
	// wrap: poll(); if fuel < 0 { trap }
	wrap := putU32([]byte{0, opCall}, poll)
	wrap = putU32(append(wrap, opGlobalGet), c.fuel)
	wrap = append(wrap, opI64Const, 0, opI64LtS, opIf, typeVoid, opUnreachable, opEnd, opEnd)

	// charge(n): fuel -= n >> 4; return n
	charge := putU32([]byte{0, opGlobalGet}, c.fuel)
	charge = append(charge, opLocalGet, 0, opI32Const, 4, opI32ShrU, opI64ExtendU, opI64Sub)
	charge = append(c.putSpend(charge), opLocalGet, 0, opEnd)

	// grow(n): old = memory.grow(n); if old != -1 { fuel -= n << 12 }; return old
	grow := []byte{1, 1, typeI32, opLocalGet, 0, opMemoryGrow, 0, opLocalTee, 1, opI32Const, 0x7f, opI32Ne, opIf, typeVoid}
	grow = putU32(append(grow, opGlobalGet), c.fuel)
	grow = append(grow, opLocalGet, 0, opI64ExtendU, opI64Const, 12, opI64Shl, opI64Sub)
	grow = append(c.putSpend(grow), opEnd, opLocalGet, 1, opEnd)

	return putBytes(putBytes(putBytes(nil, wrap), charge), grow)
}

type writer struct{ b []byte }

func (w *writer) bytes(id byte, body []byte) { w.b = putBytes(append(w.b, id), body) }

// section writes a section with more entries added, unless it has none.
func (w *writer) section(id byte, s section, more int, added []byte) {
	n := putU32(nil, uint32(s.n+more))
	if s.n+more == 0 {
		return
	}
	w.b = putU32(append(w.b, id), uint32(len(n)+len(s.body)+len(added)))
	w.b = append(append(append(w.b, n...), s.body...), added...)
}

package wasmprep

// coder rewrites function bodies one after another; its slices are reused.
type coder struct {
	m   *module
	lim Limits
	r   reader // the body at hand

	fuel                uint32 // global
	wrap, charge, grow  uint32 // functions
	localN, localsTotal int

	out    []byte      // the rewritten body, before the insertions
	ins    []insertion // by rising place
	frames []frame
	nan    nanTracker

	loops, nans int
}

// insertion is code that goes into a body once all of the body was seen.
type insertion struct {
	at     int   // in coder.out
	shape  shape // whose NaNs are made canonical, or none: fuel is charged
	wanted bool
	weight int64 // instructions to pay for
}

// frame is an open block.
type frame struct {
	op   byte
	site int // the insertion that charges for what stands directly in here
}

// function reads one body and appends the rewritten one, without its size, to dst.
func (c *coder) function(dst []byte, params int) []byte {
	r := &c.r
	if n := len(r.b) - r.p; n > c.lim.BodyBytes {
		r.fail(r.p, ErrTooBig, "", "a function of %d bytes, at most %d are allowed", n, c.lim.BodyBytes)
	}
	groups, decl := c.locals(params)
	c.out = c.out[:0]
	c.ins = append(c.ins[:0], insertion{wanted: true})
	c.frames = append(c.frames[:0], frame{})
	c.nan.reset(c.localN)
	for len(c.frames) > 0 && r.ok() {
		if r.p == len(r.b) {
			r.fail(r.p, ErrTruncated, "", "a function lacks its end")
		}
		c.instruction()
	}
	r.end("function")
	if !r.ok() {
		return dst
	}
	c.trackDone()
	var scratch scratch
	if c.lim.CanonicalNaN {
		scratch = c.scratch()
	}
	dst = putU32(dst, uint32(groups+len(scratch.types)))
	dst = append(dst, decl...)
	for _, t := range scratch.types {
		dst = append(dst, 1, t)
	}
	return c.assemble(dst, scratch)
}

// locals reads the declared locals.
func (c *coder) locals(params int) (groups int, decl []byte) {
	r := &c.r
	groups = r.count(c.lim.Locals, "groups of locals")
	start, total := r.p, 0
	for i := 0; i < groups && r.ok(); i++ {
		at := r.p
		total += r.countAhead(c.lim.Locals-total, "locals more in a function")
		r.checkValType(at, r.u8())
	}
	c.localN = params + total
	if c.localsTotal += total; c.localsTotal > c.lim.LocalsTotal {
		r.fail(start, ErrTooBig, "", "more than %d locals in all functions", c.lim.LocalsTotal)
	}
	return groups, r.b[start:r.p]
}

// assemble appends the body with its insertions.
func (c *coder) assemble(dst []byte, scratch scratch) []byte {
	from := 0
	for _, in := range c.ins {
		if !in.wanted {
			continue
		}
		dst = append(dst, c.out[from:in.at]...)
		from = in.at
		if in.shape == noFloat {
			dst = c.putCharge(dst, max(1, in.weight))
			continue
		}
		c.nans++
		if c.lim.CanonicalNaN {
			dst = scratch.canonical(dst, in.shape)
		}
	}
	return append(dst, c.out[from:]...)
}

// putCharge appends: fuel -= weight; if fuel < 0 { wrap() }.
func (c *coder) putCharge(b []byte, weight int64) []byte {
	b = putU32(append(b, opGlobalGet), c.fuel)
	b = append(putS64(append(b, opI64Const), weight), opI64Sub)
	return c.putSpend(b)
}

// putSpend appends: fuel = pop(); if fuel < 0 { wrap() }.
func (c *coder) putSpend(b []byte) []byte {
	b = putU32(append(b, opGlobalSet), c.fuel)
	b = putU32(append(b, opGlobalGet), c.fuel)
	b = append(b, opI64Const, 0, opI64LtS, opIf, typeVoid)
	return append(putU32(append(b, opCall), c.wrap), opEnd)
}

func (c *coder) instruction() {
	r := &c.r
	at := r.p
	code := r.u8()
	o := plainOps[code]
	if code != opEnd {
		c.ins[c.frames[len(c.frames)-1].site].weight++
	}
	switch code {
	case opMisc:
		n := r.u32()
		if o = (op{}); n < 256 {
			o = miscOps[n]
		}
		if o.imm == immFuncs {
			c.misc(n)
		} else {
			c.out = putU32(append(c.out, code), n)
		}
	case opSIMD:
		n := r.u32()
		if n >= 0x100 {
			r.unsupported(at, "build without -mrelaxed-simd", "relaxed SIMD (instruction 0xfd %#x) is not supported", n)
			return
		}
		o = simdOps[n]
		c.out = putU32(append(c.out, code), n)
	default:
		if o.imm != immOwn {
			c.out = append(c.out, code)
		}
	}
	from, index := r.p, 0
	switch o.imm {
	case immUnknown:
		if what, hint := refusedOp(code); what != "" {
			if code == 0xfe {
				what += " (atomic instruction 0xfe)"
			}
			r.unsupported(at, hint, "%s are not supported", what)
			return
		}
		r.invalid(at, "unknown instruction %#x", code)
	case immOwn:
		index = c.special(code)
		from = r.p
	case immMem:
		c.memArg()
	case immLane:
		r.take(1)
	case immBoth:
		c.memArg()
		r.take(1)
	case imm4:
		r.take(4)
	case imm8:
		r.take(8)
	case imm16:
		r.take(16)
	case immS32:
		r.signed(32)
	case immS64:
		r.signed(64)
	case immFuncs:
		from = r.p
	}
	if r.ok() {
		c.out = append(c.out, r.b[from:r.p]...)
		c.track(code, o, index)
	}
}

func (c *coder) memArg() {
	r := &c.r
	at := r.p
	if align := r.u32(); align >= 64 && align < 128 {
		r.unsupported(at, "", "more than one memory is not supported")
	} else if align > 4 {
		r.invalid(at, "alignment 2^%d", align)
	}
	r.u32()
	if c.m.memorySec.n == 0 {
		r.invalid(at, "access to memory without a memory")
	}
}

// special reads the operands of an instruction that the rewrite must know, and writes the instruction. For one about a
// local it gives its index.
func (c *coder) special(code byte) (local int) {
	r := &c.r
	switch code {
	case opMemorySize, opMemoryGrow:
		c.zero()
		if code == opMemoryGrow {
			c.putCall(c.grow)
			return 0
		}
		c.out = append(c.out, code, 0)
		return
	case opCall:
		c.putCall(c.m.shift(r.index(c.m.fnCount(), "function")))
		return 0
	}
	c.out = append(c.out, code)
	switch code {
	case opBlock, opLoop, opIf:
		c.open(code)
	case opElse:
		top := &c.frames[len(c.frames)-1]
		if top.op != opIf {
			r.invalid(r.p-1, "else without if")
		}
		top.op = opElse
	case opEnd:
		c.frames = c.frames[:len(c.frames)-1]
	case opBr, opBrIf:
		c.putIndex(len(c.frames), "label")
	case opBrTable:
		n := r.count(c.lim.BodyBytes, "labels")
		c.out = putU32(c.out, uint32(n))
		for ; n >= 0 && r.ok(); n-- {
			c.putIndex(len(c.frames), "label")
		}
	case opCallIndirect:
		c.putIndex(len(c.m.types), "type")
		c.putIndex(c.m.tableSec.n, "table")
	case opRefFunc:
		c.out = putU32(c.out, c.m.shift(r.index(c.m.fnCount(), "function")))
	case opRefNull:
		c.out = append(c.out, r.refType())
	case opSelectTyped:
		at := r.p
		if n := r.u32(); n != 1 {
			r.invalid(at, "select of %d types", n)
		}
		t := r.u8()
		r.checkValType(at, t)
		c.out = append(c.out, 1, t)
	case opLocalGet, opLocalSet, opLocalTee:
		i := r.index(c.localN, "local")
		c.out = putU32(c.out, i)
		return int(i)
	case opGlobalGet, opGlobalSet:
		c.putIndex(c.m.globalSec.n, "global")
	case opTableGet, opTableSet:
		c.putIndex(c.m.tableSec.n, "table")
	}
	return 0
}

// misc does the same for the instructions after 0xfc that move many bytes or elements, which pay by their number.
func (c *coder) misc(n uint32) {
	r := &c.r
	if n == 8 || n == 10 || n == 11 || n == 12 || n == 14 || n == 15 || n == 17 {
		c.putCall(c.charge)
	}
	c.out = append(c.out, opMisc, byte(n))
	switch n {
	case 8, 9: // memory.init, data.drop
		c.putIndex(max(0, c.m.dataCount), "data segment")
		if n == 8 {
			c.zero()
			c.out = append(c.out, 0)
		}
	case 10: // memory.copy
		c.zero()
		c.zero()
		c.out = append(c.out, 0, 0)
	case 11: // memory.fill
		c.zero()
		c.out = append(c.out, 0)
	case 12: // table.init
		c.putIndex(c.m.elemSec.n, "element segment")
		c.putIndex(c.m.tableSec.n, "table")
	case 13: // elem.drop
		c.putIndex(c.m.elemSec.n, "element segment")
	case 14: // table.copy
		c.putIndex(c.m.tableSec.n, "table")
		c.putIndex(c.m.tableSec.n, "table")
	case 15, 16, 17: // table.grow, size, fill
		c.putIndex(c.m.tableSec.n, "table")
	default:
		r.invalid(r.p, "unknown instruction 0xfc %#x", n)
	}
}

// zero reads the number of the only memory.
func (c *coder) zero() {
	r := &c.r
	at := r.p
	if r.u8() != 0 {
		r.unsupported(at, "", "more than one memory is not supported")
	}
	if c.m.memorySec.n == 0 {
		r.invalid(at, "access to memory without a memory")
	}
}

func (c *coder) putIndex(n int, what string) { c.out = putU32(c.out, c.r.index(n, what)) }

func (c *coder) putCall(fn uint32) { c.out = putU32(append(c.out, opCall), fn) }

// open reads the type of a block and enters it. A loop pays for itself at its head.
func (c *coder) open(code byte) {
	r := &c.r
	at := r.p
	switch t := r.signed(33); {
	case t == typeVoid-0x80 && r.p == at+1:
	case t < 0 && r.p == at+1:
		r.checkValType(at, byte(t&0x7f))
	case t < 0 || t >= int64(len(c.m.types)):
		r.invalid(at, "unknown type of block")
	}
	c.out = append(c.out, r.b[at:r.p]...)
	if len(c.frames) > c.lim.Depth {
		r.fail(at, ErrTooBig, "", "blocks nested more than %d deep", c.lim.Depth)
	}
	site := c.frames[len(c.frames)-1].site
	if code == opLoop {
		c.loops++
		site = len(c.ins)
		c.ins = append(c.ins, insertion{at: len(c.out), wanted: true})
	}
	c.frames = append(c.frames, frame{code, site})
}

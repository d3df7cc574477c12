package wasmprep

// A NaN's bits are left open by wasm: processors differ in them, and votes compare bits. So the result of float
// arithmetic is followed by "if it is NaN, make it this NaN", as wasm allows, if Limits.CanonicalNaN asks for it. That is left out where it cannot show:
// where the result is only an operand of further arithmetic, whose result is made canonical in turn, or of a comparison
// or a conversion to an integer. Loads, constants, moves, sign changes and host values keep their bits, as wasm demands.
//
// To know where, values are followed through straight code: on the operand stack and in locals, each value is the
// insertion that would make it canonical, or none. Whoever takes a value off the stack in any other way than arithmetic
// makes the insertion wanted, and so does whatever ends the straight code: a branch, block, call or end takes all of the
// stack. A local may keep a value to be read later, but only for local.get further down the same straight code; a value
// that it still holds at a branch or join is wanted if any local.get of the function reads that local without a
// local.set before it in its own straight code. A call, a block and the way past a br_if do not end the straight code
// for locals.
type nanTracker struct {
	stack   []int   // indices of insertions, or none
	locals  []held  // by local
	touched []int   // locals set to an insertion since the last branch or join
	carried []carry // what locals held at branches and joins
	section int     // counts the joins
}

type held struct {
	section int  // in which it was set
	value   int  // insertion, or none
	exposed bool // it is read somewhere without having been set in the same section
}

type carry struct{ local, value int }

const none = -1

func (t *nanTracker) reset(locals int) {
	if cap(t.locals) < locals {
		t.locals = make([]held, locals)
	}
	t.locals = t.locals[:locals]
	clear(t.locals)
	t.stack, t.touched, t.carried, t.section = t.stack[:0], t.touched[:0], t.carried[:0], 1
}

// pop takes the top value; what is deeper than the known stack was made canonical.
func (t *nanTracker) pop() int {
	if len(t.stack) == 0 {
		return none
	}
	top := t.stack[len(t.stack)-1]
	t.stack = t.stack[:len(t.stack)-1]
	return top
}

func (t *nanTracker) push(value int) { t.stack = append(t.stack, value) }

// set puts a value in a local.
func (t *nanTracker) set(local, value int) {
	l := &t.locals[local]
	l.section, l.value = t.section, value
	if value != none {
		t.touched = append(t.touched, local)
	}
}

func (t *nanTracker) get(local int) int {
	l := &t.locals[local]
	if l.section != t.section {
		l.exposed = true
		return none
	}
	return l.value
}

// carry notes what locals hold where control may go elsewhere.
func (t *nanTracker) carry() {
	for _, i := range t.touched {
		if v := t.locals[i].value; v != none {
			t.carried = append(t.carried, carry{i, v})
		}
	}
	t.touched = t.touched[:0]
}

// want makes a value canonical.
func (c *coder) want(value int) {
	if value != none {
		c.ins[value].wanted = true
	}
}

// track follows one instruction that was just written; index is its operand when it is about a local.
func (c *coder) track(code byte, o op, index int) {
	t := &c.nan
	switch {
	case code == opLocalGet:
		t.push(t.get(index))
	case code == opLocalSet:
		t.set(index, t.pop())
	case code == opLocalTee:
		value := t.pop()
		t.set(index, value)
		t.push(value)
	case o.imm == immOwn && code < opSelect:
		c.trackControl(code)
	default:
		for range o.pops {
			if v := t.pop(); v != none && c.ins[v].shape != o.eats {
				c.want(v)
			}
		}
		if o.makes != noFloat {
			t.push(len(c.ins))
			c.ins = append(c.ins, insertion{at: len(c.out), shape: o.makes})
			return
		}
		for range o.pushes {
			t.push(none)
		}
	}
}

func (c *coder) trackControl(code byte) {
	t := &c.nan
	for _, v := range t.stack {
		c.want(v)
	}
	t.stack = t.stack[:0]
	switch code {
	case opCall, opCallIndirect, opBlock:
	case opLoop, opElse, opEnd:
		t.carry()
		t.section++
	default:
		t.carry()
	}
}

// trackDone decides about what locals carried, once the whole function was seen.
func (c *coder) trackDone() {
	for _, k := range c.nan.carried {
		if c.nan.locals[k.local].exposed {
			c.want(k.value)
		}
	}
}

// scratch are the locals added to a function for its NaNs.
type scratch struct {
	types []byte
	local [shapes]uint32
}

func (c *coder) scratch() scratch {
	var s scratch
	var used [shapes]bool
	for _, in := range c.ins {
		used[in.shape] = used[in.shape] || in.wanted
	}
	add := func(t byte, of ...shape) {
		at := uint32(c.localN + len(s.types))
		for _, f := range of {
			if used[f] {
				s.local[f] = at
				s.types = append(s.types[:at-uint32(c.localN)], t)
			}
		}
	}
	add(typeF32, f32)
	add(typeF64, f64)
	add(typeV128, f32x4, f64x2)
	return s
}

var (
	nan32 = []byte{0, 0, 0xc0, 0x7f}
	nan64 = []byte{0, 0, 0, 0, 0, 0, 0xf8, 0x7f}
)

// canonical appends code that replaces a NaN on the stack. Scalars branch around, which processors predict; >= instead
// of == because amd64 needs one test for the former and two for the latter.
func (s *scratch) canonical(b []byte, f shape) []byte {
	x := s.local[f]
	put := func(op byte) { b = putU32(append(b, op), x) }
	if f == f32x4 || f == f64x2 {
		put(opLocalTee)
		b = append(b, opSIMD, simdConst)
		eq := byte(simdF32x4Eq)
		for range 2 {
			if f == f64x2 {
				b, eq = append(b, nan64...), simdF64x2Eq
			} else {
				b = append(append(b, nan32...), nan32...)
			}
		}
		put(opLocalGet)
		put(opLocalGet)
		return append(b, opSIMD, eq, opSIMD, simdBitselect)
	}
	put(opLocalSet)
	b = append(b, opBlock, typeVoid)
	put(opLocalGet)
	put(opLocalGet)
	if f == f32 {
		b = append(append(b, opF32Ge, opBrIf, 0, opF32Const), nan32...)
	} else {
		b = append(append(b, opF64Ge, opBrIf, 0, opF64Const), nan64...)
	}
	put(opLocalSet)
	b = append(b, opEnd)
	put(opLocalGet)
	return b
}

package wasmprep

// op says how an instruction is written and what it does to the operand stack.
type op struct {
	imm          imm
	pops, pushes uint8
	eats         shape // floats it takes whose NaNs cannot show in its result, but as a NaN that makes canonical
	makes        shape // floats it computes
}

// imm is what follows an instruction's number.
type imm uint8

const (
	immUnknown imm = iota // no such instruction
	immNone
	immMem   // alignment, offset
	immLane  // a byte
	immBoth  // alignment, offset, a byte
	imm4     // as many bytes
	imm8     //
	imm16    //
	immS32   // a signed number
	immS64   //
	immOwn   // see coder.special
	immFuncs // likewise, in the bulk and table instructions
)

// shape is a type of floats, for NaNs.
type shape uint8

const (
	noFloat shape = iota
	f32
	f64
	f32x4
	f64x2
	shapes
)

const (
	opUnreachable  = 0x00
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opSelect       = 0x1b
	opSelectTyped  = 0x1c
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opTableGet     = 0x25
	opTableSet     = 0x26
	opMemorySize   = 0x3f
	opMemoryGrow   = 0x40
	opI32Const     = 0x41
	opI64Const     = 0x42
	opF32Const     = 0x43
	opF64Const     = 0x44
	opI32Ne        = 0x47
	opI64LtS       = 0x53
	opF32Ge        = 0x60
	opF64Ge        = 0x66
	opI32ShrU      = 0x76
	opI64Sub       = 0x7d
	opI64Shl       = 0x86
	opI64ExtendU   = 0xad
	opRefNull      = 0xd0
	opRefFunc      = 0xd2
	opMisc         = 0xfc
	opSIMD         = 0xfd

	simdConst     = 0x0c
	simdF32x4Eq   = 0x41
	simdF64x2Eq   = 0x47
	simdBitselect = 0x52

	typeI32  = 0x7f
	typeI64  = 0x7e
	typeF32  = 0x7d
	typeF64  = 0x7c
	typeV128 = 0x7b
	typeVoid = 0x40
)

// The accepted instructions: plain ones, those after 0xfc and those after 0xfd.
var plainOps, miscOps, simdOps = makePlain(), makeMisc(), makeSIMD()

type ops [256]op

// set describes the instructions from first to last alike.
func (t *ops) set(first, last int, o op) {
	for i := first; i <= last; i++ {
		t[i] = o
	}
}

var (
	op0to1  = op{imm: immNone, pushes: 1}
	op1to1  = op{imm: immNone, pops: 1, pushes: 1}
	op2to1  = op{imm: immNone, pops: 2, pushes: 1}
	op3to1  = op{imm: immNone, pops: 3, pushes: 1}
	opLoad  = op{imm: immMem, pops: 1, pushes: 1}
	opStore = op{imm: immMem, pops: 2}
)

func eats(o op, s shape) op         { o.eats = s; return o }
func floats(o op, s shape) op       { o.eats, o.makes = s, s; return o }
func with(o op, i imm) op           { o.imm = i; return o }
func casts(o op, from, to shape) op { o.eats, o.makes = from, to; return o }

func makePlain() (t ops) {
	t[0x01] = op{imm: immNone}             // nop
	t[0x1a] = op{imm: immNone, pops: 1}    // drop
	t[opSelect] = op3to1                   //
	t.set(0x28, 0x35, opLoad)              //
	t.set(0x36, 0x3e, opStore)             //
	t[opI32Const] = with(op0to1, immS32)   //
	t[opI64Const] = with(op0to1, immS64)   //
	t[opF32Const] = with(op0to1, imm4)     //
	t[opF64Const] = with(op0to1, imm8)     //
	t[0x45] = op1to1                       // i32.eqz
	t.set(0x46, 0x4f, op2to1)              // i32 comparisons
	t[0x50] = op1to1                       // i64.eqz
	t.set(0x51, 0x5a, op2to1)              // i64 comparisons
	t.set(0x5b, 0x60, eats(op2to1, f32))   // f32 comparisons
	t.set(0x61, 0x66, eats(op2to1, f64))   // f64 comparisons
	t.set(0x67, 0x69, op1to1)              // i32 bit counts
	t.set(0x6a, 0x78, op2to1)              // i32 arithmetic
	t.set(0x79, 0x7b, op1to1)              // i64 bit counts
	t.set(0x7c, 0x8a, op2to1)              // i64 arithmetic
	t.set(0x8b, 0x8c, op1to1)              // f32.abs, neg
	t.set(0x8d, 0x91, floats(op1to1, f32)) // f32 rounding, sqrt
	t.set(0x92, 0x97, floats(op2to1, f32)) // f32 arithmetic
	t[0x98] = op2to1                       // f32.copysign
	t.set(0x99, 0x9a, op1to1)              // f64.abs, neg
	t.set(0x9b, 0x9f, floats(op1to1, f64)) // f64 rounding, sqrt
	t.set(0xa0, 0xa5, floats(op2to1, f64)) // f64 arithmetic
	t[0xa6] = op2to1                       // f64.copysign
	t[0xa7] = op1to1                       // i32.wrap_i64
	t.set(0xa8, 0xa9, eats(op1to1, f32))   // i32.trunc_f32
	t.set(0xaa, 0xab, eats(op1to1, f64))   // i32.trunc_f64
	t.set(0xac, 0xad, op1to1)              // i64.extend_i32
	t.set(0xae, 0xaf, eats(op1to1, f32))   // i64.trunc_f32
	t.set(0xb0, 0xb1, eats(op1to1, f64))   // i64.trunc_f64
	t.set(0xb2, 0xb5, op1to1)              // f32.convert
	t[0xb6] = casts(op1to1, f64, f32)      // f32.demote_f64
	t.set(0xb7, 0xba, op1to1)              // f64.convert
	t[0xbb] = casts(op1to1, f32, f64)      // f64.promote_f32
	t.set(0xbc, 0xc4, op1to1)              // reinterpretations, sign extensions
	t[0xd1] = op1to1                       // ref.is_null

	own := op{imm: immOwn}
	t[opUnreachable] = own
	t.set(opBlock, opElse, own)
	t.set(opEnd, opCallIndirect, own)
	t[opSelectTyped] = op{imm: immOwn, pops: 3, pushes: 1}
	t[opLocalGet] = op{imm: immOwn, pushes: 1}
	t[opLocalSet] = op{imm: immOwn, pops: 1}
	t[opLocalTee] = op{imm: immOwn, pops: 1, pushes: 1}
	t[opGlobalGet] = op{imm: immOwn, pushes: 1}
	t[opGlobalSet] = op{imm: immOwn, pops: 1}
	t[opTableGet] = op{imm: immOwn, pops: 1, pushes: 1}
	t[opTableSet] = op{imm: immOwn, pops: 2}
	t[opMemorySize] = op{imm: immOwn, pushes: 1}
	t[opMemoryGrow] = op{imm: immOwn, pops: 1, pushes: 1}
	t[opRefNull] = op{imm: immOwn, pushes: 1}
	t[opRefFunc] = op{imm: immOwn, pushes: 1}
	return t
}

func makeMisc() (t ops) {
	t.set(0, 1, eats(op1to1, f32)) // i32.trunc_sat_f32
	t.set(2, 3, eats(op1to1, f64))
	t.set(4, 5, eats(op1to1, f32)) // i64.trunc_sat_f32
	t.set(6, 7, eats(op1to1, f64))
	bulk := op{imm: immFuncs, pops: 3}
	t[8], t[10], t[11], t[12], t[14], t[17] = bulk, bulk, bulk, bulk, bulk, bulk // init, copy, fill
	t[9], t[13] = op{imm: immFuncs}, op{imm: immFuncs}                           // data.drop, elem.drop
	t[15] = op{imm: immFuncs, pops: 2, pushes: 1}                                // table.grow
	t[16] = op{imm: immFuncs, pushes: 1}                                         // table.size
	return t
}

func makeSIMD() (t ops) {
	t.set(0x00, 0x0a, opLoad)
	t[0x0b] = opStore
	t[simdConst] = with(op0to1, imm16)
	t[0x0d] = with(op2to1, imm16) // shuffle
	t[0x0e] = op2to1              // swizzle
	t.set(0x0f, 0x14, op1to1)     // splats
	t.set(0x15, 0x22, with(op1to1, immLane))
	for _, replace := range []int{0x17, 0x1a, 0x1c, 0x1e, 0x20, 0x22} {
		t[replace] = with(op2to1, immLane)
	}
	t.set(0x23, 0x40, op2to1)              // integer comparisons
	t.set(0x41, 0x46, eats(op2to1, f32x4)) // f32x4 comparisons
	t.set(0x47, 0x4c, eats(op2to1, f64x2)) // f64x2 comparisons
	t[0x4d] = op1to1                       // v128.not
	t.set(0x4e, 0x51, op2to1)              // v128 logic
	t[simdBitselect] = op3to1              //
	t[0x53] = op1to1                       // v128.any_true
	t.set(0x54, 0x57, op{imm: immBoth, pops: 2, pushes: 1})
	t.set(0x58, 0x5b, op{imm: immBoth, pops: 2})
	t.set(0x5c, 0x5d, opLoad)             // loads of one lane, rest zero
	t[0x5e] = casts(op1to1, f64x2, f32x4) // f32x4.demote
	t[0x5f] = casts(op1to1, f32x4, f64x2) // f64x2.promote

	t.set(0x60, 0xff, op2to1) // most of the rest; below the exceptions
	for _, unary := range [][2]int{{0x60, 0x64}, {0x7c, 0x81}, {0x83, 0x84}, {0x87, 0x8a}, {0xa0, 0xa1}, {0xa3, 0xa4},
		{0xa7, 0xaa}, {0xc0, 0xc1}, {0xc3, 0xc4}, {0xc7, 0xca}, {0xe0, 0xe1}, {0xec, 0xed}, {0xfa, 0xfb}, {0xfe, 0xff}} {
		t.set(unary[0], unary[1], op1to1)
	}
	for _, hole := range []int{0x9a, 0xa2, 0xa5, 0xa6, 0xaf, 0xb0, 0xb2, 0xb3, 0xb4, 0xbb, 0xc2, 0xc5, 0xc6, 0xcf, 0xd0,
		0xd2, 0xd3, 0xd4, 0xe2, 0xee} {
		t[hole] = op{}
	}
	t.set(0x67, 0x6a, floats(op1to1, f32x4)) // rounding
	t.set(0x74, 0x75, floats(op1to1, f64x2))
	t[0x7a] = floats(op1to1, f64x2)
	t[0x94] = floats(op1to1, f64x2)
	t[0xe3] = floats(op1to1, f32x4) // sqrt
	t.set(0xe4, 0xe9, floats(op2to1, f32x4))
	t[0xef] = floats(op1to1, f64x2)
	t.set(0xf0, 0xf5, floats(op2to1, f64x2))
	t.set(0xf8, 0xf9, eats(op1to1, f32x4)) // i32x4.trunc_sat
	t.set(0xfc, 0xfd, eats(op1to1, f64x2))
	return t
}

// refusedOp names the feature of an instruction that is known and not accepted.
func refusedOp(op byte) (what, hint string) {
	switch op {
	case 0x06, 0x07, 0x08, 0x09, 0x0a, 0x18, 0x19, 0x1f:
		return "exceptions", "build without them, such as with -fno-exceptions"
	case 0x12, 0x13, 0x15:
		return "tail calls", "build without -mtail-call"
	case 0x14, 0xd3, 0xd4, 0xd5, 0xd6:
		return "typed references", ""
	case 0xfb:
		return "garbage collected objects", ""
	case 0xfe:
		return "threads", "build without -pthread"
	}
	return "", ""
}

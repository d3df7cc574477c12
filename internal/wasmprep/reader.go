package wasmprep

import (
	"fmt"
	"unicode/utf8"
)

// reader walks a part of the module. Its first failure sticks, in a place that all readers of one module share; from
// then on every read gives zero values and ok is false. So a loop over a count must ask ok.
type reader struct {
	b []byte // the module up to the end of this part, so that p is an offset in the module
	p int
	f *failure
}

type failure struct{ err *Error }

func (r *reader) ok() bool   { return r.f.err == nil }
func (r *reader) more() bool { return r.ok() && r.p < len(r.b) }

func (r *reader) fail(at int, kind error, hint, format string, args ...any) {
	if r.ok() {
		r.f.err = &Error{Offset: at, Kind: kind, What: fmt.Sprintf(format, args...), Hint: hint}
	}
}

func (r *reader) invalid(at int, format string, args ...any) {
	r.fail(at, ErrInvalid, "", format, args...)
}

func (r *reader) unsupported(at int, hint, format string, args ...any) {
	r.fail(at, ErrUnsupported, hint, format, args...)
}

// take gives the next n bytes, not a copy.
func (r *reader) take(n int) []byte {
	if !r.ok() {
		return nil
	}
	if n < 0 || n > len(r.b)-r.p {
		r.fail(r.p, ErrTruncated, "", "ends where %d more bytes are due", n)
		return nil
	}
	r.p += n
	return r.b[r.p-n : r.p]
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// u32 reads an unsigned LEB128 number of at most five bytes.
func (r *reader) u32() uint32 {
	at := r.p
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		c := r.u8()
		v |= uint64(c&0x7f) << shift
		if c&0x80 == 0 {
			if v > 1<<32-1 {
				break
			}
			return uint32(v)
		}
	}
	r.invalid(at, "number does not fit in 32 bits")
	return 0
}

// signed reads a signed LEB128 number of the given width.
func (r *reader) signed(bits int) int64 {
	at := r.p
	var v int64
	for shift := 0; shift < bits; shift += 7 {
		c := r.u8()
		v |= int64(c&0x7f) << shift
		if c&0x80 != 0 {
			continue
		}
		if left := bits - shift; left < 7 { // the bits past the width must repeat the sign
			if top := int8(c<<1) >> left; top != 0 && top != -1 {
				break
			}
		}
		if shift+7 < 64 {
			v = v << (64 - shift - 7) >> (64 - shift - 7)
		}
		return v
	}
	r.invalid(at, "number does not fit in %d bits", bits)
	return 0
}

// count reads how many entries follow and checks it before anybody allocates: at most max, and each entry needs a byte.
func (r *reader) count(max int, what string) int {
	at := r.p
	n := r.countAhead(max, what)
	if n > len(r.b)-r.p {
		r.fail(at, ErrTruncated, "", "%d %s declared in %d bytes", n, what, len(r.b)-r.p)
		return 0
	}
	return n
}

// countAhead is count for entries that come in another section.
func (r *reader) countAhead(max int, what string) int {
	at := r.p
	n := int64(r.u32())
	if n > int64(max) {
		r.fail(at, ErrTooBig, "", "%d %s, at most %d are allowed", n, what, max)
		return 0
	}
	return int(n)
}

// index reads an index into a space of n.
func (r *reader) index(n int, what string) uint32 {
	at := r.p
	i := r.u32()
	if int64(i) >= int64(n) {
		r.invalid(at, "%s %d of %d", what, i, n)
		return 0
	}
	return i
}

func (r *reader) name() string {
	at := r.p
	b := r.take(int(r.u32()))
	if !utf8.Valid(b) {
		r.invalid(at, "name is not UTF-8")
		return ""
	}
	return string(b)
}

// part gives a reader of the next n bytes and steps over them.
func (r *reader) part(n int) reader {
	r.take(n)
	if !r.ok() {
		return reader{f: r.f}
	}
	return reader{b: r.b[:r.p], p: r.p - n, f: r.f}
}

// end fails unless everything was read.
func (r *reader) end(what string) {
	if r.more() {
		r.invalid(r.p, "%d bytes left over in the %s", len(r.b)-r.p, what)
	}
}

func putU32(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func putS64(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func putBytes[T []byte | string](b []byte, v T) []byte {
	return append(putU32(b, uint32(len(v))), v...)
}

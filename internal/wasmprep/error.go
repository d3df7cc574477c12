package wasmprep

import (
	"errors"
	"fmt"
)

// Kinds of [Error].
var (
	ErrNotWasm     = errors.New("not a wasm module")     // other bytes, or a component
	ErrTruncated   = errors.New("truncated wasm module") // ends inside something
	ErrInvalid     = errors.New("invalid wasm module")   // breaks the wasm specification
	ErrTooBig      = errors.New("wasm module too big")   // above one of the Limits
	ErrUnsupported = errors.New("unsupported wasm feature")
	ErrImport      = errors.New("bad wasm import or export") // lacks or has one it must not
)

// Error says why a module was refused.
type Error struct {
	Offset int    // where in the input
	Kind   error  // one of the Err values above
	What   string // what is wrong
	Hint   string // what its author can do; may be empty
}

// Error has the form "offset 0x1a2: what; hint".
func (e *Error) Error() string {
	s := fmt.Sprintf("offset %#x: %s", e.Offset, e.What)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Kind }

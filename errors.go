package crowd

import (
	"errors"
	"fmt"
)

// ErrKind is one of a handful of ways in which something is refused. One table maps it to HTTP status and exit code and
// is read in both directions, so that a client sees the broker's own error.
type ErrKind int

// The kinds. OK is no error.
const (
	OK ErrKind = iota
	Internal
	Invalid
	NotFound
	Denied
	Conflict
	Exhausted
	Unavailable
	Failed
)

var errKinds = []struct {
	kind   ErrKind
	name   string
	status []int // the first is the default
	exit   int
}{
	{OK, "ok", []int{200}, 0},
	{Internal, "internal", []int{500}, 1},
	{Invalid, "invalid", []int{422, 400, 405, 413, 415}, 2},
	{NotFound, "not_found", []int{404}, 3},
	{Denied, "denied", []int{403, 401}, 4},
	{Conflict, "conflict", []int{409, 412}, 5},
	{Exhausted, "exhausted", []int{429, 402, 507}, 6},
	{Unavailable, "unavailable", []int{503, 502, 504}, 7},
	{Failed, "failed", []int{422}, 8},
}

func (k ErrKind) String() string { return errKinds[k].name }

// Status is the kind's default HTTP status, Exit its exit code.
func (k ErrKind) Status() int { return errKinds[k].status[0] }
func (k ErrKind) Exit() int   { return errKinds[k].exit }

// KindOf reads a kind back from a problem document: by its code, else by the HTTP status.
func KindOf(code string, status int) ErrKind {
	for _, e := range errKinds[1:] {
		if e.name == code {
			return e.kind
		}
	}
	for _, e := range errKinds {
		for _, s := range e.status {
			if s == status {
				return e.kind
			}
		}
	}
	if status >= 200 && status < 300 {
		return OK
	}
	return Internal
}

// Error is an error that a person can act on. Message is lower case and says who and what; Hint says what now.
type Error struct {
	Kind    ErrKind
	Status  int    // HTTP status when it isn't the kind's default; 0: default
	Reason  Reason // may be empty
	Message string
	Hint    string
	Faults  []Fault // where the input was wrong
	Err     error   // cause, for errors.Is; may be nil
}

// Fault is one thing wrong with an input.
type Fault struct {
	Path string `json:"location"` // "units.count", "args[3]"; the API says "body.units.count"
	Text string `json:"message"`  // `wanted a whole number from 1 to 2^40, found "many"`
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("%s (%s)", e.Message, e.Reason)
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// WithHint returns a copy of e with the hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// HTTPStatus is the status to answer with.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	return e.Kind.Status()
}

// Errorf makes an Error; %w keeps a cause.
func Errorf(kind ErrKind, reason Reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Reason: reason, Message: err.Error(), Err: errors.Unwrap(err)}
}

// AsError finds the Error in err; any other non-nil error becomes an Internal one.
func AsError(err error) *Error {
	var e *Error
	if err == nil {
		return nil
	}
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: Internal, Message: err.Error(), Err: err}
}

// KindIs reports whether err is an Error of kind k.
func KindIs(err error, k ErrKind) bool { return err != nil && AsError(err).Kind == k }

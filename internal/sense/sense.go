// Package sense is what the system tells the agent about the machine: today, that it is about to sleep and that it woke up.
package sense

import (
	"errors"

	"github.com/crowdcloud/crowd"
)

// ErrNever is in the chain of an error where this kind of system never says anything: asking again is no use.
var ErrNever = errors.New("not on this system")

// SleepOptions say whom to ask and what to do. Before and After are called one at a time, Before first; every Before is followed by an After.
type SleepOptions struct {
	Bus    string // the D-Bus address; empty: the system's
	Before func() // the machine sleeps when it returns, or when the system's patience is over (5 s on most)
	After  func() // it is awake again, or nobody can say any more
}

func nobody(format string, args ...any) error {
	return crowd.Errorf(crowd.Unavailable, "", "nobody says when the machine sleeps: "+format, args...)
}

// Package lease says who may act: the table of what an event makes of an attempt, the deadlines, who is to blame, and the clock
// that a host goes by. Pure: time comes in as an argument.
//
// An attempt admits evidence, it doesn't guard state: a report is about a pure unit and no lease makes it true. So silence only
// lets others start; what comes late still counts as long as its chunk is open.
package lease

import (
	"time"

	"github.com/crowdcloud/crowd"
)

// Event is something that happens to an attempt.
type Event int

// The events.
const (
	Renew   Event = iota // the host lists it
	Report               // its outcome comes in
	Suspect              // its host's connection broke SuspectFor ago
	Silent               // no Renew for Term+Skew
	Return               // the host, or its owner, gives it back undone
	Void                 // the host cheated, was revoked or left its place
)

// Events lists them all, for tests.
var Events = []Event{Renew, Report, Suspect, Silent, Return, Void}

func (e Event) String() string {
	return [...]string{"renew", "report", "suspect", "silent", "return", "void"}[e]
}

// Facts are what the table asks about an attempt and its chunk.
type Facts struct {
	State   crowd.AttemptState
	Open    bool // its chunk wants votes (neither decided nor failed)
	Voted   bool // another attempt of the same owner's group is live or counted in this chunk
	Same    bool // Report only: the digest equals that of the report that is in
	Decided bool // its chunk has a verdict
}

// Effect is what follows. The zero Effect with the old state: nothing.
type Effect struct {
	State   crowd.AttemptState
	Answer  crowd.ReportAnswer // to a Report, else empty
	Extend  bool               // its silence counts anew from now
	Drop    bool               // tell the host that it isn't its any more
	Next    bool               // another attempt may start (beside it, if it is still leased)
	Counts  bool               // its outcome votes from now on
	Revisit bool               // if it counted: its chunk's verdict is to be taken again without it, as a new version
}

// Step is the table. It is total: every pair of state and event has its effect, and applying an event twice changes no more than once.
func Step(f Facts, e Event) Effect {
	stay := Effect{State: f.State}
	live := f.State == crowd.AttemptLeased || f.State == crowd.AttemptExpired
	switch e {
	case Renew:
		return renew(f)
	case Report:
		return report(f)
	case Suspect:
		stay.Next = f.State == crowd.AttemptLeased
		return stay
	case Silent:
		if f.State == crowd.AttemptLeased {
			return Effect{State: crowd.AttemptExpired, Next: true}
		}
	case Return:
		if live {
			return Effect{State: crowd.AttemptFailed, Next: true}
		}
	case Void:
		if f.State == crowd.AttemptVoid {
			return stay
		}
		return Effect{State: crowd.AttemptVoid, Drop: live, Next: live || f.Open, Revisit: f.State == crowd.AttemptReported && f.Decided}
	}
	return stay
}

func renew(f Facts) Effect {
	stay := Effect{State: f.State}
	switch f.State {
	case crowd.AttemptLeased:
		stay.Extend = f.Open
		stay.Drop = !f.Open // worth nothing any more; it may still report
	case crowd.AttemptExpired:
		stay.Drop = !f.Open || f.Voted
	case crowd.AttemptReported: // its Reported was lost: the host says its report again and gets a repeat
	default:
		stay.Drop = true
	}
	return stay
}

func report(f Facts) Effect {
	switch f.State {
	case crowd.AttemptLeased, crowd.AttemptExpired:
		switch {
		case !f.Open:
			return Effect{State: crowd.AttemptReported, Answer: crowd.ReportDecided}
		case f.Voted:
			return Effect{State: crowd.AttemptExpired, Answer: crowd.ReportSpare}
		}
		return Effect{State: crowd.AttemptReported, Answer: crowd.ReportAccepted, Counts: true}
	case crowd.AttemptReported:
		if f.Same {
			return Effect{State: f.State, Answer: crowd.ReportRepeat}
		}
		return Effect{State: f.State, Answer: crowd.ReportConflict}
	case crowd.AttemptFailed:
		return Effect{State: f.State, Answer: crowd.ReportConflict}
	}
	return Effect{State: f.State, Answer: crowd.ReportVoid}
}

// HostDeadline is until when a host may act for what needs a lease, if it sent the renewal that was answered at sent, on its own Clock.
func HostDeadline(sent time.Duration) time.Duration { return sent + crowd.Term }

// ExpiresAt is when an attempt whose host was last heard at renewed counts as expired, on the broker's clock.
func ExpiresAt(renewed time.Time) time.Time { return renewed.Add(crowd.Term + crowd.Skew) }

// NextFrom is when the next attempt may start beside one whose host's connection broke at broke.
func NextFrom(broke time.Time) time.Time { return broke.Add(crowd.SuspectFor) }

// AfterStart is until when a broker that started at start takes every attempt that it found as held.
func AfterStart(start time.Time) time.Time { return ExpiresAt(start) }

// Orphaned reports whether a host that last heard of the broker at heard should give up what it computes, at now; both on its Clock.
func Orphaned(heard, now, grace time.Duration) bool { return now-heard > grace }

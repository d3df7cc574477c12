package sched

import (
	"time"

	"github.com/crowdcloud/crowd"
)

// Tried is an attempt at a chunk, as far as the choice of its next host goes.
type Tried struct {
	Group   string
	Host    crowd.HostID
	Network string
	Seat    bool          // live or counted: its group can't have another
	Failed  bool          // ended by the host's own fault
	Ago     time.Duration // since it ended
}

// RetryAfter is how long a chunk stays away from a host that failed it by a fault of its own.
const RetryAfter = 5 * time.Second

// Taker is a host that may take a chunk.
type Taker struct {
	Group   string
	Host    crowd.HostID
	Network string
}

// MayTake says whether h may take a chunk that was tried so, and how well that spreads the votes: 0 best, more is worse (same network, tried by
// this group before).
func MayTake(h Taker, tried []Tried) (ok bool, cost int) {
	for _, t := range tried {
		switch {
		case t.Seat && t.Group == h.Group:
			return false, 0
		case t.Failed && t.Host == h.Host && t.Ago < RetryAfter:
			return false, 0
		case t.Seat && t.Network == h.Network && h.Network != "":
			cost++
		case t.Group == h.Group:
			cost++
		}
	}
	return true, cost
}

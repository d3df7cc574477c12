package host

import (
	"cmp"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/guest"
)

// Status is the owner's view of the machine.
type Status struct {
	Name      string          `json:"name"`
	ID        crowd.HostID    `json:"id"`
	Broker    string          `json:"broker"`
	Place     crowd.Place     `json:"place"`
	Joined    time.Time       `json:"joined"`
	Since     time.Time       `json:"since"` // of this process
	Version   string          `json:"version"`
	Upgrading *Upgrading      `json:"upgrading,omitempty"`
	Failed    string          `json:"upgrade_failed,omitempty"` // why this agent wasn't replaced
	Connected bool            `json:"connected"`
	Trouble   string          `json:"trouble,omitempty"` // why it isn't connected
	State     crowd.Readiness `json:"state"`
	Why       crowd.Reason    `json:"why,omitempty"`
	StateFrom time.Time       `json:"state_since,omitzero"` // when it isn't ready
	Until     time.Time       `json:"until,omitzero"`       // when a pause ends by itself
	Presence  string          `json:"presence"`             // honest: there is no source yet

	Slots      int           `json:"slots"`
	SlotsUsed  int           `json:"slots_used"`
	Memory     int64         `json:"memory_bytes"` // lent
	MemoryUsed int64         `json:"memory_used_bytes"`
	Cache      int64         `json:"cache_bytes"`
	CacheUsed  int64         `json:"cache_used_bytes"`
	Freezes    int           `json:"freezes_today"`
	SlowestMs  int64         `json:"slowest_freeze_ms"`
	Done       int64         `json:"done"`   // attempts that counted, since the start
	Unsaid     int           `json:"unsaid"` // outcomes that wait for the broker
	Guests     []GuestRow    `json:"guests"`
	Layers     []guest.Layer `json:"layers"`
}

// GuestRow is one attempt on this machine.
type GuestRow struct {
	Job     crowd.JobID  `json:"job"`
	Name    string       `json:"name,omitempty"`
	First   uint64       `json:"chunk"`
	N       int          `json:"attempt"`
	Units   uint64       `json:"units"`
	Done    uint64       `json:"done"`
	Fuel    uint64       `json:"fuel"`
	Program crowd.Digest `json:"program,omitzero"`
	State   string       `json:"state"` // waiting | running | frozen | done
	Since   time.Time    `json:"since,omitzero"`
	Memory  int64        `json:"memory_bytes"` // at most
}

// NoPresence says what the agent can't see.
const NoPresence = "not watched in this version: pause and hours are what stops it"

// Status tells how things are now.
func (a *Agent) Status() Status {
	now := time.Now()
	used, most := int64(0), a.o.Capacity.DiskBytes
	if a.cache != nil {
		used, most = a.cache.Usage()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.owner.want(now)
	a.felt.today(now)
	h := a.profile.Host
	s := Status{
		Name: h.Name, ID: h.ID, Broker: a.profile.Broker, Place: h.Place, Joined: a.profile.Joined, Since: a.started, Version: a.o.Platform.Agent,
		Connected: a.conn != nil, State: w.State, Why: w.Why, StateFrom: w.Since, Presence: NoPresence,
		Slots: a.o.Capacity.Slots, Memory: a.o.Capacity.MemoryBytes, Cache: most, CacheUsed: used,
		Freezes: a.felt.freezes, SlowestMs: int64(a.felt.slowest + 0.5), Done: a.done, Guests: []GuestRow{}, Layers: a.o.Engine.Layers(),
	}
	if a.up != nil {
		up := a.up.Upgrading
		up.Left = a.liveLocked()
		s.Upgrading = &up
	}
	if a.o.Failed != nil {
		s.Failed = a.o.Failed.Error()
	}
	if a.owner.Paused {
		s.Until = a.owner.Until
	}
	if !s.Connected && a.lastErr != nil {
		s.Trouble = a.lastErr.Error()
	}
	for _, at := range a.held {
		g := GuestRow{
			Job: at.Job, First: at.First, N: at.N, Units: at.count, Done: at.unitsDone.Load(), Fuel: at.fuel.Load(),
			Program: at.program, State: "waiting", Since: at.since, Memory: at.memory,
		}
		if at.spec != nil {
			g.Name = at.spec.Name
		}
		switch {
		case at.report != nil:
			g.State = "done"
			s.Unsaid++
		case at.running && a.frozen:
			g.State = "frozen"
		case at.running:
			g.State = "running"
		}
		if at.running {
			s.SlotsUsed++
			s.MemoryUsed += at.memory
		}
		s.Guests = append(s.Guests, g)
	}
	slices.SortFunc(s.Guests, func(x, y GuestRow) int {
		return cmp.Or(x.Since.Compare(y.Since), slices.Compare(x.Job[:], y.Job[:]), cmp.Compare(x.First, y.First), cmp.Compare(x.N, y.N))
	})
	return s
}

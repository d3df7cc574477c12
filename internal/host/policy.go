package host

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
)

// Policy is what the owner allows, whatever the broker says. The zero Policy lends half of the machine at all times to anybody.
type Policy struct {
	CPU       int               // percent of the cores; 0: 50
	Memory    int               // percent; 0: 50
	Disk      int64             // bytes for the cache; 0: a tenth of what is free, at most 20 GiB
	Hours     []Window          // local time; none: always
	Signed    bool              // only programs signed by a publisher: none are yet, so nothing runs
	Programs  []crowd.Digest    // denied
	Accounts  []crowd.AccountID // denied
	MoveAfter time.Duration     // paused so long, attempts go back; 0: one minute
}

// Window is a span of each of some days in local time; To before From ends on the next day; equal: the whole day.
type Window struct {
	Days     [7]bool // by time.Weekday, of the start
	From, To time.Duration
}

// open reports whether t lies in any window, and until when that stays so at least.
func open(hours []Window, t time.Time) (bool, time.Time) {
	next := t.Add(24 * time.Hour)
	if len(hours) == 0 {
		return true, next
	}
	is := inAny(hours, t)
	for _, w := range hours {
		for day := -1; day <= 1; day++ {
			for _, at := range []time.Duration{w.From, w.To} {
				y, m, d := t.Date()
				edge := time.Date(y, m, d+day, 0, 0, int(at/time.Second), 0, t.Location())
				if edge.After(t) && edge.Before(next) {
					next = edge
				}
			}
		}
	}
	return is, next
}

func inAny(hours []Window, t time.Time) bool {
	now := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second
	today, yesterday := t.Weekday(), (t.Weekday()+6)%7
	return slices.ContainsFunc(hours, func(w Window) bool {
		switch {
		case w.From < w.To:
			return w.Days[today] && now >= w.From && now < w.To
		case w.From == w.To:
			return w.Days[today]
		}
		return w.Days[today] && now >= w.From || w.Days[yesterday] && now < w.To
	})
}

// refuses says why the owner doesn't want this account's job, "" if it may run.
func (p *Policy) refuses(account crowd.AccountID, spec *crowd.JobSpec) crowd.Reason {
	d, err := crowd.ParseDigest(spec.Program)
	if p.Signed || err != nil || slices.Contains(p.Programs, d) || slices.Contains(p.Accounts, account) {
		return crowd.OwnerPolicy
	}
	return ""
}

func (p *Policy) moveAfter() time.Duration {
	if p.MoveAfter > 0 {
		return p.MoveAfter
	}
	return time.Minute
}

const ownerName = "owner.json"

// owner is what the owner wants; pure but for load and save. Guarded by Agent.mu.
type owner struct {
	Paused bool      `json:"paused"`
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"` // resumes by itself; zero: no
	Left   bool      `json:"left,omitempty"`

	policy Policy
	asleep bool      // the machine is about to sleep, or sleeps
	shut   time.Time // when it last stopped being ready; zero while ready
}

// wish is what follows from it now.
type wish struct {
	State    crowd.Readiness
	Why      crowd.Reason
	Since    time.Time
	GiveBack bool      // frozen long enough: attempts go back
	Next     time.Time // when it has to be asked again
}

// want decides at now. It remembers since when the host hasn't been ready.
func (o *owner) want(now time.Time) wish {
	if o.Paused && !o.Until.IsZero() && !now.Before(o.Until) {
		o.Paused, o.Until = false, time.Time{}
	}
	in, edge := open(o.policy.Hours, now)
	w := wish{State: crowd.Ready, Next: edge}
	switch {
	case o.Left:
		w.State, w.Why = crowd.Leaving, crowd.OwnerLeft
	case o.Paused:
		w.State, w.Why = crowd.Paused, crowd.OwnerPaused
		if !o.Until.IsZero() {
			w.Next = earlier(w.Next, o.Until)
		}
	case o.asleep:
		w.State, w.Why = crowd.Paused, crowd.OwnerSleep
	case !in:
		w.State, w.Why = crowd.Paused, crowd.OwnerSchedule
	}
	if w.State == crowd.Ready {
		o.shut = time.Time{}
		return w
	}
	if o.shut.IsZero() {
		o.shut = now
	}
	w.Since = o.shut
	back := o.shut.Add(o.policy.moveAfter())
	if w.GiveBack = o.Left || !now.Before(back); !w.GiveBack {
		w.Next = earlier(w.Next, back)
	}
	return w
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// loadOwner reads the wishes of an earlier life: a pause outlives a restart.
func loadOwner(dir string) (o owner) {
	b, err := os.ReadFile(filepath.Join(dir, ownerName))
	if err == nil {
		_ = json.Unmarshal(b, &o) // a damaged file is no wish
	}
	return o
}

func (o *owner) save(dir string) error {
	b, _ := json.Marshal(o)
	return writeFile(filepath.Join(dir, ownerName), append(b, '\n'))
}

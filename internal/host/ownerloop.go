package host

import (
	"context"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/guest"
)

// lookEvery is how often the owner's loop looks at the clocks besides its appointments: a machine that slept is noticed by it.
const lookEvery = 5 * time.Second

// ownerLoop makes true what the owner wants: appointments (hours, the end of a pause, giving back), sleep, grace.
func (a *Agent) ownerLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	mono, last := time.Now(), time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.rethink:
		case <-timer.C:
		}
		now := time.Now()
		next := a.obey(now)
		a.mu.Lock()
		clock := a.clock.Advance(a.o.boot(), now)
		a.ageLocked(now.Sub(mono)) // a freeze between two looks counts by the later one: the slack covers that
		orphaned, left := a.orphanedLocked(clock)
		a.mu.Unlock()
		slept := clock - last - now.Sub(mono)
		mono, last = now, clock
		if slept > 2*lookEvery {
			a.book.add(Entry{What: "machine.slept", Ms: slept.Seconds() * 1000})
		}
		if slept > napMost {
			poke(a.changed)
		}
		if orphaned {
			a.returnAll(crowd.NetworkBroker)
			left = lookEvery
		}
		timer.Reset(min(lookEvery, max(time.Millisecond, min(left, next.Sub(now)))))
	}
}

// obey freezes, thaws and gives back as the owner wants it at now, and says when to ask again. When it returns, it is so.
func (a *Agent) obey(now time.Time) (next time.Time) {
	a.gate.Lock()
	a.mu.Lock()
	w := a.owner.want(now)
	freeze := w.State == crowd.Paused || w.State == crowd.Leaving
	changed := freeze != a.frozen
	var slots []guest.Slot
	if changed {
		a.frozen = freeze
		if freeze {
			a.thawed = make(chan struct{})
		} else {
			close(a.thawed)
		}
		for _, at := range a.held {
			if at.slot != nil {
				slots = append(slots, at.slot)
			}
		}
	}
	a.mu.Unlock()
	begun := time.Now()
	if changed {
		each(slots, freeze)
	}
	took := time.Since(begun)
	a.gate.Unlock()

	if changed {
		a.noteChange(freeze, w.Why, len(slots), took)
		poke(a.changed)
	}
	if w.GiveBack {
		a.returnAll(w.Why)
		poke(a.changed)
	}
	return w.Next
}

// each freezes or thaws all at once. A guest that can't be is killed: the owner comes first.
func each(slots []guest.Slot, freeze bool) {
	var wg sync.WaitGroup
	for _, s := range slots {
		wg.Go(func() {
			turn := s.Thaw
			if freeze {
				turn = s.Freeze
			}
			if turn() != nil {
				_ = s.Close()
			}
		})
	}
	wg.Wait()
}

func (a *Agent) noteChange(freeze bool, why crowd.Reason, guests int, took time.Duration) {
	ms := float64(took.Microseconds()) / 1000
	e := Entry{What: "host.thawed", Guests: guests, Ms: ms}
	if freeze {
		e.What, e.Reason = "host.frozen", why
		a.mu.Lock()
		a.felt.note(time.Now(), ms)
		a.mu.Unlock()
	}
	a.book.add(e)
}

// felt counts what the owner may have felt today.
type felt struct {
	day     int
	freezes int
	slowest float64
}

func (f *felt) note(now time.Time, ms float64) {
	f.today(now)
	f.freezes++
	f.slowest = max(f.slowest, ms)
}

func (f *felt) today(now time.Time) {
	if d := now.Year()*1000 + now.YearDay(); d != f.day {
		*f = felt{day: d}
	}
}

// Pause freezes every guest, for d or until Resume (0), and returns when they are frozen.
func (a *Agent) Pause(d time.Duration) error {
	now := time.Now()
	return a.decide(func(o *owner) {
		if !o.Paused {
			o.Since = now
		}
		o.Paused, o.Until = true, time.Time{}
		if d > 0 {
			o.Until = now.Add(d)
		}
	})
}

// Resume ends a pause; hours still count.
func (a *Agent) Resume() error {
	return a.decide(func(o *owner) { o.Paused, o.Until = false, time.Time{} })
}

// Leave gives everything back and ends the membership; Run returns nil when the broker knows.
func (a *Agent) Leave() error {
	return a.decide(func(o *owner) { o.Left = true })
}

// decide changes the owner's wish, first in fact, then on disk.
func (a *Agent) decide(f func(*owner)) error {
	a.mu.Lock()
	f(&a.owner)
	o := a.owner
	a.mu.Unlock()
	a.obey(time.Now())
	poke(a.rethink)
	if err := o.save(a.o.Dir); err != nil {
		return crowd.Errorf(crowd.Internal, "", "it is so now, but can't be kept over a restart: %w", err)
	}
	return nil
}

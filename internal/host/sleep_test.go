package host

import (
	"context"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/sense"
)

// TestDoze: before the machine sleeps guests stop, what is done is said and acknowledged, the rest goes back without blame, all in 2 s; awake, it
// dials anew at once and lends again.
func TestDoze(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	says := make(chan sense.SleepOptions, 1)
	m := start(t, joined(t, b), e, func(o *Options) {
		o.backoff = func(int) time.Duration { return time.Hour }
		o.sleep = func(ctx context.Context, o sense.SleepOptions) error {
			says <- o
			<-ctx.Done()
			return nil
		}
	})
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	_ = c.Send(leaseOf(1, 2, digest.Of(nil)))
	_ = c.Send(leaseOf(3, 2, digest.Of(nil)))
	until(t, "two run", func() bool { return e.count("run") == 2 })
	system := <-says
	slept := make(chan time.Duration)
	go func() {
		begun := time.Now()
		system.Before()
		slept <- time.Since(begun)
	}()
	back := map[uint64]bool{}
	for range 3 {
		r := b.returned()
		back[r.First] = r.Reason == crowd.OwnerSleep
	}
	if took := <-slept; len(back) != 3 || !back[0] || !back[1] || !back[3] || took > dozeWait {
		t.Errorf("%v after %v", back, took)
	}
	if e.count("freeze") != 2 {
		t.Errorf("%d guests froze", e.count("freeze"))
	}
	if s := m.Status(); s.State != crowd.Paused || s.Why != crowd.OwnerSleep || len(s.Guests) != 0 {
		t.Errorf("%+v", s)
	}
	_ = c.Send(leaseOf(9, 1, digest.Of(nil)))
	if r := b.returned(); r.Reason != crowd.OwnerSleep || r.First != 9 {
		t.Errorf("%+v", r)
	}
	system.After()
	b.session() // within its ten seconds, not an hour
	b.renewed("room again", func(r *crowd.Renew) bool { return r.State == crowd.Ready && r.Room == 2 })
}

// TestDozeReports: a report that waits is said before the machine sleeps; without a broker nothing holds the sleep up for long.
func TestDozeReports(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{stdout: []byte{}}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	r := b.report()
	slept := make(chan time.Duration, 1)
	go func() {
		begun := time.Now()
		m.doze(t.Context())
		slept <- time.Since(begun)
	}()
	until(t, "it dozes", func() bool { return m.Status().State == crowd.Paused })
	select {
	case d := <-slept:
		t.Errorf("it sleeps after %v with a report unacknowledged", d)
	default:
	}
	_ = c.Send(answer(r, crowd.ReportAccepted))
	if d := <-slept; d > sayWait {
		t.Errorf("it took %v", d)
	}
	if s := m.Status(); len(s.Guests) != 0 || s.Done != 1 {
		t.Errorf("%+v", s)
	}
}

// TestIncarnation: the highest that the broker has proven is kept; a lower one is refused, said, and dialled again until it is mended.
func TestIncarnation(t *testing.T) {
	b := newFakeBroker(t)
	dir := joined(t, b)
	b.incarnation.Store(3)
	m := start(t, dir, &fakeEngine{}, nil)
	b.session()
	until(t, "it is connected", func() bool { return m.Status().Connected })
	_ = m.stop()

	b.incarnation.Store(2)
	m = start(t, dir, &fakeEngine{}, nil)
	until(t, "it is refused", func() bool { return m.refusedFor() == crowd.BrokerOld })
	if s := m.Status(); s.Connected || s.Trouble == "" {
		t.Errorf("%+v", s)
	}
	b.incarnation.Store(4)
	late := time.After(10 * time.Second)
	for ok := false; !ok; {
		select {
		case c := <-b.conns: // those that it left
			_, err := c.Receive(t.Context())
			if ok = err == nil; !ok {
				<-c.Done()
			} else {
				c.Close(nil)
				<-c.Done()
			}
		case <-late:
			t.Fatal("it doesn't come back")
		}
	}
	_ = m.stop()
	if n := loadSeen(dir, m.profile.Fingerprint); n != 4 {
		t.Errorf("%d is kept", n)
	}
	if n := loadSeen(dir, "another broker's"); n != 0 {
		t.Errorf("%d for another broker", n)
	}
	refused := 0
	_ = ReadLog(t.Context(), dir, time.Time{}, false, func(e Entry) error {
		if e.What == "broker.refused" && e.Reason == crowd.BrokerOld {
			refused++
		}
		return nil
	})
	if refused != 1 {
		t.Errorf("said %d times", refused)
	}
}

func (m *machine) refusedFor() crowd.Reason {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := crowd.AsError(m.lastErr); e != nil {
		return e.Reason
	}
	return ""
}

package lease

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crowdcloud/crowd"
)

var states = []crowd.AttemptState{crowd.AttemptLeased, crowd.AttemptExpired, crowd.AttemptReported, crowd.AttemptFailed, crowd.AttemptVoid}

// all enumerates every combination of facts.
func all() (fs []Facts) {
	for _, s := range states {
		for i := range 16 {
			f := Facts{State: s, Open: i&1 > 0, Voted: i&2 > 0, Same: i&4 > 0, Decided: i&8 > 0}
			if !(f.Open && f.Decided) {
				fs = append(fs, f)
			}
		}
	}
	return fs
}

// TestTable writes the table as it is, one line a pair, for the eye; "·" is no change.
func TestTable(t *testing.T) {
	open, decided := Facts{Open: true}, Facts{Decided: true}
	type row struct {
		name string
		f    Facts
		e    Event
		want [5]string // leased expired reported failed void
	}
	voted, same := open, open
	voted.Voted, same.Same = true, true
	sameDecided := decided
	sameDecided.Same = true
	for _, r := range []row{
		{"report, open", open, Report, [5]string{"reported accepted counts", "reported accepted counts", "· conflict", "· conflict", "· void"}},
		{"report, owner voted", voted, Report, [5]string{"expired spare", "· spare", "· conflict", "· conflict", "· void"}},
		{"report, same digest", same, Report, [5]string{"reported accepted counts", "reported accepted counts", "· repeat", "· conflict", "· void"}},
		{"report, decided", decided, Report, [5]string{"reported decided", "reported decided", "· conflict", "· conflict", "· void"}},
		{"report, decided, same", sameDecided, Report, [5]string{"reported decided", "reported decided", "· repeat", "· conflict", "· void"}},
		{"report, chunk failed", Facts{}, Report, [5]string{"reported decided", "reported decided", "· conflict", "· conflict", "· void"}},
		{"renew, open", open, Renew, [5]string{"· extend", "·", "·", "· drop", "· drop"}},
		{"renew, owner voted", voted, Renew, [5]string{"· extend", "· drop", "·", "· drop", "· drop"}},
		{"renew, decided", decided, Renew, [5]string{"· drop", "· drop", "·", "· drop", "· drop"}},
		{"suspect", open, Suspect, [5]string{"· next", "·", "·", "·", "·"}},
		{"silent", open, Silent, [5]string{"expired next", "·", "·", "·", "·"}},
		{"return", open, Return, [5]string{"failed next", "failed next", "·", "·", "·"}},
		{"void, open", open, Void, [5]string{"void drop next", "void drop next", "void next", "void next", "·"}},
		{"void, decided", decided, Void, [5]string{"void drop next", "void drop next", "void revisit", "void", "·"}},
	} {
		for i, s := range states {
			r.f.State = s
			if got := show(s, Step(r.f, r.e)); got != r.want[i] {
				t.Errorf("%s, %s: %q, wanted %q", r.name, s, got, r.want[i])
			}
		}
	}
}

func show(from crowd.AttemptState, e Effect) string {
	s := "·"
	if e.State != from {
		s = string(e.State)
	}
	if e.Answer != "" {
		s += " " + string(e.Answer)
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{e.Extend, "extend"}, {e.Drop, "drop"}, {e.Next, "next"}, {e.Counts, "counts"}, {e.Revisit, "revisit"}} {
		if f.set {
			s += " " + f.name
		}
	}
	return s
}

// TestTotal: every pair has an outcome that the page allows, and what happens twice happens once.
func TestTotal(t *testing.T) {
	n := 0
	for _, f := range all() {
		for _, e := range Events {
			n++
			at := fmt.Sprintf("%+v, %v", f, e)
			got := Step(f, e)
			if got.State == "" || got.State != f.State && !f.State.May(got.State) {
				t.Errorf("%s: %s may not follow %s", at, got.State, f.State)
			}
			if (got.Answer != "") != (e == Report) {
				t.Errorf("%s: answer %q", at, got.Answer)
			}
			if got.Counts && (got.Answer != crowd.ReportAccepted || !f.Open || f.Voted) {
				t.Errorf("%s: counts without right", at)
			}
			if got.Extend && got.State != crowd.AttemptLeased {
				t.Errorf("%s: extends what isn't leased", at)
			}
			again := f
			again.State, again.Same = got.State, e == Report || f.Same
			if got.Answer == crowd.ReportAccepted || got.Answer == crowd.ReportDecided {
				if second := Step(again, e); second.Answer != crowd.ReportRepeat || second.Counts || second.State != got.State {
					t.Errorf("%s: the same report again: %+v", at, second)
				}
			} else if second := Step(again, e); second.State != got.State || second.Counts || second.Revisit {
				t.Errorf("%s: twice: %+v", at, second)
			}
		}
	}
	if n != 5*12*len(Events) {
		t.Errorf("%d pairs", n)
	}
}

func TestDeadlines(t *testing.T) {
	at := time.Unix(1000, 0)
	if got := ExpiresAt(at).Sub(at); got != 14*time.Second || AfterStart(at) != ExpiresAt(at) {
		t.Error(got)
	}
	// a host whose clock and the broker's run alike stops before anybody else may start, whatever the way of the message took
	if HostDeadline(time.Minute)-time.Minute+crowd.Skew > ExpiresAt(at).Sub(at) {
		t.Error("host outlives its lease")
	}
	if NextFrom(at).Sub(at) != crowd.SuspectFor {
		t.Error("suspect")
	}
	if Orphaned(0, crowd.Grace, crowd.Grace) || !Orphaned(0, crowd.Grace+1, crowd.Grace) {
		t.Error("grace")
	}
}

func TestWeigh(t *testing.T) {
	for r := range crowd.Reasons {
		w := Weigh(r)
		switch r.Party() {
		case "owner", "broker", "customer", "policy":
			if w != Blameless {
				t.Errorf("%s weighs %d", r, w)
			}
		}
		if MayReturn(r) && w == Fault {
			t.Errorf("a host may accuse itself: %s", r)
		}
	}
	for _, r := range []crowd.Reason{crowd.OwnerStopped, crowd.OwnerSleep} {
		if !MayReturn(r) || Weigh(r) != Blameless {
			t.Errorf("%s may be given as a reason: %v, it weighs %d", r, MayReturn(r), Weigh(r))
		}
	}
	if Weigh(crowd.HostLost) != Loss || Weigh(crowd.HostFailed) != Failure || Weigh(crowd.GuestTime) != Failure || Weigh(crowd.HostCheated) != Fault {
		t.Error("weights")
	}
}

// TestClock: now never goes back, and no sleep or jump makes it fall behind either clock.
func TestClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c Clock
		boot, wall, before := time.Duration(0), time.Unix(0, 0), time.Duration(0)
		c.Advance(boot, wall)
		for range rapid.IntRange(1, 50).Draw(t, "samples") {
			db := time.Duration(rapid.Int64Range(0, 1e12).Draw(t, "boot"))
			dw := time.Duration(rapid.Int64Range(-1e12, 1e12).Draw(t, "wall"))
			boot, wall = boot+db, wall.Add(dw)
			now := c.Advance(boot, wall)
			if now < before+db || now < before+dw || now != c.Now() {
				t.Fatalf("now %v after %v, boot +%v, wall +%v", now, before, db, dw)
			}
			before = now
		}
	})
}

package broker

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// A host that is proved wrong in one job is believed nowhere that hasn't settled: what it answered unchecked is done again, its pay is taken back,
// and so it is if the broker dies right after the conviction.
func TestConvictionReachesBack(t *testing.T) {
	for _, c := range []struct {
		name            string
		quorum          int
		restart, cancel bool
	}{{"unchecked", 1, false, false}, {"checked", 2, false, false}, {"restart", 1, true, false}, {"cancelled meanwhile", 1, false, true}} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				ctx := context.Background()
				all := w.owners("alice", "carol", "mallory")
				mallory := all[2]
				mallory.takes, mallory.slots = 200*time.Millisecond, 4
				var lies atomic.Bool
				lies.Store(c.quorum == 1)
				mallory.result = func(first, unit uint64, r *crowd.UnitResult, x *crowd.UnitContent) {
					if lies.Load() {
						liar(first, unit, r, x)
					}
				}
				s := w.spec(1 << 20)
				s.Name, s.Chunk, s.Verify = "long", 4, crowd.Verify{Quorum: c.quorum}
				s.Price.Max = 500 * crowd.Credit
				for _, f := range all {
					f.run()
				}
				long := w.submit(s)
				w.await(long, time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone >= 200 })
				if m := w.balances(mallory.owner); m.Pending == 0 {
					t.Fatal("mallory earned nothing to be taken back")
				}
				if c.restart {
					w.b.mu.Lock() // nothing is taken back before the restart
					for _, j := range w.b.jobs {
						j.recount = &recount{tally: newTally()}
					}
					w.b.mu.Unlock()
				}
				lies.Store(true)
				check := w.spec(64)
				check.Name, check.Chunk = "check", 4
				short := w.submit(check)
				w.await(short, time.Hour, func(j crowd.Job) bool { return j.Progress.Differed > 0 })
				if c.restart {
					w.restart()
					for _, f := range all[:2] {
						f.run()
					}
				}
				if c.cancel {
					_, err := w.b.CancelJob(ctx, w.ada, long.ID.String())
					must(t, err)
					long = w.done(long, time.Hour)
				}
				for {
					w.b.mu.Lock()
					j := w.b.jobs[long.ID]
					left := 0
					if j != nil {
						left = len(j.revisits)
					}
					w.b.mu.Unlock()
					if left == 0 {
						break
					}
					time.Sleep(time.Second)
				}
				if m := w.balances(mallory.owner); m.Pending != 0 || m.Free != 0 {
					t.Errorf("mallory keeps %+v", m)
				}
				if !c.cancel {
					w.await(long, time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone >= 900 })
					time.Sleep(time.Minute)
				}
				for _, a := range w.attempts(long) {
					if a.Host == mallory.host.ID && (a.State == crowd.AttemptReported && a.Counts || a.Paid != 0) {
						t.Fatalf("mallory's answer stands: %+v", a)
					}
				}
				events, err := w.b.Events(ctx, w.ada, long.ID.String(), 0, 100_000, false)
				must(t, err)
				told := false
				for _, e := range events {
					told = told || e.What == "verdicts.reversed" && e.Reason == crowd.HostCheated && strings.Contains(e.Text, "mallory")
				}
				if !told {
					t.Error("the customer isn't told")
				}
				if !c.cancel {
					n := 0
					must(t, w.b.EachUnit(ctx, w.ada, long.ID.String(), 0, 800, func(r crowd.UnitRow, x *crowd.UnitContent) bool {
						n++
						if x == nil || strings.Contains(string(x.Stdout), "lie") {
							t.Errorf("unit %d: %+v", r.Unit, x)
						}
						return !t.Failed()
					}))
					long, err = w.b.CancelJob(ctx, w.ada, long.ID.String())
					must(t, err)
					long = w.done(long, time.Hour)
				}
				if long.Escrow != long.Paid+long.Returned {
					t.Errorf("held %d, paid %d, returned %d", long.Escrow, long.Paid, long.Returned)
				}
				sum, err := w.st.Balance(ctx, crowd.EscrowBook(long.ID))
				must(t, err)
				if sum != 0 {
					t.Errorf("%d stay in escrow", sum)
				}
			})
		})
	}
}

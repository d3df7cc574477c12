package broker

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

func TestNoCredit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.owners("alice", "bob")
		eve := w.account("eve", 0)
		must(t, w.b.Grant(context.Background(), w.operator, "eve", 6140*crowd.Credit/100, "x"))
		must(t, w.b.Grant(context.Background(), w.operator, "eve", 6140*crowd.Credit/100, "x")) // once
		s := w.spec(4)
		s.Program = w.upload(eve, []byte("\x00asm hers")).String()
		s.Price.Max = 250 * crowd.Credit
		_, err := w.b.Submit(context.Background(), eve, s)
		wantErr(t, err, crowd.Exhausted, crowd.CustomerCredit, "not enough credit: this may cost 250.00 cr, eve has 61.40 free", "crowd account grant eve 190cr", "price.max: 61cr")
		if crowd.AsError(err).HTTPStatus() != 402 {
			t.Error("not 402")
		}
	})
}

func TestConcurrentOrdersCantOverdraw(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.owners("alice", "bob")
		s := w.spec(1)
		s.Price.Max = 300 * crowd.Credit
		var wg sync.WaitGroup
		var mu sync.Mutex
		ok, names := 0, map[string]bool{}
		for range 20 {
			wg.Go(func() {
				j, err := w.b.Submit(context.Background(), w.ada, s)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					ok++
					names[j.Name] = true
				} else if e := crowd.AsError(err); e.Reason != crowd.CustomerCredit {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if ok != 3 || len(names) != 3 {
			t.Errorf("%d orders of 300 of 1000, named %v", ok, names)
		}
		if m := w.balances(w.ada); m.Free != 100*crowd.Credit || m.Held != 900*crowd.Credit {
			t.Errorf("%+v", m)
		}
	})
}

func TestPriceMaxIsReached(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, f := range w.owners("alice", "bob") {
			f.run()
		}
		s := w.spec(1000)
		s.Price.Max = 20_000 // 10 units at 2 × 1000 µcr
		j := w.done(w.submit(s), time.Hour)
		if j.State != crowd.JobFailed || j.Reason != crowd.CustomerPrice || j.Paid+j.Returned != j.Escrow || j.Progress.UnitsDone == 0 || j.Paid > 20_000 {
			t.Errorf("%s (%s), paid %d, returned %d, %+v", j.State, j.Reason, j.Paid, j.Returned, j.Progress)
		}
		if m := w.balances(w.ada); m.Held != 0 || m.Free != 1000*crowd.Credit-j.Paid {
			t.Errorf("%+v", m)
		}
	})
}

func TestCancel(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		for _, f := range w.owners("alice", "bob") {
			f.run()
		}
		j := w.submit(w.spec(1 << 20))
		w.await(j, time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone > 10 })
		got, err := w.b.CancelJob(ctx, w.ada, j.Name)
		must(t, err)
		if got.State != crowd.JobCancelled || got.Reason != crowd.CustomerCancel || got.Paid+got.Returned != got.Escrow || got.Paid == 0 {
			t.Errorf("%+v", got)
		}
		again, err := w.b.CancelJob(ctx, w.ada, j.ID.String())
		must(t, err)
		if again.Version != got.Version || again.State != got.State {
			t.Errorf("cancelled twice: %+v", again)
		}
		time.Sleep(30 * time.Second)
		for _, f := range w.fakes {
			f.mu.Lock()
			if len(f.held) != 0 {
				t.Errorf("%s still holds %d", f.host.Name, len(f.held))
			}
			f.mu.Unlock()
			if m := w.balances(f.owner); m.Pending != 0 {
				t.Errorf("%+v", m)
			}
		}
	})
}

func TestDeadline(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.owners("alice", "bob") // not connected: queued, with a reason
		s := w.spec(10)
		s.Deadline = "1h"
		j := w.submit(s)
		why, err := w.b.Why(context.Background(), w.ada, j.Name)
		must(t, err)
		if why.State != "queued" || why.Text != "none of 2 hosts fits" || len(why.Excluded) != 1 || why.Excluded[0].Reason != crowd.HostOffline || why.WayOut == "" {
			t.Errorf("%+v", why)
		}
		got := w.done(j, 2*time.Hour)
		if got.State != crowd.JobCancelled || got.Reason != crowd.CustomerDead || got.Returned != got.Escrow {
			t.Errorf("%+v", got)
		}
	})
}

// A job of a thousand million units starves nobody, and costs nothing until it is touched.
func TestSmallJobBesideAHugeOne(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, f := range w.owners("alice", "bob", "carol") {
			f.run()
		}
		huge := w.spec(1e9)
		huge.Name = "huge"
		huge.Price.Max = 500 * crowd.Credit
		h := w.submit(huge)
		w.await(h, time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone > 100 })
		small := w.spec(10)
		start := time.Now()
		j := w.done(w.submit(small), time.Hour)
		if d := time.Since(start); j.State != crowd.JobDone || d > 20*time.Second {
			t.Errorf("%s after %v", j.State, d)
		}
	})
}

func TestIsolation(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		all := w.owners("alice", "bob")
		j := w.submit(w.spec(10))
		eve := w.account("eve", 10)
		for _, ref := range []string{j.ID.String(), j.ID.Short(), j.Name} {
			_, err := w.b.Job(ctx, eve, ref)
			wantErr(t, err, crowd.NotFound, "")
			_, err = w.b.CancelJob(ctx, eve, ref)
			wantErr(t, err, crowd.NotFound, "")
			_, err = w.b.Why(ctx, eve, ref)
			wantErr(t, err, crowd.NotFound, "")
		}
		_, err := w.b.OpenBlob(ctx, eve, w.program)
		wantErr(t, err, crowd.NotFound, "")
		_, err = w.b.Host(ctx, eve, all[0].host.ID.String())
		wantErr(t, err, crowd.NotFound, "")
		_, err = w.b.Submit(ctx, eve, w.spec(1)) // with ada's program
		wantErr(t, err, crowd.Invalid, crowd.CustomerFile, "there is no blob")
		evs, err := w.b.Events(ctx, eve, "", 0, 1000, false)
		must(t, err)
		for _, e := range evs {
			if e.Account != eve.Account.ID {
				t.Errorf("eve sees %+v", e)
			}
		}
		if jobs, _, err := w.b.Jobs(ctx, eve, JobsFilter{}); err != nil || len(jobs) != 0 {
			t.Errorf("%v, %v", jobs, err)
		}
		_, err = w.b.Status(ctx, eve)
		wantErr(t, err, crowd.Denied, crowd.CustomerScope)
		remote := w.operator
		remote.Loopback = false
		_, err = w.b.Status(ctx, remote)
		wantErr(t, err, crowd.Denied, crowd.CustomerScope)
		_, err = w.b.Authenticate(ctx, "ck_nobodys", true)
		wantErr(t, err, crowd.Denied, crowd.CustomerKey)
	})
}

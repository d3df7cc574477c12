package broker

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

func TestLiarIsOutvoted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		all := w.owners("alice", "carol", "mallory")
		mallory := all[2]
		mallory.result = liar
		for _, f := range all {
			f.run()
		}
		j := w.done(w.submit(w.spec(64)), time.Hour)
		if j.State != crowd.JobDone || j.Progress.Differed == 0 {
			t.Fatalf("%s (%s), %+v", j.State, j.Reason, j.Progress)
		}
		if j.Paid != 64*2*1000 {
			t.Errorf("paid %d", j.Paid)
		}
		row, err := w.b.Host(ctx, mallory.owner, "mallory")
		must(t, err)
		if row.State != crowd.HostQuarantined || row.Reason != crowd.HostCheated {
			t.Errorf("mallory is %s (%s)", row.State, row.Reason)
		}
		if m := w.balances(mallory.owner); m.Free != 0 || m.Pending != 0 {
			t.Errorf("mallory has %+v", m)
		}
		why, err := w.b.Why(ctx, mallory.owner, mallory.host.ID.Short())
		must(t, err)
		if why.Reason != crowd.HostCheated || !strings.Contains(why.Text, "it answered b3:") || !strings.Contains(why.Text, "hosts of 2 other owners agree on b3:") {
			t.Errorf("why: %+v", why)
		}
		for u := range uint64(64) {
			_, c, err := w.b.UnitContent(ctx, w.ada, j.ID.String(), u)
			must(t, err)
			if strings.Contains(string(c.Stdout), "lie") {
				t.Errorf("unit %d is a lie", u)
			}
		}
		d, err := w.b.Job(ctx, w.ada, j.ID.String())
		must(t, err)
		for _, s := range d.Hosts {
			if (s.Name == "mallory") != (s.Counted == 0) {
				t.Errorf("%+v", s)
			}
		}
		evs, err := w.b.Events(ctx, w.ada, j.ID.String(), 0, 1000, false)
		must(t, err)
		found := false
		for _, e := range evs {
			found = found || e.What == "chunk.differed" && e.Reason == crowd.HostCheated
		}
		if !found {
			t.Error("the customer isn't told who differed")
		}
	})
}

func TestOneOwnerIsNoQuorum(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice := w.account("alice", 0)
		for _, n := range []string{"a1", "a2", "a3"} {
			w.host(alice, n, "DE").run()
		}
		s := w.spec(10)
		s.Place.In = []string{"DE"}
		_, err := w.b.Submit(context.Background(), w.ada, s)
		wantErr(t, err, crowd.Failed, crowd.CustomerQuorum, "quorum 2 wants hosts of 2 different owners; 1 is enrolled in DE: 1 more needed")
		if m := w.balances(w.ada); m.Free != 1000*crowd.Credit {
			t.Errorf("a refused order costs: %+v", m)
		}
	})
}

func TestNoOwnerTwiceOnAChunk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice, bob := w.account("alice", 0), w.account("bob", 0)
		for _, n := range []string{"a1", "a2", "a3"} {
			w.host(alice, n, "DE").run()
		}
		w.host(bob, "b1", "DE").run()
		j := w.done(w.submit(w.spec(40)), time.Hour)
		if j.State != crowd.JobDone {
			t.Fatal(j.State, j.Reason)
		}
		rows, err := w.b.JobAttempts(context.Background(), w.ada, j.ID.String(), crowd.AttemptRef{}, 1000)
		must(t, err)
		seen := map[uint64]map[crowd.AccountID]bool{}
		for _, a := range rows {
			if seen[a.First] == nil {
				seen[a.First] = map[crowd.AccountID]bool{}
			}
			if a.State == crowd.AttemptReported && seen[a.First][a.Owner] {
				t.Errorf("chunk %d was voted on twice by one owner", a.First)
			}
			seen[a.First][a.Owner] = true
		}
	})
}

func TestPlaceFailsClosed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host(w.account("alice", 0), "alice", "US-CA").run()
		w.host(w.account("bob", 0), "bob", "FR").run()
		w.host(w.account("carol", 0), "carol", "").run()
		s := w.spec(4)
		s.Place.In = []string{"DE"}
		_, err := w.b.Submit(context.Background(), w.ada, s)
		wantErr(t, err, crowd.Failed, crowd.CustomerPlace, "none of 3 enrolled hosts fits", "not in DE")
		s.Place.In = []string{"US", "EU"}
		j := w.done(w.submit(s), time.Minute)
		d, err := w.b.Job(context.Background(), w.ada, j.ID.String())
		must(t, err)
		if len(d.Hosts) != 2 || d.Hosts[0].Name != "alice" || d.Hosts[1].Name != "bob" {
			t.Errorf("%+v", d.Hosts)
		}
		s.Place = crowd.PlaceRule{In: []string{"US"}, Evidence: "contracted"}
		_, err = w.b.Submit(context.Background(), w.ada, s)
		wantErr(t, err, crowd.Failed, crowd.CustomerPlace)
	})
}

func TestOwnHostDoesNotVote(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host(w.ada, "mine", "DE").run()
		w.owners("alice")[0].run()
		_, err := w.b.Submit(context.Background(), w.ada, w.spec(4))
		wantErr(t, err, crowd.Failed, crowd.CustomerQuorum, "1 is enrolled: 1 more needed")
		s := w.spec(4)
		s.Verify.None = true
		if j := w.done(w.submit(s), time.Minute); j.State != crowd.JobDone {
			t.Fatal(j.State)
		}
	})
}

func TestUnwitnessedFuelIsNotPaid(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.owners("alice")[0]
		f.result = func(_, _ uint64, u *crowd.UnitResult, _ *crowd.UnitContent) { u.Fuel = 1e15 } // in a second, at 1 Gfuel/s
		f.run()
		s := w.spec(1)
		s.Verify.None = true
		j := w.done(w.submit(s), time.Minute)
		if j.State != crowd.JobDone || j.Paid == 0 || j.Paid > 1100 {
			t.Errorf("%s, paid %d", j.State, j.Paid)
		}
	})
}

// An answer that nobody repeats is no truth: the chunk fails after as many votes as there may be.
func TestNobodyAgrees(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, f := range w.owners("a", "b", "c", "d", "e", "f", "g", "h") {
			f.result = func(_, _ uint64, _ *crowd.UnitResult, c *crowd.UnitContent) { c.Stdout = []byte(f.host.Name) }
			f.run()
		}
		j := w.done(w.submit(w.spec(1)), time.Hour)
		if j.State != crowd.JobDone || j.Progress.UnitsFailed != 1 || j.Paid != 0 || j.Returned != j.Escrow {
			t.Errorf("%s, %+v, paid %d", j.State, j.Progress, j.Paid)
		}
		for _, f := range w.fakes {
			if h, err := w.b.Host(context.Background(), f.owner, f.host.Name); err != nil || h.State != crowd.HostActive {
				t.Errorf("%s is %s, %v: nobody is convicted without a verdict", f.host.Name, h.State, err)
			}
		}
	})
}

// A chunk that wants several votes is leased to all idle hosts at once: one that looked while the lease of another was on its way is asked again.
func TestWideQuorumWaitsForNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, f := range w.owners("a", "b", "c", "d", "e", "f") {
			f.slots = 1
			f.run()
		}
		time.Sleep(time.Second)
		s := w.spec(1)
		s.Verify.Quorum = 6
		j := w.done(w.submit(s), 3*time.Second)
		if j.State != crowd.JobDone {
			t.Error(j.State)
		}
	})
}

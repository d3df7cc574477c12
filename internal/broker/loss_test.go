package broker

import (
	"context"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

func TestTwoOfThreeHostsDie(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob", "carol", "dave")
		for _, f := range all {
			f.takes = 5 * time.Second
			f.run()
		}
		j := w.submit(w.spec(40))
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.UnitsDone > 0 })
		time.Sleep(time.Second) // they hold something again
		all[0].kill()
		all[1].cut() // computes on, but nobody hears it
		if got := w.done(j, time.Hour); got.State != crowd.JobDone || got.Progress.Lost == 0 {
			t.Errorf("%s, %+v", got.State, got.Progress)
		}
	})
}

// The next attempt starts beside a suspect one after SuspectFor, without waiting for the lease to run out.
func TestSuspectIsReplacedSoon(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob", "carol")
		alice := all[0]
		alice.takes = time.Hour
		for _, f := range all[:2] {
			f.run()
		}
		s := w.spec(1)
		s.Chunk = 1
		start := time.Now()
		j := w.submit(s)
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts == 2 })
		all[2].run()
		time.Sleep(time.Second)
		alice.cut()
		got := w.done(j, time.Minute)
		if d := time.Since(start); got.State != crowd.JobDone || d > 6*time.Second {
			t.Errorf("%s after %v", got.State, d)
		}
	})
}

func TestSilentHostExpires(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob", "carol")
		all[0].run()
		all[1].run()
		alice := all[0]
		alice.silent = true
		s := w.spec(1)
		j := w.submit(s)
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts == 2 })
		time.Sleep(20 * time.Second)
		if row := w.await(j, 0, func(crowd.Job) bool { return true }); row.Progress.Lost != 0 {
			t.Errorf("a host that renews isn't lost: %+v", row.Progress)
		}
		alice.cut()
		all[2].run()
		got := w.done(j, time.Minute)
		if got.State != crowd.JobDone {
			t.Fatal(got.State)
		}
		// its report comes late: the chunk is decided, nobody is blamed
		alice.set(func() { alice.silent = false })
		alice.run()
		alice.mu.Lock()
		var rep *crowd.Report
		for _, r := range alice.reports {
			rep = r
		}
		alice.mu.Unlock()
		alice.say(&crowd.Message{Report: rep})
		time.Sleep(time.Second)
		if alice.count(crowd.ReportDecided) != 1 {
			t.Errorf("answers: %+v", alice.answers)
		}
		alice.say(&crowd.Message{Report: rep})
		time.Sleep(time.Second)
		if alice.count(crowd.ReportRepeat) < 1 {
			t.Errorf("answers: %+v", alice.answers)
		}
		if m := w.balances(alice.owner); m.Free != 0 {
			t.Errorf("a late answer isn't paid: %+v", m)
		}
	})
}

func TestLateReportCountsWhileOpen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob", "carol")
		for _, f := range all {
			f.silent = true
		}
		all[0].run()
		s := w.spec(1)
		j := w.submit(s)
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts == 1 })
		time.Sleep(2 * time.Second) // it was told, and has computed
		all[0].cut()
		lost := w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Lost == 1 })
		if lost.State != crowd.JobRunning {
			t.Fatal(lost.State)
		}
		all[0].run()
		for _, r := range all[0].reports {
			all[0].say(&crowd.Message{Report: r})
		}
		time.Sleep(time.Second)
		if all[0].count(crowd.ReportAccepted) != 1 {
			t.Fatalf("answers: %+v", all[0].answers)
		}
		all[1].set(func() { all[1].silent = false })
		all[1].run()
		if got := w.done(j, time.Minute); got.State != crowd.JobDone || w.balances(all[0].owner).Free != 900 {
			t.Errorf("%s, alice has %+v", got.State, w.balances(all[0].owner))
		}
	})
}

func TestRestartLosesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob")
		for _, f := range all {
			f.takes = 10 * time.Second
			f.run()
		}
		s := w.spec(30)
		s.Chunk = 2
		j := w.submit(s)
		before := w.await(j, time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone >= 8 })
		time.Sleep(time.Second)
		leased := all[0].leased() + all[1].leased()
		w.restart()
		after := w.await(j, 0, func(crowd.Job) bool { return true })
		if after.Progress.UnitsDone < before.Progress.UnitsDone || after.Version <= before.Version || after.Paid < before.Paid {
			t.Errorf("before %+v, after %+v", before, after)
		}
		// hosts dial again, list what they hold, and go on with it
		for _, f := range all {
			f.run()
		}
		time.Sleep(time.Second)
		if n := all[0].leased() + all[1].leased(); n != leased {
			t.Errorf("%d attempts were leased again early", n-leased)
		}
		got := w.done(j, time.Hour)
		if got.State != crowd.JobDone || got.Progress.UnitsDone != 30 || got.Paid != 60*1000 || got.Progress.Lost != 0 {
			t.Errorf("%s, %+v, paid %d", got.State, got.Progress, got.Paid)
		}
		for _, f := range all {
			if m := w.balances(f.owner); m.Free != 30*900 || m.Pending != 0 {
				t.Errorf("%s has %+v", f.host.Name, m)
			}
		}
		row, err := w.b.Job(context.Background(), w.ada, j.ID.String())
		must(t, err)
		if len(row.Hosts) != 2 || row.Hosts[0].Counted != 15 {
			t.Errorf("%+v", row.Hosts)
		}
	})
}

func TestRestartKeepsHeldUntilTermAndSkew(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob", "carol")
		all[0].takes, all[1].takes = time.Hour, time.Hour
		all[0].run()
		all[1].run()
		s := w.spec(1)
		j := w.submit(s)
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts == 2 })
		w.restart()
		start := time.Now()
		all[2].run() // the others stay away
		time.Sleep(crowd.Term + crowd.Skew - time.Second)
		if all[2].leased() != 0 {
			t.Error("a held attempt was leased beside its holder before Term+Skew")
		}
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts == 3 })
		if d := time.Since(start); d > crowd.Term+crowd.Skew+time.Second {
			t.Errorf("only after %v", d)
		}
	})
}

func TestAgentRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob")
		for _, f := range all {
			f.takes = 3 * time.Second
			f.run()
		}
		j := w.submit(w.spec(8))
		time.Sleep(time.Second)
		start := time.Now()
		all[0].kill()
		all[0].newSession()
		all[0].run()
		if got := w.done(j, time.Minute); got.State != crowd.JobDone || time.Since(start) > 40*time.Second {
			t.Errorf("%s after %v", got.State, time.Since(start))
		}
	})
}

func TestClonedHost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice := w.owners("alice")[0].run()
		_, err := alice.dial(alice.dials)
		wantErr(t, err, crowd.Denied, crowd.HostCloned)
		time.Sleep(time.Second)
		alice.mu.Lock()
		p := alice.problem
		alice.mu.Unlock()
		if p == nil || p.Reason != crowd.HostCloned || !p.Final {
			t.Errorf("the first connection was told %+v", p)
		}
		_, err = alice.dial(99)
		wantErr(t, err, crowd.Denied, crowd.HostCloned)
		w.restart()
		_, err = alice.dial(100)
		wantErr(t, err, crowd.Denied, crowd.HostCloned)
		alice.newSession() // a new start of the agent is another life
		alice.run()
		old := alice.session
		alice.newSession()
		alice.run()
		alice.session, old = old, alice.session
		_, err = alice.dial(7)
		wantErr(t, err, crowd.Denied, crowd.HostCloned)
		alice.session = old
	})
}

func TestEightFailures(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, f := range w.owners("alice", "bob", "carol") {
			f.refuse = crowd.HostFailed
			f.run()
		}
		s := w.spec(3)
		s.Chunk = 3
		j := w.done(w.submit(s), time.Hour)
		if j.State != crowd.JobDone || j.Progress.UnitsFailed != 3 || j.Returned != j.Escrow {
			t.Errorf("%s, %+v", j.State, j.Progress)
		}
		d, err := w.b.Job(context.Background(), w.ada, j.Name)
		must(t, err)
		if d.Reasons[crowd.HostFailed] < crowd.Limits.FailedAttempts {
			t.Errorf("%+v", d.Reasons)
		}
	})
}

func TestOwnersReturnsCarryNoBlame(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob", "carol")
		alice := all[0]
		alice.refuse = crowd.OwnerPaused
		for _, f := range all {
			f.run()
		}
		j := w.done(w.submit(w.spec(10)), time.Hour)
		if j.State != crowd.JobDone || j.Progress.UnitsFailed != 0 {
			t.Errorf("%s, %+v", j.State, j.Progress)
		}
		if h, err := w.b.Host(context.Background(), alice.owner, "alice"); err != nil || h.State != crowd.HostActive || h.Record.Failed != 0 {
			t.Errorf("%+v, %v", h, err)
		}
	})
}

func TestManyLossesGiveABreather(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob")
		for _, f := range all {
			f.slots, f.takes = 20, time.Hour
			f.run()
		}
		s := w.spec(40)
		s.Chunk = 1
		j := w.submit(s)
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts >= 40 })
		for _, f := range all {
			f.kill()
		}
		row := w.await(j, time.Minute, func(j crowd.Job) bool { return j.State == crowd.JobWaiting })
		if row.Reason != crowd.BrokerLosses {
			t.Error(row.Reason)
		}
		start := time.Now()
		for _, f := range all {
			f.set(func() { f.takes = time.Second })
			f.newSession()
			f.run()
		}
		w.await(j, 2*time.Minute, func(j crowd.Job) bool { return j.State == crowd.JobRunning })
		if d := time.Since(start); d < 50*time.Second {
			t.Errorf("it waited only %v", d)
		}
		if got := w.done(j, time.Hour); got.State != crowd.JobDone {
			t.Error(got.State)
		}
	})
}

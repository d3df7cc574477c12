package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// answer answers a lease of a unit with checkpoints.
func (f *fake) answer(l *crowd.Lease, text string, fuel uint64) {
	f.set(func() {
		f.result = func(_, _ uint64, r *crowd.UnitResult, c *crowd.UnitContent) { r.Fuel, c.Stdout = 0, []byte(text) }
	})
	r := f.outcome(l)
	r.Fuel = fuel
	r.Sig = ed25519.Sign(f.key, crowd.ReportBytes(f.host.ID, l.AttemptRef, r.Digest, r.Fuel))
	f.say(&crowd.Message{Report: r})
}

// Who left a checkpoint that another owner goes on from has no other vote at that unit: it would be in theirs already.
func TestPoisonedLineageIsOneVote(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("mallory", "bob")
		m, bob := all[0], all[1]
		m.silent, bob.silent, m.slots, bob.slots = true, true, 1, 1
		m.run()
		j := w.submit(w.checkpointed(1, 2))
		l := m.lease(1)
		if a, err := m.keep(l, 1, 1e9, "poison"); a != crowd.StateAccepted {
			t.Fatal(a, err)
		}
		m.set(func() { delete(m.held, l.AttemptRef); m.state = crowd.Paused })
		m.renew(50)
		m.say(&crowd.Message{Return: &crowd.Return{AttemptRef: l.AttemptRef, Reason: crowd.OwnerPaused}})
		time.Sleep(time.Second)
		bob.run()
		lb := bob.lease(1)
		if lb.State == nil || lb.State.Seq != 1 {
			t.Fatalf("bob begins with %+v", lb.State)
		}
		m.set(func() { m.state = crowd.Ready })
		m.renew(51)
		time.Sleep(time.Minute)
		if n := m.leased(); n != 1 {
			t.Fatalf("mallory got %d leases", n)
		}
		bob.answer(lb, "lie", 2e9) // what an honest machine computes from the poisoned state
		time.Sleep(time.Minute)
		if row, err := w.b.Job(context.Background(), w.ada, j.ID.String()); err != nil || row.State.Ended() {
			t.Errorf("%s, %v: decided on one owner's word", row.State, err)
		}
	})
}

// A job whose end waits for its sums goes on when verdicts of it are taken back meanwhile.
func TestVerdictsTakenBackFromAnEndingJob(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		all := w.owners("alice", "carol", "mallory")
		mallory := all[2]
		mallory.takes, mallory.slots = 200*time.Millisecond, 4
		mallory.result = liar
		s := w.spec(80)
		s.Name, s.Chunk, s.Verify = "long", 4, crowd.Verify{Quorum: 1}
		for _, f := range all {
			f.run()
		}
		long := w.submit(s)
		w.b.mu.Lock()
		lj := w.b.jobs[long.ID]
		lj.recount = &recount{tally: newTally()} // still adding up, as after a restart
		w.b.mu.Unlock()
		for {
			time.Sleep(time.Second)
			w.b.mu.Lock()
			e := lj.ending
			w.b.mu.Unlock()
			if e {
				break
			}
		}
		check := w.spec(64)
		check.Name, check.Chunk = "check", 4
		short := w.submit(check)
		w.await(short, time.Hour, func(j crowd.Job) bool { return j.Progress.Differed > 0 })
		time.Sleep(time.Second)
		w.b.mu.Lock() // as recount ends
		if len(lj.revisits) == 0 || !lj.ending {
			t.Errorf("revisits %d, ending %v", len(lj.revisits), lj.ending)
		}
		lj.recount = nil
		if lj.ending && lj.busy == 0 {
			w.b.finish(lj)
		}
		w.b.mu.Unlock()
		long = w.done(long, time.Hour)
		n := 0
		must(t, w.b.EachUnit(ctx, w.ada, long.ID.String(), 0, 800, func(_ crowd.UnitRow, x *crowd.UnitContent) bool {
			if x != nil && !bytes.Contains(x.Stdout, []byte("lie")) {
				n++
			}
			return true
		}))
		if long.State != crowd.JobDone || long.Progress.UnitsDone != 80 || n != 80 {
			t.Errorf("%s: %d of %d units done, %d right", long.State, long.Progress.UnitsDone, long.Units, n)
		}
	})
}

// An answer that becomes part of a verdict while its host is being convicted elsewhere is taken back too.
func TestConvictionMeetsAnswersOnTheirWay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		all := w.owners("alice", "carol", "mallory")
		alice, carol, m := all[0], all[1], all[2]
		for _, f := range all {
			f.silent, f.slots = true, 1
		}
		m.slots = 40
		m.result = liar
		var bs []crowd.Job
		m.run()
		check := w.spec(1)
		check.Name, check.Verify = "check", crowd.Verify{Quorum: 2}
		w.submit(check)
		lm := m.lease(1)
		alice.run()
		la := alice.lease(1)
		for i := range 8 {
			s := w.spec(2)
			s.Name, s.Chunk, s.Verify = fmt.Sprintf("b%d", i), 1, crowd.Verify{Quorum: 1}
			bs = append(bs, w.submit(s))
		}
		for m.leased() < 17 {
			time.Sleep(time.Second)
		}
		alice.say(&crowd.Message{Report: alice.outcome(la)})
		time.Sleep(time.Second)
		m.say(&crowd.Message{Report: m.outcome(lm)})
		time.Sleep(time.Second)
		carol.run()
		lc := carol.lease(1)
		mk := func(f *fake, l *crowd.Lease) (*answer, *attempt) {
			r := f.outcome(l)
			b := w.b
			b.mu.Lock()
			defer b.mu.Unlock()
			x := &answer{s: b.hosts[f.host.ID].conn, r: r, at: b.now(), body: r.Body}
			x.check(l.Count)
			return x, b.openAttempt(l.AttemptRef)
		}
		xc, ac := mk(carol, lc)
		var xs []*answer
		var as []*attempt
		for _, j := range bs {
			m.mu.Lock()
			var l *crowd.Lease
			for ref, h := range m.held {
				if ref.Job == j.ID && ref.First == 0 {
					l = h
				}
			}
			m.mu.Unlock()
			x, a := mk(m, l)
			xs, as = append(xs, x), append(as, a)
		}
		w.b.mu.Lock() // reports that come in the same moment
		ac.chunk.when(func() { w.b.weigh(xc, ac) })
		for i := range xs {
			as[i].chunk.when(func() { w.b.weigh(xs[i], as[i]) })
		}
		w.b.mu.Unlock()
		time.Sleep(time.Minute)
		row, err := w.b.Host(ctx, m.owner, "mallory")
		must(t, err)
		missed := 0
		for _, j := range bs {
			rows, err := w.b.JobAttempts(ctx, w.ada, j.ID.String(), crowd.AttemptRef{}, 100)
			must(t, err)
			for _, a := range rows {
				if a.Host == m.host.ID && a.State == crowd.AttemptReported && a.Counts {
					missed++
				}
			}
		}
		if p := w.balances(m.owner).Pending; row.State != crowd.HostQuarantined || missed > 0 || p > 0 {
			t.Errorf("mallory is %s; %d of %d jobs rest on its word still; pending %d", row.State, missed, len(bs), p)
		}
	})
}

// A job that has no room for what is to be opened again keeps no other from settling.
func TestRevisitsDontWaitForOneAnother(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice, carol := w.host(w.account("alice", 0), "alice", "DE"), w.host(w.account("carol", 0), "carol", "DE")
		m := w.host(w.account("mallory", 0), "mallory", "FR")
		m.takes, m.slots = 100*time.Millisecond, 4
		m.result = liar
		m.run()
		for i := range 5 {
			s := w.spec(10)
			s.Name, s.Chunk, s.Verify = fmt.Sprintf("b%d", i), 1, crowd.Verify{Quorum: 1}
			w.submit(s)
		}
		s := w.spec(2000)
		s.Name, s.Chunk, s.Verify, s.Place = "stuck", 1, crowd.Verify{Quorum: 1}, crowd.PlaceRule{In: []string{"FR"}}
		stuck := w.submit(s)
		w.b.mu.Lock()
		for _, j := range w.b.jobs { // the small ones don't end yet
			if j.ID != stuck.ID {
				j.recount = &recount{tally: newTally()}
			}
		}
		w.b.mu.Unlock()
		w.await(stuck, time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone >= 800 })
		check := w.spec(64)
		check.Name, check.Chunk = "check", 4
		short := w.submit(check)
		alice.run()
		carol.run()
		w.await(short, time.Hour, func(j crowd.Job) bool { return j.Progress.Differed > 0 })
		w.b.mu.Lock()
		for _, j := range w.b.jobs {
			j.recount = nil
		}
		w.b.mu.Unlock()
		time.Sleep(6 * time.Hour)
		w.b.mu.Lock()
		defer w.b.mu.Unlock()
		for _, j := range w.b.jobs {
			if j.ID != stuck.ID && len(j.revisits) > 0 {
				t.Errorf("after 6 h %s has %d revisits", j.Name, len(j.revisits))
			}
		}
		if j := w.b.jobs[stuck.ID]; len(j.revisits) == 0 {
			t.Error("the large job had room for everything: this shows nothing")
		}
	})
}

// A broker and a host that lose their memory together go on from the checkpoint all the same.
func TestCheckpointOutlivesBoth(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice := w.owners("alice")[0]
		alice.silent = true
		alice.run()
		w.submit(w.checkpointed(1, 1))
		l := alice.lease(1)
		for i, c := range []string{"one", "two", "three"} {
			if a, err := alice.keep(l, int64(i+1), uint64(i+1)*1e9, c); a != crowd.StateAccepted {
				t.Fatal(a, err)
			}
		}
		w.restart()
		alice.newSession()
		alice.mu.Lock()
		alice.leases = nil
		alice.mu.Unlock()
		alice.run()
		l = alice.lease(1)
		if l.N != 1 || l.State == nil || l.State.Seq != 3 {
			t.Fatalf("it is told attempt %d with %+v", l.N, l.State)
		}
		if a, err := alice.keep(l, 9, 4e9, "more"); a != crowd.StateAccepted { // numbers may be left out
			t.Error(a, err)
		}
	})
}

// A report that its job's end overtakes is answered.
func TestReportOvertakenByTheEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice := w.owners("alice")[0]
		alice.silent, alice.slots = true, 1
		big := make([]byte, crowd.Limits.InlineBody+1000)
		for i := range big {
			big[i] = byte(i * i >> 3)
		}
		alice.result = func(_, _ uint64, r *crowd.UnitResult, c *crowd.UnitContent) { c.Stdout = big }
		alice.run()
		s := w.spec(2)
		s.Chunk, s.Verify = 1, crowd.Verify{Quorum: 1}
		j := w.submit(s)
		l := alice.lease(1)
		r := alice.outcome(l)
		w.b.bodies.mu.Lock()
		old := w.b.bodies.left
		w.b.bodies.left = 0 // other reports' bodies are in memory
		w.b.bodies.mu.Unlock()
		alice.say(&crowd.Message{Report: r})
		time.Sleep(time.Second)
		_, err := w.b.CancelJob(context.Background(), w.ada, j.ID.String())
		must(t, err)
		w.done(j, time.Hour)
		w.b.bodies.give(old, &w.b.pool)
		time.Sleep(time.Minute)
		alice.mu.Lock()
		defer alice.mu.Unlock()
		if len(alice.answers) != 1 {
			t.Errorf("answers %+v", alice.answers)
		}
	})
}

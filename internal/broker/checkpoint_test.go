package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// keep sends a checkpoint as a host does, three seconds after whatever was before.
func (f *fake) keep(l *crowd.Lease, seq int64, fuel uint64, content string) (crowd.StateAnswer, error) {
	time.Sleep(3 * time.Second)
	b := saved(fuel, content)
	u := crowd.UnitState{AttemptRef: l.AttemptRef, Seq: seq, Root: digest.Of(b), Fuel: fuel}
	sig := ed25519.Sign(f.key, crowd.StateBytes(f.host.ID, l.AttemptRef, seq, u.Root, fuel))
	return f.w.b.HostPutState(context.Background(), "bearer-"+f.host.ID.String(), u, sig, bytes.NewReader(b))
}

// saved is a checkpoint of one file.
func saved(fuel uint64, content string) []byte {
	return (&crowd.Checkpoint{Fuel: fuel, Files: []crowd.StateFile{{Path: "f", Data: []byte(content)}}}).Bytes()
}

// lease waits for a host's n-th lease.
func (f *fake) lease(n int) *crowd.Lease {
	for {
		f.mu.Lock()
		var l *crowd.Lease
		if len(f.leases) >= n {
			l = f.held[f.leases[n-1]]
		}
		f.mu.Unlock()
		if l != nil {
			return l
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (w *world) checkpointed(units uint64, quorum int) crowd.JobSpec {
	s := w.spec(units)
	s.Checkpoint, s.Verify = "30s", crowd.Verify{Quorum: quorum}
	return s
}

// states are the files of checkpoints.
func (w *world) states() (names []string) {
	entries, err := os.ReadDir(filepath.Join(w.dir, "states"))
	must(w.t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A unit's checkpoint goes with it: the next host begins where the last one left it, after a restart of the broker too; who lost it can't change it.
func TestCheckpointFollowsTheUnit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		all := w.owners("alice", "bob")
		alice, bob := all[0], all[1]
		alice.silent, bob.silent = true, true
		unfueled := func(_, _ uint64, r *crowd.UnitResult, _ *crowd.UnitContent) { r.Fuel = 0 }
		alice.result, bob.result = unfueled, unfueled
		alice.run()
		j := w.submit(w.checkpointed(1, 1))
		l := alice.lease(1)
		if l.Count != 1 || l.State != nil {
			t.Fatalf("lease %+v", l)
		}
		for i, want := range []struct {
			seq     int64
			fuel    uint64
			content string
			answer  crowd.StateAnswer
		}{{0, 5, "none", crowd.StateConflict}, {1, 5, "one", crowd.StateAccepted}, {1, 5, "one", crowd.StateRepeat}, {1, 5, "uno", crowd.StateConflict},
			{2, 4, "less", crowd.StateConflict}, {2, 9, "two", crowd.StateAccepted}, {1, 5, "one", crowd.StateConflict}} {
			got, err := alice.keep(l, want.seq, want.fuel, want.content)
			if got != want.answer || (want.answer == crowd.StateConflict) != crowd.KindIs(err, crowd.Conflict) || want.answer != crowd.StateConflict && err != nil {
				t.Errorf("%d: %q, %v", i, got, err)
			}
		}
		if n := w.states(); len(n) != 1 {
			t.Errorf("files %v", n)
		}
		u := crowd.UnitState{AttemptRef: l.AttemptRef, Seq: 3, Root: digest.Of(saved(10, "three")), Fuel: 10}
		if _, err := w.b.HostPutState(ctx, "bearer-"+alice.host.ID.String(), u, make([]byte, 64), strings.NewReader("three")); !crowd.KindIs(err, crowd.Invalid) {
			t.Errorf("unsigned: %v", err)
		}
		w.restart()
		alice.kill() // it never comes back
		bob.run()
		lb := bob.lease(1)
		if lb.State == nil || lb.State.Seq != 2 || lb.State.Fuel != 9 || lb.State.Root != digest.Of(saved(9, "two")) {
			t.Fatalf("bob begins with %+v", lb.State)
		}
		f, err := w.b.HostOpenBlob(ctx, "bearer-"+bob.host.ID.String(), lb.State.Root)
		must(t, err)
		b, err := io.ReadAll(f)
		must(t, err)
		f.Close()
		if !bytes.Equal(b, saved(9, "two")) {
			t.Errorf("it is %q", b)
		}
		if _, err := w.b.HostOpenBlob(ctx, "bearer-"+bob.host.ID.String(), digest.Of(saved(5, "one"))); !crowd.KindIs(err, crowd.NotFound) {
			t.Errorf("the older one: %v", err)
		}
		alice.newSession()
		alice.run() // in a new life; its attempt isn't its own any more
		before := w.states()
		if got, err := alice.keep(l, 3, 20, "three"); got != crowd.StateConflict || !crowd.KindIs(err, crowd.Conflict) {
			t.Errorf("an expired attempt's: %q, %v", got, err)
		}
		if after := w.states(); len(after) != 1 || after[0] != before[0] {
			t.Errorf("files %v, before %v", after, before)
		}
		if got, err := bob.keep(lb, 3, 15, "three"); got != crowd.StateAccepted || err != nil {
			t.Errorf("bob's: %q, %v", got, err)
		}
		r := bob.outcome(lb)
		r.Fuel = 30
		r.Sig = ed25519.Sign(bob.key, crowd.ReportBytes(bob.host.ID, lb.AttemptRef, r.Digest, r.Fuel))
		bob.say(&crowd.Message{Report: r})
		j = w.done(j, time.Hour)
		time.Sleep(time.Second) // the answer is said after the job's end
		if j.State != crowd.JobDone || bob.count(crowd.ReportAccepted) != 1 {
			t.Fatalf("%s, %+v", j.State, bob.answers)
		}
		rows, err := w.b.JobAttempts(ctx, w.ada, j.ID.String(), crowd.AttemptRef{}, 10)
		must(t, err)
		if len(rows) != 2 || rows[1].Lineage != 1 || rows[1].Fuel != 30 {
			t.Errorf("attempts %+v", rows)
		}
		if n := w.states(); len(n) != 0 {
			t.Errorf("files stay: %v", n)
		}
	})
}

// Replicas never share a lineage, and one that went on from others' checkpoints and is wrong convicts nobody.
func TestLineagesVoteOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		all := w.owners("alice", "bob", "carol", "dave")
		for _, f := range all {
			f.silent, f.slots = true, 1
		}
		alice, bob, carol, dave := all[0], all[1], all[2], all[3]
		alice.run()
		j := w.submit(w.checkpointed(1, 2))
		la := alice.lease(1)
		bob.run()
		lb := bob.lease(1)
		for f, l := range map[*fake]*crowd.Lease{alice: la, bob: lb} {
			if a, err := f.keep(l, 1, 1e9, f.host.Name); a != crowd.StateAccepted {
				t.Fatal(a, err)
			}
		}
		alice.kill()
		carol.run()
		lc := carol.lease(1)
		if lc.State == nil || lc.State.Root != digest.Of(saved(1e9, "alice")) {
			t.Fatalf("carol begins with %+v, not with what nobody is at", lc.State)
		}
		carol.answer(lc, "wrong", 2e9)
		bob.answer(lb, "right", 3e9)
		dave.run()
		ld := dave.lease(1)
		if ld.State != nil {
			t.Fatalf("dave goes on from %+v, whose word is in", ld.State)
		}
		time.Sleep(10 * time.Second)
		dave.answer(ld, "right", 5e9)
		j = w.done(j, time.Hour)
		if j.State != crowd.JobDone || j.Paid != 2*5000 {
			t.Errorf("%s, paid %d: the higher of both fuels, twice", j.State, j.Paid)
		}
		row, err := w.b.Host(ctx, carol.owner, "carol")
		must(t, err)
		if row.State != crowd.HostActive || row.Record.Differed != 0 {
			t.Errorf("carol is %s, %+v", row.State, row.Record)
		}
		rows, err := w.b.JobAttempts(ctx, w.ada, j.ID.String(), crowd.AttemptRef{}, 10)
		must(t, err)
		if rows[2].State != crowd.AttemptVoid || rows[2].Reason != crowd.HostLineage || rows[2].Lineage != 1 {
			t.Errorf("carol's attempt %+v", rows[2])
		}
	})
}

// An agent that doesn't know checkpoints gets no work that has them, and is told why.
func TestOldAgentGetsNoCheckpoints(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.owners("alice")[0]
		f.run()
		time.Sleep(time.Second)
		w.b.mu.Lock()
		w.b.hosts[f.host.ID].link = 1
		w.b.mu.Unlock()
		j := w.submit(w.checkpointed(1, 1))
		time.Sleep(time.Minute)
		if f.leased() != 0 {
			t.Error("it got one")
		}
		why, err := w.b.Why(context.Background(), w.ada, j.ID.String())
		must(t, err)
		var b bytes.Buffer
		for _, x := range why.Excluded {
			b.WriteString(string(x.Reason) + " ")
		}
		if !strings.Contains(b.String(), string(crowd.HostOld)) {
			t.Errorf("why: %+v", why)
		}
	})
}

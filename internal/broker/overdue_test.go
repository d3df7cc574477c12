package broker

import (
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// A host that is connected but doesn't renew what it holds gets nothing more, before and after that is lost, until it speaks again.
func TestSilentHostGetsNothingMore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := w.owners("alice", "bob")
		alice, bob := all[0], all[1]
		alice.slots, bob.slots = 8, 8
		alice.silent = true
		alice.run()
		s := w.spec(2)
		s.Chunk, s.Verify.None = 1, true
		first := w.submit(s)
		w.await(first, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts == 2 })
		time.Sleep(crowd.RenewEvery)
		var p *pipe
		alice.set(func() { p, alice.conn = alice.conn, nil }) // what it says is lost, its connection stays
		time.Sleep(crowd.RenewEvery + crowd.Skew + time.Second)
		s.Name = "another"
		second := w.submit(s)
		time.Sleep(time.Second)
		if n := alice.leased(); n != 2 {
			t.Errorf("while it was overdue it got %d leases more", n-2)
		}
		w.await(first, time.Minute, func(j crowd.Job) bool { return j.Progress.Lost == 2 })
		time.Sleep(time.Second)
		if n := alice.leased(); n != 2 {
			t.Errorf("once it was lost it got %d leases more", n-2)
		}
		alice.set(func() { alice.silent, alice.conn = false, p })
		w.done(second, time.Minute)
		bob.run()
		w.done(first, time.Minute)
		if alice.leased() < 4 {
			t.Error("it speaks again, and got nothing")
		}
	})
}

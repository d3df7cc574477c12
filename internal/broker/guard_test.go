package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/store"
)

// outcomes are the files of uploaded outcomes.
func (w *world) outcomes() []os.DirEntry {
	w.t.Helper()
	time.Sleep(time.Second)
	all, err := os.ReadDir(filepath.Join(w.dir, "outcomes"))
	must(w.t, err)
	return all
}

// quiet is a host that holds the lease of a new job of one chunk and says nothing about it.
func (w *world) quiet(s crowd.JobSpec) (*fake, *crowd.Lease, crowd.Job) {
	w.t.Helper()
	fs := w.owners("alice", "bob", "carol")
	fs[0].silent = true
	fs[0].run()
	j := w.submit(s)
	time.Sleep(5 * time.Second)
	fs[0].mu.Lock()
	defer fs[0].mu.Unlock()
	for _, l := range fs[0].held {
		return fs[0], l, j
	}
	w.t.Fatal("no lease came")
	return nil, nil, j
}

func (f *fake) put(l *crowd.Lease, body []byte) error {
	return f.w.b.HostPutOutcome(context.Background(), "bearer-"+f.host.ID.String(), l.AttemptRef, digest.Of(body), bytes.NewReader(body))
}

func TestOneOutcomeOnDiskPerAttempt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f, l, j := w.quiet(w.spec(1))
		for _, s := range []string{"one", "two", "three"} {
			must(t, f.put(l, []byte(s)))
		}
		if n := w.outcomes(); len(n) != 1 {
			t.Fatalf("%d files", len(n))
		}
		w.restart()
		if n := w.outcomes(); len(n) != 1 {
			t.Errorf("%d files after a restart", len(n))
		}
		_, err := w.b.CancelJob(context.Background(), w.ada, j.Name)
		must(t, err)
		if n := w.outcomes(); len(n) != 0 {
			t.Errorf("%d files of an ended job", len(n))
		}
	})
}

// Bodies in memory are bounded, a report said again while it is in progress costs nothing, and a bad one leaves nothing.
func TestReportsAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f, l, _ := w.quiet(w.spec(1))
		if l.Deadline < leaseSlack {
			t.Errorf("the lease's bound is %v", l.Deadline)
		}
		body := []byte("nonsense")
		must(t, f.put(l, body))
		r := &crowd.Report{AttemptRef: l.AttemptRef, Digest: digest.Of(body), Ref: digest.Of(body)}
		r.Sig = ed25519.Sign(f.key, crowd.ReportBytes(f.host.ID, l.AttemptRef, r.Digest, r.Fuel))
		w.b.bodies.take(bodiesAtOnce, func() {})
		for range 1000 {
			f.say(&crowd.Message{Report: r})
		}
		time.Sleep(time.Second)
		w.b.bodies.mu.Lock()
		if n := len(w.b.bodies.line); n != 1 || f.count(crowd.ReportVoid) != 0 {
			t.Errorf("%d wait, %d answered", n, f.count(crowd.ReportVoid))
		}
		w.b.bodies.mu.Unlock()
		w.b.bodies.give(bodiesAtOnce, &w.b.pool)
		if n := w.outcomes(); len(n) != 0 || f.count(crowd.ReportVoid) != 1 {
			t.Errorf("%d files, %d answers", len(n), f.count(crowd.ReportVoid))
		}
		w.b.mu.Lock()
		h := w.b.hosts[f.host.ID]
		if len(h.reporting) != 0 || w.b.bodies.left != bodiesAtOnce {
			t.Errorf("%d in progress, %d bytes left", len(h.reporting), w.b.bodies.left)
		}
		room := h.room
		w.b.mu.Unlock()
		f.say(&crowd.Message{Report: r}) // late, and again
		f.say(&crowd.Message{Report: r})
		time.Sleep(time.Millisecond)
		w.b.mu.Lock()
		if h.room > room {
			t.Errorf("room for %d became %d", room, h.room)
		}
		w.b.mu.Unlock()
	})
}

func TestBlobQuota(t *testing.T) {
	most := crowd.Limits.AccountBlobBytes
	defer func() { crowd.Limits.AccountBlobBytes = most }()
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		if dirs, err := os.ReadDir(filepath.Join(w.dir, "blobs")); err != nil || len(dirs) != 256 {
			t.Errorf("%d folders of blobs, %v", len(dirs), err)
		}
		crowd.Limits.AccountBlobBytes = 20_000 // 4096 are the program's
		put := func(s string, of int64) error {
			_, err := w.b.PutBlob(ctx, w.ada, digest.Of([]byte(s)), 0, of, strings.NewReader(s))
			return err
		}
		must(t, put(strings.Repeat("a", 5000), 5000))
		must(t, put(strings.Repeat("b", 6000), 7000)) // unfinished
		w.restart()
		wantErr(t, put(strings.Repeat("c", 6000), 6000), crowd.Exhausted, crowd.CustomerQuota)
		must(t, put(strings.Repeat("a", 5000), 5000)) // it is there
		must(t, put(strings.Repeat("d", 4500), 4500))
		_, err := w.b.PutBlob(ctx, w.account("eve", 0), digest.Of([]byte("e")), 0, 1, strings.NewReader("e"))
		must(t, err)
		err = w.st.Apply(ctx, store.PutBlob{Account: w.ada.Account.ID, Digest: crowd.Digest{1}, Size: 9000})
		wantErr(t, err, crowd.Exhausted, crowd.CustomerQuota)
	})
}

// A fee that changes between two votes changes what both are paid, also in the books of a broker that starts again before the job ends.
func TestFeeChangesBetweenVotes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		fs := w.owners("alice", "bob")
		fs[0].run()
		s := w.spec(2)
		s.Chunk = 1
		j := w.submit(s)
		time.Sleep(10 * time.Second)
		w.b.mu.Lock()
		w.b.cfg.FeePermille = 500
		w.b.mu.Unlock()
		fs[1].set(func() { fs[1].slots = 1 })
		fs[1].run()
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.UnitsDone == 1 })
		for _, f := range fs {
			f.cut()
		}
		w.restart()
		for _, f := range fs {
			f.run()
		}
		if j = w.done(j, time.Minute); j.State != crowd.JobDone {
			t.Fatalf("%s %s", j.State, j.Reason)
		}
		rows, err := w.b.JobAttempts(context.Background(), w.ada, j.ID.String(), crowd.AttemptRef{}, 100)
		must(t, err)
		for _, f := range fs {
			sum := crowd.UCR(0)
			for _, a := range rows {
				if a.Host == f.host.ID {
					sum += a.Paid
				}
			}
			if m := w.balances(f.owner); m.Pending != 0 || m.Free != sum {
				t.Errorf("%s: %+v, its attempts say %d", f.host.Name, m, sum)
			}
		}
	})
}

func TestVoidSessionsAreRemembered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.owners("alice")[0].run()
		time.Sleep(time.Second)
		old := f.session
		f.cut()
		f.newSession()
		f.run()
		time.Sleep(time.Second)
		f.cut()
		w.restart()
		hello := crowd.Hello{Host: f.host.ID, Session: old, Dial: 9}
		wantErr(t, w.b.admit(context.Background(), &hello), crowd.Denied, crowd.HostCloned)
		f.run()
	})
}

// What the ledger refuses isn't done: neither an order nor the end of a job.
func TestLedgerErrorsFailClosed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.owners("alice", "bob")
		j := w.submit(w.spec(1))
		row := j
		row.Escrow = -1
		if ops, err := w.b.orderOps(context.Background(), w.ada, row); err == nil {
			t.Errorf("an order of %d ops", len(ops))
		}
		left := func(by crowd.UCR) {
			w.b.mu.Lock()
			w.b.jobs[j.ID].left += by
			w.b.mu.Unlock()
		}
		left(-2 * j.Escrow)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := w.b.CancelJob(ctx, w.ada, j.Name)
		wantErr(t, err, crowd.Unavailable, "")
		if got, err := w.st.Job(context.Background(), j.ID); err != nil || got.State != crowd.JobQueued {
			t.Errorf("%s, %v", got.State, err)
		}
		left(2 * j.Escrow)
		got, err := w.b.CancelJob(context.Background(), w.ada, j.Name)
		if err != nil || got.Returned != j.Escrow {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// A host that holds ten times what its slots can do is paid, unchecked, for what its slots can have done.
func TestUncheckedPayIsBoundBySlots(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.owners("alice")[0]
		s := w.spec(1)
		s.Verify.None = true
		row := w.submit(s)
		w.b.mu.Lock()
		defer w.b.mu.Unlock()
		h, j := w.b.hosts[f.host.ID], w.b.jobs[row.ID]
		h.Capacity.Slots = 1
		h.accrue(time.Now())
		var all []*attempt
		for n := range 10 {
			a := &attempt{Attempt: crowd.Attempt{Job: j.ID, N: n + 1, LeasedAt: time.Now(), Fuel: 100e9}, chunk: &chunk{job: j}, host: h}
			h.live[a.Ref()] = a
			all = append(all, a)
		}
		w.b.mu.Unlock()
		time.Sleep(10 * time.Second)
		w.b.mu.Lock()
		sum := crowd.UCR(0)
		for _, a := range all {
			a.EndedAt = time.Now()
			pay, seconds := w.b.worth(j, a, a.Attempt)
			h.bank -= seconds
			sum += pay
		}
		if want := payFor(10e9, j.PerGfuel); sum < want || sum > want*101/100 {
			t.Errorf("paid %d, wanted %d", sum, want)
		}
		clear(h.live)
	})
}

// stuffed is a connection that takes no lease.
type stuffed struct{ wire }

func (s stuffed) Send(m *crowd.Message) error {
	if m.Lease != nil {
		return crowd.Errorf(crowd.Internal, "", "too long")
	}
	return s.wire.Send(m)
}

func TestLeaseThatCantBeSentFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		fs := w.owners("alice", "bob")
		f := fs[0].run()
		time.Sleep(time.Second)
		w.b.mu.Lock()
		s := w.b.hosts[f.host.ID].conn
		s.wire = stuffed{s.wire}
		w.b.mu.Unlock()
		j := w.done(w.submit(w.spec(1)), 10*time.Minute)
		if j.Progress.UnitsFailed != 1 || f.leased() != 0 {
			t.Errorf("%s, %+v", j.State, j.Progress)
		}
	})
}

func TestGapsFitTheirLeases(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.owners("alice", "bob")
		row := w.submit(w.spec(10))
		w.b.mu.Lock()
		defer w.b.mu.Unlock()
		j := w.b.newJob(row)
		j.items = &items{at: []int64{0}}
		for i := range int64(10) {
			j.items.at = append(j.items.at, (i+1)*leaseBytes/2)
		}
		w.b.gaps(j, []store.Run{{First: 0, Count: 10}})
		if len(j.open) != 5 {
			t.Errorf("%d chunks", len(j.open))
		}
	})
}

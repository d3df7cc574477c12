package host

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/guest/guesttest"
	"github.com/crowdcloud/crowd/internal/link"
)

// keeping is an agent that runs a unit with checkpoints.
func keeping(t *testing.T, change func(*fakeBroker, *crowd.Lease, *Options)) (*fakeBroker, *link.Conn, *fakeEngine, *machine, guest.Task) {
	t.Helper()
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte("x"), tasks: make(chan guest.Task, 10)}
	l := leaseOf(7, 1, digest.Of(nil))
	l.Lease.Spec.Checkpoint = "2s"
	m := start(t, joined(t, b), e, func(o *Options) {
		if change != nil {
			change(b, l.Lease, o)
		}
	})
	c := b.session()
	_ = c.Send(l)
	task := <-e.tasks
	if task.Every != 2*time.Second || task.Save == nil {
		t.Fatalf("%+v", task)
	}
	return b, c, e, m, task
}

// TestCheckpoints: each goes to the broker with the next number, the newest only; the manifest says nothing of the fuel, the report all.
func TestCheckpoints(t *testing.T) {
	b, c, e, m, task := keeping(t, func(b *fakeBroker, _ *crowd.Lease, _ *Options) { b.hold = make(chan struct{}) })
	task.Save([]byte("one"), 1)
	b.hold <- struct{}{}
	until(t, "the first", func() bool { return b.came() == "1:1" })
	task.Save([]byte("two"), 2)
	task.Save([]byte("three"), 3) // one of these may be on its way when the other comes
	task.Save([]byte("four"), 4)
	if f := m.Status().Guests[0].Fuel; f != 4 {
		t.Errorf("the owner is told of fuel %d", f)
	}
	b.renewed("the fuel so far", func(r *crowd.Renew) bool { return len(r.Attempts) == 1 && r.Attempts[0].Fuel == 4 })
	close(b.hold)
	until(t, "the last", func() bool { return strings.HasSuffix(b.came(), ":4") })
	if got := b.came(); strings.Count(got, " ") > 2 {
		t.Errorf("came: %s", got)
	}
	task.Save([]byte("five"), 5)
	until(t, "another", func() bool { return strings.HasSuffix(b.came(), ":5") })
	e.step <- struct{}{}
	r := b.report()
	o, _, err := crowd.ParseBody(r.Body, 7, 1)
	if err != nil || o.Fuel() != 0 || r.Fuel != 10 || digest.Of(o.Manifest()) != r.Digest {
		t.Errorf("%+v %+v %v", r, o, err)
	}
	if !ed25519.Verify(b.host.Key, crowd.ReportBytes(b.host.ID, r.AttemptRef, r.Digest, r.Fuel), r.Sig) {
		t.Error("signature")
	}
	_ = c.Send(answer(r, crowd.ReportAccepted))
	until(t, "it is forgotten", func() bool { return len(m.Status().Guests) == 0 })
}

// TestCheckpointLostAnswer: what may have been accepted is said again before anything else has its number, on other connections too.
func TestCheckpointLostAnswer(t *testing.T) {
	b, c, _, _, task := keeping(t, func(b *fakeBroker, _ *crowd.Lease, _ *Options) { b.lose, b.hold = 2, make(chan struct{}) })
	task.Save([]byte("one"), 1)
	b.hold <- struct{}{}
	until(t, "the first", func() bool { return b.came() == "1:1" })
	task.Save([]byte("two"), 2)
	c.Close(nil)
	b.session()
	close(b.hold)
	until(t, "the second", func() bool { return b.came() == "1:1 1:1 1:1 2:2" })
}

// TestCheckpointRefused: after a conflict nothing more is sent, the owner's log says so once, and the computing goes on.
func TestCheckpointRefused(t *testing.T) {
	for status, entries := range map[int]int{http.StatusConflict: 1, http.StatusNotFound: 0, http.StatusMethodNotAllowed: 0, http.StatusForbidden: 0} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			b, _, e, m, task := keeping(t, func(b *fakeBroker, _ *crowd.Lease, _ *Options) { b.noState = status })
			task.Save([]byte("one"), 1)
			until(t, "the first", func() bool { return b.came() == "1:1" })
			logged := func() (n int) {
				_ = ReadLog(t.Context(), m.dir, time.Time{}, false, func(e Entry) error {
					if e.What == "state.refused" && *e.First == 7 && e.Text == "it isn't yours" {
						n++
					}
					return nil
				})
				return n
			}
			until(t, "an entry", func() bool { return logged() == entries })
			task.Save([]byte("two"), 2)
			e.step <- struct{}{}
			if r := b.report(); r.Fuel != 10 {
				t.Errorf("%+v", r)
			}
			if got := b.came(); got != "1:1" || logged() != entries {
				t.Errorf("came: %s; %d entries", got, logged())
			}
		})
	}
}

// TestCheckpointAgain: a broker that can't just now is asked again.
func TestCheckpointAgain(t *testing.T) {
	b, _, _, _, task := keeping(t, func(b *fakeBroker, _ *crowd.Lease, _ *Options) { b.noState = http.StatusServiceUnavailable })
	task.Save([]byte("one"), 1)
	until(t, "two tries", func() bool { return strings.HasPrefix(b.came(), "1:1 1:1") })
	b.mu.Lock()
	b.noState = 0
	b.mu.Unlock()
	until(t, "it is accepted", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.kept) == 1 })
	n := len(b.came())
	task.Save([]byte("two"), 2)
	until(t, "the next", func() bool { return strings.HasSuffix(b.came(), " 2:2") && len(b.came()) == n+4 })
}

// TestCheckpointBeforeReturn: a checkpoint at hand goes before the attempt does, if it doesn't take long; the guest stops at once.
func TestCheckpointBeforeReturn(t *testing.T) {
	for _, quick := range []bool{true, false} {
		t.Run(fmt.Sprint("quick ", quick), func(t *testing.T) {
			b, _, e, m, task := keeping(t, func(b *fakeBroker, _ *crowd.Lease, o *Options) {
				b.hold, o.Policy.MoveAfter = make(chan struct{}), time.Millisecond
			})
			task.Save([]byte("one"), 1)
			task.Save([]byte("two"), 2)
			if err := m.Pause(0); err != nil || e.count("freeze") != 1 {
				t.Fatal(err)
			}
			until(t, "the guest is gone", func() bool { return e.count("close") > 0 })
			if quick {
				close(b.hold)
			}
			if r := b.returned(); r.Reason != crowd.OwnerPaused {
				t.Errorf("%+v", r)
			}
			if got := b.came(); quick != strings.HasSuffix(got, ":2") {
				t.Errorf("came: %q", got)
			}
			if !quick {
				close(b.hold)
			}
		})
	}
}

// TestCheckpointAtStop: the agent's own end waits for a checkpoint too.
func TestCheckpointAtStop(t *testing.T) {
	b, _, _, m, task := keeping(t, nil)
	task.Save([]byte("one"), 1)
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	if r := b.returned(); r.Reason != crowd.OwnerStopped || b.came() != "1:1" {
		t.Errorf("%+v; came: %s", r, b.came())
	}
}

// TestResume: the state of a lease is fetched, checked and given to the guest; its own checkpoints are numbered from there.
func TestResume(t *testing.T) {
	state := bytes.Repeat([]byte("s"), 10_000)
	b, _, _, _, task := keeping(t, func(b *fakeBroker, l *crowd.Lease, _ *Options) {
		b.blobs[digest.Of(state)] = state
		b.cut = 100
		l.State = &crowd.Resume{Seq: 4, Root: digest.Of(state), Size: int64(len(state)), Fuel: 70}
	})
	if !bytes.Equal(task.State, state) {
		t.Errorf("begins with %d bytes", len(task.State))
	}
	task.Save([]byte("five"), 80)
	until(t, "the fifth", func() bool { return b.came() == "5:80" })
}

func TestBadStates(t *testing.T) {
	b := newFakeBroker(t)
	small, large := []byte("state"), make([]byte, 100_000)
	b.blobs[digest.Of(small)], b.blobs[digest.Of(large)] = small, large
	e := &fakeEngine{stdout: []byte("x")}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	for i, tc := range []struct {
		every string
		count uint64
		state crowd.Resume
		text  string
	}{
		{"2s", 2, crowd.Resume{}, "a chunk of 2 units"},
		{"", 1, crowd.Resume{Seq: 1, Root: digest.Of(small), Size: 5}, "without checkpoints"},
		{"2s", 1, crowd.Resume{Seq: 0, Root: digest.Of(small), Size: 5}, "number 0"},
		{"2s", 1, crowd.Resume{Seq: 1, Root: digest.Of(small), Size: 0}, "of 0 bytes"},
		{"2s", 1, crowd.Resume{Seq: 1, Root: digest.Of(small), Size: crowd.Limits.StateBytes + 1}, "bytes"},
		{"2s", 1, crowd.Resume{Seq: 1, Root: digest.Of(small), Size: 6}, "has 5 bytes, not 6"},
		{"2s", 1, crowd.Resume{Seq: 1, Root: digest.Of(large), Size: 5}, "at most 5 were expected"},
		{"2s", 1, crowd.Resume{Seq: 1, Root: digest.Of([]byte("nobody has it")), Size: 5}, ""},
	} {
		l := leaseOf(uint64(i), tc.count, digest.Of(nil))
		l.Lease.Spec.Checkpoint = tc.every
		if tc.state.Size != 0 || tc.state.Seq != 0 {
			l.Lease.State = &tc.state
		}
		_ = c.Send(l)
		if r := b.returned(); r.Reason != crowd.HostFailed || r.First != uint64(i) || !strings.Contains(r.Text, tc.text) {
			t.Errorf("%d: %+v, wanted %q", i, r, tc.text)
		}
	}
	if e.count("run") != 0 {
		t.Error("something ran")
	}
	if used := m.Status().CacheUsed; used > 5 {
		t.Errorf("%d bytes are cached", used)
	}
}

// TestKilledAgent: what an agent that was killed has left at the broker, and nothing else, is what the next attempt needs.
func TestKilledAgent(t *testing.T) {
	b := newFakeBroker(t)
	program := []byte("counts")
	b.blobs[digest.Of(program)] = program
	dir := joined(t, b)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil { // all that is on disk when it is killed
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(copied, keyName), 0o600); err != nil {
		t.Fatal(err)
	}
	lease := func(n int) *crowd.Message {
		l := leaseOf(0, 1, digest.Of(program))
		l.Lease.N, l.Lease.Spec.Checkpoint, l.Lease.Spec.Args = n, "1s", []string{"count", "300"}
		return l
	}
	step := 5 * time.Millisecond
	first := start(t, dir, &guesttest.Fake{UnitTime: step}, nil)
	c := b.session()
	_ = c.Send(lease(1))
	until(t, "a checkpoint", func() bool { return b.came() != "" })
	b.mu.Lock()
	p := b.states[0]
	b.blobs[p.root] = p.body
	b.mu.Unlock()
	if s, err := crowd.ParseCheckpoint(p.body); err != nil || s.Fuel != p.fuel || p.fuel == 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	_ = c.Send(&crowd.Message{Cancel: &crowd.Cancel{AttemptRef: p.AttemptRef, Reason: crowd.HostLost}})
	until(t, "it is dropped", func() bool { return len(first.Status().Guests) == 0 })

	start(t, copied, &guesttest.Fake{UnitTime: step}, nil)
	c = b.session()
	l := lease(2)
	l.Lease.State = &crowd.Resume{Seq: p.seq, Root: p.root, Size: int64(len(p.body)), Fuel: p.fuel}
	begun := time.Now()
	_ = c.Send(l)
	r := b.report()
	o, contents, err := crowd.ParseBody(r.Body, 0, 1)
	if err != nil || r.Fuel != 300*100 || o.Fuel() != 0 || string(contents[0].Stdout) != "300\n" {
		t.Errorf("%+v %+v %q, %v", r, o, contents, err)
	}
	t.Logf("the second took %v", time.Since(begun))
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.states {
		if s.N == 2 && s.seq <= p.seq {
			t.Errorf("the second's checkpoint has number %d", s.seq)
		}
	}
}

// TestSleptLink: after a sleep of the machine the connection isn't trusted.
func TestSleptLink(t *testing.T) {
	b := newFakeBroker(t)
	var asleep atomic.Int64
	begun := time.Now()
	m := start(t, joined(t, b), &fakeEngine{}, func(o *Options) {
		o.boot = func() time.Duration { return time.Since(begun) + time.Duration(asleep.Load()) }
	})
	b.session()
	b.renewed("anything", func(*crowd.Renew) bool { return true })
	asleep.Add(int64(time.Second)) // a nap
	poke(m.changed)
	b.renewed("anything", func(r *crowd.Renew) bool { return r.N > 1 })
	asleep.Add(int64(3 * time.Second))
	poke(m.changed)
	b.session()
	b.renewed("a new connection", func(r *crowd.Renew) bool { return r.N == 1 })
}

package host

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

func answer(r *crowd.Report, a crowd.ReportAnswer) *crowd.Message {
	return &crowd.Message{Reported: &crowd.Reported{AttemptRef: r.AttemptRef, Answer: a}}
}

func TestJoin(t *testing.T) {
	b := newFakeBroker(t)
	dir := joined(t, b)
	p, err := LoadProfile(dir)
	if err != nil || p.Host.Name != "tower" || p.Host.Place.Jurisdiction != "DE" || p.Broker != b.srv.URL {
		t.Fatal(p, err)
	}
	for _, n := range []string{profileName, keyName} {
		if st, _ := os.Stat(filepath.Join(dir, n)); st.Mode().Perm() != 0o600 {
			t.Error(n, st.Mode())
		}
	}
	if _, err := Join(t.Context(), b.joinLink(), JoinOptions{Dir: dir}); !crowd.KindIs(err, crowd.Conflict) {
		t.Error(err)
	}
	_, err = Join(t.Context(), b.joinLink(), JoinOptions{Dir: t.TempDir(), Name: "second"})
	if e := crowd.AsError(err); e.Kind != crowd.Denied || e.Reason != crowd.BrokerToken || e.Hint == "" {
		t.Error(err)
	}
	bad := b.joinLink()
	bad = bad[:len(bad)-26] + strings.Repeat("0", 26)
	if _, err := Join(t.Context(), bad, JoinOptions{Dir: t.TempDir()}); crowd.AsError(err).Reason != crowd.BrokerKey {
		t.Error("joined a broker with another key:", err)
	}
	if _, err := New(Options{Dir: t.TempDir()}); !crowd.KindIs(err, crowd.NotFound) {
		t.Error(err)
	}
	if err := Forget(dir, true); err != nil {
		t.Error(err)
	}
}

// TestWork: a lease is run, reported with the host's signature and forgotten when it was acknowledged.
func TestWork(t *testing.T) {
	b := newFakeBroker(t)
	program := []byte("a program")
	b.blobs[digest.Of(program)] = program
	e := &fakeEngine{}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	first := b.renewed("a platform", func(r *crowd.Renew) bool { return r.Platform != nil })
	if first.Room != 2 || first.State != crowd.Ready || first.Platform.OS == "" || first.Memory <= 0 || first.Memory > 2<<30 {
		t.Errorf("%+v", first)
	}
	_ = c.Send(leaseOf(0, 3, digest.Of(program)))
	r := b.report()
	o, _, err := crowd.ParseBody(r.Body, 0, 3)
	if err != nil || digest.Of(o.Manifest()) != r.Digest || r.Fuel != 30 {
		t.Fatal(r, err)
	}
	if !ed25519.Verify(b.host.Key, crowd.ReportBytes(b.host.ID, r.AttemptRef, r.Digest, r.Fuel), r.Sig) {
		t.Error("signature")
	}
	b.renewed("the reported attempt", func(r *crowd.Renew) bool { return len(r.Attempts) == 1 && r.Attempts[0].Done == 3 && r.Room == 2 })
	_ = c.Send(leaseOf(0, 3, digest.Of(program))) // repeated: changes nothing
	_ = c.Send(answer(r, crowd.ReportAccepted))
	b.renewed("nothing", func(r *crowd.Renew) bool { return len(r.Attempts) == 0 })
	if n := e.count("run"); n != 1 {
		t.Errorf("ran %d times", n)
	}
	if s := m.Status(); s.Done != 1 || s.CacheUsed != int64(len(program)) || !s.Connected || len(s.Guests) != 0 || len(s.Layers) != 2 {
		t.Errorf("%+v", s)
	}

	_ = c.Send(&crowd.Message{Lease: &crowd.Lease{AttemptRef: crowd.AttemptRef{Job: testJob, First: 3, N: 1}, Count: 1}}) // the spec is known
	for _, a := range []crowd.ReportAnswer{crowd.ReportConflict} {
		_ = c.Send(answer(b.report(), a))
	}
	b.renewed("nothing", func(r *crowd.Renew) bool { return len(r.Attempts) == 0 })
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(m.dir, "outbox", "*")); left != nil {
		t.Error("left", left)
	}
	var events []string
	if err := ReadLog(t.Context(), m.dir, time.Time{}, false, func(e Entry) error { events = append(events, e.What); return nil }); err != nil {
		t.Error(err)
	}
	want := "agent.started chunk.started chunk.done chunk.started chunk.refused agent.stopped"
	if got := strings.Join(events, " "); got != want {
		t.Errorf("log: %s\nwanted %s", got, want)
	}
}

func TestRefusals(t *testing.T) {
	b := newFakeBroker(t)
	denied := digest.Of([]byte("denied"))
	start(t, joined(t, b), &fakeEngine{stdout: []byte{}, step: make(chan struct{})}, func(o *Options) { o.Policy.Programs = []crowd.Digest{denied} })
	c := b.session()
	unknown := &crowd.Message{Lease: &crowd.Lease{AttemptRef: crowd.AttemptRef{Job: crowd.JobID{9}, N: 1}, Count: 1}}
	large := leaseOf(0, 1, digest.Of(nil))
	large.Lease.Job = crowd.JobID{8}
	large.Lease.Spec.Resources.Memory = 3 << 30
	many := leaseOf(0, crowd.Limits.UnitsPerChunk+1, digest.Of(nil))
	for _, w := range []struct {
		m    *crowd.Message
		want crowd.Reason
	}{{unknown, crowd.HostFailed}, {leaseOf(0, 1, denied), crowd.OwnerPolicy}, {large, crowd.HostSmall}, {many, crowd.HostFailed}} {
		_ = c.Send(w.m)
		if r := b.returned(); r.Reason != w.want || r.AttemptRef != w.m.Lease.AttemptRef {
			t.Errorf("%+v, wanted %s", r, w.want)
		}
	}
	for i := range uint64(5) {
		_ = c.Send(leaseOf(i, 1, digest.Of(nil)))
	}
	if r := b.returned(); r.Reason != crowd.HostBusy || r.First != 4 {
		t.Errorf("%+v", r)
	}
}

func TestFailure(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{failed: crowd.Errorf(crowd.Failed, crowd.GuestTime, "unit 0 took\nlonger")}
	start(t, joined(t, b), e, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	if r := b.returned(); r.Reason != crowd.GuestTime || r.Text != "unit 0 took longer (guest.time)" {
		t.Errorf("%+v", r)
	}
	until(t, "the slot is closed", func() bool { return e.count("close") == 1 })
	e.mu.Lock()
	e.failed = errors.New("disk on fire")
	e.mu.Unlock()
	_ = c.Send(leaseOf(1, 1, digest.Of(nil)))
	if r := b.returned(); r.Reason != crowd.HostFailed || r.Text != "disk on fire" {
		t.Errorf("%+v", r)
	}
	missing := leaseOf(2, 1, digest.Of([]byte("nobody has it")))
	e.mu.Lock()
	e.failed = nil
	e.mu.Unlock()
	_ = c.Send(missing)
	if r := b.returned(); r.Reason != crowd.HostFailed {
		t.Errorf("%+v", r)
	}
}

// TestReconnect: work goes on while the broker is away; the report is said again on the next connection, whose number is one higher.
func TestReconnect(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 2, digest.Of(nil)))
	b.renewed("an attempt", func(r *crowd.Renew) bool { return len(r.Attempts) == 1 })
	e.step <- struct{}{}
	c.Close(nil)
	c = b.session()
	b.renewed("the attempt, half done", func(r *crowd.Renew) bool { return r.Platform != nil && len(r.Attempts) == 1 && r.Attempts[0].Done == 1 })
	e.step <- struct{}{}
	r := b.report()
	c.Close(nil) // unanswered
	c = b.session()
	again := b.report()
	if again.Digest != r.Digest || !bytes.Equal(again.Body, r.Body) || e.count("run") != 1 {
		t.Errorf("%+v, then %+v", r, again)
	}
	_ = c.Send(answer(r, crowd.ReportRepeat))
	until(t, "it is forgotten", func() bool { return len(m.Status().Guests) == 0 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.dials, []int64{1, 2, 3}) {
		t.Error(b.dials)
	}
}

// TestRestart: an outcome that wasn't acknowledged outlives the process; what wasn't done is given back by its owner's word.
func TestRestart(t *testing.T) {
	b := newFakeBroker(t)
	out := bytes.Repeat([]byte("x"), crowd.Limits.InlineBody+1)
	e := &fakeEngine{step: make(chan struct{}), stdout: out}
	dir := joined(t, b)
	m := start(t, dir, e, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	_ = c.Send(leaseOf(7, 1, digest.Of(nil)))
	e.step <- struct{}{}
	r := b.report()
	path := fmt.Sprintf("/v1/link/outcomes/%s/%d/1/%s", r.Job, r.First, r.Ref)
	b.mu.Lock()
	if len(r.Body) > 0 || digest.Of(b.puts[path]) != r.Ref {
		t.Errorf("a large body: %d bytes inline, %d put at %s", len(r.Body), len(b.puts[path]), path)
	}
	b.mu.Unlock()
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	if back := b.returned(); back.Reason != crowd.OwnerStopped || back.First == r.First {
		t.Errorf("%+v", back)
	}

	if err := os.WriteFile(filepath.Join(dir, "outbox", "junk"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	m = start(t, dir, e, nil)
	c = b.session()
	b.renewed("the done attempt", func(r *crowd.Renew) bool { return len(r.Attempts) == 1 })
	again := b.report()
	if again.AttemptRef != r.AttemptRef || again.Ref != r.Ref || !bytes.Equal(again.Sig, r.Sig) {
		t.Errorf("%+v", again)
	}
	_ = c.Send(answer(again, crowd.ReportAccepted))
	until(t, "the outbox is empty", func() bool {
		left, _ := os.ReadDir(filepath.Join(dir, "outbox"))
		return len(left) == 0
	})
	_ = m.stop()
}

func TestCancelAndDrop(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	x, y := leaseOf(0, 1, digest.Of(nil)), leaseOf(1, 1, digest.Of(nil))
	_ = c.Send(x)
	_ = c.Send(y)
	until(t, "both run", func() bool { return e.count("run") == 2 })
	_ = c.Send(&crowd.Message{Cancel: &crowd.Cancel{AttemptRef: x.Lease.AttemptRef, Reason: crowd.CustomerCancel}})
	_ = c.Send(&crowd.Message{Answer: &crowd.Answer{Drop: []crowd.AttemptRef{y.Lease.AttemptRef}}})
	until(t, "both guests are gone", func() bool { return e.count("close") == 2 })
	until(t, "nothing is held", func() bool { s := m.Status(); return len(s.Guests) == 0 && s.SlotsUsed == 0 })
	for len(b.said) > 0 {
		if r := <-b.said; r.Return != nil {
			t.Errorf("returned what was dropped: %+v", r.Return)
		}
	}
}

// TestPause: the owner's word freezes every guest before Pause returns; frozen attempts are renewed; a resume goes on with them.
func TestPause(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	_ = c.Send(leaseOf(1, 1, digest.Of(nil)))
	until(t, "both run", func() bool { return e.count("run") == 2 })
	s, err := Ask(t.Context(), m.dir, Request{Do: "pause"})
	if err != nil || e.count("freeze") != 2 {
		t.Fatalf("paused, but %d guests are frozen: %v", e.count("freeze"), err)
	}
	if s.State != crowd.Paused || s.Why != crowd.OwnerPaused || s.Freezes != 1 || s.Guests[0].State != "frozen" || s.SlowestMs > 100 {
		t.Errorf("%+v", s)
	}
	b.renewed("both frozen", func(r *crowd.Renew) bool {
		return r.State == crowd.Paused && r.Why == crowd.OwnerPaused && r.Room == 0 && len(r.Attempts) == 2 && r.Attempts[0].Frozen && r.Attempts[1].Frozen
	})
	_ = c.Send(leaseOf(2, 1, digest.Of(nil)))
	if r := b.returned(); r.Reason != crowd.OwnerPaused || r.First != 2 {
		t.Errorf("%+v", r)
	}
	if _, err := Ask(t.Context(), m.dir, Request{Do: "resume"}); err != nil || e.count("thaw") != 2 {
		t.Error(err)
	}
	e.step <- struct{}{}
	b.report()
}

// TestMoveAfter: a long pause gives the work to others, without blame; a pause outlives a restart; a short one ends by itself.
func TestMoveAfter(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	soon := func(o *Options) { o.Policy.MoveAfter = 30 * time.Millisecond }
	m := start(t, joined(t, b), e, soon)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	until(t, "it runs", func() bool { return e.count("run") == 1 })
	if err := m.Pause(0); err != nil {
		t.Fatal(err)
	}
	if r := b.returned(); r.Reason != crowd.OwnerPaused {
		t.Errorf("%+v", r)
	}
	if i, j := slices.Index(e.trace, "freeze"), slices.Index(e.trace, "close"); i < 0 || j < i {
		t.Error(e.trace)
	}
	_ = m.stop()
	m = start(t, m.dir, e, soon)
	b.session()
	b.renewed("the pause", func(r *crowd.Renew) bool { return r.State == crowd.Paused })
	if err := m.Pause(30 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	b.renewed("its end", func(r *crowd.Renew) bool { return r.State == crowd.Ready })
}

// TestGrace: without a broker a unit is computed for so long and no longer.
func TestGrace(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	m := start(t, joined(t, b), e, func(o *Options) {
		o.Grace = 200 * time.Millisecond
		o.backoff = func(int) time.Duration { return time.Hour }
	})
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	until(t, "it runs", func() bool { return e.count("run") == 1 })
	lost := time.Now()
	c.Close(nil)
	poke(m.rethink)
	until(t, "it is given up", func() bool { poke(m.rethink); return len(m.Status().Guests) == 0 })
	if d := time.Since(lost); d < 150*time.Millisecond {
		t.Errorf("given up after %v", d)
	}
}

func TestLeave(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	until(t, "it runs", func() bool { return e.count("run") == 1 })
	if _, err := Ask(t.Context(), m.dir, Request{Do: "leave"}); err != nil {
		t.Fatal(err)
	}
	if r := b.returned(); r.Reason != crowd.OwnerLeft {
		t.Errorf("%+v", r)
	}
	expect(b, "leave", func(m *crowd.Message) (bool, bool) { return true, m.Leave != nil })
	b.mu.Lock()
	b.refuse = crowd.Errorf(crowd.Denied, crowd.OwnerLeft, "tower has left the crowd")
	b.mu.Unlock()
	c.Close(nil)
	until(t, "the agent ends", func() bool { _, err := Ask(context.Background(), m.dir, Request{Do: "status"}); return err != nil })
	if err := m.stop(); err != nil {
		t.Error(err)
	}
}

func TestFinalRefusal(t *testing.T) {
	b := newFakeBroker(t)
	m := start(t, joined(t, b), &fakeEngine{}, nil)
	c := b.session()
	b.mu.Lock()
	b.refuse = crowd.Errorf(crowd.Conflict, crowd.HostCloned, "two machines use this key")
	b.mu.Unlock()
	c.Close(nil)
	until(t, "the agent ends", func() bool { _, err := Ask(context.Background(), m.dir, Request{Do: "status"}); return err != nil })
	if err := m.stop(); crowd.AsError(err).Reason != crowd.HostCloned {
		t.Error(err)
	}
}

func TestOneAgentPerFolder(t *testing.T) {
	b := newFakeBroker(t)
	m := start(t, joined(t, b), &fakeEngine{}, nil)
	b.session()
	a, err := New(m.o)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); !crowd.KindIs(err, crowd.Conflict) {
		t.Error(err)
	}
	if _, err := Ask(t.Context(), m.dir, Request{Do: "dance"}); !crowd.KindIs(err, crowd.Invalid) {
		t.Error(err)
	}
	st, err := os.Stat(filepath.Join(m.dir, controlName))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
}

func TestDoctor(t *testing.T) {
	b := newFakeBroker(t)
	dir := joined(t, b)
	got := map[string]bool{}
	for _, c := range Doctor(t.Context(), dir, &fakeEngine{}, Policy{}) {
		got[c.Name] = c.OK
		if !c.OK && c.Text == "" {
			t.Errorf("%+v", c)
		}
	}
	for name, want := range map[string]bool{"broker": true, "broker's key": true, "clock": true, "engine": true, "folder": false, "cage: landlock": false, "presence": false} {
		if ok, there := got[name]; !there || ok != want && name != "folder" {
			t.Errorf("%s: %v, %v", name, ok, there)
		}
	}
}

package host

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// upgradable makes an agent believe that this test's own program may take over. Its version is "9" by a file that stands in for it.
func upgradable(t *testing.T) func(*Options) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the stand-in is a script")
	}
	return func(o *Options) { o.Self = filepath.Join(t.TempDir(), "crowd") }
}

// begin starts what Upgrade does once the program was looked at.
func (m *machine) begin(within time.Duration) {
	m.mu.Lock()
	now := time.Now()
	m.up = &upgrade{Upgrading: Upgrading{Version: "9", Since: now, Until: now.Add(within)}}
	m.mu.Unlock()
	poke(m.changed)
	poke(m.going)
}

// ended is the Handover that Run returns.
func (m *machine) ended(t *testing.T) *Handover {
	t.Helper()
	var h *Handover
	select {
	case err := <-m.done:
		m.done <- err
		if !errors.As(err, &h) {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the agent doesn't hand over")
	}
	return h
}

// TestHandover: what runs is finished and said, nothing new is taken; the next agent of the process goes on as the same session; what
// wasn't acknowledged is said again.
func TestHandover(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
	m := start(t, joined(t, b), e, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	until(t, "it runs", func() bool { return e.count("run") == 1 })
	m.begin(time.Hour)
	b.renewed("no room", func(r *crowd.Renew) bool {
		return r.State == crowd.Leaving && r.Why == crowd.OwnerStopped && r.Room == 0 && len(r.Attempts) == 1
	})
	_ = c.Send(leaseOf(5, 1, digest.Of(nil)))
	if r := b.returned(); r.Reason != crowd.OwnerStopped || r.First != 5 {
		t.Errorf("%+v", r)
	}
	if s := m.Status(); s.Upgrading == nil || s.Upgrading.Left != 1 || s.Upgrading.Version != "9" {
		t.Errorf("%+v", s.Upgrading)
	}
	e.step <- struct{}{}
	first := b.report() // never acknowledged
	h := m.ended(t)
	for len(b.said) > 0 {
		if m := <-b.said; m.Leave != nil {
			t.Error("it left the crowd")
		}
	}

	if err := m.tryAnother(t); !crowd.KindIs(err, crowd.Conflict) {
		t.Error("another agent slipped in:", err)
	}
	session := m.session
	m2 := start(t, m.dir, e, nil)
	b.session()
	again := b.report()
	if again.AttemptRef != first.AttemptRef || again.Digest != first.Digest {
		t.Errorf("%+v", again)
	}
	b.mu.Lock()
	dials, sessions := b.dials, b.sessions
	b.mu.Unlock()
	if len(dials) != 2 || dials[1] != 2 || sessions[0] != session || sessions[1] != session {
		t.Errorf("dials %v of %v", dials, sessions)
	}
	if _, err := os.Stat(h.file); err == nil {
		t.Error("the hand-over can be used twice")
	}
	_ = m2.stop()
	start(t, m.dir, e, nil)
	b.session()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sessions[2] == session || b.dials[2] != 1 {
		t.Error("a session went on without a hand-over")
	}
}

// tryAnother runs an agent in the folder as another process would: without the lock's descriptor.
func (m *machine) tryAnother(t *testing.T) error {
	l, _, err := lockDir(m.dir, 0)
	if err == nil {
		l.close()
	}
	return err
}

// TestHandoverWithin: what can't be done in time goes back, frozen or not.
func TestHandoverWithin(t *testing.T) {
	for _, freeze := range []bool{false, true} {
		b := newFakeBroker(t)
		e := &fakeEngine{step: make(chan struct{}), stdout: []byte{}}
		m := start(t, joined(t, b), e, nil)
		c := b.session()
		_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
		until(t, "it runs", func() bool { return e.count("run") == 1 })
		if freeze {
			if err := m.Pause(0); err != nil {
				t.Fatal(err)
			}
		}
		m.begin(30 * time.Millisecond)
		if r := b.returned(); r.Reason != crowd.OwnerStopped || r.First != 0 {
			t.Errorf("%+v", r)
		}
		h := m.ended(t)
		h.Drop()
		if _, err := os.Stat(h.file); err == nil {
			t.Error("dropped, but there")
		}
		if err := m.tryAnother(t); err != nil {
			t.Error("dropped, but locked:", err)
		}
	}
}

// TestHandoverRefused: only the process that holds the lock without a break may go on, soon, with a file that makes sense.
func TestHandoverRefused(t *testing.T) {
	b := newFakeBroker(t)
	e := &fakeEngine{}
	dir := joined(t, b)
	n := 0
	try := func(what string, change func(*handover)) {
		t.Helper()
		m := start(t, dir, e, nil)
		b.session()
		m.begin(0)
		h := m.ended(t)
		var f handover
		raw, err := os.ReadFile(h.file)
		if err == nil {
			err = json.Unmarshal(raw, &f)
		}
		if err != nil || f.Session != m.session || f.Dials != m.dials || f.PID != os.Getpid() || time.Since(f.At) > time.Minute {
			t.Fatalf("%+v %v", f, err)
		}
		if change != nil {
			change(&f)
			raw, _ = json.Marshal(f)
		} else {
			raw = raw[:len(raw)/2]
		}
		if f.Lock != h.lock {
			closeLock(h.lock)
		}
		if err := os.WriteFile(h.file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		m2 := start(t, dir, e, nil)
		b.session()
		b.mu.Lock()
		if i := len(b.sessions) - 1; b.sessions[i] == m.session || b.dials[i] != 1 {
			t.Errorf("%s: it went on as the same session", what)
		}
		b.mu.Unlock()
		if _, err := os.Stat(h.file); err == nil {
			t.Errorf("%s: the file is still there", what)
		}
		_ = m2.stop()
		n++
	}
	try("old", func(h *handover) { h.At = h.At.Add(-handoverFresh) })
	try("of the future", func(h *handover) { h.At = h.At.Add(time.Hour) })
	try("no dial", func(h *handover) { h.Dials = 0 })
	try("no session", func(h *handover) { h.Session = crowd.SessionID{} })
	if runtime.GOOS != "windows" {
		try("without the lock", func(h *handover) { h.Lock = 0 })
		try("another descriptor", func(h *handover) {
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			h.Lock = int(f.Fd())
		})
	}
}

// TestUpgradeLooks: what can't take over is refused before anything changes.
func TestUpgradeLooks(t *testing.T) {
	b := newFakeBroker(t)
	m := start(t, joined(t, b), &fakeEngine{}, nil)
	b.session()
	if _, err := Ask(t.Context(), m.dir, Request{Do: "upgrade"}); !crowd.KindIs(err, crowd.Conflict) {
		t.Error("part of another program:", err)
	}
	_ = m.stop()
	m = start(t, m.dir, &fakeEngine{}, upgradable(t))
	b.session()
	self := m.o.Self
	write := func(path, text string, mode os.FileMode) string {
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	other := filepath.Join(t.TempDir(), "other")
	for _, w := range []struct {
		to   string
		kind crowd.ErrKind
	}{
		{"", crowd.NotFound}, {"crowd", crowd.Invalid}, {filepath.Dir(self), crowd.Invalid}, {write(other+"-no", "x", 0o600), crowd.Invalid},
		{write(other, "#!/bin/sh\necho '{\"version\":\"9\"}'\n", 0o755), crowd.Invalid}, {other + "-not", crowd.NotFound},
	} {
		if _, err := Ask(t.Context(), m.dir, Request{Do: "upgrade", To: w.to}); !crowd.KindIs(err, w.kind) {
			t.Errorf("%q: %v", w.to, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(self), ".crowd-*")); left != nil {
		t.Error("left", left)
	}
	if s := m.Status(); s.Upgrading != nil {
		t.Errorf("%+v", s.Upgrading)
	}
	if warning, err := suspicious(write(other, "x", 0o777)); err != nil || warning == "" {
		t.Error(warning, err)
	}
}

// TestSwap: there is always a program, and the old one stays.
func TestSwap(t *testing.T) {
	dir := t.TempDir()
	self, next := filepath.Join(dir, "crowd.exe"), filepath.Join(dir, "next")
	for i, text := range []string{"2", "3"} {
		if i == 0 {
			_ = os.WriteFile(self, []byte("1"), 0o700)
		}
		_ = os.WriteFile(next, []byte(text), 0o700)
		staged, err := stage(next, self)
		if err == nil {
			err = swap(self, staged)
		}
		if err != nil {
			t.Fatal(err)
		}
		now, _ := os.ReadFile(self)
		old, _ := os.ReadFile(filepath.Join(dir, "crowd.previous.exe"))
		if string(now) != text || old[0] != text[0]-1 {
			t.Errorf("%q after %q", now, old)
		}
	}
	if all, _ := os.ReadDir(dir); len(all) != 3 {
		t.Error(all)
	}
}

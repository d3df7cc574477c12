package host

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// TestDeniedAccount: the owner's log says for whom the machine worked, and a denied account's leases go back.
func TestDeniedAccount(t *testing.T) {
	b := newFakeBroker(t)
	denied, other := crowd.AccountID{1}, crowd.AccountID{2}
	m := start(t, joined(t, b), &fakeEngine{stdout: []byte{}}, func(o *Options) { o.Policy.Accounts = []crowd.AccountID{denied} })
	c := b.session()
	l := leaseOf(0, 1, digest.Of(nil))
	l.Lease.Account = denied
	_ = c.Send(l)
	if r := b.returned(); r.Reason != crowd.OwnerPolicy || r.First != 0 {
		t.Errorf("%+v", r)
	}
	l = leaseOf(1, 1, digest.Of(nil))
	l.Lease.Account = other
	_ = c.Send(l)
	b.report()
	_ = m.stop()
	var whose []crowd.AccountID
	_ = ReadLog(t.Context(), m.dir, time.Time{}, false, func(e Entry) error {
		if e.What == "chunk.started" {
			whose = append(whose, e.Account)
		}
		return nil
	})
	if len(whose) != 1 || whose[0] != other {
		t.Error(whose)
	}
}

// TestBound: a lease's bound ends what leaks, an hour late, and stands while the owner has the machine.
func TestBound(t *testing.T) {
	b := newFakeBroker(t)
	m := start(t, joined(t, b), &fakeEngine{stdout: []byte{}, step: make(chan struct{})}, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil))) // an hour
	running := func() (n int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, at := range m.held {
			if at.running && at.slot != nil {
				n++
			}
		}
		return n
	}
	until(t, "it runs", func() bool { return running() == 1 })
	age := func(d time.Duration) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ageLocked(d)
	}
	age(time.Hour + leakSlack - time.Minute)
	if err := m.Pause(0); err != nil {
		t.Fatal(err)
	}
	age(100 * time.Hour)
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	if running() != 1 {
		t.Fatal("stopped too early")
	}
	age(time.Minute)
	if r := b.returned(); r.Reason != crowd.GuestTime || !strings.Contains(r.Text, "1h0m0s") {
		t.Errorf("%+v", r)
	}
}

// TestUploadAgain: finished work isn't thrown away because another upload runs, nor waits for ever on a broker that doesn't read.
func TestUploadAgain(t *testing.T) {
	b := newFakeBroker(t)
	b.deaf, b.busy = 1, 2 // the first counts for both
	large := bytes.Repeat([]byte("x"), 8<<20)
	start(t, joined(t, b), &fakeEngine{stdout: large}, func(o *Options) { o.stall = 500 * time.Millisecond })
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(nil)))
	r := b.report()
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.Ref.IsZero() || len(b.puts) != 1 || b.busy >= 0 {
		t.Errorf("%+v after %d uploads", r, len(b.puts))
	}
}

// TestCacheCap: nothing is fetched that can't fit, and what broke off counts.
func TestCacheCap(t *testing.T) {
	dir := t.TempDir()
	w := &world{all: map[crowd.Digest][]byte{}, cut: 60}
	small, large := w.add(bytes.Repeat([]byte("s"), 50)), w.add(bytes.Repeat([]byte("l"), 101))
	broken, middle := w.add(bytes.Repeat([]byte("b"), 70)), w.add(bytes.Repeat([]byte("m"), 55))
	c, err := OpenCache(dir, 100, w.fetch)
	if err != nil {
		t.Fatal(err)
	}
	want := func(bytes int64) {
		t.Helper()
		if used, _ := c.Usage(); used != bytes {
			t.Errorf("%d bytes are used, not %d", used, bytes)
		}
	}
	read(t, c, small)
	if _, err := c.Open(t.Context(), large); crowd.AsError(err).Reason != crowd.HostSmall {
		t.Error(err)
	}
	want(50) // neither kept nor made room for
	if _, err := c.Open(t.Context(), broken); err == nil {
		t.Error("it breaks off")
	}
	want(60) // of the broken one; the small one went for it
	b, err := c.Open(t.Context(), middle)
	if err != nil {
		t.Fatal(err)
	}
	want(55)
	if _, err := c.Open(t.Context(), small); crowd.AsError(err).Reason != crowd.HostSmall {
		t.Errorf("beside what is open: %v", err)
	}
	want(55)
	b.Close()
	read(t, c, small)
	if _, err := c.Open(t.Context(), broken); err == nil {
		t.Error("it breaks off")
	}
	if c, err = OpenCache(dir, 100, w.fetch); err != nil {
		t.Fatal(err)
	}
	want(60)
	if _, err := os.Stat(c.path(broken) + partSuffix); err != nil {
		t.Error(err)
	}
}

func TestAskNobody(t *testing.T) {
	_, err := Ask(t.Context(), t.TempDir(), Request{Do: "status"})
	if e := crowd.AsError(err); e == nil || e.Kind != crowd.Unavailable || err.Error() != "no agent runs here" || e.Hint == "" {
		t.Error(err)
	}
}

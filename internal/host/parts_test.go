package host

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// world is content that can be fetched, and how often it was.
type world struct {
	mu      sync.Mutex
	all     map[crowd.Digest][]byte
	fetched int
	cut     int // larger content breaks off there
}

func (w *world) add(b []byte) crowd.Digest {
	w.all[digest.Of(b)] = b
	return digest.Of(b)
}

func (w *world) fetch(_ context.Context, d crowd.Digest, f *os.File, have int64, room func(int64) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fetched++
	b, ok := w.all[d]
	if !ok {
		return crowd.Errorf(crowd.NotFound, "", "no such blob")
	}
	if err := room(int64(len(b))); err != nil {
		return err
	}
	if w.cut > 0 && w.cut < len(b) {
		_, _ = f.Write(b[have:w.cut])
		return io.ErrUnexpectedEOF
	}
	_, err := f.Write(b[have:])
	return err
}

func read(t *testing.T, c *Cache, d crowd.Digest) []byte {
	t.Helper()
	b, err := c.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCache(t *testing.T) {
	dir := t.TempDir()
	w := &world{all: map[crowd.Digest][]byte{}}
	x, y, z := w.add(bytes.Repeat([]byte("x"), 40)), w.add(bytes.Repeat([]byte("y"), 40)), w.add(bytes.Repeat([]byte("z"), 40))
	c, err := OpenCache(dir, 100, w.fetch)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { read(t, c, x) })
	}
	wg.Wait()
	if w.fetched != 1 {
		t.Errorf("fetched %d times", w.fetched)
	}
	read(t, c, y)
	read(t, c, x) // y is the oldest now
	read(t, c, z)
	if used, _ := c.Usage(); used != 80 {
		t.Error(used)
	}
	n := w.fetched
	read(t, c, x)
	read(t, c, z)
	if w.fetched != n {
		t.Error("the wrong one was evicted")
	}

	// what is open stays, even beyond the cap
	b, err := c.Open(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	read(t, c, y)
	read(t, c, z)
	n = w.fetched
	read(t, c, x)
	if w.fetched != n {
		t.Error("evicted what was open")
	}
	b.Close()
	b.Close() // twice is fine

	// the next life: a damaged file is fetched anew, a right one isn't
	if err := os.WriteFile(c.path(x), bytes.Repeat([]byte("!"), 40), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = OpenCache(dir, 100, w.fetch); err != nil {
		t.Fatal(err)
	}
	n = w.fetched
	if got := read(t, c, x); string(got) != string(w.all[x]) || w.fetched != n+1 {
		t.Errorf("%q after %d fetches", got, w.fetched-n)
	}

	// a wrong answer gets no name
	lie := digest.Of([]byte("truth"))
	w.all[lie] = []byte("a lie")
	if _, err := c.Open(t.Context(), lie); crowd.AsError(err).Reason != crowd.HostFailed {
		t.Error(err)
	}
	if _, err := c.Open(t.Context(), digest.Of([]byte("nowhere"))); !crowd.KindIs(err, crowd.NotFound) {
		t.Error(err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, p := range names {
		if got, _ := os.ReadFile(p); filepath.Ext(p) == "" && digest.Of(got).String()[3:] != filepath.Base(p) {
			t.Errorf("%s holds %q", p, got)
		}
	}
}

// TestFetchGoesOn: a transfer that breaks off goes on where it was.
func TestFetchGoesOn(t *testing.T) {
	b := newFakeBroker(t)
	program := bytes.Repeat([]byte("program "), 1000)
	b.blobs[digest.Of(program)] = program
	b.cut = 1000
	start(t, joined(t, b), &fakeEngine{}, nil)
	c := b.session()
	_ = c.Send(leaseOf(0, 1, digest.Of(program)))
	b.report()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.gets) != 2 || b.gets[0] != "" || b.gets[1] != "bytes=1000-" {
		t.Errorf("%q", b.gets)
	}
}

func TestHours(t *testing.T) {
	at := func(s string) time.Time {
		x, err := time.ParseInLocation("Mon 2006-01-02 15:04", s, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	week := [7]bool{time.Monday: true, time.Tuesday: true, time.Wednesday: true, time.Thursday: true, time.Friday: true}
	hours := []Window{{Days: week, From: 18 * time.Hour, To: 8 * time.Hour}, {Days: [7]bool{time.Saturday: true, time.Sunday: true}}}
	for s, want := range map[string]struct {
		open bool
		next string
	}{
		"Mon 2026-03-02 07:00": {false, "Mon 2026-03-02 08:00"}, // Sunday's evening isn't lent by the first window
		"Mon 2026-03-02 18:00": {true, "Tue 2026-03-03 00:00"},
		"Tue 2026-03-03 07:59": {true, "Tue 2026-03-03 08:00"},
		"Tue 2026-03-03 08:00": {false, "Tue 2026-03-03 18:00"},
		"Sat 2026-03-07 12:00": {true, "Sat 2026-03-07 18:00"},
		"Sun 2026-03-08 23:59": {true, "Mon 2026-03-09 00:00"},
	} {
		is, next := open(hours, at(s))
		if is != want.open || !next.Equal(at(want.next)) {
			t.Errorf("%s: %v until %s, wanted %v until %s", s, is, next.Format("Mon 2006-01-02 15:04"), want.open, want.next)
		}
	}
	if is, _ := open(nil, time.Now()); !is {
		t.Error("no hours: always")
	}
}

func TestOwner(t *testing.T) {
	now := time.Date(2026, 3, 3, 12, 0, 0, 0, time.UTC)
	o := owner{}
	if w := o.want(now); w.State != crowd.Ready || w.GiveBack {
		t.Errorf("%+v", w)
	}
	o.Paused, o.Until = true, now.Add(2*time.Hour)
	if w := o.want(now); w.State != crowd.Paused || w.GiveBack || !w.Next.Equal(now.Add(time.Minute)) {
		t.Errorf("%+v", w)
	}
	if w := o.want(now.Add(time.Minute)); !w.GiveBack || w.Why != crowd.OwnerPaused || !w.Next.Equal(now.Add(2*time.Hour)) {
		t.Errorf("%+v", w)
	}
	if w := o.want(now.Add(2 * time.Hour)); w.State != crowd.Ready || o.Paused {
		t.Errorf("%+v", w)
	}
	o.policy.Hours = []Window{{Days: [7]bool{time.Sunday: true}}}
	if w := o.want(now); w.State != crowd.Paused || w.Why != crowd.OwnerSchedule {
		t.Errorf("%+v", w)
	}
	o.Left = true
	if w := o.want(now); w.State != crowd.Leaving || !w.GiveBack || w.Why != crowd.OwnerLeft {
		t.Errorf("%+v", w)
	}
}

func TestLends(t *testing.T) {
	if c := lends(8, 16<<30, Policy{}); c.Slots != 4 || c.MemoryBytes>>20 != 8191 {
		t.Errorf("%+v", c)
	}
	if c := lends(1, 1<<30, Policy{CPU: 25, Memory: 300}); c.Slots != 1 || c.MemoryBytes > 1<<30 {
		t.Errorf("%+v", c)
	}
	if memory() <= 0 || bootClock() < 0 || kernel() == "" {
		t.Error("this machine isn't measured")
	}
}

func TestClockOff(t *testing.T) {
	at := time.Unix(1000, 0)
	for _, c := range []struct{ date, begun, want time.Duration }{
		{0, 500 * time.Millisecond, 0}, {0, 0, 0}, {0, 5 * time.Second, -4 * time.Second}, {5 * time.Second, 0, 4900 * time.Millisecond},
	} {
		if got := clockOff(at.Add(c.date), at.Add(c.begun), 100*time.Millisecond); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestPace: however fast chunks are, reports stay below what closes the connection.
func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(1000, 0)
	begun, n := now, 0
	for now.Sub(begun) < 10*time.Second {
		now = now.Add(p.next(now))
		n++
	}
	if most := crowd.Limits.MessageBurst/2 + 10*crowd.Limits.MessagesPerSecond/2 + 2; float64(n) > most || float64(n) < most/2 {
		t.Errorf("%d reports in 10 s", n)
	}
}

// TestOutboxDamage: a report cut short at any byte isn't sent.
func TestOutboxDamage(t *testing.T) {
	dir := t.TempDir()
	_ = os.Mkdir(filepath.Join(dir, "outbox"), 0o700)
	o := &crowd.Outcome{First: 3, Units: []crowd.UnitResult{{Fuel: 1}}}
	out := &outgoing{body: o.Body([]crowd.UnitContent{{Stderr: []byte("hm")}})}
	out.AttemptRef, out.Digest = crowd.AttemptRef{Job: testJob, First: 3, N: 1}, digest.Of(o.Manifest())
	if err := storeOutgoing(dir, out); err != nil {
		t.Fatal(err)
	}
	path := outboxPath(dir, out.AttemptRef)
	whole, _ := os.ReadFile(path)
	if all, err := loadOutbox(dir); err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	for n := range len(whole) - len(out.body) + 20 {
		_ = os.WriteFile(path, whole[:n], 0o600)
		if _, err := loadOutgoing(path); err == nil {
			t.Errorf("%d bytes of %d were believed", n, len(whole))
		}
	}
	if all, _ := loadOutbox(dir); len(all) != 0 {
		t.Error(all)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the damaged one is still there")
	}
}

func TestLogTurnsOver(t *testing.T) {
	dir := t.TempDir()
	b, err := openLogbook(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	b.add(Entry{What: "one"})
	b.size = logBytes
	b.add(Entry{What: "two\x1b[31m", Text: "red \x1b[31m"})
	b.add(Entry{What: "three"})
	b.close()
	b.add(Entry{What: "lost"})
	var got []string
	_ = ReadLog(t.Context(), dir, time.Now().Add(-time.Hour), false, func(e Entry) error { got = append(got, e.What+e.Text); return nil })
	if len(got) != 3 || got[0] != "one" || got[2] != "three" {
		t.Errorf("%q", got)
	}
	if err := ReadLog(t.Context(), dir, time.Now().Add(time.Hour), false, func(Entry) error { t.Error("too old"); return nil }); err != nil {
		t.Error(err)
	}
}

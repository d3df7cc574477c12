package wasm

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/guest"
)

// kept runs a task in a slot of its own until it ends, or until save wants no more, and gives the last checkpoint.
func kept(t *testing.T, e *Engine, w *world, task guest.Task, save func(s *Slot, k *crowd.Checkpoint) bool) (state []byte, o *crowd.Outcome, c []crowd.UnitContent, err error) {
	t.Helper()
	s, err := e.slot(context.Background(), crowd.JobID{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	task.Save = func(b []byte, fuel uint64) {
		k, err := crowd.ParseCheckpoint(b)
		if err != nil || k.Fuel != fuel {
			t.Errorf("saved %d bytes with fuel %d: %v", len(b), fuel, err)
			return
		}
		if state = b; !save(s, k) {
			_ = s.Close()
		}
	}
	o, c, err = s.Run(context.Background(), task, w.blobs, nil)
	return state, o, c, err
}

func counter(t *testing.T, args ...string) *world {
	w := newWorld(fixture(t, "counter"), args...)
	w.limits = guest.Limits{Disk: 200 << 20, Time: 60 * time.Second}
	return w
}

// A unit that is killed again and again comes to the same end as one that isn't, and its time and random numbers never come twice.
func TestSeams(t *testing.T) {
	e := testEngine(t, nil)
	w := counter(t, "count", "2000", "20000")
	whole, wantContent := w.run(t, e)
	task := w.task()
	task.Every = 10 * time.Millisecond
	lives, fuel := 0, uint64(0)
	for {
		lives++
		from, saves, begun := fuel, 0, time.Now()
		state, o, c, err := kept(t, e, w, task, func(_ *Slot, k *crowd.Checkpoint) bool {
			if k.Fuel <= fuel || k.Drawn != uint64(8*lives) || !strings.HasPrefix(k.Files[0].Path, "count") {
				t.Errorf("life %d: fuel %d after %d, %d random bytes drawn, %s", lives, k.Fuel, fuel, k.Drawn, k.Files[0].Path)
			}
			fuel = k.Fuel
			saves++
			return lives > 3 || fuel < from+whole.Fuel()/8
		})
		if most := int(time.Since(begun)/task.Every) + 1; saves == 0 || saves > most {
			t.Errorf("life %d: %d checkpoints, at most %d were due", lives, saves, most)
		}
		if err != nil {
			wantFailed(t, err, "closed")
			task.State = state
			continue
		}
		if u := o.Units[0]; u.Failed() || u.Fuel < fuel || u.Files[0] != whole.Units[0].Files[0] || !bytes.Equal(c[0].Stdout, wantContent[0].Stdout) {
			t.Errorf("%+v %q, undisturbed %+v %q", u, c[0].Stdout, whole.Units[0], wantContent[0].Stdout)
		}
		lines := strings.Split(strings.TrimSpace(string(c[0].Stderr)), "\n")
		seen := map[string]bool{}
		last := ""
		for _, l := range lines {
			at, random, _ := strings.Cut(l, " ")
			if at <= last || seen[random] {
				t.Errorf("the lives' times and random numbers: %q", lines)
			}
			last, seen[random] = at, true
		}
		if len(lines) != lives || lives < 4 || !strings.HasPrefix(lines[0], strings.Fields(string(wantContent[0].Stderr))[0]) {
			t.Errorf("%d lives: %q", lives, lines)
		}
		return
	}
}

// hear is a log that tells what it is told.
type hear struct {
	slog.Handler
	said chan string
}

func (h hear) Enabled(context.Context, slog.Level) bool { return true }
func (h hear) Handle(_ context.Context, r slog.Record) error {
	s := r.Message
	r.Attrs(func(a slog.Attr) bool { s += " " + a.String(); return true })
	h.said <- s
	return nil
}

// What can't be kept isn't sent; the host's log says why, and the unit goes on.
func TestUnsaved(t *testing.T) {
	for args, want := range map[string]string{"grow 70000000": "70000000 bytes or more", "name a:b": `"a:b" can't be kept`} {
		t.Run(args, func(t *testing.T) {
			h := hear{slog.DiscardHandler, make(chan string, 10)}
			e := testEngine(t, func(e *Engine) { e.o.Log = slog.New(h) })
			w := counter(t, strings.Fields(args)...)
			task := w.task()
			task.Every = 200 * time.Millisecond
			task.Save = func(b []byte, _ uint64) { t.Logf("saved %d bytes before", len(b)) }
			s, err := e.slot(context.Background(), crowd.JobID{})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				_, _, err := s.Run(context.Background(), task, w.blobs, nil)
				done <- err
			}()
			select {
			case got := <-h.said:
				if !strings.Contains(got, want) {
					t.Errorf("the log says %s", got)
				}
			case err := <-done:
				t.Fatal(err)
			}
			s.Close()
			wantFailed(t, <-done, "closed")
		})
	}
}

// A /state that doesn't fit ends the unit as one that wrote it; what no unit can have left ends the attempt.
func TestBegin(t *testing.T) {
	e := testEngine(t, nil)
	w := counter(t, "count", "5", "10")
	w.limits.Fuel = 1e9
	task := w.task()
	begin := func(k *crowd.Checkpoint) (*crowd.Outcome, []crowd.UnitContent, error) {
		task.State = k.Bytes()
		_, o, c, err := kept(t, e, w, task, nil)
		return o, c, err
	}
	o, c, err := begin(&crowd.Checkpoint{Fuel: 5e8, Slept: 7e9, Drawn: 13, Files: []crowd.StateFile{{Path: "count", Data: []byte("5\n")}, {Path: "d", Dir: true}, {Path: "d/e"}}})
	if err != nil || o.Fuel() < 5e8 || string(c[0].Stdout) != "5\n" || !strings.HasPrefix(string(c[0].Stderr), "1577836807.5") {
		t.Errorf("%+v %s, %v", o, c, err)
	}
	big := []crowd.StateFile{{Path: "big", Data: make([]byte, 1<<20)}}
	task.Limits.Disk = 1 << 20
	if o, _, err = begin(&crowd.Checkpoint{Fuel: 77, Files: big}); err != nil || o.Units[0].Reason != crowd.GuestOutput || o.Fuel() < 77 || o.Fuel() == 77 {
		t.Errorf("just full: %+v, %v", o, err)
	}
	task.Limits.Disk--
	if o, _, err = begin(&crowd.Checkpoint{Fuel: 77, Files: big}); err != nil || o.Units[0].Reason != crowd.GuestOutput || o.Fuel() != 77 {
		t.Errorf("beyond the limit: %+v, %v", o, err)
	}
	for _, fuel := range []uint64{1e9 - 100, 1e9, 1e9 + 1, 1 << 63} {
		if o, _, err = begin(&crowd.Checkpoint{Fuel: fuel}); err != nil || o.Units[0].Reason != crowd.GuestFuel || o.Fuel() != 1e9 {
			t.Errorf("fuel %d burnt: %+v, %v", fuel, o, err)
		}
	}
	many := &crowd.Checkpoint{}
	for i := range maxNodes {
		many.Files = append(many.Files, crowd.StateFile{Path: fmt.Sprintf("%06d", i)})
	}
	_, _, err = begin(many)
	wantFailed(t, err, "that no unit can have")
	task.State = []byte("crowd checkpoint 1\n")
	_, _, _, err = kept(t, e, w, task, nil)
	wantFailed(t, err, "not a checkpoint")
	task.State = make([]byte, crowd.Limits.StateBytes+1)
	_, _, _, err = kept(t, e, w, task, nil)
	wantFailed(t, err, "to begin with")
}

// Frozen time is no running time.
func TestFrozenNotSaved(t *testing.T) {
	for name, polite := range map[string]bool{"signal": false, "frame": true} {
		t.Run(name, func(t *testing.T) {
			e := testEngine(t, func(e *Engine) { e.polite = polite })
			w := counter(t, "grow", "10")
			task := w.task()
			task.Every = 600 * time.Millisecond
			s, err := e.slot(context.Background(), crowd.JobID{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.p.child.Usage(); err != nil {
				t.Skip(err)
			}
			ran := time.Duration(0)
			task.Save = func([]byte, uint64) { ran = s.watch.running(); _ = s.Close() }
			done := make(chan error, 1)
			go func() {
				_, _, err := s.Run(context.Background(), task, w.blobs, nil)
				done <- err
			}()
			busy(t, s)
			if err := s.Freeze(); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * task.Every) // of which nothing counts
			if err := s.Thaw(); err != nil {
				t.Error(err)
			}
			wantFailed(t, <-done, "closed")
			if ran < task.Every-2*maxGap {
				t.Errorf("a checkpoint after %v of running", ran)
			}
		})
	}
}

// What was sent isn't sent again.
func TestSavedOnce(t *testing.T) {
	e := testEngine(t, nil)
	w := counter(t, "same")
	w.limits.Time = time.Second
	task := w.task()
	task.Every = 10 * time.Millisecond
	sent := map[crowd.Digest]bool{}
	state, _, _, err := kept(t, e, w, task, func(_ *Slot, k *crowd.Checkpoint) bool {
		files := filesOf(k, k.Bytes())
		if sent[files] {
			t.Errorf("sent twice: %+v", k)
		}
		sent[files] = true
		return true
	})
	if e := crowd.AsError(err); e == nil || e.Reason != crowd.GuestTime || len(sent) == 0 {
		t.Fatalf("%v after %d checkpoints", err, len(sent))
	}
	task.State = state
	if _, _, _, err = kept(t, e, w, task, func(_ *Slot, k *crowd.Checkpoint) bool {
		if sent[filesOf(k, k.Bytes())] {
			t.Errorf("sent what it began with: %+v", k)
		}
		return true
	}); crowd.AsError(err).Reason != crowd.GuestTime {
		t.Error(err)
	}
}

// Whatever changes a checkpoint turns the file system's count.
func TestTurn(t *testing.T) {
	u := testUnit()
	mem := make([]byte, 1<<16)
	at := func(i int, s string) (ptr, n uint64) { copy(mem[i:], s); return uint64(i), uint64(len(s)) }
	open := func(path string, oflags uint64) uint64 {
		p, n := at(100, path)
		if e, _ := invoke(t, u, mem, "path_open", 3, 0, p, n, oflags, rightsAll, rightsAll, 0, 8); e != 0 {
			t.Fatalf("%s: %d", path, e)
		}
		return uint64(binary.LittleEndian.Uint32(mem[8:]))
	}
	const create, truncate = 1, 8
	copy(mem[16:], []byte{200, 0, 0, 0, 3, 0, 0, 0}) // an iovec
	path := func(name string, args ...uint64) func() errno {
		return func() errno { e, _ := invoke(t, u, mem, name, args...); return e }
	}
	a, an := at(300, "state/a")
	b, bn := at(320, "state/b")
	d, dn := at(340, "state/d")
	var fd, out uint64
	for _, s := range []struct {
		what  string
		do    func() errno
		turns bool
	}{
		{"create", func() errno { fd = open("state/a", create); return 0 }, true},
		{"create elsewhere", func() errno { out = open("out/a", create); return 0 }, false},
		{"write", func() errno { return path("fd_write", fd, 16, 1, 0)() }, true},
		{"write the same length at 0", func() errno { return path("fd_pwrite", fd, 16, 1, 0, 0)() }, true},
		{"write elsewhere", func() errno { return path("fd_write", out, 16, 1, 0)() }, false},
		{"read", func() errno { return path("fd_pread", fd, 16, 1, 0, 0)() }, false},
		{"set the size", func() errno { return path("fd_filestat_set_size", fd, 1)() }, true},
		{"allocate", func() errno { return path("fd_allocate", fd, 0, 100)() }, true},
		{"truncate", func() errno { open("state/a", truncate); return 0 }, true},
		{"times", func() errno { return path("fd_filestat_set_times", fd, 1, 1, 5)() }, false},
		{"make a folder", path("path_create_directory", 3, d, dn), true},
		{"rename", path("path_rename", 3, a, an, 3, b, bn), true},
		{"unlink", path("path_unlink_file", 3, b, bn), true},
		{"remove a folder", path("path_remove_directory", 3, d, dn), true},
	} {
		before := u.FS.Turn
		if e := s.do(); e != 0 || (u.FS.Turn != before) != s.turns {
			t.Errorf("%s: errno %d, count %d after %d", s.what, e, u.FS.Turn, before)
		}
	}
}

// Random numbers go on in the middle of a block.
func TestRandomGoesOn(t *testing.T) {
	a, b := testUnit(), testUnit()
	whole, rest := make([]byte, 100), make([]byte, 63)
	a.draw(whole)
	if err := b.restore((&crowd.Checkpoint{Drawn: 37}).Bytes()); err != nil {
		t.Fatal(err)
	}
	b.draw(rest)
	if !bytes.Equal(whole[37:], rest) {
		t.Errorf("%x, then %x", whole, rest)
	}
}

// Whatever a unit takes to begin with it would leave again; accounts of bytes are true.
func FuzzRestore(f *testing.F) {
	f.Add((&crowd.Checkpoint{Fuel: 1, Slept: 2, Drawn: 3, Files: []crowd.StateFile{{Path: "a", Data: []byte("1")}, {Path: "d", Dir: true}, {Path: "d/e", Data: make([]byte, 100)}}}).Bytes())
	f.Add([]byte("crowd checkpoint 1\n\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, _ := newUnit(crowd.Plan{}, wireTask{Output: 1 << 20, Disk: 2 << 20}, 1000)
		err := u.restore(bytes.Clone(b))
		checkAccounts(t, u)
		if err != nil || u.End != nil || u.Meter.Limit == 0 {
			return
		}
		k, err := u.checkpoint(func() {})
		if err != nil || !bytes.Equal(k.Bytes(), b) {
			t.Errorf("%x became %+v, %v", b, k, err)
		}
	})
}

package guesttest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
)

// Subject is an engine and a program for it that does as [Fake] says.
type Subject struct {
	Engine  guest.Engine
	Program []byte
	Counter []byte // a program that does what Fake's count says; nil: Program does
	Slow    bool   // its speed takes too long to measure
}

// TestEngine tests the contract of package guest. newEngine makes a new engine each time; the suite closes it.
func TestEngine(t *testing.T, newEngine func(t *testing.T) Subject) {
	for _, tc := range []struct {
		name string
		test func(t *testing.T, s *suite)
	}{
		{"outcome", testOutcome},
		{"the same twice", testTwice},
		{"ends of units", testEnds},
		{"files", testFiles},
		{"missing blobs", testMissing},
		{"time", testTime},
		{"cancel", testCancel},
		{"freeze before run", testFreezeBefore},
		{"freeze stops the clock", testFreezeClock},
		{"close", testClose},
		{"engine close", testEngineClose},
		{"another job", testJob},
		{"many at once", testMany},
		{"checkpoints", testCheckpoints},
		{"layers and speed", testLayers},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sub := newEngine(t)
			defer func() {
				if err := sub.Engine.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			s := &suite{Subject: sub, blobs: Blobs{}}
			s.program = s.blobs.Add(sub.Program)
			tc.test(t, s)
		})
	}
}

type suite struct {
	Subject
	blobs   Blobs
	program crowd.Digest
}

var (
	jobA = crowd.JobID{1}
	jobB = crowd.JobID{2}
)

// task has a unit for each list of arguments.
func (s *suite) task(units ...[]string) guest.Task {
	t := guest.Task{Job: jobA, Program: s.program, First: 5}
	for i, args := range units {
		t.Plans = append(t.Plans, crowd.Plan{Unit: t.First + uint64(i), Args: append([]string{"probe"}, args...), Seed: crowd.UnitSeed(jobA, uint64(i))})
	}
	return t
}

func (s *suite) slot(t *testing.T, job crowd.JobID) guest.Slot {
	t.Helper()
	slot, err := s.Engine.Slot(context.Background(), job)
	if err != nil {
		t.Fatalf("Slot: %v", err)
	}
	t.Cleanup(func() { slot.Close() })
	return slot
}

func (s *suite) run(t *testing.T, task guest.Task) (*crowd.Outcome, []crowd.UnitContent) {
	t.Helper()
	slot := s.slot(t, task.Job)
	o, c, err := slot.Run(context.Background(), task, s.blobs, nil)
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	return o, c
}

func wantReason(t *testing.T, err error, want crowd.Reason) {
	t.Helper()
	var e *crowd.Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Errorf("error %v, want one of reason %s", err, want)
	}
}

func testOutcome(t *testing.T, s *suite) {
	task := s.task([]string{"one"}, []string{"two", "three"}, []string{"exit", "3"}, []string{"four"})
	slot := s.slot(t, jobA)
	for range 2 { // a slot may run more than one task
		var done, fuel []uint64
		o, c, err := slot.Run(context.Background(), task, s.blobs, func(d, f uint64) { done, fuel = append(done, d), append(fuel, f) })
		if err != nil {
			t.Fatal(err)
		}
		if o.First != 5 || len(o.Units) != 4 || len(c) != 4 {
			t.Fatalf("outcome %+v with %d contents", o, len(c))
		}
		if string(c[1].Stdout) != "probe two three\n" || o.Units[1].Stdout != (crowd.ContentRef{Size: 16, Digest: digest.Of(c[1].Stdout)}) {
			t.Errorf("stdout %q %+v", c[1].Stdout, o.Units[1].Stdout)
		}
		if !slices.Equal(done, []uint64{1, 2, 3, 4}) || !slices.IsSorted(fuel) || fuel[3] != o.Fuel() || o.Units[0].Fuel == 0 {
			t.Errorf("progress %v %v, fuel %d", done, fuel, o.Fuel())
		}
		if _, _, err := crowd.ParseBody(o.Body(c), 5, 4); err != nil {
			t.Errorf("the body can't be read back: %v", err)
		}
	}
}

func testTwice(t *testing.T, s *suite) {
	task := s.task([]string{"a"}, []string{"b"}, []string{"exit", "1"}, []string{"trap"})
	a, _ := s.run(t, task)
	b, _ := s.run(t, task)
	if !bytes.Equal(a.Manifest(), b.Manifest()) {
		t.Errorf("two runs differ:\n%+v\n%+v", a, b)
	}
}

func testEnds(t *testing.T, s *suite) {
	o, _ := s.run(t, s.task([]string{"exit", "0"}, []string{"exit", "3"}, []string{"trap"}, []string{"x"}))
	if o.Units[0].Failed() || o.Units[1].Exit != 3 || o.Units[1].Reason != "" || o.Units[2].Reason != crowd.GuestTrap || o.Units[3].Failed() {
		t.Errorf("%+v", o.Units)
	}
}

func testFiles(t *testing.T, s *suite) {
	content := bytes.Repeat([]byte("0123456789"), 30_000)
	task := s.task([]string{"copy", "/in/deep/a", "/out/b"}, []string{"copy", "/in/deep/a", "/out/c.txt"}, []string{"copy", "/in/none", "/out/d"})
	for i := range task.Plans {
		task.Plans[i].Inputs = []crowd.Input{{As: "deep/a", Digest: s.blobs.Add(content), Size: int64(len(content))}}
	}
	o, c := s.run(t, task)
	if f := o.Units[0].Files; len(f) != 1 || f[0].Path != "b" || f[0].Size != int64(len(content)) || f[0].Digest != digest.Of(content) {
		t.Errorf("files %+v", f)
	}
	if len(c[0].Files) != 1 || !bytes.Equal(c[0].Files[0], content) {
		t.Error("the copy differs")
	}
	if o.Units[2].Exit == 0 {
		t.Error("a missing file was copied")
	}
	task.Keep = []string{"*.txt"}
	o, _ = s.run(t, task)
	if len(o.Units[0].Files) != 0 || len(o.Units[1].Files) != 1 {
		t.Errorf("kept %+v", o.Units)
	}
}

func testMissing(t *testing.T, s *suite) {
	task := s.task([]string{"x"})
	task.Program = crowd.Digest{9}
	slot := s.slot(t, jobA)
	_, _, err := slot.Run(context.Background(), task, s.blobs, nil)
	wantReason(t, err, crowd.HostFailed)
	_, _, err = slot.Run(context.Background(), s.task([]string{"x"}), s.blobs, nil)
	if err == nil {
		t.Error("the slot goes on after an error")
	}
	task = s.task([]string{"x"})
	task.Plans[0].Inputs = []crowd.Input{{As: "a", Digest: crowd.Digest{8}, Size: 1}}
	_, _, err = s.slot(t, jobA).Run(context.Background(), task, s.blobs, nil)
	wantReason(t, err, crowd.HostFailed)
}

func testTime(t *testing.T, s *suite) {
	task := s.task([]string{"x"}, []string{"loop"})
	task.Limits.Time = 100 * time.Millisecond
	task.Limits.Time *= slow(s)
	slot := s.slot(t, jobA)
	_, _, err := slot.Run(context.Background(), task, s.blobs, nil)
	wantReason(t, err, crowd.GuestTime)
	if _, _, err = slot.Run(context.Background(), s.task([]string{"x"}), s.blobs, nil); err == nil {
		t.Error("the slot goes on after an error")
	}
}

// slow is by how much short limits are stretched: a process at idle priority may have to wait.
func slow(s *suite) time.Duration {
	if _, ok := s.Engine.(*Fake); ok {
		return 1
	}
	return 10
}

func testCancel(t *testing.T, s *suite) {
	why := errors.New("no longer wanted")
	ctx, cancel := context.WithCancelCause(context.Background())
	_, _, err := s.slot(t, jobA).Run(ctx, s.task([]string{"x"}, []string{"loop"}), s.blobs, func(uint64, uint64) { cancel(why) })
	if !errors.Is(err, why) {
		t.Errorf("error %v, want the cause", err)
	}
	if _, err := s.Engine.Slot(ctx, jobA); !errors.Is(err, why) {
		t.Errorf("Slot: %v, want the cause", err)
	}
}

func testFreezeBefore(t *testing.T, s *suite) {
	slot := s.slot(t, jobA)
	if err := slot.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := slot.Freeze(); err != nil {
		t.Errorf("freezing twice: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := slot.Run(context.Background(), s.task([]string{"x"}), s.blobs, nil)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("a frozen slot ended: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := slot.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := slot.Thaw(); err != nil {
		t.Errorf("thawing twice: %v", err)
	}
}

func testFreezeClock(t *testing.T, s *suite) {
	task := s.task([]string{"x"}, []string{"loop"})
	task.Limits.Time = 200 * time.Millisecond * slow(s) / 2
	slot := s.slot(t, jobA)
	started, done := make(chan bool, 2), make(chan error, 1)
	go func() {
		_, _, err := slot.Run(context.Background(), task, s.blobs, func(uint64, uint64) { started <- true })
		done <- err
	}()
	select {
	case <-started:
	case err := <-done:
		t.Fatal(err)
	}
	if err := slot.Freeze(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("a frozen unit ended: %v", err)
	case <-time.After(task.Limits.Time + task.Limits.Time/4):
	}
	if err := slot.Thaw(); err != nil {
		t.Fatal(err)
	}
	wantReason(t, <-done, crowd.GuestTime)
	if err := slot.Freeze(); err != nil {
		t.Errorf("freezing what has ended: %v", err)
	}
}

func testClose(t *testing.T, s *suite) {
	slot := s.slot(t, jobA)
	started, done := make(chan bool, 2), make(chan error, 1)
	go func() {
		_, _, err := slot.Run(context.Background(), s.task([]string{"x"}, []string{"loop"}), s.blobs, func(uint64, uint64) { started <- true })
		done <- err
	}()
	<-started
	if err := slot.Freeze(); err != nil { // even then
		t.Error(err)
	}
	for range 2 {
		if err := slot.Close(); err != nil {
			t.Error(err)
		}
	}
	wantReason(t, <-done, crowd.HostFailed)
}

func testEngineClose(t *testing.T, s *suite) {
	slot := s.slot(t, jobA)
	started, done := make(chan bool, 2), make(chan error, 1)
	go func() {
		_, _, err := slot.Run(context.Background(), s.task([]string{"x"}, []string{"loop"}), s.blobs, func(uint64, uint64) { started <- true })
		done <- err
	}()
	<-started
	if err := s.Engine.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a unit outlived its engine")
	}
	if _, err := s.Engine.Slot(context.Background(), jobA); err == nil {
		t.Error("a closed engine gave a slot")
	}
}

func testJob(t *testing.T, s *suite) {
	_, _, err := s.slot(t, jobB).Run(context.Background(), s.task([]string{"x"}), s.blobs, nil)
	wantReason(t, err, crowd.HostFailed)
}

func testMany(t *testing.T, s *suite) {
	var units [][]string
	for range 50 {
		units = append(units, []string{"x"})
	}
	task := s.task(units...)
	want, _ := s.run(t, task)
	var wg sync.WaitGroup
	for range 3 {
		slot := s.slot(t, jobA)
		wg.Go(func() {
			o, _, err := slot.Run(context.Background(), task, s.blobs, nil)
			if err != nil || !bytes.Equal(o.Manifest(), want.Manifest()) {
				t.Errorf("another outcome beside others: %v", err)
			}
		})
	}
	wg.Wait()
}

// testCheckpoints kills a unit and lets another slot go on from what was saved.
func testCheckpoints(t *testing.T, s *suite) {
	to, work := "2000", "50000"
	if s.Slow || slow(s) == 1 {
		to = "200"
	}
	task := s.task([]string{"count", to, work})
	if s.Counter != nil {
		task.Program = s.blobs.Add(s.Counter)
	}
	whole, c := s.run(t, task)
	if string(c[0].Stdout) != to+"\n" {
		t.Fatalf("stdout %q", c[0].Stdout)
	}
	var saved []byte
	var burnt uint64
	first := s.slot(t, jobA)
	task.Every = 10 * time.Millisecond
	task.Save = func(state []byte, fuel uint64) {
		if k, err := crowd.ParseCheckpoint(state); err != nil || k.Fuel != fuel || fuel <= burnt || len(k.Files) == 0 {
			t.Errorf("saved %q with fuel %d after %d: %v", state, fuel, burnt, err)
		}
		if saved, burnt = state, fuel; burnt > whole.Fuel()/4 {
			_ = first.Close()
		}
	}
	if _, _, err := first.Run(context.Background(), task, s.blobs, nil); err == nil {
		t.Fatal("it wasn't killed")
	}
	task.State, task.Save = saved, nil
	o, c := s.run(t, task)
	if string(c[0].Stdout) != to+"\n" || o.Units[0].Failed() || o.Fuel() < burnt || o.Fuel() > whole.Fuel()+whole.Fuel()/8 {
		t.Errorf("%+v, stdout %q, after %d of %d", o.Units[0], c[0].Stdout, burnt, whole.Fuel())
	}
	task.State = saved[:len(saved)-1]
	_, _, err := s.slot(t, jobA).Run(context.Background(), task, s.blobs, nil)
	wantReason(t, err, crowd.HostFailed)
	two := s.task([]string{"x"}, []string{"y"})
	two.State = saved
	_, _, err = s.slot(t, jobA).Run(context.Background(), two, s.blobs, nil)
	wantReason(t, err, crowd.HostFailed)
}

func testLayers(t *testing.T, s *suite) {
	layers := s.Engine.Layers()
	if len(layers) == 0 {
		t.Error("no layers")
	}
	for _, l := range layers {
		if l.Name == "" || !l.Held && l.Why == "" {
			t.Errorf("layer %+v", l)
		}
	}
	if s.Slow {
		return
	}
	if g, err := s.Engine.Bench(context.Background()); err != nil || g <= 0 || g > 1000 {
		t.Errorf("speed %v, %v", g, err)
	}
}

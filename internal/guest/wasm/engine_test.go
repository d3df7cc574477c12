package wasm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/guest/guesttest"
)

// The test binary is its own child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ChildWord {
		if lie := hostile[filepath.Base(os.Args[0])]; lie != nil {
			os.Exit(lie())
		}
		os.Exit(ChildMain())
	}
	os.Exit(m.Run())
}

// testEngine is an engine with a cache of its own; change may set what options don't.
func testEngine(t testing.TB, change func(*Engine)) *Engine {
	t.Helper()
	e := &Engine{o: Options{CacheDir: t.TempDir()}, slots: map[*Slot]bool{}}
	if change != nil {
		change(e)
	}
	if err := e.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".wasm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// world is a program and what it is run with.
type world struct {
	module []byte
	blobs  memoryBlobs
	limits guest.Limits
	keep   []string
	plans  []crowd.Plan
}

func newWorld(module []byte, args ...string) *world {
	w := &world{module: module, blobs: memoryBlobs{digest.Of(module): module}}
	w.plans = []crowd.Plan{{Args: append([]string{"probe"}, args...), Env: []string{"HOME=/"}, Seed: [32]byte{1, 2, 3}}}
	return w
}

func (w *world) input(as string, content []byte) {
	d := digest.Of(content)
	w.blobs[d] = content
	for i := range w.plans {
		w.plans[i].Inputs = append(w.plans[i].Inputs, crowd.Input{As: as, Digest: d, Size: int64(len(content))})
	}
}

func (w *world) task() guest.Task {
	if w.limits.Time == 0 {
		w.limits.Time = 20 * time.Second // for what never ends by mistake
	}
	return guest.Task{Program: digest.Of(w.module), Plans: w.plans, Limits: w.limits, Keep: w.keep}
}

func (w *world) run(t testing.TB, e *Engine) (*crowd.Outcome, []crowd.UnitContent) {
	t.Helper()
	s, err := e.slot(context.Background(), crowd.JobID{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	o, c, err := s.Run(context.Background(), w.task(), w.blobs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o, c
}

// goModule is a Go program for WASI, built once.
var goBuilt = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "probe.wasm"), "./testdata/goprobe")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, msg)
	}
	return os.ReadFile(filepath.Join(dir, "probe.wasm"))
})

func goModule(t testing.TB) []byte {
	t.Helper()
	b, err := goBuilt()
	if err != nil {
		t.Skipf("no go build for wasip1 here: %v", err)
	}
	return b
}

// TestContract runs the suite over the engine as it is, with a pool, interpreted, and frozen by frames.
func TestContract(t *testing.T) {
	for name, change := range map[string]func(*Engine){
		"compiled":    func(e *Engine) { e.o.Pool = 2 },
		"interpreted": func(e *Engine) { e.interpret = true },
		"polite":      func(e *Engine) { e.polite = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache := t.TempDir()
			guesttest.TestEngine(t, func(t *testing.T) guesttest.Subject {
				e := testEngine(t, func(e *Engine) { e.o.CacheDir = cache; change(e) })
				return guesttest.Subject{Engine: e, Program: fixture(t, "probe"), Counter: fixture(t, "counter"), Slow: e.interpret}
			})
		})
	}
}

// How units end, and that they end the same on both of the engine's kinds and every time.
func TestEnds(t *testing.T) {
	cache := t.TempDir()
	compiled := testEngine(t, func(e *Engine) { e.o.CacheDir = cache })
	interpreted := testEngine(t, func(e *Engine) { e.o.CacheDir, e.interpret = cache, true })
	small := guest.Limits{Memory: 4 << 20, Output: 100 << 10, Disk: 200 << 10}
	for _, tc := range []struct {
		args   string
		limits guest.Limits
		exit   uint32
		reason crowd.Reason
		stdout string
		stderr string // part of it
		fuel   uint64
	}{
		{args: "hello you", stdout: "probe\nhello\nyou\nHOME=/\n", stderr: "to stderr\n"},
		{args: "exit 3", exit: 3, stdout: "bye\n"},
		{args: "trap", reason: crowd.GuestTrap, stdout: "before\n", stderr: "unreachable"},
		{args: "stdin", stdout: "-1\n"},
		{args: "bomb", limits: small, reason: crowd.GuestMemory},
		{args: "hello", limits: guest.Limits{Memory: 64 << 10}, reason: crowd.GuestMemory, stderr: "to start, the limit is 65536"},
		{args: "refused", limits: small, stdout: "1\n"},
		{args: "refused 4", limits: small, reason: crowd.GuestMemory, stdout: "1\n"},
		{args: "flood", limits: small, reason: crowd.GuestOutput},
		{args: "fill /out/f", limits: small, reason: crowd.GuestOutput},
		{args: "fill /state/f", limits: small, reason: crowd.GuestOutput},
		{args: "loop", limits: guest.Limits{Fuel: 5_000_000}, reason: crowd.GuestFuel, fuel: 5_000_000, stderr: "used up its fuel"},
		{args: "clocks"},
		{args: "files"},
		{args: "shout", stderr: "cut off here"},
		{args: "tree /", stdout: "//in 0 1\n//in/a 5 0\n//out 0 1\n//state 0 1\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			w := newWorld(fixture(t, "probe"), strings.Fields(tc.args)...)
			w.limits = tc.limits
			w.input("a", []byte("12345"))
			o, c := w.run(t, compiled)
			u := o.Units[0]
			if u.Exit != tc.exit || u.Reason != tc.reason || tc.fuel != 0 && u.Fuel != tc.fuel {
				t.Errorf("unit %+v, stderr %q", u, c[0].Stderr)
			}
			if tc.stdout != "" && string(c[0].Stdout) != tc.stdout || !strings.Contains(string(c[0].Stderr), tc.stderr) || len(c[0].Stderr) > stderrCap {
				t.Errorf("stdout %q, stderr %q", c[0].Stdout, c[0].Stderr)
			}
			if (u.Fuel == 0) != (tc.args == "hello") {
				t.Errorf("fuel %d", u.Fuel)
			}
			again, _ := w.run(t, compiled)
			other, c2 := w.run(t, interpreted)
			if !bytes.Equal(o.Manifest(), again.Manifest()) {
				t.Errorf("another outcome the second time: %+v", again.Units[0])
			}
			if !bytes.Equal(o.Manifest(), other.Manifest()) {
				t.Errorf("another outcome interpreted: %+v %s\n%s", other.Units[0], c[0].Stdout, c2[0].Stdout)
			}
			if golden := "testdata/" + tc.args + ".txt"; tc.args == "clocks" || tc.args == "files" {
				if *update {
					os.WriteFile(golden, c[0].Stdout, 0o644)
				}
				if want, _ := os.ReadFile(golden); !bytes.Equal(want, c[0].Stdout) {
					t.Errorf("stdout\n%s\nwanted\n%s", c[0].Stdout, want)
				}
			}
		})
	}
}

var update = flag.Bool("update", false, "write testdata/*.txt anew")

// A stack overflow leaves nothing that depends on the engine's stack.
func TestDeep(t *testing.T) {
	w := newWorld(fixture(t, "probe"), "deep")
	o, c := w.run(t, testEngine(t, nil))
	want := crowd.UnitResult{Reason: crowd.GuestTrap, Stderr: int64(len(c[0].Stderr))}
	if !reflect.DeepEqual(o.Units[0], want) || !strings.Contains(string(c[0].Stderr), "stack overflow") {
		t.Errorf("%+v %s", o.Units[0], c[0].Stderr)
	}
	e := testEngine(t, func(e *Engine) { e.interpret = true })
	s, _ := e.slot(context.Background(), crowd.JobID{})
	_, _, err := s.Run(context.Background(), w.task(), w.blobs, nil)
	wantFailed(t, err, "nest too deep")
}

func wantFailed(t *testing.T, err error, text string) {
	t.Helper()
	var e *crowd.Error
	if !errors.As(err, &e) || e.Reason != crowd.HostFailed || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want host.failed with %q", err, text)
	}
}

// Each unit starts afresh, whatever the one before did.
func TestFresh(t *testing.T) {
	w := newWorld(fixture(t, "probe"), "state")
	w.plans = append(w.plans, w.plans[0], w.plans[0])
	o, c := w.run(t, testEngine(t, nil))
	for i, u := range o.Units {
		if u.Failed() || string(c[i].Stdout) != "0\n" || u.Fuel != o.Units[0].Fuel {
			t.Errorf("unit %d: %+v %q", i, u, c[i].Stdout)
		}
	}
}

func TestGo(t *testing.T) {
	w := newWorld(goModule(t), "hello", "you")
	w.input("deep/a", []byte("some text"))
	e := testEngine(t, nil)
	o, c := w.run(t, e)
	again, _ := w.run(t, e)
	if !bytes.Equal(o.Manifest(), again.Manifest()) {
		t.Error("another outcome the second time")
	}
	golden := "testdata/goprobe.txt"
	if *update {
		os.WriteFile(golden, c[0].Stdout, 0o644)
	}
	if want, _ := os.ReadFile(golden); !bytes.Equal(want, c[0].Stdout) || o.Units[0].Exit != 7 {
		t.Errorf("%+v\n%s\nwanted\n%s\n%s", o.Units[0], c[0].Stdout, want, c[0].Stderr)
	}
	if f := o.Units[0].Files; len(f) != 2 || f[0].Path != "x/top" || f[1].Path != "x/y/z" || string(c[0].Files[1]) != "SOME TEXT" {
		t.Errorf("files %+v", f)
	}
}

// hugeBlob is content that is never whole anywhere.
type hugeBlob struct{ size int64 }

func (b hugeBlob) Size() int64  { return b.size }
func (b hugeBlob) Close() error { return nil }
func (b hugeBlob) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = byte((off + int64(i)) >> 24)
	}
	return len(p), nil
}

type withHuge struct {
	guest.Blobs
	d crowd.Digest
	b hugeBlob
}

func (w withHuge) Open(ctx context.Context, d crowd.Digest) (guest.Blob, error) {
	if d == w.d {
		return w.b, nil
	}
	return w.Blobs.Open(ctx, d)
}

func TestHugeInput(t *testing.T) {
	w := newWorld(fixture(t, "probe"), "peek", "/in/huge", "5000000000")
	d := crowd.Digest{7}
	w.plans[0].Inputs = []crowd.Input{{As: "huge", Digest: d}}
	s, err := testEngine(t, nil).slot(context.Background(), crowd.JobID{})
	if err != nil {
		t.Fatal(err)
	}
	_, c, err := s.Run(context.Background(), w.task(), withHuge{w.blobs, d, hugeBlob{6e9}}, nil)
	if err != nil || string(c[0].Stdout) != "8\n2a2a2a2a2a2a2a2a" {
		t.Errorf("%v %+v", err, c)
	}
}

// A guest uses no processor while it is frozen, and goes on afterwards.
func TestFreezeStopsTheProcessor(t *testing.T) {
	for name, polite := range map[string]bool{"signal": false, "frame": true} {
		t.Run(name, func(t *testing.T) {
			e := testEngine(t, func(e *Engine) { e.polite = polite })
			s, err := e.slot(context.Background(), crowd.JobID{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.p.child.Usage(); err != nil {
				t.Skip(err)
			}
			w := newWorld(fixture(t, "probe"), "exit", "0")
			loop := w.plans[0]
			loop.Args = []string{"probe", "loop"}
			w.plans = append(w.plans, loop)
			started, done := make(chan bool, 2), make(chan error, 1)
			go func() {
				_, _, err := s.Run(context.Background(), w.task(), w.blobs, func(uint64, uint64) { started <- true })
				done <- err
			}()
			<-started
			busy(t, s)
			begun := time.Now()
			if err := s.Freeze(); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begun)
			before := cpu(t, s)
			time.Sleep(200 * time.Millisecond)
			if used := cpu(t, s) - before; used > 10*time.Millisecond { // one tick of its clock
				t.Errorf("a frozen guest used %v", used)
			}
			t.Logf("frozen after %v", took)
			if err := s.Thaw(); err != nil {
				t.Fatal(err)
			}
			busy(t, s)
			s.Close()
			wantFailed(t, <-done, "closed")
		})
	}
}

func cpu(t *testing.T, s *Slot) time.Duration {
	t.Helper()
	u, err := s.p.child.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return u.CPU
}

// busy returns once the guest has used some processor.
func busy(t *testing.T, s *Slot) {
	t.Helper()
	before := cpu(t, s)
	for end := time.Now().Add(20 * time.Second); cpu(t, s) < before+20*time.Millisecond; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the guest does nothing")
		}
	}
}

// A guest that may run a tenth of the time uses no more.
func TestDuty(t *testing.T) {
	s, err := testEngine(t, nil).slot(context.Background(), crowd.JobID{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.p.child.Usage(); err != nil {
		t.Skip(err)
	}
	w := newWorld(fixture(t, "probe"), "exit", "0")
	loop := w.plans[0]
	loop.Args = []string{"probe", "loop"}
	w.plans = append(w.plans, loop)
	started := make(chan bool, 2)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, _, err := s.Run(ctx, w.task(), w.blobs, func(uint64, uint64) { started <- true })
		done <- err
	}()
	<-started
	if err := s.SetDuty(0.1); err != nil {
		t.Fatal(err)
	}
	before := cpu(t, s)
	time.Sleep(time.Second)
	if used := cpu(t, s) - before; used > 250*time.Millisecond {
		t.Errorf("used %v of a second", used)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestKilledChild(t *testing.T) {
	s, err := testEngine(t, nil).slot(context.Background(), crowd.JobID{})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(fixture(t, "probe"), "exit", "0")
	loop := w.plans[0]
	loop.Args = []string{"probe", "loop"}
	w.plans = append(w.plans, loop)
	_, _, err = s.Run(context.Background(), w.task(), w.blobs, func(uint64, uint64) { s.p.child.Kill() })
	wantFailed(t, err, "the guest's process ended (signal: killed)")
}

func TestCheck(t *testing.T) {
	e := testEngine(t, nil)
	r, err := e.Check(context.Background(), fixture(t, "probe"))
	if err != nil || r.Functions == 0 || len(r.Needs) == 0 {
		t.Errorf("%+v %v", r, err)
	}
	for name, module := range map[string][]byte{
		"nothing": nil,
		"garbage": bytes.Repeat([]byte("garbage"), 100_000),
		"cut off": fixture(t, "probe")[:20_000],
		"import":  bytes.Replace(fixture(t, "probe"), []byte("fd_write"), []byte("fd_wrote"), 1),
		"type":    bytes.Replace(fixture(t, "noop"), []byte("fd_write"), []byte("fd_close"), 1),
	} {
		_, err := e.Check(context.Background(), module)
		var ce *crowd.Error
		if !errors.As(err, &ce) || ce.Kind != crowd.Invalid || ce.Reason != crowd.CustomerFile {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v; %s", name, err, ce.Hint)
		}
	}
}

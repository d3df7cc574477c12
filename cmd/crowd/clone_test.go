package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/host"
	"github.com/crowdcloud/crowd/internal/rig"
)

// spinTown is a town whose customer ada orders testdata/spin.wasm. Its hosts come later; the broker may be restarted.
type spinTown struct {
	*town
	t       *testing.T
	config  brokerConfig
	keys    map[string]string // of the owners
	ada     broker.Caller
	program crowd.Digest
}

// spinMax is what an order may cost.
const spinMax = 50 * crowd.Credit

func newSpinTown(t *testing.T) *spinTown {
	t.Helper()
	w := &spinTown{town: &town{}, t: t, keys: map[string]string{}}
	w.config = brokerConfig{Data: filepath.Join(t.TempDir(), "b"), Listen: "127.0.0.1:0", PerGfuel: crowd.Credit / 100, FeePermille: 100, Version: "test"}
	w.start()
	t.Cleanup(func() { _ = w.Close() })
	ctx := t.Context()
	w.keys["ada"] = w.account(t, "ada", 1000*crowd.Credit)
	w.ada = w.caller("ada")
	program, err := os.ReadFile("testdata/spin.wasm")
	must(t, err)
	w.program = digest.Of(program)
	_, err = w.PutBlob(ctx, w.ada, w.program, 0, int64(len(program)), bytes.NewReader(program))
	must(t, err)
	return w
}

func (w *spinTown) start() {
	w.t.Helper()
	b, err := startBroker(context.Background(), w.config)
	must(w.t, err)
	if b.OwnerKey != "" {
		w.keys[""] = b.OwnerKey
	}
	w.runningBroker = b
	w.operator = w.caller("")
}

// restart ends the broker and starts it again, at the same address.
func (w *spinTown) restart() {
	w.t.Helper()
	must(w.t, w.Close())
	w.config.Listen = strings.TrimPrefix(w.Local, "https://")
	w.start()
}

// caller is somebody by name; "": the operator.
func (w *spinTown) caller(name string) broker.Caller {
	w.t.Helper()
	c, err := w.Authenticate(w.t.Context(), w.keys[name], true)
	must(w.t, err)
	return c
}

// link makes an account and its link for one machine, which reaches the broker at an address of its own.
func (w *spinTown) link(owner, at string) string {
	w.t.Helper()
	w.keys[owner] = w.account(w.t, owner, 0)
	link, _, err := w.MakeToken(w.t.Context(), w.caller(owner), 0)
	must(w.t, err)
	return strings.Replace(link, strings.TrimPrefix(w.Local, "https://"), at, 1)
}

// join enrols a machine of its own owner in a new folder. At is where it reaches the broker; "": where it is.
func (w *spinTown) join(name, at string) (dir string) {
	w.t.Helper()
	if at == "" {
		at = strings.TrimPrefix(w.Local, "https://")
	}
	dir = filepath.Join(shortTemp(w.t), name)
	_, err := host.Join(w.t.Context(), w.link(name, at), host.JoinOptions{Dir: dir, Name: name, Place: "DE", Platform: host.ThisPlatform("test", ""), Capacity: spinLends})
	must(w.t, err)
	return dir
}

var spinLends = crowd.Capacity{Slots: 1, MemoryBytes: 1 << 30, DiskBytes: 1 << 30, Speed: 1}

// run is an ordinary host in this process, from a network of its own.
func (w *spinTown) run(name, from string) *runningHost {
	w.t.Helper()
	h, err := startHost(context.Background(), hostConfig{Dir: w.join(name, ""), Capacity: spinLends, From: netip.MustParseAddr(from)})
	must(w.t, err)
	w.t.Cleanup(func() { _ = h.Close() })
	return h
}

// order wants units of so many rounds, each a chunk.
func (w *spinTown) order(name string, units, rounds uint64, quorum int) crowd.Job {
	w.t.Helper()
	s := crowd.JobSpec{Kind: "job", Name: name, Program: w.program.String(), Args: []string{"{unit}", fmt.Sprint(rounds)}, Units: crowd.Units{Count: units}, Chunk: 1,
		Resources: crowd.Resources{Memory: 16 << 20, Disk: 16 << 20}, Verify: crowd.Verify{None: quorum == 1, Quorum: quorum}, Price: crowd.PriceRule{Max: spinMax}}
	if quorum == 1 {
		s.Verify.Quorum = 0
	}
	j, err := w.Submit(w.t.Context(), w.ada, s)
	must(w.t, err)
	return j
}

// done waits for a job's end and checks it: every result right, every chunk paid to its quorum once, no credit made or lost. It returns its attempts.
func (w *spinTown) done(j crowd.Job, rounds uint64, within time.Duration) []crowd.Attempt {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	row, err := w.WatchJob(ctx, w.ada, j.ID.String(), -1)
	for err == nil && !row.State.Ended() && ctx.Err() == nil {
		row, err = w.WatchJob(ctx, w.ada, j.ID.String(), row.Version)
	}
	must(w.t, err)
	if row.State != crowd.JobDone || row.Progress.UnitsFailed != 0 || row.Progress.Differed != 0 {
		w.t.Fatalf("within %v: %s is %s %s, %+v", within, row.Name, row.State, row.Reason, row.Progress)
	}
	for unit := range row.Units {
		r, content, err := w.UnitContent(ctx, w.ada, j.ID.String(), unit)
		must(w.t, err)
		if want := rig.Spun(unit, rounds); r.Exit != 0 || string(content.Stdout) != want {
			w.t.Errorf("unit %d of %s: exit %d, %q, wanted %q", unit, row.Name, r.Exit, content.Stdout, want)
		}
	}
	all := w.attempts(j)
	votes, pay := map[uint64]map[crowd.AccountID]bool{}, crowd.UCR(0)
	for _, a := range all {
		if a.Paid == 0 {
			continue
		}
		if votes[a.First] == nil {
			votes[a.First] = map[crowd.AccountID]bool{}
		}
		if votes[a.First][a.Owner] {
			w.t.Errorf("chunk %d is paid twice to one owner", a.First)
		}
		votes[a.First][a.Owner] = true
		pay += a.Paid
	}
	for unit := range row.Units {
		if n := len(votes[unit]); n != j.Spec.Verify.Need() {
			w.t.Errorf("chunk %d is paid to %d owners", unit, n)
		}
	}
	if row.Paid+row.Returned != row.Escrow || pay == 0 || pay > row.Paid {
		w.t.Errorf("held %d, paid %d, returned %d; hosts got %d", row.Escrow, row.Paid, row.Returned, pay)
	}
	status, err := w.Status(ctx, w.operator)
	must(w.t, err)
	if status.LedgerSum != 0 {
		w.t.Errorf("the ledger sums to %d", status.LedgerSum)
	}
	return all
}

func (w *spinTown) attempts(j crowd.Job) []crowd.Attempt {
	w.t.Helper()
	all, err := w.JobAttempts(context.Background(), w.ada, j.ID.String(), crowd.AttemptRef{}, 1000)
	must(w.t, err)
	return all
}

func (w *spinTown) host(name string) crowd.HostRow {
	w.t.Helper()
	h, err := w.Host(context.Background(), w.operator, name)
	must(w.t, err)
	return h
}

// until polls for what other processes do.
func (w *spinTown) until(what string, within time.Duration, ok func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > within {
			w.t.Fatalf("after %v: not yet %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// holds reports whether a host has told the broker that it holds something.
func (w *spinTown) holds(name string) bool { return len(w.host(name).Attempts) > 0 }

func (w *spinTown) ready(name string) bool {
	h := w.host(name)
	return h.Online && h.Ready == crowd.Ready
}

// hostProcess is an agent on this machine, in a process of its own.
type hostProcess struct {
	cmd  *exec.Cmd
	errs *syncBuffer
	done chan struct{} // closed when it has ended
}

// runHost starts `crowd host run` in a folder; it ends with the test at the latest.
func runHost(t *testing.T, dir string) *hostProcess {
	t.Helper()
	h := &hostProcess{cmd: exec.Command("crowd", "host", "run", "--state-dir", dir), errs: &syncBuffer{}, done: make(chan struct{})}
	h.cmd.Env = append(os.Environ(), "TMPDIR="+shortTemp(t)) // goes even if the agent is killed
	h.cmd.Stderr, h.cmd.Stdout = h.errs, h.errs
	must(t, h.cmd.Start())
	go func() { // ends before done is closed
		defer close(h.done)
		_ = h.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		<-h.done
	})
	return h
}

// ended waits for its end and returns exit code and last words.
func (h *hostProcess) ended(t *testing.T, within time.Duration) (int, string) {
	t.Helper()
	select {
	case <-h.done:
	case <-time.After(within):
		t.Fatalf("the agent runs on after %v:\n%s", within, h.errs)
	}
	return h.cmd.ProcessState.ExitCode(), h.errs.String()
}

// syncBuffer may be read while a process writes to it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// lines are those of an agent's log that say what.
func lines(t *testing.T, dir, what string) (all []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "host.log"))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, `"event":"`+what+`"`) {
			all = append(all, line)
		}
	}
	return all
}

// copyFolder copies what a backup would: files and folders, no sockets. What goes meanwhile is left out.
func copyFolder(t *testing.T, from string) (to string) {
	t.Helper()
	to = filepath.Join(shortTemp(t), filepath.Base(from))
	must(t, filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	}))
	return to
}

// TestCopiedFolder copies an agent's folder while it works and runs a second agent on the copy: the newer one goes on, the older one is told why
// and ends, and the job doesn't notice.
func TestCopiedFolder(t *testing.T) {
	const units, rounds = 8, 1_000_000_000
	w := newSpinTown(t)
	w.run("hal", "127.1.0.1")
	dir := w.join("tower", "")
	older := runHost(t, dir)
	w.until("ready", time.Minute, func() bool { return w.ready("tower") })
	j := w.order("copied", units, rounds, 2)
	w.until("at work", time.Minute, func() bool { return w.holds("tower") })

	copied := copyFolder(t, dir)
	runHost(t, copied)
	code, said := older.ended(t, time.Minute)
	told := code == crowd.Conflict.Exit() && strings.Contains(said, "a newer session of this host took over") || // by the connection's last word
		code == crowd.Denied.Exit() && strings.Contains(said, "two machines use the key of tower: this session is void") // that was lost: it dialled again
	if !told || !strings.Contains(said, "(host.cloned)") {
		t.Errorf("exit %d\n%s", code, said)
	}
	if last := lines(t, dir, "agent.stopped"); len(last) != 1 || !strings.Contains(last[0], "(host.cloned)") {
		t.Errorf("its log: %s", last)
	}
	w.done(j, rounds, time.Minute)
	if lines(t, copied, "agent.stopped") != nil {
		t.Error("the newer agent has ended too")
	}
	h := w.host("tower")
	if !h.Online || h.State != crowd.HostActive || h.Record.Differed != 0 || h.Record.Failed != 0 || h.Record.Counted != units {
		t.Errorf("%+v", h)
	}
}

// TestVoidOutlivesTheBroker has the older of two sessions cut off when the newer one takes over, and the broker restarted before it comes
// back: it is void still.
func TestVoidOutlivesTheBroker(t *testing.T) {
	const units, rounds = 8, 1_000_000_000
	w := newSpinTown(t)
	w.run("hal", "127.1.0.1")
	door := newDoor(t, strings.TrimPrefix(w.Local, "https://"))
	dir := w.join("tower", door.at)
	older := runHost(t, dir)
	w.until("ready", time.Minute, func() bool { return w.ready("tower") })
	j := w.order("void", units, rounds, 2)
	w.until("at work", time.Minute, func() bool { return w.holds("tower") })

	door.shut()
	copied := copyFolder(t, dir)
	profile, err := os.ReadFile(filepath.Join(copied, "host.json"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(copied, "host.json"), bytes.ReplaceAll(profile, []byte("https://"+door.at), []byte(w.Local)), 0o600))
	first := len(lines(t, copied, "chunk.started"))
	runHost(t, copied)
	w.until("taken over", time.Minute, func() bool { return len(lines(t, copied, "chunk.started")) > first })
	w.restart()
	select {
	case <-older.done:
		t.Fatalf("the agent that hears nobody has ended:\n%s", older.errs)
	default:
	}
	door.open()
	code, said := older.ended(t, time.Minute)
	if code != crowd.Denied.Exit() || !strings.Contains(said, "two machines use the key of tower: this session is void") || !strings.Contains(said, "(host.cloned)") {
		t.Errorf("exit %d\n%s", code, said)
	}
	w.done(j, rounds, time.Minute)
	if h := w.host("tower"); !h.Online || h.State != crowd.HostActive || h.Record.Differed != 0 || h.Record.Failed != 0 {
		t.Errorf("%+v", h)
	}
}

// door is a way to the broker that can be shut: connections through it stand, but the agent hears nothing more, and there are no new ones.
type door struct {
	at, to string

	mu     sync.Mutex // guards all below
	closed bool
	conns  []net.Conn
}

func newDoor(t *testing.T, to string) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	d := &door{at: l.Addr().String(), to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { d.pass(in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		d.open() // cuts those that pass
		wg.Wait()
	})
	return d
}

// pass carries one connection until it is cut.
func (d *door) pass(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", d.to)
	if err != nil {
		return
	}
	defer out.Close()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.conns = append(d.conns, in, out)
	d.mu.Unlock()
	ended := make(chan struct{}, 2)
	go func() { // ends with its connections
		_, _ = io.Copy(out, in)
		ended <- struct{}{}
	}()
	go func() {
		_, _ = io.Copy(hushed{d, in}, out)
		d.mu.Lock()
		deaf := d.closed
		d.mu.Unlock()
		if !deaf { // else it hears of the end when the door opens
			ended <- struct{}{}
		}
	}()
	<-ended
}

// hushed is the agent's end: what comes while the door is shut is lost.
type hushed struct {
	d  *door
	to net.Conn
}

func (h hushed) Write(b []byte) (int, error) {
	h.d.mu.Lock()
	closed := h.d.closed
	h.d.mu.Unlock()
	if closed {
		return len(b), nil
	}
	return h.to.Write(b)
}

func (d *door) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
}

// open cuts what passed and lets new connections through.
func (d *door) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = false
	for _, c := range d.conns {
		c.Close()
	}
	d.conns = nil
}

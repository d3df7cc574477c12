//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/host"
	"github.com/crowdcloud/crowd/internal/rig"
	"github.com/crowdcloud/crowd/internal/seal"
)

// buildCrowd builds this command as a version.
func buildCrowd(t *testing.T, to, version string) {
	t.Helper()
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -X main.version="+version, "-o", to, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", version, err, out)
	}
}

// upgradeTown is a broker and a machine, each a process of its own, and ada, who orders.
type upgradeTown struct {
	t    *testing.T
	bin  string // version 1, which is never replaced
	env  []string
	ada  *client.Client
	dir  string // the agent's folder
	self string // the agent's program
	pid  int
}

// spawn starts a process that ends with the test, and returns the first line of its stdout as JSON. What it says later goes nowhere.
func (w *upgradeTown) spawn(ready any, bin string, args ...string) *exec.Cmd {
	w.t.Helper()
	c := exec.Command(bin, args...)
	c.Env = w.env
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.StdoutPipe()
	must(w.t, err)
	must(w.t, c.Start())
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	var rest sync.WaitGroup
	rest.Go(func() { _, _ = io.Copy(io.Discard, lines) })
	w.t.Cleanup(func() {
		_ = c.Process.Signal(os.Interrupt)
		late := time.AfterFunc(20*time.Second, func() { _ = c.Process.Kill() })
		rest.Wait()
		_ = c.Wait()
		late.Stop()
		if w.t.Failed() {
			w.t.Logf("%s %s said:\n%s", filepath.Base(bin), args[0], errs.String())
		}
	})
	if err == nil {
		err = json.Unmarshal(line, ready)
	}
	must(w.t, err)
	return c
}

func (w *upgradeTown) crowd(args ...string) (string, error) {
	c := exec.Command(w.bin, args...)
	c.Env = w.env
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("crowd %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (w *upgradeTown) must(args ...string) string {
	w.t.Helper()
	out, err := w.crowd(args...)
	must(w.t, err)
	return out
}

func newUpgradeTown(t *testing.T) *upgradeTown {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the command three times")
	}
	top := shortTemp(t)
	w := &upgradeTown{t: t, bin: filepath.Join(top, "bin", "crowd"), dir: filepath.Join(top, "agent"), self: filepath.Join(top, "own", "crowd")}
	for _, d := range []string{"bin", "own", "home"} {
		must(t, os.Mkdir(filepath.Join(top, d), 0o700))
	}
	buildCrowd(t, w.bin, "1.0.0")
	b, err := os.ReadFile(w.bin)
	must(t, err)
	must(t, os.WriteFile(w.self, b, 0o755))
	w.env = append(os.Environ(), "HOME="+filepath.Join(top, "home"), "XDG_CONFIG_HOME=", "XDG_STATE_HOME=", "XDG_CACHE_HOME=", "TMPDIR="+top)

	var br brokerReady
	w.spawn(&br, w.bin, "broker", "run", "--data", filepath.Join(top, "broker"), "--listen", "127.0.0.1:0", "--price", "0.01cr", "--json")
	w.env = append(w.env, "CROWD_BROKER="+br.Local, "CROWD_PIN="+br.Pin, "CROWD_KEY="+br.Key)
	link := w.must("host", "token", "-q")
	var ada client.NewAccount
	must(t, json.Unmarshal([]byte(w.must("account", "create", "ada", "--json")), &ada))
	w.must("account", "grant", "ada", "100cr")
	w.env = append(w.env, "CROWD_KEY="+ada.Secret)
	w.ada, err = client.New(client.Options{Broker: br.Local, Key: ada.Secret, TLS: seal.PinnedTLS(br.Pin)})
	must(t, err)
	t.Cleanup(w.ada.Close)
	w.must("join", link, "--name", "tower", "--place", "DE", "--no-run", "--state-dir", w.dir)
	var running struct{ PID int }
	w.pid = w.spawn(&running, w.self, "host", "run", "--json", "--state-dir", w.dir).Process.Pid
	if running.PID != w.pid {
		t.Fatalf("process %d says it is %d", w.pid, running.PID)
	}
	return w
}

func (w *upgradeTown) status() (host.Status, error) {
	return host.Ask(context.Background(), w.dir, host.Request{Do: "status"})
}

// until polls the agent, which now and then isn't there.
func (w *upgradeTown) until(what string, ok func(host.Status) bool) (s host.Status) {
	w.t.Helper()
	for late := time.Now().Add(2 * time.Minute); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		var err error
		if s, err = w.status(); err == nil && ok(s) {
			return s
		}
	}
	w.t.Fatalf("never: %s; %+v", what, s)
	return s
}

// children are the processes that the agent has started and not buried.
func (w *upgradeTown) children() (pids []int) {
	w.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.pid))
	must(w.t, err)
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", w.pid, task.Name()))
		for f := range strings.FieldsSeq(string(b)) {
			pid, _ := strconv.Atoi(f)
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestUpgrade: a running agent becomes the next version amid a job: the same process and session; every result right, every attempt paid once, no
// child left behind. Then once more by SIGHUP, and once to a program that has vanished: the old one goes on.
func TestUpgrade(t *testing.T) {
	w := newUpgradeTown(t)
	next := filepath.Join(filepath.Dir(w.bin), "next")
	buildCrowd(t, next, "2.0.0")
	const units = 14
	order := func(name string, units int) {
		w.must("job", "run", "testdata/spin.wasm", "--set", "name="+name, "--set", "chunk=1", "--set", "verify=none", "--units", strconv.Itoa(units), "--max", "20cr", "-d", "--", "{unit}", strconv.Itoa(spinRounds))
	}
	order("one", units)
	before := w.until("some is done and some runs", func(s host.Status) bool { return s.Done >= 2 && s.SlotsUsed > 0 })
	if before.Version != "1.0.0" {
		t.Errorf("it is %s", before.Version)
	}
	children := w.children()
	if len(children) == 0 {
		t.Fatal("its guests are no children")
	}
	var said host.Status
	must(t, json.Unmarshal([]byte(w.must("host", "upgrade", "--to", next, "--state-dir", w.dir, "--json")), &said))
	t.Logf("%d to finish for %+v; children %v", said.SlotsUsed, said.Upgrading, children)
	after := w.until("the next version", func(s host.Status) bool { return s.Version == "2.0.0" && s.Connected })
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", w.pid)); err != nil || exe != w.self || !after.Since.After(before.Since) {
		t.Errorf("process %d is %s, %v", w.pid, exe, err)
	}
	if out, err := exec.Command(w.self+".previous", "version", "-q").Output(); string(out) != "1.0.0\n" {
		t.Errorf("the one before is %q, %v", out, err)
	}
	now := w.children()
	for _, pid := range children {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil || slices.Contains(now, pid) {
			t.Errorf("child %d is left behind", pid)
		}
	}

	// a service manager's word, while there is work again
	w.until("it works", func(s host.Status) bool { return s.Done > 0 && s.SlotsUsed > 0 })
	must(t, syscall.Kill(w.pid, syscall.SIGHUP))
	again := w.until("another process of the same", func(s host.Status) bool { return s.Since.After(after.Since) && s.Connected })
	if again.Version != "2.0.0" {
		t.Errorf("it is %s", again.Version)
	}
	w.done("one", units)

	// the program vanishes after it was looked at
	order("two", 3)
	w.until("it works", func(s host.Status) bool { return s.SlotsUsed > 0 })
	w.must("host", "upgrade", "--state-dir", w.dir)
	must(t, os.Rename(w.self, w.self+".gone"))
	old := w.until("the old one goes on", func(s host.Status) bool { return s.Failed != "" && s.Connected })
	if !old.Since.After(again.Since) || old.Version != "2.0.0" {
		t.Errorf("%+v", old)
	}
	if text := w.must("host", "status", "--state-dir", w.dir); !strings.Contains(text, "the new program doesn't start") {
		t.Error(text)
	}
	w.done("two", 3)
	if _, err := w.crowd("host", "upgrade", "--state-dir", w.dir); err == nil {
		t.Error("it upgrades to nothing")
	}
	if n := len(w.children()); n > 2 {
		t.Errorf("%d children at rest", n)
	}
	if text := w.must("host", "log", "--state-dir", w.dir); strings.Count(text, "agent.replaced") != 3 || !strings.Contains(text, "1.0.0 became 2.0.0") {
		t.Error(text)
	}
}

const spinRounds = 300_000_000 // half a second or so

// done waits for a job's end: each chunk was tried by one attempt, which is paid, once; nothing was lost or void on the way.
func (w *upgradeTown) done(name string, units int) {
	w.t.Helper()
	w.must("job", "show", name, "-w")
	var want strings.Builder
	for i := range units {
		want.WriteString(rig.Spun(uint64(i), spinRounds))
	}
	if got := w.must("job", "results", name); got != strings.TrimSpace(want.String()) {
		w.t.Errorf("results of %s:\n%s", name, got)
	}
	d, err := w.ada.Job(w.t.Context(), name)
	must(w.t, err)
	all, err := w.ada.Attempts(w.t.Context(), name, client.Page{Limit: 1000})
	must(w.t, err)
	paid, pay := map[uint64]int{}, crowd.UCR(0)
	for _, at := range all.Items {
		switch {
		case at.Paid > 0:
			paid[at.First]++
			pay += at.Paid
		case at.State != crowd.AttemptFailed || at.Reason != crowd.OwnerStopped: // given back before it began
			w.t.Errorf("%s: attempt %d at chunk %d ended %s %s", name, at.N, at.First, at.State, at.Reason)
		}
	}
	for i := range units {
		if paid[uint64(i)] != 1 {
			w.t.Errorf("%s: chunk %d was paid %d times", name, i, paid[uint64(i)])
		}
	}
	if d.State != crowd.JobDone || d.Paid+d.Returned != d.Escrow || pay == 0 || pay > d.Paid {
		w.t.Errorf("%s is %s: held %d, paid %d, returned %d, hosts got %d", name, d.State, d.Escrow, d.Paid, d.Returned, pay)
	}
	w.t.Logf("%s: %d attempts for %d units", name, len(all.Items), units)
}

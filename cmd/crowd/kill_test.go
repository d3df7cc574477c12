package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/rig"
)

// crashing is the binary with crash points, built once.
var crashing = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "crowd-crashing-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "crowd")
	out, err := exec.Command("go", "build", "-tags", "crashpoints", "-o", bin, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build with crash points: %w\n%s", err, out)
	}
	return bin, nil
})

// ruin is a town of real processes that are killed.
type ruin struct {
	*rig.Town
	t    *testing.T
	ctx  context.Context
	ada  string // a customer's key
	file string // of her jobs' program
}

func newRuin(t *testing.T, hosts ...string) *ruin {
	t.Helper()
	bin, err := crashing()
	must(t, err)
	town, err := rig.New(bin, shortTemp(t))
	must(t, err)
	return newRuinOf(t, town, hosts...)
}

// newRuinOf starts a town, a customer and hosts.
func newRuinOf(t *testing.T, town *rig.Town, hosts ...string) *ruin {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	t.Cleanup(cancel)
	r := &ruin{Town: town, t: t, ctx: ctx}
	t.Cleanup(func() {
		r.Close()
		if t.Failed() {
			for _, log := range []string{r.Dir + "/broker.log", r.Dir + "/hosts/hal.log"} {
				b, _ := os.ReadFile(log)
				t.Logf("%s ends:\n%s", log, tail(string(b)))
			}
		}
	})
	town.Flags = append(town.Flags, "--fee", "100")
	must(t, r.Start())
	var err error
	r.ada, err = r.Account(ctx, "ada", 100_000)
	must(t, err)
	for i, name := range hosts {
		h, err := r.Join(ctx, name, []string{"DE", "FR", "US"}[i%3])
		must(t, err)
		must(t, h.Start())
	}
	r.file, err = filepath.Abs("testdata/spin.wasm")
	must(t, err)
	return r
}

// jobFile writes a job of spin.wasm: units of so many rounds.
func (r *ruin) jobFile(name string, units, rounds uint64, more string) string {
	path := filepath.Join(r.Dir, name+".yaml")
	text := fmt.Sprintf("kind: job\nname: %s\nprogram: %s\nargs: ['{unit}', '%d']\nunits: {count: %d}\nprice: {max: 50cr}\nresources: {memory: 16MiB, disk: 16MiB}\n%s\n",
		name, r.file, rounds, units, more)
	must(r.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// order orders; a broker that dies meanwhile is started again beside it.
func (r *ruin) order(file string) string {
	r.t.Helper()
	type answer struct {
		out string
		err error
	}
	done := make(chan answer, 1)
	go func() {
		out, err := r.Run(r.ctx, r.ada, "run", file, "-d", "-q")
		done <- answer{out, err}
	}()
	for {
		select {
		case a := <-done:
			must(r.t, a.err)
			return strings.TrimSpace(a.out)
		case <-r.Broker.Gone():
			r.revive()
		}
	}
}

// revive starts what was killed.
func (r *ruin) revive() {
	r.t.Helper()
	if !r.Broker.Alive() {
		must(r.t, r.Start())
	}
	for _, h := range r.Hosts {
		if !h.Alive() {
			must(r.t, h.Start())
		}
	}
}

// check waits for a job's end and compares every unit with what it must be; then nothing of it may be left.
func (r *ruin) check(job string, rounds uint64) crowd.JobDetail {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 90*time.Second)
	defer cancel()
	j, err := r.Done(ctx, r.ada, job)
	must(r.t, err)
	if j.State != crowd.JobDone || j.Progress.UnitsFailed != 0 || j.Progress.UnitsDone != j.Units {
		r.t.Fatalf("%s is %s %s, %+v", j.Name, j.State, j.Reason, j.Progress)
	}
	out, err := r.Run(r.ctx, r.ada, "job", "results", job)
	must(r.t, err)
	var want strings.Builder
	for u := range j.Units {
		want.WriteString(rig.Spun(u, rounds))
	}
	if out != want.String() {
		r.t.Errorf("%s: the results differ from those of an undisturbed run: %d bytes, %d wanted", j.Name, len(out), want.Len())
	}
	if j.Escrow != j.Paid+j.Returned {
		r.t.Errorf("%s: held %d, paid %d, returned %d", j.Name, j.Escrow, j.Paid, j.Returned)
	}
	return j
}

// sound ends the town and audits what it left.
func (r *ruin) sound() {
	r.t.Helper()
	r.revive()
	r.settle()
	r.Close()
	for _, p := range r.Left() {
		r.t.Errorf("left on disk: %s", p)
	}
	out, err := r.Run(context.WithoutCancel(r.ctx), "", "broker", "audit", "--data", r.Data(), "--bodies", "all")
	if err != nil {
		r.t.Errorf("audit: %v", err)
	} else if testing.Verbose() {
		r.t.Log("audit\n" + out)
	}
	if n := guestsOf(r.Dir); n > 0 {
		r.t.Errorf("%d guests outlived their hosts", n)
	}
}

// settle waits until the hosts were answered everything.
func (r *ruin) settle() {
	for range 300 {
		if left, _ := filepath.Glob(filepath.Join(r.Dir, "hosts", "*", "outbox", "*")); len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// guestsOf counts the guests' processes of the hosts in a folder.
func guestsOf(dir string) (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if args := strings.Split(string(b), "\x00"); slices.Contains(args, "guest-child") && strings.Contains(string(b), dir) {
			n++
		}
	}
	return n
}

// Points that no job passes; TestBackupPoints does.
var apart = []string{"migrate.before", "migrate.after", "backup.part", "backup.whole", "restore.part", "restore.whole", "archive.before", "archive.after", "state.before", "state.after"}

// TestCrashPoints kills broker or host at every named point on a job's way. What was acknowledged is there, what was worked is paid once.
func TestCrashPoints(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks at processes through /proc")
	}
	r := newRuin(t, "hal", "ida", "jon")
	const rounds = 100_000
	for i, point := range crash.Points {
		if slices.Contains(apart, point) {
			continue
		}
		t.Run(point, func(t *testing.T) {
			r.t = t
			victim := "broker"
			if strings.HasPrefix(point, "cache.") || strings.HasPrefix(point, "outbox.") {
				victim = "hal"
			}
			times := 1
			if strings.HasPrefix(point, "store.") && !strings.HasPrefix(point, "store.body") {
				times = 5 + i
			}
			env := fmt.Sprintf("CROWD_CRASH=%s:%d", point, times)
			units, more := uint64(24), "chunk: 2"
			if strings.HasPrefix(point, "outcome.") || strings.HasPrefix(point, "store.body") {
				units, more = 400, "chunk: 200" // an outcome that is too large for a report
			}
			program := r.file
			if strings.HasPrefix(point, "upload.") || strings.HasPrefix(point, "cache.") { // one that nobody has yet
				r.file = r.variant(point)
				defer func() { r.file = program }()
			}
			var hit *rig.Proc
			if victim == "broker" {
				must(t, r.Broker.Interrupt())
				must(t, r.Start(env))
				hit = r.Broker
			} else {
				must(t, r.Hosts[victim].Interrupt())
				must(t, r.Hosts[victim].Start(env))
				hit = r.Hosts[victim].Proc
			}
			file := r.jobFile(strings.ReplaceAll(point, ".", "-"), units, rounds, more)
			job := r.order(file)
			select {
			case <-hit.Gone():
			case <-time.After(time.Minute):
				t.Fatalf("nobody passed %s\n%s", point, tail(hit.Log()))
			}
			r.revive()
			r.check(job, rounds)
		})
		if t.Failed() {
			break
		}
	}
	r.t = t
	r.sound()
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// variant is the program with a section more, so that it has another digest.
func (r *ruin) variant(name string) string {
	b, err := os.ReadFile(r.file)
	must(r.t, err)
	section := append([]byte{byte(len(name))}, name...)
	b = append(append(b, 0, byte(len(section))), section...)
	path := filepath.Join(r.Dir, name+".wasm")
	must(r.t, os.WriteFile(path, b, 0o600))
	return path
}

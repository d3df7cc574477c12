package main

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd/internal/rig"
)

// previous is the last commit of the release before this one: agents and brokers of both must get on.
const previous = "26ad621"

// older builds the release before from the repository's history.
func older(t *testing.T) string {
	t.Helper()
	if !soaking() {
		t.Skip("builds the release before: make soak runs it")
	}
	dir := t.TempDir()
	archive := "git -C ../.. archive " + previous + " | tar x -C " + dir
	if out, err := exec.Command("sh", "-c", archive).CombinedOutput(); err != nil {
		t.Skipf("needs the repository's history: %v %s", err, out)
	}
	bin := filepath.Join(dir, "crowd-older")
	cmd := exec.Command("go", "build", "-o", bin, "./cmd/crowd")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", previous, err, out)
	}
	return bin
}

// TestSkew upgrades first the broker and then the agents in the midst of a job, from the release before; and lets new agents work for an old broker. Nothing is
// lost, nothing paid twice.
func TestSkew(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks at processes through /proc")
	}
	old := older(t)
	bin, err := crashing()
	must(t, err)
	const rounds = 10_000_000
	halfway := func(r *ruin, job string, done uint64) {
		t.Helper()
		for r.ctx.Err() == nil {
			if j, err := r.Job(r.ctx, r.ada, job); err == nil && j.Progress.UnitsDone >= done {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatal("the job doesn't get on")
	}
	t.Run("upgrade", func(t *testing.T) {
		town, err := rig.New(old, shortTemp(t))
		must(t, err)
		r := newRuinOf(t, town, "hal", "ida", "jon")
		job := r.order(r.jobFile("skewed", 600, rounds, "chunk: 4"))
		halfway(r, job, 60)
		r.Bin = bin
		must(t, r.Broker.Interrupt())
		must(t, r.Start())
		if j, err := r.Job(r.ctx, r.ada, job); err != nil || j.State.Ended() {
			t.Fatalf("after the broker's upgrade: %s, %v", j.State, err)
		}
		halfway(r, job, 200)
		for _, h := range r.Hosts {
			h.Kill()
			must(t, h.Start())
		}
		rows, err := r.HostRows(r.ctx)
		must(t, err)
		for _, h := range rows {
			t.Logf("%s runs %s", h.Name, h.Platform.Agent)
		}
		r.check(job, rounds)
		r.sound()
	})
	t.Run("new agents, old broker", func(t *testing.T) {
		town, err := rig.New(old, shortTemp(t))
		must(t, err)
		r := newRuinOf(t, town)
		r.Bin = bin
		for _, n := range []string{"hal", "ida"} {
			h, err := r.Join(r.ctx, n, "DE")
			must(t, err)
			must(t, h.Start())
		}
		job := r.order(r.jobFile("skewed", 100, rounds, "chunk: 4"))
		r.check(job, rounds)
		for _, h := range r.Hosts {
			if strings.Contains(h.Log(), "malformed") {
				t.Errorf("%s says %s", h.Name, tail(h.Log()))
			}
		}
	})
}

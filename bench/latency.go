package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

const latencyRuns = 40

// latency: one small job from submit to its result, warm, through `crowd dev` with one hoster; against starting the same program natively.
func latency(ctx context.Context) ([]Row, error) {
	c, end, err := newDev(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	dir := c.dir
	native := filepath.Join(dir, "noop")
	if out, err := exec.Command("cc", "-O2", "-o", native, "internal/guest/wasm/testdata/noop.c").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cc: %w: %s", err, out)
	}
	var spawn []time.Duration
	for range latencyRuns {
		t0 := time.Now()
		if err := exec.Command(native).Run(); err != nil {
			return nil, err
		}
		spawn = append(spawn, time.Since(t0))
	}
	goWasm := filepath.Join(dir, "hello.wasm")
	src := filepath.Join(dir, "hello.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() { println(\"hello\") }\n"), 0o600); err != nil {
		return nil, err
	}
	build := exec.Command("go", "build", "-o", goWasm, src)
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	var rows []Row
	for _, x := range []struct {
		name, file string
		goal       float64
	}{{"C no-op, submit → result, p50", noopWasm, 50}, {"Go hello, submit → result, p50", goWasm, 1500}} {
		took, err := c.roundTrips(ctx, x.file)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row(x.name, ms(took), "ms", "fork and exec of the native program", ms(spawn), x.goal, false, "lower"))
	}
	return rows, nil
}

func ms(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

// newDev runs `crowd dev` with one hoster.
func newDev(ctx context.Context) (*cluster, func(), error) {
	dir, err := os.MkdirTemp("", "crowd-bench-dev-")
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(crowdBin, "dev", "--json", "--hosts", "1", "--places", "DE", "--listen", "127.0.0.1:0", "--keep", filepath.Join(dir, "dev"))
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	end := func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		os.RemoveAll(dir)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	var ready struct{ API, Key string }
	if err = errors.Join(err, json.Unmarshal(line, &ready)); err != nil {
		end()
		return nil, nil, fmt.Errorf("crowd dev: %w", err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	ada, err := client.New(client.Options{Broker: ready.API, Key: ready.Key})
	if err != nil {
		end()
		return nil, nil, err
	}
	return &cluster{dir: dir, url: ready.API, pid: cmd.Process.Pid, ada: ada}, end, nil
}

// roundTrips orders one unit again and again and waits for its output.
func (c *cluster) roundTrips(ctx context.Context, file string) ([]time.Duration, error) {
	d, err := c.upload(ctx, file)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for i := range latencyRuns + 3 {
		t0 := time.Now()
		job, err := c.ada.Submit(ctx, &crowd.JobSpec{Kind: "job", Name: "one", Program: d.String(), Units: crowd.Units{Count: 1},
			Verify: crowd.Verify{None: true}, Price: crowd.PriceRule{Max: crowd.Credit}, Resources: crowd.Resources{Memory: 64 << 20}}, "")
		if err != nil {
			return nil, err
		}
		state := job.State
		for j, err := range c.ada.WatchJob(ctx, job.ID.String()) {
			if err != nil {
				return nil, err
			}
			if state = j.State; state.Ended() {
				break
			}
		}
		if state != crowd.JobDone {
			return nil, fmt.Errorf("the job ended as %s", state)
		}
		if _, err := c.ada.UnitStdout(ctx, job.ID.String(), 0); err != nil {
			return nil, err
		}
		if i >= 3 { // the first ones warm up
			took = append(took, time.Since(t0))
		}
	}
	return took, nil
}

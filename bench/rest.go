package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// rest: what an agent without work takes of its owner's machine, beside BOINC's client in the same minute.
func rest(ctx context.Context) ([]Row, error) {
	c, end, err := newDev(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	agent, err := childNamed(c.pid, "dev", "host")
	if err != nil {
		return nil, err
	}
	pause(ctx, 135*time.Second) // its warm children go after two minutes
	const span = 30 * time.Second
	rss, share, err := atRest(ctx, agent, span)
	if err != nil {
		return nil, err
	}
	boincRSS, boincShare := 17.5e6, 0.05 // as measured before, if BOINC isn't here
	against := "BOINC's client, as measured before (boinc-client isn't installed)"
	if path, err := exec.LookPath("boinc"); err == nil {
		dir := filepath.Join(c.dir, "boinc")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		cmd, stop, err := start(dir, path, "--dir", dir, "--no_gpus", "--gui_rpc_port", "31999")
		if err != nil {
			return nil, err
		}
		defer stop()
		pause(ctx, 20*time.Second)
		r, s, err := atRest(ctx, cmd.Process.Pid, span)
		if err != nil {
			return nil, fmt.Errorf("boinc: %w", err)
		}
		boincRSS, boincShare, against = float64(r), s*100, "BOINC's client"
	}
	return []Row{
		row("agent at rest, memory", float64(rss)/1e6, "MB", against, boincRSS/1e6, 25, false, "lower"),
		row("agent at rest, share of a core", share*100, "%", against, boincShare, 0.1, false, "lower"),
	}, nil
}

// childNamed finds a descendant whose arguments start so.
func childNamed(pid int, args ...string) (int, error) {
	for _, p := range tree(pid) {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(p) + "/cmdline")
		f := strings.Split(string(b), "\x00")
		if len(f) > len(args) && strings.Join(f[1:1+len(args)], " ") == strings.Join(args, " ") {
			return p, nil
		}
	}
	return 0, fmt.Errorf("no process %v", args)
}

// Demo tells the main job as one story: a broker and five hosters of five owners in three countries search real strain for a black-hole
// merger; meanwhile one host is killed, one is paused by its owner, and one lies. It is a customer like anybody else: it runs the crowd
// command and reads the API.
//
//	go run ./examples/demo [--crowd bin/crowd] [--out out/demo]
//
// It writes report.json and gwsearch-snr.png into --out. Exit status: 0 all as told, 8 nothing found, 1 anything else.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crowdcloud/crowd/examples/gwsearch/gw"
)

var errNothing = errors.New("nothing found")

func main() {
	crowdBin := flag.String("crowd", "bin/crowd", "the crowd binary")
	out := flag.String("out", "out/demo", "folder for report.json and the plot")
	example := flag.String("example", "examples/gwsearch", "folder of the example")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	bin, err := filepath.Abs(*crowdBin)
	if err == nil {
		err = run(ctx, bin, *out, *example)
	}
	if errors.Is(err, errNothing) {
		os.Exit(8)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// ready is the first line of `crowd dev --json`.
type ready struct {
	API      string `json:"api"`
	Key      string `json:"key"`
	Operator string `json:"operator_key"`
	Hosts    []struct {
		Name  string `json:"name"`
		Place string `json:"place"`
		PID   int    `json:"pid"`
		State string `json:"state_dir"`
	} `json:"hosts"`
}

// story is one run of the demo.
type story struct {
	bin   string
	dev   ready
	api   api // as the customer
	op    api // as the operator
	start time.Time

	mu    sync.Mutex
	notes map[string]string // host → what befell it
}

func run(ctx context.Context, bin, out, example string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "crowd-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &story{bin: bin, notes: map[string]string{}}
	end, err := s.startDev(ctx, dir)
	if err != nil {
		return err
	}
	defer end()
	fmt.Printf("dev: broker, %d hosters in DE FR US; API %s\n", len(s.dev.Hosts), s.dev.API)

	peaks, job, err := s.search(ctx, filepath.Join(example, "job.yaml"))
	if err != nil {
		return err
	}
	return s.report(ctx, out, example, peaks, job)
}

// startDev runs `crowd dev` and waits until its hosts are there; end stops it.
func (s *story) startDev(ctx context.Context, dir string) (end func(), err error) {
	log, err := os.Create(filepath.Join(dir, "dev.log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.bin, "dev", "--json", "--listen", "127.0.0.1:0", "--hosts", "5", "--places", "DE,DE,FR,FR,US", "--cheat", "1", "--keep", filepath.Join(dir, "dev"))
	cmd.Stderr = log
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	end = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		log.Close()
	}
	go func() { <-ctx.Done(); _ = cmd.Process.Signal(os.Interrupt) }()
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s.dev)
	}
	if err != nil {
		end()
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("crowd dev didn't start: %w\n%s", err, said)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	s.api, s.op = api{s.dev.API, s.dev.Key}, api{s.dev.API, s.dev.Operator}
	return end, nil
}

// search orders the job, tells what happens meanwhile, and returns what the units printed.
func (s *story) search(ctx context.Context, file string) ([]gw.Peak, jobDetail, error) {
	var job jobDetail
	s.start = time.Now()
	id, err := s.crowd(ctx, "run", file, "-d", "-q")
	if err != nil {
		return nil, job, err
	}
	id = strings.TrimSpace(id)
	if err := s.api.get(ctx, "/v1/jobs/"+id, &job); err != nil {
		return nil, job, err
	}
	chunk := max(job.Spec.Chunk, 1)
	fmt.Printf("%s %s: %s templates over 32 s of LIGO strain in %d chunks, quorum %d\n", job.Name, short(job.ID), thousands(job.Units), (job.Units+chunk-1)/chunk, max(job.Spec.Verify.Quorum, 2))

	told, stopTelling := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.tell(told, id) })
	defer wg.Wait()
	defer stopTelling()

	acts := []struct {
		at  uint64 // units done, of 64
		act func() error
	}{{6, func() error { return s.kill(told, "bob") }}, {14, func() error { return s.pause(told, "dave", &wg) }}}
	for version := job.Version; ; version = job.Version {
		if err := s.api.wait(ctx, "/v1/jobs/"+id, version, &job); err != nil {
			return nil, job, err
		}
		for len(acts) > 0 && job.Progress.UnitsDone >= job.Units*acts[0].at/64 {
			if err := acts[0].act(); err != nil {
				return nil, job, err
			}
			acts = acts[1:]
		}
		switch job.State {
		case "done":
			lines, err := s.crowd(ctx, "job", "results", id)
			if err != nil {
				return nil, job, err
			}
			s.say("done", "")
			peaks, err := gw.ReadPeaks(strings.NewReader(lines))
			return peaks, job, err
		case "failed", "cancelled":
			return nil, job, fmt.Errorf("the job %s: %s", job.State, job.Reason)
		}
	}
}

// kill ends a host's whole process without a word, as a power cut would.
func (s *story) kill(ctx context.Context, name string) error {
	for _, h := range s.dev.Hosts {
		if h.Name == name {
			n := s.attemptsOf(ctx, name)
			p, err := os.FindProcess(h.PID)
			if err == nil {
				err = p.Kill()
			}
			if err != nil {
				return err
			}
			s.note(name, "killed at "+s.clock())
			s.say(fmt.Sprintf("%s was killed; its %s to others", name, goes(n)), "host.lost")
		}
	}
	return nil
}

func goes(chunks int) string {
	if chunks == 1 {
		return "chunk goes"
	}
	return fmt.Sprintf("%d chunks go", chunks)
}

// pause has a host's owner take the machine back for eleven seconds.
func (s *story) pause(ctx context.Context, name string, wg *sync.WaitGroup) error {
	for _, h := range s.dev.Hosts {
		if h.Name != name {
			continue
		}
		t0 := time.Now()
		answer, err := s.crowd(ctx, "host", "pause", "--state-dir", h.State, "--json")
		if err != nil {
			return err
		}
		var paused struct {
			FrozeMS float64 `json:"froze_ms"`
		}
		_ = json.Unmarshal([]byte(answer), &paused)
		s.say(fmt.Sprintf("%s's owner paused it: frozen in %.0f ms", name, paused.FrozeMS), "owner.paused")
		wg.Go(func() {
			select {
			case <-time.After(11 * time.Second):
			case <-ctx.Done():
			}
			if _, err := s.crowd(context.WithoutCancel(ctx), "host", "resume", "--state-dir", h.State); err == nil {
				s.note(name, fmt.Sprintf("frozen %.0f s", time.Since(t0).Seconds()))
			}
		})
	}
	return nil
}

// tell prints what the broker's events say of liars while the job runs.
func (s *story) tell(ctx context.Context, job string) {
	_ = s.api.events(ctx, func(e event) {
		if e.What == "chunk.differed" {
			s.say(e.Text, e.Reason)
		}
	}, job)
}

func (s *story) note(host, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes[host] = text
}

func (s *story) clock() string {
	d := time.Since(s.start)
	return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}

func (s *story) say(text, reason string) {
	fmt.Printf("%6s  %-70s %s\n", s.clock(), text, reason)
}

// crowd runs the command as the customer and returns its stdout.
func (s *story) crowd(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env = append(os.Environ(), "CROWD_BROKER="+s.dev.API, "CROWD_KEY="+s.dev.Key)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("crowd %s: %w\n%s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

// Package rig is a small cloud of real processes, for tests, demos and benchmarks that kill them: a broker and hosts of different owners, each a
// process of the crowd binary with a folder of its own. It knows no more than a person at the command line: commands, signals, files.
//
// Nothing here is safe for concurrent use but what says so.
package rig

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
)

// Town is a broker and its hosts.
type Town struct {
	Bin      string // the crowd binary
	Dir      string // of everything
	Listen   string // HOST:PORT of the broker
	URL      string // as this machine reaches it
	Public   string // as its hosts reach it; "": URL
	Pin      string // fingerprint of its key
	Operator string // a key with scope operate
	Broker   *Proc
	Hosts    map[string]*Host
	Flags    []string // of crowd broker run
}

// Host is an agent's folder, and its process when it runs.
type Host struct {
	*Proc
	Name, Dir string
	Key       string   // its owner's
	Wrap      []string // put before its command: to run in a network namespace
	town      *Town
}

// Proc is a process. Its output is a file beside its folder.
type Proc struct {
	cmd  *exec.Cmd
	log  string
	gone chan struct{}
}

// New makes a town in an empty folder; Start it.
func New(bin, dir string) (*Town, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	return &Town{Bin: bin, Dir: dir, Listen: addr, URL: "https://" + addr, Hosts: map[string]*Host{}}, l.Close()
}

// Data is the broker's folder.
func (t *Town) Data() string { return filepath.Join(t.Dir, "broker") }

// start runs a process of the binary with more environment and returns when its output has a line that matches ready, or it ended.
func (t *Town) start(log string, wrap, env, args []string, ready *regexp.Regexp) (*Proc, []string, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer out.Close()
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, err
	}
	line := append(append(append([]string{}, wrap...), t.Bin), args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(t.Dir, "config")), env...)
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	p := &Proc{cmd: cmd, log: log, gone: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.gone)
	}()
	for {
		said, err := since(log, from)
		if m := ready.FindStringSubmatch(said); m != nil || err != nil {
			return p, m, err
		}
		select {
		case <-p.gone:
			said, _ = since(log, from)
			if m := ready.FindStringSubmatch(said); m != nil {
				return p, m, nil
			}
			return p, nil, fmt.Errorf("%s ended: %s\n%s", strings.Join(args, " "), cmd.ProcessState, said)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func since(path string, from int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, from, 1<<30))
	return string(b), err
}

var (
	brokerReady = regexp.MustCompile(`(?m)^\{.*"type":"ready".*\}$`)
	hostReady   = regexp.MustCompile(`(?m)^\{.*"type":"running".*\}$`)
)

// Start runs the broker, at the same address as before if it ran.
func (t *Town) Start(env ...string) error {
	if err := os.MkdirAll(filepath.Join(t.Dir, "config"), 0o700); err != nil {
		return err
	}
	args := append([]string{"broker", "run", "--json", "-v", "--data", t.Data(), "--listen", t.Listen, "--price", "0.001cr"}, t.Flags...)
	p, m, err := t.start(filepath.Join(t.Dir, "broker.log"), nil, env, args, brokerReady)
	t.Broker = p
	if err != nil {
		return err
	}
	var ready struct {
		Pin string `json:"pin"`
		Key string `json:"owner_key"`
	}
	if err := json.Unmarshal([]byte(m[0]), &ready); err != nil {
		return err
	}
	t.Pin = ready.Pin
	if ready.Key != "" {
		t.Operator = ready.Key
	}
	return nil
}

// Run runs a command to its end as who has the key, and returns what it printed on stdout. Safe for concurrent use.
func (t *Town) Run(ctx context.Context, key string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.Bin, args...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(t.Dir, "config"), "CROWD_BROKER="+t.URL, "CROWD_PIN="+t.Pin, "CROWD_KEY="+key)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("crowd %s: %w: %s%s", strings.Join(args, " "), err, out.String(), said.String())
	}
	return out.String(), nil
}

// Read is Run for a command that prints JSON.
func (t *Town) Read(ctx context.Context, into any, key string, args ...string) error {
	out, err := t.Run(ctx, key, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("crowd %s --json: %w in %q", strings.Join(args, " "), err, out)
	}
	return nil
}

// here trusts whoever answers at the broker's address: it is this machine.
var here = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}}, Timeout: time.Minute}

// Get reads a path of the API. Safe for concurrent use.
func (t *Town) Get(ctx context.Context, into any, key, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.URL+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := here.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// Attempts are those of a job, the first thousand.
func (t *Town) Attempts(ctx context.Context, key, job string) ([]crowd.Attempt, error) {
	var list struct{ Items []crowd.Attempt }
	err := t.Get(ctx, &list, key, "/v1/jobs/"+job+"/attempts?limit=1000")
	return list.Items, err
}

// HostRows are all machines, as the operator sees them.
func (t *Town) HostRows(ctx context.Context) ([]crowd.HostRow, error) {
	var list struct{ Items []crowd.HostRow }
	err := t.Get(ctx, &list, t.Operator, "/v1/hosts?all=true")
	return list.Items, err
}

// Account makes an account with free credit and returns its first key.
func (t *Town) Account(ctx context.Context, name string, credits int) (key string, err error) {
	var made struct {
		Key string `json:"secret"`
	}
	if err := t.Read(ctx, &made, t.Operator, "account", "create", name); err != nil {
		return "", err
	}
	if credits > 0 {
		_, err = t.Run(ctx, t.Operator, "account", "grant", name, fmt.Sprintf("%dcr", credits))
	}
	return made.Key, err
}

// Join enrols a machine of an owner of its own; Start its agent.
func (t *Town) Join(ctx context.Context, name, place string) (*Host, error) {
	key, err := t.Account(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	link, err := t.Run(ctx, key, "host", "token", "-q")
	if err != nil {
		return nil, err
	}
	link = strings.TrimSpace(link)
	if t.Public != "" {
		link = strings.Replace(link, t.URL, t.Public, 1)
	}
	h := &Host{Name: name, Dir: filepath.Join(t.Dir, "hosts", name), Key: key, town: t}
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return nil, err
	}
	policy := "kind: host-policy\nlend: {cpu: 50%, memory: 20%}\n"
	if err := os.WriteFile(filepath.Join(h.Dir, "host-policy.yaml"), []byte(policy), 0o600); err != nil {
		return nil, err
	}
	if _, err := t.Run(ctx, key, "host", "join", link, "--name", name, "--place", place, "--state-dir", h.Dir, "--no-run"); err != nil {
		return nil, err
	}
	t.Hosts[name] = h
	return h, nil
}

// Start runs the agent.
func (h *Host) Start(env ...string) (err error) {
	h.Proc, _, err = h.town.start(h.Dir+".log", h.Wrap, env, []string{"host", "run", "--json", "-v", "--state-dir", h.Dir}, hostReady)
	return err
}

// Kill ends a process as a power cut would, and returns when it is gone. Nothing if it is.
func (p *Proc) Kill() {
	if p != nil {
		_ = p.cmd.Process.Kill()
		<-p.gone
	}
}

// Interrupt asks a process to end, and returns when it has.
func (p *Proc) Interrupt() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.gone
	return nil
}

// PID is the process's number.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Gone is closed when the process has ended.
func (p *Proc) Gone() <-chan struct{} { return p.gone }

// Alive reports whether the process hasn't ended.
func (p *Proc) Alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// Log is what a process has said, of all its lives.
func (p *Proc) Log() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

// Close ends every process that still runs.
func (t *Town) Close() {
	var wg sync.WaitGroup
	for _, h := range t.Hosts {
		if h.Proc != nil && h.Alive() {
			_ = h.Cont()
			wg.Go(func() { _ = h.Interrupt() })
		}
	}
	wg.Wait()
	if t.Broker != nil && t.Broker.Alive() {
		_ = t.Broker.Interrupt()
	}
}

// Job reads a job.
func (t *Town) Job(ctx context.Context, key, ref string) (j crowd.JobDetail, err error) {
	err = t.Get(ctx, &j, key, "/v1/jobs/"+ref)
	return j, err
}

// Done waits for a job's end, over restarts of the broker.
func (t *Town) Done(ctx context.Context, key, ref string) (crowd.JobDetail, error) {
	for {
		j, err := t.Job(ctx, key, ref)
		if err == nil && j.State.Ended() {
			return j, nil
		}
		select {
		case <-ctx.Done():
			return j, errors.Join(ctx.Err(), err, fmt.Errorf("%s is %s, %d of %d units done, %+v", ref, j.State, j.Progress.UnitsDone, j.Units, j.Progress))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Left says what is on the disk that should not be once every job has ended and every host was answered: half-done uploads, outcomes, checkpoints of
// the broker, and what waits at the hosts.
func (t *Town) Left() (paths []string) {
	globs := []string{filepath.Join(t.Data(), "outcomes", "*"), filepath.Join(t.Data(), "states", "*"), filepath.Join(t.Data(), "*.tmp*"),
		filepath.Join(t.Dir, "hosts", "*", "outbox", "*"), filepath.Join(t.Dir, "hosts", "*", "states", "*")}
	for _, d := range []string{"uploads", "blobs/*", "outcomes", "states"} {
		globs = append(globs, filepath.Join(t.Data(), d, ".in-*"))
	}
	globs = append(globs, filepath.Join(t.Data(), "uploads", "*"))
	for _, g := range globs {
		found, _ := filepath.Glob(g)
		paths = append(paths, found...)
	}
	return paths
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/guest/wasm"
	"github.com/crowdcloud/crowd/internal/host"
)

// The hosters of `crowd dev`, each with an account, a machine and an address of its own; those who cheat are called mallory.
var hosterNames = []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "ken", "lena", "mike", "nina", "oscar", "peggy"}

const (
	devCredit   = 1000 * crowd.Credit
	devMemory   = 1 << 30
	devMaxCost  = "100cr"
	devPerGfuel = 4_000 // dearer than real, so that a short job's pay can be seen
)

// devOptions are the flags of `crowd dev`.
type devOptions struct {
	hosts, cheat int
	places       []string
	listen, keep string
	killEvery    time.Duration
}

func devCommand(a *app) *cobra.Command {
	var o devOptions
	c := &cobra.Command{
		Use: "dev [-- CMD]", Short: "a broker and several simulated hosters on this machine, a funded account; stays until Ctrl-C",
		Long: "Runs a broker on loopback and several hosters, each a process with its own account, place and address (127.N.0.1), so that rules about\n" +
			"owners and networks mean something. The context \"dev\" is picked if you have no other. With -- CMD it runs CMD with CROWD_BROKER and\n" +
			"CROWD_KEY set, and ends with it.",
		Example: "  crowd dev\n  crowd dev --hosts 8 --places DE,US-CA --cheat 1 --kill-every 20s\n  crowd dev -- crowd run examples/gwsearch/job.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.hosts < 1 || o.hosts > 64 || o.cheat < 0 || o.cheat > o.hosts || len(o.places) == 0 {
				return crowd.Errorf(crowd.Invalid, "", "wanted 1 to 64 hosts, at most as many cheats, and at least one place").WithHint("crowd dev --hosts 5 --cheat 1 --places DE,FR,US")
			}
			return a.dev(cmd.Context(), o, args)
		},
	}
	f := c.Flags()
	f.IntVar(&o.hosts, "hosts", 5, "hosters")
	f.IntVar(&o.cheat, "cheat", 0, "how many of them give wrong answers")
	f.StringSliceVar(&o.places, "places", []string{"DE", "FR", "US"}, "where they are")
	f.StringVar(&o.listen, "listen", "127.0.0.1:27693", "loopback address of the API; port 0 takes a free one")
	f.StringVar(&o.keep, "keep", "", "folder to keep everything in; default: one that goes at the end")
	f.Var(spanFlag{&o.killEvery}, "kill-every", "kill a random host so often; it comes back after a few seconds")
	c.AddCommand(devHostCommand(a))
	return c
}

// devHost is one simulated hoster.
type devHost struct {
	Name  string `json:"name"`
	Place string `json:"place"`
	PID   int    `json:"pid"`
	State string `json:"state_dir"`

	from  string
	cheat bool
	mu    sync.Mutex // guards PID, proc and pipe
	proc  *os.Process
	pipe  io.WriteCloser // the process ends when this does: with us, however we end
}

// devReady is what --json prints once everything runs.
type devReady struct {
	Type        string     `json:"type"`
	API         string     `json:"api"`
	Account     string     `json:"account"`
	Key         string     `json:"key"`
	OperatorKey string     `json:"operator_key"`
	Hosts       []*devHost `json:"hosts"`
}

func (a *app) dev(ctx context.Context, o devOptions, cmd []string) (err error) {
	dir := o.keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "crowd-dev-"); err != nil {
			return crowd.Errorf(crowd.Internal, "", "%w", err)
		}
		defer os.RemoveAll(dir)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	b, err := startBroker(ctx, brokerConfig{Data: filepath.Join(dir, "broker"), Listen: o.listen, Plain: true, PerGfuel: devPerGfuel, Log: a.log()})
	if err != nil {
		return err
	}
	defer b.Close()
	ready, err := a.devPeople(ctx, b, dir, o)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, h := range ready.Hosts {
		if err := h.start(); err != nil {
			return err
		}
		wg.Go(func() { h.watch(ctx) })
	}
	if err := devOnline(ctx, b.Broker, ready); err != nil {
		return err
	}
	if o.killEvery > 0 {
		wg.Go(func() { a.killSome(ctx, ready.Hosts, o.killEvery) })
	}
	if a.json {
		if err := a.printJSON(ready); err != nil {
			return err
		}
	} else {
		_, _ = fmt.Fprintf(a.out, "dev: broker, %d hosters in %s; API %s\n", o.hosts, strings.Join(o.places, " "), ready.API)
	}
	if len(cmd) > 0 {
		return a.devRun(ctx, ready, cmd)
	}
	a.devContext(ready)
	<-ctx.Done()
	return nil
}

// devPeople makes the accounts, funds the customer, and joins the machines.
func (a *app) devPeople(ctx context.Context, b *runningBroker, dir string, o devOptions) (*devReady, error) {
	if b.OwnerKey == "" {
		return nil, crowd.Errorf(crowd.Conflict, "", "%s holds an older dev", dir).WithHint("--keep another folder, or remove that one")
	}
	operator, err := b.Broker.Authenticate(ctx, b.OwnerKey, true)
	if err != nil {
		return nil, err
	}
	ready := &devReady{Type: "ready", API: b.URL, Account: "ada", OperatorKey: b.OwnerKey}
	if _, ready.Key, err = b.Broker.CreateAccount(ctx, operator, ready.Account); err != nil {
		return nil, err
	}
	if err := b.Broker.Grant(ctx, operator, ready.Account, devCredit, "dev"); err != nil {
		return nil, err
	}
	engine, err := wasm.New(wasm.Options{Pool: 1, Log: a.log()})
	if err != nil {
		return nil, err
	}
	speed, err := engine.Bench(ctx)
	if err = errors.Join(err, engine.Close()); err != nil {
		return nil, err
	}
	for i := range o.hosts {
		h := &devHost{Name: hosterName(i, o), Place: o.places[i*len(o.places)/o.hosts], from: fmt.Sprintf("127.%d.0.1", i+1), cheat: i >= o.hosts-o.cheat}
		h.State = filepath.Join(dir, "hosts", h.Name)
		_, secret, err := b.Broker.CreateAccount(ctx, operator, h.Name)
		if err != nil {
			return nil, err
		}
		owner, err := b.Broker.Authenticate(ctx, secret, true)
		if err != nil {
			return nil, err
		}
		link, _, err := b.Broker.MakeToken(ctx, owner, time.Hour)
		if err != nil {
			return nil, err
		}
		_, err = host.Join(ctx, link, host.JoinOptions{Dir: h.State, Name: h.Name, Place: h.Place, Platform: host.ThisPlatform(versionText(), "desktop"),
			Capacity: crowd.Capacity{Slots: 1, MemoryBytes: devMemory, DiskBytes: 1 << 30, Speed: speed}, LocalAddr: netip.MustParseAddr(h.from)})
		if err != nil {
			return nil, err
		}
		ready.Hosts = append(ready.Hosts, h)
	}
	return ready, nil
}

func hosterName(i int, o devOptions) string {
	switch n := i - (o.hosts - o.cheat); {
	case n == 0:
		return "mallory"
	case n > 0:
		return fmt.Sprintf("mallory-%d", n+1)
	case i < len(hosterNames):
		return hosterNames[i]
	}
	return fmt.Sprintf("hoster-%d", i+1)
}

// start runs the host's process.
func (h *devHost) start() error {
	self, err := os.Executable()
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "%w", err)
	}
	args := []string{"dev", "host", "--state-dir", h.State, "--from", h.from}
	if h.cheat {
		args = append(args, "--cheat")
	}
	log, err := os.OpenFile(filepath.Join(h.State, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "%w", err)
	}
	defer log.Close()
	c := exec.Command(self, args...)
	c.Stderr = log
	c.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=50")
	pipe, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "start a host: %w", err)
	}
	h.mu.Lock()
	h.proc, h.PID, h.pipe = c.Process, c.Process.Pid, pipe
	h.mu.Unlock()
	return nil
}

// watch ends the host's process with ctx.
func (h *devHost) watch(ctx context.Context) {
	<-ctx.Done()
	h.mu.Lock()
	p := h.proc
	h.mu.Unlock()
	if p.Signal(os.Interrupt) != nil {
		_ = p.Kill()
	}
	late := time.AfterFunc(5*time.Second, func() { _ = p.Kill() })
	_, _ = p.Wait()
	late.Stop()
}

// killSome is the weather: from time to time a host dies without a word and comes back.
func (a *app) killSome(ctx context.Context, hosts []*devHost, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h := hosts[rand.IntN(len(hosts))]
		h.mu.Lock()
		p := h.proc
		h.mu.Unlock()
		_ = p.Kill()
		_, _ = p.Wait()
		a.say("dev: %s was killed; it comes back in 5s", h.Name)
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Second):
		}
		if err := h.start(); err != nil {
			a.say("dev: %s doesn't come back: %v", h.Name, err)
			return
		}
	}
}

// devOnline waits until every host is connected.
func devOnline(ctx context.Context, b *broker.Broker, ready *devReady) error {
	operator, err := b.Authenticate(ctx, ready.OperatorKey, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		hosts, err := b.Hosts(ctx, operator, true)
		if err != nil {
			return err
		}
		n := 0
		for _, h := range hosts {
			if h.Online && h.Ready == crowd.Ready {
				n++
			}
		}
		if n == len(ready.Hosts) {
			return nil
		}
		select {
		case <-ctx.Done():
			return crowd.Errorf(crowd.Unavailable, crowd.HostOffline, "only %d of %d hosts connected", n, len(ready.Hosts)).WithHint("their logs: %s/agent.log", ready.Hosts[0].State)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// devRun runs a command as the funded customer and ends with its exit code.
func (a *app) devRun(ctx context.Context, ready *devReady, cmd []string) error {
	c := exec.CommandContext(ctx, cmd[0], cmd[1:]...)
	c.Stdin, c.Stdout, c.Stderr = a.in, a.out, a.err
	c.Env = append(os.Environ(), "CROWD_BROKER="+ready.API, "CROWD_KEY="+ready.Key, "CROWD_MAX_COST="+devMaxCost)
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitCode(exit.ExitCode())
	}
	if err != nil {
		return crowd.Errorf(crowd.Invalid, "", "%w", err)
	}
	return nil
}

// devContext writes the context "dev", and picks it if there is no other.
func (a *app) devContext(ready *devReady) {
	dir, err := client.ConfigDir(a.getenv)
	if err == nil {
		var p *client.Profile
		if p, err = client.LoadProfile(dir); err == nil {
			p.Contexts["dev"] = client.Context{Broker: ready.API, Account: ready.Account, Key: ready.Key, MaxCost: devMaxCost}
			if p.Current == "" || len(p.Contexts) == 1 {
				p.Current = "dev"
			}
			err = p.Save()
		}
		if err == nil && p.Current != "dev" {
			a.say("context \"dev\" is there, but %q is in use: crowd -c dev …, or crowd account use dev", p.Current)
		}
	}
	if err != nil {
		a.say("crowd: no context was written: %v", err)
		a.say("  hint: CROWD_BROKER=%s CROWD_KEY=%s", ready.API, ready.Key)
	}
}

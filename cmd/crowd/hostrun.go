package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/cage"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/guest/wasm"
	"github.com/crowdcloud/crowd/internal/host"
)

// hostConfig is what an agent process is made of.
type hostConfig struct {
	Dir      string // as host.Join left it
	Policy   host.Policy
	Engine   guest.Engine   // nil: wasm, in caged children of this binary
	Capacity crowd.Capacity // zero: measured
	Device   string
	Log      *slog.Logger
	From     netip.Addr // to dial from; zero: any
	Self     string     // the executable that an upgrade starts; empty: none can
	Args     []string   // of the program that takes over; nil: this one's
	Failed   error      // why the upgrade before failed
}

// runningHost is an agent that works. Close it.
type runningHost struct {
	*host.Agent
	done chan struct{} // closed when it has ended
	stop context.CancelFunc
	err  error
}

// startHost runs the agent of a machine that has joined until ctx ends, it leaves, or Close.
func startHost(ctx context.Context, c hostConfig) (_ *runningHost, err error) {
	p, err := host.LoadProfile(c.Dir)
	if err != nil {
		return nil, err
	}
	closeEngine := func() error { return nil }
	if c.Engine == nil {
		if c.Engine, err = newEngine(c.Log); err != nil {
			return nil, err
		}
		closeEngine = c.Engine.Close
	}
	defer func() {
		if err != nil {
			_ = closeEngine()
		}
	}()
	if c.Capacity.Slots == 0 {
		if c.Capacity, err = host.Measure(ctx, c.Dir, c.Engine, c.Policy); err != nil {
			return nil, err
		}
	}
	platform := p.Host.Platform
	if c.Device != "" {
		platform.Device = c.Device
	}
	r := &runningHost{done: make(chan struct{})}
	r.Agent, err = host.New(host.Options{Dir: c.Dir, Engine: c.Engine, Policy: c.Policy, Capacity: c.Capacity, Platform: host.ThisPlatform(versionText(), platform.Device), Log: c.Log, LocalAddr: c.From, Self: c.Self, Failed: c.Failed})
	if err != nil {
		return nil, err
	}
	lean()
	ctx, r.stop = context.WithCancel(ctx)
	go func() { // ends before done is closed
		defer close(r.done)
		defer r.stop()
		r.err = errors.Join(r.Run(ctx), closeEngine())
	}()
	return r, nil
}

// lean keeps an agent small while it waits for work: it gives back what the start took, and collects rather than grows.
func lean() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	debug.FreeOSMemory()
}

// Wait returns when the agent has ended: nil when it was told to, or has left.
func (r *runningHost) Wait() error {
	<-r.done
	return r.err
}

// Close ends the agent: what isn't done goes back.
func (r *runningHost) Close() error {
	r.stop()
	return r.Wait()
}

func newEngine(log *slog.Logger) (guest.Engine, error) {
	e, err := wasm.New(wasm.Options{Pool: 1, Log: log})
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, crowd.HostFailed, "the engine doesn't start: %w", err).WithHint("crowd host doctor")
	}
	return e, nil
}

// policyFile is where an owner's policy stands unless --policy says otherwise.
const policyFile = "host-policy.yaml"

// hostFlags are those of every command about the agent on this machine.
type hostFlags struct{ dir, policy string }

func (h *hostFlags) add(cmd *cobra.Command, policy bool) {
	cmd.Flags().StringVar(&h.dir, "state-dir", "", "the agent's folder, if there are several on this machine")
	if policy {
		cmd.Flags().StringVar(&h.policy, "policy", "", "the owner's policy (default "+policyFile+" in that folder, if there is one)")
	}
}

// resolve finds the agent's folder and its owner's policy.
func (h *hostFlags) resolve(a *app) (dir string, p host.Policy, err error) {
	if dir, err = h.folder(a); err != nil {
		return dir, p, err
	}
	if h.policy != "" {
		p, err = readPolicy(h.policy)
		return dir, p, err
	}
	p, err = readPolicy(filepath.Join(dir, policyFile))
	if crowd.KindIs(err, crowd.NotFound) {
		return dir, host.Policy{}, nil
	}
	return dir, p, err
}

func (h *hostFlags) folder(a *app) (string, error) {
	if h.dir != "" {
		return filepath.Abs(h.dir)
	}
	return a.stateDir()
}

func newHostRunCommand(a *app) *cobra.Command {
	var h hostFlags
	c := &cobra.Command{
		Use: "run", Short: "the agent, in the foreground", Args: cobra.NoArgs,
		Long: "The agent, in the foreground, until Ctrl-C. SIGHUP does what crowd host upgrade does (systemd: ExecReload=kill -HUP $MAINPID); on a terminal\n" +
			"it is the terminal's end, and the agent's.",
		Example: "  crowd host run\n  crowd host run --policy host-policy.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, policy, err := h.resolve(a)
			if err != nil {
				return err
			}
			return a.runAgent(cmd.Context(), hostConfig{Dir: dir, Policy: policy, Log: a.log()})
		},
	}
	h.add(c, true)
	return c
}

// runAgent runs the agent until Ctrl-C, which is how it is meant to end, or until another program takes over.
func (a *app) runAgent(ctx context.Context, c hostConfig) error {
	cage.Harden() // before the host's key is read
	c.Self = self()
	if c.Args == nil {
		c.Args = os.Args
	}
	for {
		h, err := a.runOnce(ctx, c)
		if h == nil {
			return err
		}
		if ctx.Err() != nil {
			h.Drop()
			return nil
		}
		a.say("the agent hands over to %s", h.Version)
		if c.Failed = h.Exec(c.Args); c.Failed == nil {
			return nil
		}
		a.say("crowd: %v; the old agent goes on", c.Failed)
	}
}

// runOnce is one life of the agent; h: it ended to hand over.
func (a *app) runOnce(ctx context.Context, c hostConfig) (h *host.Handover, err error) {
	r, err := startHost(ctx, c)
	if err != nil {
		return nil, err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go func() { // ends with the agent
		for {
			select {
			case <-hup:
				a.hangUp(ctx, r)
			case <-r.done:
				return
			}
		}
	}()
	a.say("the agent runs; Ctrl-C stops it, what isn't done goes to other machines")
	if a.json {
		if err := a.flow("running", map[string]any{"pid": os.Getpid(), "state_dir": c.Dir, "version": versionText()}); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	err = r.Wait()
	if errors.As(err, &h) {
		return h, nil
	}
	if err == nil {
		a.say("the agent has stopped")
	}
	return nil, err
}

// hangUp is what SIGHUP means: a service manager wants the program that is there now, a terminal has gone.
func (a *app) hangUp(ctx context.Context, r *runningHost) {
	if _, ok := isTerminal(a.in); ok {
		r.stop()
		return
	}
	if err := r.Upgrade(ctx, "", upgradeWithin); err != nil {
		a.say("crowd: no upgrade: %v", err)
	}
}

// self is this program's file, as it was when it started; "" if the system doesn't say.
func self() string {
	path, err := os.Executable()
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/cage"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/host"
	"github.com/crowdcloud/crowd/internal/seal"
)

// joinFlags say as what a machine joins.
type joinFlags struct {
	hostFlags
	name, place, device string
	noRun               bool
}

// newJoinCommand is `crowd join` and `crowd host join`.
func newJoinCommand(a *app) *cobra.Command {
	var j joinFlags
	var noService bool
	c := &cobra.Command{
		Use: "join LINK", Short: "lend this machine: enrol, self-test, run the agent", Args: cobra.ExactArgs(1),
		Long: "Enrol this machine by a join link (crowd host token makes one), measure it and run the agent in the foreground.\n\n" +
			"This version installs no service: the machine is lent while the command runs, and by `crowd host run` later.",
		Example: "  crowd join 'https://cloud.example/j/q7k4m2xdp3ws9fza#…'\n  crowd join 'LINK' --name tower --place DE --no-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.join(cmd.Context(), args[0], j)
		},
	}
	j.add(c, true)
	f := c.Flags()
	f.StringVar(&j.name, "name", "", "what the machine is called (default: as its system calls it)")
	f.StringVar(&j.place, "place", "", "where it is, as you declare it: DE, US-CA")
	f.StringVar(&j.device, "device", "desktop", "desktop, laptop or server")
	f.BoolVar(&j.noRun, "no-run", false, "enrol only")
	f.BoolVar(&noService, "no-service", true, "install no service: the only way in this version")
	return c
}

// join does what the person typed and says only what is so: measured, seen, lent, held back.
func (a *app) join(ctx context.Context, link string, j joinFlags) error {
	begun := time.Now()
	if _, err := seal.ParseJoinLink(link); err != nil {
		return err
	}
	switch j.device {
	case "desktop", "laptop", "server":
	default:
		return crowd.Errorf(crowd.Invalid, "", "--device: wanted desktop, laptop or server, found %q", j.device)
	}
	cage.Harden() // before the host's key is made
	dir, policy, err := j.resolve(a)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return crowd.Errorf(crowd.Internal, "", "make the agent's folder: %w", err)
	}
	if j.name == "" {
		j.name = machineName()
	}
	e, err := newEngine(a.log())
	if err != nil {
		return err
	}
	measured, err := host.Measure(ctx, dir, e, policy)
	layers, took := e.Layers(), time.Since(begun)
	if closeErr := e.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	p, err := host.Join(ctx, link, host.JoinOptions{Dir: dir, Name: j.name, Place: strings.ToUpper(j.place), Platform: host.ThisPlatform(versionText(), j.device), Capacity: measured})
	if err != nil {
		return err
	}
	if err := a.joined(p, measured, layers, took, time.Since(begun)); err != nil {
		return err
	}
	if j.noRun {
		a.say("lend it: crowd host run · undo it all: crowd host leave")
		return nil
	}
	a.say("no service is installed: it is lent while this runs. stop: Ctrl-C · undo it all: crowd host leave")
	return a.runAgent(ctx, hostConfig{Dir: dir, Policy: policy, Capacity: measured, Device: j.device, Log: a.log(), Args: j.runArgs(a)})
}

// runArgs are those of `crowd host run` as what this command goes on: joining again is no way to take over.
func (j *joinFlags) runArgs(a *app) []string {
	args := []string{os.Args[0], "host", "run"}
	for flag, value := range map[string]string{"--state-dir": j.dir, "--policy": j.policy} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	for flag, set := range map[string]bool{"--json": a.json, "--quiet": a.quiet, "--verbose": a.verbose} {
		if set {
			args = append(args, flag)
		}
	}
	return args
}

func (a *app) joined(p *host.Profile, c crowd.Capacity, layers []guest.Layer, measured, all time.Duration) error {
	if a.json {
		return a.flow("joined", map[string]any{"host": p.Host, "broker": p.Broker, "capacity": c, "presence": host.NoPresence, "layers": layers, "seconds": all.Seconds()})
	}
	where := place(p.Host.Place)
	if p.Host.Place.Jurisdiction == "" {
		where = "nowhere said: orders that ask for a place pass it by (--place DE)"
	}
	return a.facts(
		"measured", fmt.Sprintf("%.2f billion fuel a second for each guest, %s", c.Speed, span(measured)),
		"presence", host.NoPresence,
		"lends", fmt.Sprintf("%s at once, %s, %s of disk", plural(c.Slots, "guest"), size(c.MemoryBytes), size(c.DiskBytes)),
		"guests", cageText(layers),
		"ready", fmt.Sprintf("%s %s at %s, %s; %s in all", p.Host.Name, p.Host.ID.Short(), strings.TrimPrefix(strings.TrimPrefix(p.Broker, "https://"), "http://"), where, span(all)),
	)
}

// cageText says which layers keep guests from the machine, and why the others don't hold.
func cageText(layers []guest.Layer) string {
	var lacks []string
	for _, l := range layers {
		if !l.Held {
			lacks = append(lacks, fmt.Sprintf("%s (%s)", l.Name, l.Why))
		}
	}
	text := fmt.Sprintf("see no file, network or program of yours: %d of %d layers of the cage hold", len(layers)-len(lacks), len(layers))
	if len(lacks) > 0 {
		text += "; not " + strings.Join(lacks, ", ")
	}
	return text
}

// machineName is the system's name for itself, as far as it can be a name here.
func machineName() string {
	h, err := os.Hostname()
	if err != nil {
		return "machine"
	}
	h, _, _ = strings.Cut(strings.ToLower(h), ".")
	clean := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, h), "-")
	clean = strings.Trim(clean[:min(len(clean), 40)], "-")
	if clean == "" {
		return "machine"
	}
	return clean
}

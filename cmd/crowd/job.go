package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

func newJobCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "job", Short: "order work in units, look at it, get its results",
		Example: "  crowd job init > job.yaml\n  crowd job run job.yaml\n  crowd job results gwsearch -o DIR",
		Args:    cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRunCommand(a, "run"), newSubmitCommand(a), newInitCommand(a), newLsCommand(a), newShowCommand(a), newLogsCommand(a),
		newResultsCommand(a), newTestCommand(a), newCancelCommand(a), newQuoteCommand(a))
	return cmd
}

func newInitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "a commented job.yaml, on stdout", Args: cobra.NoArgs, Example: "  crowd job init > job.yaml",
		RunE: func(*cobra.Command, []string) error {
			return a.print(map[string]string{"file": client.InitJobFile()}, func() error { return a.printf("%s", client.InitJobFile()) })
		},
	}
}

func newLsCommand(a *app) *cobra.Command {
	var state, label, since string
	var limit int
	var living bool
	cmd := &cobra.Command{
		Use: "ls", Short: "your jobs, newest first", Args: cobra.NoArgs,
		Example: "  crowd ls\n  crowd ls --state running -q\n  crowd ls --label team=gw --since 7d --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			c, _, err := a.client()
			if err != nil {
				return err
			}
			p, err := c.Jobs(cmd.Context(), client.JobsFilter{Page: client.Page{Limit: limit}, State: crowd.JobState(state), Label: label, Since: from, Living: living})
			if err != nil {
				return err
			}
			return a.print(p, func() error {
				var rows [][]string
				for _, j := range p.Items {
					if a.quiet {
						if err := a.printf("%s\n", j.ID); err != nil {
							return err
						}
						continue
					}
					rows = append(rows, []string{j.Name, j.ID.Short(), string(j.State), fmt.Sprintf("%d/%d", j.Progress.UnitsDone, j.Units), fmt.Sprint(j.Progress.UnitsFailed), credits(j.Paid), credits(j.Escrow), clock(j.Created), string(j.Reason)})
				}
				return a.table([]string{"name", "id", "state", ">units", ">failed", ">paid", ">of cr", "since", "reason"}, rows)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", "", "queued, running, waiting, done, failed or cancelled")
	f.StringVar(&label, "label", "", "KEY=VALUE")
	f.StringVar(&since, "since", "", "made since: 2h, 7d, 14:00 or a time")
	f.IntVar(&limit, "limit", 50, "at most so many")
	f.BoolVar(&living, "living", false, "only those that haven't ended")
	f.BoolVar(&a.wide, "wide", false, "all columns, however wide")
	return cmd
}

func newShowCommand(a *app) *cobra.Command {
	var watch, units bool
	cmd := &cobra.Command{
		Use: "show ID", Short: "state, units, hosts, money and reasons of a job; or a host", Args: cobra.ExactArgs(1),
		Example: "  crowd show gwsearch\n  crowd show gwsearch -w\n  crowd job show job_x7kq2m --units\n  crowd show host_m2x8qd",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, _, err := a.client()
			if err != nil {
				return err
			}
			if strings.HasPrefix(args[0], "host_") {
				h, err := c.Host(ctx, args[0])
				if err != nil {
					return err
				}
				return a.print(h, func() error { return a.hostFacts(h) })
			}
			if watch {
				return a.watchJob(ctx, c, args[0])
			}
			d, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			if units {
				return a.showUnits(ctx, c, d)
			}
			return a.print(d, func() error { return a.showJob(d) })
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until it ends: redrawn, on a pipe a line per change")
	cmd.Flags().BoolVar(&units, "units", false, "each unit: state, exit, reason, seconds, bytes")
	cmd.Flags().BoolVar(&a.wide, "wide", false, "all columns, however wide")
	return cmd
}

// showJob is the page of one job.
func (a *app) showJob(d *crowd.JobDetail) error {
	if a.quiet {
		return a.printf("%s\n", d.State)
	}
	g := d.Progress
	state := string(d.State) + " since " + clock(d.Created)
	switch {
	case d.State.Ended():
		state = stateText(d.State) + " " + span(d.Ended.Sub(d.Created))
	case !d.Started.IsZero():
		state = string(d.State) + " for " + span(time.Since(d.Started))
	}
	if d.Reason != "" {
		state += " (" + string(d.Reason) + ")"
	}
	if err := a.printf("%s  %s  %s\n", d.Name, d.ID.Short(), state); err != nil {
		return err
	}
	where := "anywhere"
	if in := d.Spec.Place.In; len(in) > 0 {
		where = strings.Join(in, ", ")
		if d.Spec.Place.Evidence != "" {
			where += ", " + d.Spec.Place.Evidence
		}
	}
	units := fmt.Sprintf("%s done, %s failed of %s; %s, %s", thousands(g.UnitsDone), thousands(g.UnitsFailed), thousands(d.Units), plural(g.Chunks, "chunk"), plural(g.Attempts, "attempt"))
	if g.Differed > 0 {
		units += fmt.Sprintf(", %d differed", g.Differed)
	}
	paid := 0
	for _, h := range d.Hosts {
		if h.Earned > 0 {
			paid++
		}
	}
	results := ""
	if g.UnitsDone > 0 {
		results = "crowd job results " + d.Name
	}
	reasons := reasonList(d.Reasons)
	if reasons != "" {
		reasons += ": crowd why " + d.Name
	}
	err := a.facts("units", units, "place", where, "trust", "open: a host's owner could read the inputs in memory",
		"money", fmt.Sprintf("held %s, paid %s to %s, returned %s cr", credits(d.Escrow), credits(d.Paid), plural(paid, "host"), credits(d.Returned)),
		"reasons", reasons, "results", results)
	if err != nil || len(d.Hosts) == 0 {
		return err
	}
	var rows [][]string
	for _, h := range d.Hosts {
		rows = append(rows, []string{h.Name, h.Host.Short(), place(h.Place), fmt.Sprint(h.Counted), credits(h.Earned), fmt.Sprint(h.Lost), fmt.Sprint(h.Failed), fmt.Sprint(h.Differ)})
	}
	return a.table([]string{"host", "id", "place", ">counted", ">earned cr", ">lost", ">failed", ">differed"}, rows)
}

// reasonList is "owner.in_use 6, host.lost 1", most frequent first.
func reasonList(m map[crowd.Reason]int) string {
	var all []crowd.Reason
	for r := range m {
		all = append(all, r)
	}
	slices.SortFunc(all, func(x, y crowd.Reason) int {
		if m[x] != m[y] {
			return m[y] - m[x]
		}
		return strings.Compare(string(x), string(y))
	})
	var parts []string
	for _, r := range all {
		parts = append(parts, fmt.Sprintf("%s %d", r, m[r]))
	}
	return strings.Join(parts, ", ")
}

// watchJob shows a job until it has ended. What is watched is the result, so it goes to stdout.
func (a *app) watchJob(ctx context.Context, c *client.Client, ref string) error {
	width, tty := isTerminal(a.out)
	screen := &progress{w: a.out, width: width, begun: time.Now()}
	for d, err := range c.WatchJob(ctx, ref) {
		switch {
		case err != nil:
			return err
		case a.json:
			err = a.flow("job", d)
		case tty && !d.State.Ended():
			screen.job(d)
		case tty:
			screen.clear()
			err = a.showJob(d)
		default:
			g := d.Progress
			err = a.printf("%s\t%s\t%d/%d\t%d\t%s\t%s\n", d.Name, d.State, g.UnitsDone, d.Units, g.AtWork, credits(d.Paid), d.Reason)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) showUnits(ctx context.Context, c *client.Client, d *crowd.JobDetail) error {
	var all []crowd.UnitRow
	for u, err := range eachUnit(ctx, c, d) {
		if err != nil {
			return err
		}
		all = append(all, *u)
	}
	return a.print(listOf(all, ""), func() error {
		var rows [][]string
		for _, u := range all {
			r := []string{fmt.Sprint(u.Unit), string(u.State), "", "", "", ""}
			if u.Result != nil {
				r = []string{r[0], r[1], fmt.Sprint(u.Result.Exit), string(u.Result.Reason), fmt.Sprintf("%.1f", u.Seconds), fmt.Sprint(u.Result.Stdout.Size)}
			}
			rows = append(rows, r)
		}
		return a.table([]string{">unit", "state", ">exit", "reason", ">seconds", ">stdout"}, rows)
	})
}

func newCancelCommand(a *app) *cobra.Command {
	var repeat string
	cmd := &cobra.Command{
		Use: "cancel JOB…", Short: "pay what is done, return the rest", Args: cobra.MinimumNArgs(1),
		Example: "  crowd job cancel gwsearch\n  crowd job cancel $(crowd ls --living -q)",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			var done []*crowd.Job
			for i, ref := range args {
				key := repeat
				if key != "" {
					key = fmt.Sprintf("%s/%d", repeat, i)
				}
				j, err := c.CancelJob(idempotent(cmd.Context(), key), ref)
				if err != nil {
					return err
				}
				done = append(done, j)
				if a.json {
					continue
				}
				if j.State == crowd.JobCancelled {
					a.say("%s cancelled: paid %s, returned %s cr", j.Name, credits(j.Paid), credits(j.Returned))
				} else {
					a.say("%s is %s already: nothing to cancel", j.Name, j.State)
				}
			}
			if a.json {
				return a.printJSON(listOf(done, ""))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&repeat, "idempotency-key", "", "for scripts")
	return cmd
}

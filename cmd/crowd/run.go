package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

// newRunCommand is `crowd run` and `crowd job run`.
func newRunCommand(a *app, name string) *cobra.Command {
	var o orderFlags
	var detach bool
	var dir string
	cmd := &cobra.Command{
		Use: name + " FILE|PROG.wasm [-- ARGS]", Short: "order a job, follow it, print what its units print", Args: cobra.MinimumNArgs(1),
		Long: "Order a job, follow it and print what its units print, in the order of the units.\n\n" +
			"Ctrl-C leaves the job running. Exit code 8: the job or some of its units failed.",
		Example: "  crowd run job.yaml | sort -n | tail -1\n  crowd run prime.wasm --units 64 --max 2cr -- --from '{unit}'\n  crowd run job.yaml -d -q",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, s, err := a.client()
			if err != nil {
				return err
			}
			j, err := a.submit(ctx, c, s, &o, args)
			if err != nil {
				return err
			}
			if detach {
				return a.printOrdered(j)
			}
			return a.follow(ctx, c, j, dir)
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&o.repeat, "idempotency-key", "", "for scripts: the same key orders once")
	cmd.Flags().StringVar(&o.quote, "quote", "", "order at the price of this quote: crowd quote FILE")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "order and leave; the id is on stdout")
	cmd.Flags().StringVarP(&dir, "output", "o", "", "write each unit's stdout and files into this folder")
	return cmd
}

func newSubmitCommand(a *app) *cobra.Command {
	var o orderFlags
	cmd := &cobra.Command{
		Use: "submit FILE…", Short: "order several jobs and leave; ids on stdout", Args: cobra.MinimumNArgs(1),
		Example: "  crowd job submit a.yaml b.yaml\n  crowd job submit job.yaml --set units.count=64",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, s, err := a.client()
			if err != nil {
				return err
			}
			var jobs []*crowd.Job
			for i, file := range args {
				one := o
				if one.repeat != "" {
					one.repeat = fmt.Sprintf("%s/%d", o.repeat, i)
				}
				j, err := a.submit(cmd.Context(), c, s, &one, []string{file})
				if err != nil {
					return err
				}
				if jobs = append(jobs, j); !a.json {
					if err := a.printOrdered(j); err != nil {
						return err
					}
				}
			}
			if a.json {
				return a.printJSON(listOf(jobs, ""))
			}
			return nil
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&o.repeat, "idempotency-key", "", "for scripts: the same key orders once")
	return cmd
}

// printOrdered says which job it is: its id on stdout, the rest on stderr.
func (a *app) printOrdered(j *crowd.Job) error {
	if a.json {
		return a.printJSON(j)
	}
	a.say("%s", ordered(j))
	return a.printf("%s\n", j.ID)
}

func ordered(j *crowd.Job) string {
	text := fmt.Sprintf("%s %s: %s", j.Name, j.ID.Short(), plural(j.Units, "unit"))
	if n := j.Spec.Chunk; n > 0 {
		text += " in " + plural((j.Units+n-1)/n, "chunk")
	}
	return text + "; at most " + price(j.Escrow)
}

var errFollowed = errors.New("followed to the end")

// follow prints what the units print, in order, until the job has ended.
func (a *app) follow(ctx context.Context, c *client.Client, j *crowd.Job, dir string) error {
	if a.json {
		if err := a.flow("job", j); err != nil {
			return err
		}
	} else {
		a.say("%s", ordered(j))
	}
	p := a.progress()
	out, err := a.newResultWriter(c, j.ID.String(), dir)
	if err != nil {
		return err
	}
	defer out.close()
	var last *crowd.JobDetail
	err = func() error {
		for d, err := range c.WatchJob(ctx, j.ID.String()) {
			if err != nil {
				return err
			}
			last = d
			p.clear()
			if err := out.more(ctx, d); err != nil {
				return err
			}
			if d.State.Ended() {
				return errFollowed
			}
			if a.json {
				if err := a.flow("progress", map[string]any{"id": d.ID, "state": d.State, "reason": d.Reason, "paid_ucr": d.Paid, "progress": d.Progress}); err != nil {
					return err
				}
			}
			p.job(d)
		}
		return errFollowed
	}()
	p.clear()
	switch {
	case errors.Is(err, errFollowed):
		return a.ended(last)
	case errors.Is(ctx.Err(), context.Canceled) || a.timedOut():
		a.say("%s goes on without you. look: crowd show %s · stop it: crowd job cancel %s", j.Name, j.Name, j.Name)
	}
	return err
}

// ended prints the summary; a job that wasn't done as a whole is an error of kind Failed.
func (a *app) ended(d *crowd.JobDetail) error {
	if d == nil {
		return crowd.Errorf(crowd.Internal, "", "the job is gone")
	}
	if a.json {
		if err := a.flow("ended", d); err != nil {
			return err
		}
	} else {
		a.say("%s", summary(d))
	}
	return jobError(d)
}

func summary(d *crowd.JobDetail) string {
	took := d.Ended.Sub(d.Created)
	return fmt.Sprintf("%s %s %s: %s, %s, paid %s of %s, %s returned", d.Name, stateText(d.State), span(took),
		plural(d.Progress.UnitsDone, "unit"), plural(d.Progress.Attempts, "attempt"), credits(d.Paid), price(d.Escrow), strings.TrimSuffix(credits(d.Returned), "")+" cr")
}

func stateText(s crowd.JobState) string {
	switch s {
	case crowd.JobDone:
		return "done in"
	case crowd.JobFailed:
		return "failed after"
	case crowd.JobCancelled:
		return "cancelled after"
	}
	return string(s) + " for"
}

func jobError(d *crowd.JobDetail) error {
	switch {
	case d.State == crowd.JobFailed || d.State == crowd.JobCancelled:
		return crowd.Errorf(crowd.Failed, d.Reason, "%s was not done: it %s", d.Name, map[crowd.JobState]string{crowd.JobFailed: "failed", crowd.JobCancelled: "was cancelled"}[d.State]).
			WithHint("crowd why %s", d.Name)
	case d.Progress.UnitsFailed > 0:
		return crowd.Errorf(crowd.Failed, "", "%s of %s failed", plural(d.Progress.UnitsFailed, "unit"), d.Name).WithHint("crowd job logs %s --failed", d.Name)
	}
	return nil
}

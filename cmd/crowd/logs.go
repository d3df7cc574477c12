package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

func newLogsCommand(a *app) *cobra.Command {
	var follow, failed bool
	var unit int64
	var host string
	cmd := &cobra.Command{
		Use: "logs JOB", Short: "what units said on stderr", Args: cobra.ExactArgs(1),
		Example: "  crowd logs gwsearch --failed\n  crowd job logs gwsearch --unit 17\n  crowd logs gwsearch -f",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, _, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			l := logPrinter{a: a, c: c, job: d.ID.String(), failed: failed, unit: unit}
			if host != "" {
				if l.only, err = chunksOf(ctx, c, d, host); err != nil {
					return err
				}
			}
			if !follow {
				return l.more(ctx, d)
			}
			for d, err := range c.WatchJob(ctx, d.ID.String()) {
				if err != nil {
					return err
				}
				if err := l.more(ctx, d); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on until the job ends")
	f.BoolVar(&failed, "failed", false, "of units that failed only")
	f.Int64Var(&unit, "unit", -1, "of this unit only")
	f.StringVar(&host, "host", "", "of units that this host's answer counts for")
	return cmd
}

// span of units that one host answered for.
type unitSpan struct{ first, end uint64 }

// chunksOf are the chunks for which a host's answer counted.
func chunksOf(ctx context.Context, c *client.Client, d *crowd.JobDetail, host string) ([]unitSpan, error) {
	ends := map[uint64]uint64{}
	for after := ""; ; {
		p, err := c.Chunks(ctx, d.ID.String(), client.Page{Limit: 1000, After: after})
		if err != nil {
			return nil, err
		}
		for _, ch := range p.Items {
			ends[ch.First] = ch.First + ch.Count
		}
		if p.Next == nil {
			break
		}
		after = *p.Next
	}
	name := map[crowd.HostID]string{}
	for _, h := range d.Hosts {
		name[h.Host] = h.Name
	}
	only := []unitSpan{}
	for after := ""; ; {
		p, err := c.Attempts(ctx, d.ID.String(), client.Page{Limit: 1000, After: after})
		if err != nil {
			return nil, err
		}
		for _, at := range p.Items {
			if at.State == crowd.AttemptReported && (name[at.Host] == host || at.Host.Short() == host || at.Host.String() == host) {
				only = append(only, unitSpan{at.First, ends[at.First]})
			}
		}
		if p.Next == nil {
			return only, nil
		}
		after = *p.Next
	}
}

// logPrinter prints stderr of units in order, as far as they are decided.
type logPrinter struct {
	a      *app
	c      *client.Client
	job    string
	failed bool
	unit   int64
	only   []unitSpan // nil: all
	next   uint64
}

func (l *logPrinter) wants(u uint64) bool {
	if l.unit >= 0 && u != uint64(l.unit) {
		return false
	}
	return l.only == nil || slices.ContainsFunc(l.only, func(s unitSpan) bool { return u >= s.first && u < s.end })
}

func (l *logPrinter) more(ctx context.Context, d *crowd.JobDetail) error {
	if l.unit >= 0 {
		if l.next > 0 {
			return nil
		}
		l.next = uint64(l.unit)
	}
	for l.next < d.Units && (l.unit < 0 || l.next == uint64(l.unit)) {
		limit := 500
		if l.unit >= 0 {
			limit = 1
		}
		units, err := l.c.Results(ctx, l.job, l.next, limit)
		if err != nil {
			return err
		}
		decided := uint64(0)
		for _, u := range units.Items {
			if u.State == crowd.ChunkOpen && !d.State.Ended() {
				break
			}
			decided++
		}
		if decided == 0 {
			return nil
		}
		for end := l.next + decided; l.next < end; {
			p, err := l.c.Logs(ctx, l.job, l.next, int(end-l.next), l.failed)
			if err != nil {
				return err
			}
			for _, r := range p.Items {
				if !l.wants(r.Unit) || r.Unit >= end {
					continue
				}
				if err := l.print(&r); err != nil {
					return err
				}
			}
			l.next = end
			if p.Next != nil {
				var at uint64
				if _, err := fmt.Sscan(*p.Next, &at); err == nil && at > 0 && at < end {
					l.next = at
				}
			}
		}
	}
	return nil
}

// print writes a unit's stderr, each line with the unit's number in front if it isn't the only one.
func (l *logPrinter) print(r *crowd.LogRow) error {
	if l.a.json {
		return l.a.flow("log", map[string]any{"unit": r.Unit, "exit": r.Exit, "reason": r.Reason, "stderr": string(r.Stderr)})
	}
	if l.unit >= 0 {
		_, err := l.a.out.Write([]byte(plainText(string(r.Stderr))))
		return stdoutError(err)
	}
	text := strings.TrimRight(plainText(string(r.Stderr)), "\n")
	if text != "" {
		for line := range strings.SplitSeq(text, "\n") {
			if err := l.a.printf("%d\t%s\n", r.Unit, line); err != nil {
				return err
			}
		}
	}
	if r.Exit != 0 || r.Reason != "" {
		end := fmt.Sprintf("exit %d", r.Exit)
		if r.Reason != "" {
			end = string(r.Reason)
		}
		return l.a.printf("%d\t[%s]\n", r.Unit, end)
	}
	return nil
}

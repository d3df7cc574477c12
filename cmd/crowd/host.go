package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/host"
)

func newHostCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "host", Short: "the machines that you lend: this one's agent, and all of them from anywhere",
		Example: "  crowd host status\n  crowd host pause 2h\n  crowd host ls",
		Args:    cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newJoinCommand(a), newHostRunCommand(a), newHostStatusCommand(a), newHostPauseCommand(a), newHostResumeCommand(a), newHostUpgradeCommand(a), newHostLeaveCommand(a),
		newHostLogCommand(a), newHostDoctorCommand(a), newHostLsCommand(a), newHostShowCommand(a), newHostRmCommand(a), newHostTokenCommand(a))
	return c
}

func newHostStatusCommand(a *app) *cobra.Command {
	var h hostFlags
	var watch bool
	c := &cobra.Command{
		Use: "status", Short: "how this machine's agent is now", Args: cobra.NoArgs,
		Example: "  crowd host status\n  crowd host status -w",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := h.folder(a)
			if err != nil {
				return err
			}
			if !watch {
				s, err := host.Ask(cmd.Context(), dir, host.Request{Do: "status"})
				if err != nil {
					return err
				}
				return a.print(s, func() error { return a.hostStatus(s) })
			}
			return a.watchStatus(cmd.Context(), dir)
		},
	}
	h.add(c, false)
	c.Flags().BoolVarP(&watch, "watch", "w", false, "again whenever something changed")
	return c
}

const statusEvery = time.Second

// watchStatus prints the status again when what it says changed.
func (a *app) watchStatus(ctx context.Context, dir string) error {
	last := ""
	for {
		s, err := host.Ask(ctx, dir, host.Request{Do: "status"})
		if err != nil {
			return err
		}
		if text := statusText(s); text != last {
			last = text
			if a.json {
				err = a.flow("status", s)
			} else {
				err = a.hostStatus(s)
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(statusEvery):
		}
	}
}

func statusText(s host.Status) string {
	up := host.Upgrading{}
	if s.Upgrading != nil {
		up = *s.Upgrading
	}
	return fmt.Sprint(s.Version, up.Version, up.Left, s.Connected, s.State, s.Why, s.SlotsUsed, s.Freezes, s.Done, s.Unsaid, len(s.Guests))
}

func (a *app) hostStatus(s host.Status) error {
	now := "lent"
	switch s.State {
	case crowd.Paused:
		now = "frozen " + ago(s.StateFrom) + ": " + crowd.Reasons[s.Why].Means
		if !s.Until.IsZero() {
			now += ", until " + clock(s.Until)
		}
	case crowd.Leaving:
		now = "leaving"
	}
	if s.Upgrading != nil {
		now += "; " + upgrading(s)
	}
	if s.Failed != "" {
		now += "; " + oneLine(s.Failed)
	}
	link := "connected to " + s.Broker
	if !s.Connected {
		link = strings.TrimSuffix("not connected to "+s.Broker+": "+oneLine(s.Trouble), ": ")
	}
	waits := ""
	if s.Unsaid > 0 {
		waits = plural(s.Unsaid, "result") + " wait for the broker"
	}
	err := a.facts(
		s.Name, fmt.Sprintf("%s  %s, runs since %s", s.ID.Short(), place(s.Place), span(time.Since(s.Since).Round(time.Second))),
		"version", s.Version,
		"now", now,
		"broker", link,
		"lends", fmt.Sprintf("%d of %d guests, %s of %s, cache %s of %s", s.SlotsUsed, s.Slots, size(s.MemoryUsed), size(s.Memory), size(s.CacheUsed), size(s.Cache)),
		"felt", fmt.Sprintf("%s today, slowest %d ms", plural(s.Freezes, "freeze"), s.SlowestMs),
		"done", plural(s.Done, "attempt")+" since it runs",
		"waits", waits,
		"presence", s.Presence,
		"guests", cageText(s.Layers),
	)
	for _, g := range s.Guests {
		if err == nil {
			err = a.printf("  %s %s  units %d to %d, %d done, %s %s\n", g.Job.Short(), oneLine(g.Name), g.First, g.First+max(g.Units, 1)-1, g.Done, g.State, ago(g.Since))
		}
	}
	return err
}

func newHostPauseCommand(a *app) *cobra.Command {
	var h hostFlags
	c := &cobra.Command{
		Use: "pause [2h]", Short: "freeze all guests at once, for a while or until resume", Args: cobra.MaximumNArgs(1),
		Example: "  crowd host pause\n  crowd host pause 2h",
		RunE: func(cmd *cobra.Command, args []string) error {
			var d time.Duration
			if len(args) > 0 {
				var err error
				if d, err = crowd.ParseSpan(args[0]); err != nil || d <= 0 {
					return crowd.Errorf(crowd.Invalid, "", "wanted a time like 90s, 15m or 2h, found %q", args[0]).WithHint("crowd host pause 2h")
				}
			}
			begun := time.Now()
			s, err := a.askHost(cmd.Context(), &h, host.Request{Do: "pause", For: d})
			if err != nil {
				return err
			}
			ms := float64(time.Since(begun).Microseconds()) / 1000 // the agent answers when they are frozen
			return a.print(struct {
				FrozeMs float64 `json:"froze_ms"`
				host.Status
			}{ms, s}, func() error {
				text := fmt.Sprintf("frozen in %.0f ms", ms)
				if !s.Until.IsZero() {
					text += ", until " + clock(s.Until)
				}
				a.say("%s", text)
				return nil
			})
		},
	}
	h.add(c, false)
	return c
}

func newHostResumeCommand(a *app) *cobra.Command {
	var h hostFlags
	c := &cobra.Command{
		Use: "resume", Short: "lend again", Args: cobra.NoArgs, Example: "  crowd host resume",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.askHost(cmd.Context(), &h, host.Request{Do: "resume"})
			if err != nil {
				return err
			}
			return a.print(s, func() error {
				if s.State == crowd.Paused {
					a.say("no longer paused, but %s", crowd.Reasons[s.Why].Means)
				} else {
					a.say("lent again")
				}
				return nil
			})
		},
	}
	h.add(c, false)
	return c
}

func (a *app) askHost(ctx context.Context, h *hostFlags, q host.Request) (host.Status, error) {
	dir, err := h.folder(a)
	if err != nil {
		return host.Status{}, err
	}
	return host.Ask(ctx, dir, q)
}

func newHostLeaveCommand(a *app) *cobra.Command {
	var h hostFlags
	var purge bool
	c := &cobra.Command{
		Use: "leave", Short: "take this machine out of the crowd and remove what is ours", Args: cobra.NoArgs,
		Long:    "What runs goes to other machines; key, profile, cache and results on their way are removed, the log stays unless --purge.",
		Example: "  crowd host leave\n  crowd host leave --purge -y",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := h.folder(a)
			if err != nil {
				return err
			}
			return a.leave(cmd.Context(), dir, purge)
		},
	}
	h.add(c, false)
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "don't ask")
	c.Flags().BoolVar(&purge, "purge", false, "remove the log too")
	return c
}

const leaveWait = 20 * time.Second

// leave has the running agent say goodbye, or does it for one that doesn't run; then it removes what is ours.
func (a *app) leave(ctx context.Context, dir string, purge bool) error {
	p, err := host.LoadProfile(dir)
	if err != nil {
		return err
	}
	s, err := host.Ask(ctx, dir, host.Request{Do: "status"})
	runs := err == nil
	what := "this machine leaves"
	if n := len(s.Guests); n > 0 {
		what = plural(n, "guest") + " go elsewhere first; then this machine leaves"
	}
	if err := a.confirm("%s %s.", what, p.Broker); err != nil {
		return err
	}
	told := false
	if runs {
		if _, err := host.Ask(ctx, dir, host.Request{Do: "leave"}); err != nil {
			return err
		}
		told = a.gone(ctx, dir)
	} else if r, err := startHost(ctx, hostConfig{Dir: dir, Capacity: p.Host.Capacity, Log: a.log()}); err == nil {
		late := time.AfterFunc(leaveWait, r.stop)
		err = askSoon(ctx, dir, host.Request{Do: "leave"})
		if err != nil {
			r.stop()
		}
		waited := r.Wait()
		told = late.Stop() && errors.Join(err, waited) == nil
	}
	if err := host.Forget(dir, purge); err != nil {
		return crowd.Errorf(crowd.Internal, "", "remove what is ours: %w", err).WithHint("remove %s", dir)
	}
	if !told {
		a.say("the broker could not be told: it will find out by itself, or remove %s from anywhere: crowd host rm", p.Host.Name)
	}
	left := "nothing"
	if !purge {
		left = "the log"
	}
	return a.print(map[string]any{"left": p.Broker, "host": p.Host.ID, "told": told, "purged": purge}, func() error {
		return a.facts("removed", "key, profile, cache, results on their way", "left", left)
	})
}

// askSoon asks an agent that is just starting.
func askSoon(ctx context.Context, dir string, q host.Request) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		_, err := host.Ask(ctx, dir, q)
		if !crowd.KindIs(err, crowd.Unavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// gone waits until the agent that runs in dir has ended.
func (a *app) gone(ctx context.Context, dir string) bool {
	ctx, cancel := context.WithTimeout(ctx, leaveWait)
	defer cancel()
	for {
		if _, err := host.Ask(ctx, dir, host.Request{Do: "status"}); err != nil {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func newHostLogCommand(a *app) *cobra.Command {
	var h hostFlags
	var since string
	var follow bool
	c := &cobra.Command{
		Use: "log", Short: "what happened on this machine, and why", Args: cobra.NoArgs,
		Example: "  crowd host log --since 14:00\n  crowd host log -f",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := h.folder(a)
			if err != nil {
				return err
			}
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			var all []host.Entry
			err = host.ReadLog(cmd.Context(), dir, from, follow, func(e host.Entry) error {
				switch {
				case a.json && follow:
					return a.flow("entry", e)
				case a.json:
					all = append(all, e)
					return nil
				}
				return a.printf("%s\n", logLine(e))
			})
			if err != nil || !a.json || follow {
				return err
			}
			return a.printJSON(listOf(all, ""))
		},
	}
	h.add(c, false)
	c.Flags().StringVar(&since, "since", "", "2h, 7d, 14:00 or a time")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as it happens")
	return c
}

// logLine is "14:02:11  host.frozen      2 guests in 38 ms      owner.paused".
func logLine(e host.Entry) string {
	var parts []string
	if !e.Job.IsZero() {
		text := strings.TrimSpace(e.Job.Short() + " " + e.Name)
		if e.First != nil {
			text += fmt.Sprintf(" chunk %d attempt %d", *e.First, e.N)
		}
		parts = append(parts, text)
	}
	if !e.Account.IsZero() {
		parts = append(parts, "for "+e.Account.Short())
	}
	if e.Guests > 0 {
		parts = append(parts, plural(e.Guests, "guest"))
	}
	if e.Ms > 0 {
		parts = append(parts, fmt.Sprintf("in %.0f ms", e.Ms))
	}
	if e.Seconds > 0 {
		parts = append(parts, fmt.Sprintf("%.1f s", e.Seconds))
	}
	if e.Bytes > 0 {
		parts = append(parts, size(e.Bytes))
	}
	if e.Answer != "" {
		parts = append(parts, string(e.Answer))
	}
	if e.Text != "" {
		parts = append(parts, e.Text)
	}
	return oneLine(strings.TrimRight(fmt.Sprintf("%s  %-16s  %-52s  %s", clock(e.At), e.What, strings.Join(parts, ", "), e.Reason), " "))
}

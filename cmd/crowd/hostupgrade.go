package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/host"
)

// upgradeWithin is how long running work may take before it goes back, unless --within says otherwise.
const upgradeWithin = time.Hour

func newHostUpgradeCommand(a *app) *cobra.Command {
	var h hostFlags
	var to string
	within := upgradeWithin
	c := &cobra.Command{
		Use: "upgrade", Short: "let a newer program take over from the running agent; no work is lost", Args: cobra.NoArgs,
		Long: "The running agent takes nothing new, finishes what runs (what isn't done in time goes elsewhere), and becomes the new program: the same process\n" +
			"and, to the broker, the same connection again. Without --to it becomes what is at its own path by now, as when a package was updated. With --to\n" +
			"FILE takes the place of that program, which stays beside it as crowd.previous. Nothing happens if FILE is no crowd for this machine.",
		Example: "  crowd host upgrade\n  crowd host upgrade --to ./crowd --within 10m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := host.Request{Do: "upgrade", For: within}
			if cmd.Flags().Changed("to") && to == "" {
				return crowd.Errorf(crowd.Invalid, "", "--to names no file").WithHint("leave it out to take what is at the agent's own path")
			}
			if to != "" {
				abs, err := filepath.Abs(to)
				if err != nil {
					return crowd.Errorf(crowd.Invalid, "", "--to: %w", err)
				}
				q.To = abs
			}
			dir, err := h.folder(a)
			if err != nil {
				return err
			}
			return a.upgrade(cmd.Context(), dir, q)
		},
	}
	h.add(c, false)
	c.Flags().StringVar(&to, "to", "", "the new program (default: what is at the old one's path)")
	c.Flags().Var(spanFlag{&within}, "within", "what isn't done by then goes elsewhere")
	return c
}

const takeOverWait = time.Minute

// upgrade asks for it, and waits for the new program if there is nothing to finish first.
func (a *app) upgrade(ctx context.Context, dir string, q host.Request) error {
	old, err := host.Ask(ctx, dir, host.Request{Do: "status"})
	if err != nil {
		return err
	}
	s, err := host.Ask(ctx, dir, q)
	if err != nil {
		return err
	}
	if up := s.Upgrading; up != nil {
		if up.Warning != "" {
			a.say("warning: %s", up.Warning)
		}
		if up.Left > 0 {
			return a.print(s, func() error {
				a.say("%s; what isn't done by %s goes elsewhere. look: crowd host status", upgrading(s), clock(up.Until))
				return nil
			})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, takeOverWait)
	defer cancel()
	for {
		s, err := host.Ask(ctx, dir, host.Request{Do: "status"})
		switch {
		case err == nil && !s.Since.Equal(old.Since) && s.Failed != "":
			return crowd.Errorf(crowd.Failed, "", "%s", s.Failed).WithHint("the old agent goes on")
		case err == nil && !s.Since.Equal(old.Since):
			return a.print(s, func() error {
				return a.facts("upgraded", fmt.Sprintf("%s: %s, before %s", s.Name, s.Version, old.Version))
			})
		case err != nil && !crowd.KindIs(err, crowd.Unavailable):
			return err
		}
		select {
		case <-ctx.Done():
			return crowd.Errorf(crowd.Unavailable, "", "the new agent doesn't answer").WithHint("crowd host log · crowd host run")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// upgrading is "upgrading to 0.3: 2 chunks to finish".
func upgrading(s host.Status) string {
	text := "upgrading"
	if s.Upgrading.Version != s.Version {
		text += " to " + s.Upgrading.Version
	}
	if n := s.Upgrading.Left; n > 0 {
		text += ": " + plural(n, "chunk") + " to finish"
	}
	return text
}

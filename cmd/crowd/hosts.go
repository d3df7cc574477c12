package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
)

// Commands about one's machines from anywhere, by the broker.

func newHostLsCommand(a *app) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "ls", Short: "your machines", Args: cobra.NoArgs, Example: "  crowd host ls\n  crowd host ls --all",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			l, err := c.Hosts(cmd.Context(), all)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(l)
			}
			var rows [][]string
			for _, h := range l.Items {
				if a.quiet {
					rows = append(rows, []string{h.ID.String()})
					continue
				}
				rows = append(rows, []string{h.Name, h.ID.Short(), hostState(h), place(h.Place), fmt.Sprintf("%d of %d", len(h.Attempts), h.Capacity.Slots),
					thousands(h.Record.Counted), fmt.Sprint(h.Record.Differed), credits(h.Record.Earned), h.Owner})
			}
			return a.table([]string{"host", "id", "state", "place", ">at work", ">counted", ">differed", ">earned", "owner"}, rows)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "everybody's (operators)")
	c.Flags().BoolVar(&a.wide, "wide", false, "all columns")
	return c
}

func hostState(h crowd.HostRow) string {
	switch {
	case h.State != crowd.HostActive:
		return strings.TrimSpace(string(h.State) + " " + string(h.Reason))
	case !h.Online:
		return "offline"
	case h.Ready != crowd.Ready:
		return strings.TrimSpace(string(h.Ready) + " " + string(h.Why))
	}
	return "ready"
}

func newHostShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show HOST", Short: "one of your machines", Args: cobra.ExactArgs(1), Example: "  crowd host show tower",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			h, err := c.Host(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(h, func() error { return a.hostFacts(h) })
		},
	}
}

func (a *app) hostFacts(h *crowd.HostRow) error {
	why := ""
	if h.State != crowd.HostActive || h.Reason != "" {
		why = "crowd why " + h.ID.Short()
	}
	bound := ""
	if h.Unbound {
		bound = "its proof isn't bound to the TLS channel (a proxy, or plain HTTP on one machine)"
	}
	return a.facts(
		h.Name, fmt.Sprintf("%s  %s, of %s since %s", h.ID.Short(), hostState(*h), h.Owner, clock(h.Created)),
		"why", why,
		"place", place(h.Place),
		"system", oneLine(fmt.Sprintf("%s/%s, %s, %s, agent %s", h.Platform.OS, h.Platform.Arch, h.Platform.Kernel, h.Platform.Device, h.Platform.Agent)),
		"lends", fmt.Sprintf("%s at once, %s, %s of disk; it says %.2f billion fuel a second each", plural(h.Capacity.Slots, "guest"), size(h.Capacity.MemoryBytes), size(h.Capacity.DiskBytes), h.Capacity.Speed),
		"record", fmt.Sprintf("%s counted, %d differed, %d failed, %d lost", thousands(h.Record.Counted), h.Record.Differed, h.Record.Failed, h.Record.Lost),
		"earned", credits(h.Record.Earned)+" cr",
		"at work", fmt.Sprintf("%s, limit %d", plural(len(h.Attempts), "attempt"), h.Capacity.Slots),
		"link", bound,
	)
}

func newHostRmCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "rm HOST", Short: "take a machine out of the crowd that can't leave by itself", Args: cobra.ExactArgs(1), Example: "  crowd host rm old-laptop -y",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			h, err := c.Host(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.confirm("%s (%s) leaves the crowd for good.", h.Name, h.ID.Short()); err != nil {
				return err
			}
			if err := c.RemoveHost(cmd.Context(), h.ID.String()); err != nil {
				return err
			}
			return a.print(map[string]any{"removed": h.ID}, func() error { a.say("%s has left", h.Name); return nil })
		},
	}
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "don't ask")
	return c
}

func newHostTokenCommand(a *app) *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use: "token", Short: "a link by which one machine joins your account, once, within an hour", Args: cobra.NoArgs,
		Example: "  crowd host token\n  crowd host token --ttl 10m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			t, err := c.CreateToken(cmd.Context(), ttl)
			if err != nil {
				return err
			}
			return a.print(t, func() error {
				a.say("on the machine to lend, until %s: crowd join 'LINK'", clock(t.Expires))
				return a.printf("%s\n", t.Link)
			})
		},
	}
	c.Flags().Var(spanFlag{&ttl}, "ttl", "until when it works, at most 1h")
	return c
}

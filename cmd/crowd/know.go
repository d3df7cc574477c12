package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

func newWhyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "why ID|CODE", Short: "why a thing is as it is, and the way out", Args: cobra.ExactArgs(1),
		Example: "  crowd why gwsearch\n  crowd why gwsearch/31\n  crowd why host_z9h4rw\n  crowd why customer.no_credit",
		RunE: func(cmd *cobra.Command, args []string) error {
			if r, ok := crowd.Reasons[crowd.Reason(args[0])]; ok { // needs no broker
				w := &crowd.Why{Subject: args[0], Reason: crowd.Reason(args[0]), Text: r.Means, WayOut: r.WayOut}
				return a.print(w, func() error {
					if err := a.printf("%s: %s\n", args[0], r.Means); err != nil {
						return err
					}
					return a.facts("way out", r.WayOut)
				})
			}
			if strings.Count(args[0], ".") == 1 && slices.Contains([]string{"owner", "host", "customer", "guest", "network", "broker", "policy"}, crowd.Reason(args[0]).Party()) {
				return crowd.Errorf(crowd.NotFound, "", "there is no reason %s", args[0])
			}
			c, _, err := a.client()
			if err != nil {
				return err
			}
			w, err := c.Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(w, func() error { return a.showWhy(w, args[0]) })
		},
	}
}

func (a *app) showWhy(w *crowd.Why, name string) error {
	first := name
	if w.State != "" {
		first += " " + w.State
	}
	if !w.Since.IsZero() {
		first += " for " + span(time.Since(w.Since).Round(time.Second))
	}
	first += ": " + oneLine(w.Text)
	if w.Reason != "" {
		first += "  " + string(w.Reason)
	}
	if err := a.printf("%s\n", first); err != nil {
		return err
	}
	if err := a.table(excludeHeads, excludeRows(w.Excluded)); err != nil {
		return err
	}
	if err := a.facts("way out", w.WayOut); err != nil {
		return err
	}
	return a.table([]string{"when", "event", "what", "code"}, eventRows(w.Events))
}

func eventRows(all []crowd.Event) (rows [][]string) {
	for _, e := range all {
		rows = append(rows, []string{clock(e.At), e.What, oneLine(e.Text), string(e.Reason)})
	}
	return rows
}

// versionInfo is what `version --json` says.
type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Link    int    `json:"link_protocol"`
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "which crowd this is", Args: cobra.NoArgs, Example: "  crowd version\n  crowd version --json",
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH, crowd.ProtocolVersion}
			return a.print(v, func() error {
				if a.quiet {
					return a.printf("%s\n", v.Version)
				}
				return a.printf("crowd %s, %s, %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
			})
		},
	}
}

func newCompletionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "a script that completes commands in your shell", Args: cobra.ExactArgs(1),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"}, Example: "  source <(crowd completion bash)",
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			}
			return crowd.Errorf(crowd.Invalid, "", "no completion for %q", args[0]).WithHint("bash, zsh, fish or powershell")
		},
	}
}

// check is one line of a doctor.
type check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

func newDoctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "what is set up, where each setting came from, what is wrong", Args: cobra.NoArgs, Example: "  crowd doctor\n  crowd doctor --json",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.printChecks(a.doctor(cmd.Context())) },
	}
}

func (a *app) doctor(ctx context.Context) []check {
	cs := []check{{Name: "crowd", OK: true, Text: versionText() + ", " + runtime.GOOS + "/" + runtime.GOARCH}}
	bad := func(name string, err error) []check {
		e := crowd.AsError(err)
		return append(cs, check{Name: name, Text: e.Error(), Hint: e.Hint})
	}
	c, s, err := a.client()
	if err != nil {
		return bad("settings", err)
	}
	defer c.Close()
	for _, x := range []struct {
		name string
		set  client.Setting
	}{{"context", s.Context}, {"broker", s.Broker}, {"pin", s.Pin}, {"account", s.Account}, {"max_cost", s.MaxCost}} {
		if x.set.Value != "" {
			cs = append(cs, check{Name: x.name, OK: true, Text: x.set.Value + ", from " + x.set.From})
		}
	}
	if s.Key.Value != "" {
		hint := s.Key.Value[:min(3, len(s.Key.Value))] + "…" + s.Key.Value[max(0, len(s.Key.Value)-4):]
		cs = append(cs, check{Name: "key", OK: true, Text: hint + ", from " + s.Key.From})
	}
	begun := time.Now()
	me, err := c.Me(ctx)
	if err != nil {
		return bad("answer", err)
	}
	cs = append(cs, check{Name: "answer", OK: true, Text: fmt.Sprintf("you are %s%s, in %d ms", me.Name, freeText(me), time.Since(begun).Milliseconds())})
	if dir, err := a.stateDir(); err == nil {
		if _, err := os.Stat(dir); err == nil {
			cs = append(cs, check{Name: "agent", OK: true, Text: "this machine lends: crowd host doctor"})
		} else if errors.Is(err, os.ErrNotExist) {
			cs = append(cs, check{Name: "agent", OK: true, Text: "this machine lends nothing: crowd join LINK"})
		}
	}
	return cs
}

// printChecks prints a doctor's lines; a fault is an error of kind Failed.
func (a *app) printChecks(cs []check) error {
	faults := 0
	for _, c := range cs {
		if !c.OK {
			faults++
		}
	}
	err := a.print(listOf(cs, ""), func() error {
		for _, c := range cs {
			mark := "ok "
			if !c.OK {
				mark = "BAD"
			}
			if a.quiet && c.OK {
				continue
			}
			if err := a.printf("%s  %-14s  %s\n", mark, c.Name, oneLine(c.Text)); err != nil {
				return err
			}
			if c.Hint != "" && !c.OK {
				if err := a.printf("     %-14s  hint: %s\n", "", oneLine(c.Hint)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil && faults > 0 {
		err = crowd.Errorf(crowd.Failed, "", "%s", plural(faults, "fault"))
	}
	return err
}

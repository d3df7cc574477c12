package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
)

func newQuoteCommand(a *app) *cobra.Command {
	var o orderFlags
	var why bool
	cmd := &cobra.Command{
		Use: "quote FILE|PROG.wasm [-- ARGS]", Short: "price, time and hosts that fit, without ordering", Args: cobra.MinimumNArgs(1),
		Example: "  crowd quote job.yaml\n  crowd quote job.yaml --why",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, s, err := a.client()
			if err != nil {
				return err
			}
			order, err := o.resolve(ctx, args)
			if err != nil {
				return err
			}
			if order.Spec.Price.Max == 0 && s.MaxCost.Value != "" {
				if err := capOrder(order, s); err != nil {
					return err
				}
			}
			if err := a.upload(ctx, c, order); err != nil {
				return err
			}
			q, err := c.Quote(idempotent(ctx, o.repeat), &order.Spec)
			if err != nil {
				return err
			}
			if err := a.print(q, func() error { return a.showQuote(q, why, args[0]) }); err != nil {
				return err
			}
			if q.Fits == 0 {
				return crowd.Errorf(crowd.Failed, "", "none of %s fits now", plural(q.Hosts, "host")).WithHint("crowd quote %s --why", args[0])
			}
			return nil
		},
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&why, "why", false, "list what shuts the others out")
	return cmd
}

func (a *app) showQuote(q *crowd.Quote, why bool, file string) error {
	if a.quiet {
		return a.printf("%s\n", q.ID)
	}
	var parts []string
	for _, x := range q.Excluded {
		parts = append(parts, fmt.Sprintf("%d %s", x.Hosts, x.Reason))
	}
	fits := fmt.Sprintf("%d of %s now", q.Fits, plural(q.Hosts, "host"))
	if len(parts) > 0 {
		fits += "; not: " + strings.Join(parts, ", ")
		if !why {
			fits += " (--why)"
		}
	}
	cost := "not known yet: nobody has run this program; at most " + price(q.High)
	if q.Low > 0 || q.Seconds > 0 {
		cost = fmt.Sprintf("%s to %s, likely %s", credits(q.Low), price(q.High), credits(q.Likely))
	}
	took := ""
	if q.Seconds > 0 {
		took = "about " + span(time.Duration(q.Seconds*float64(time.Second)))
	}
	err := a.facts("fits", fits, "price", cost, "time", took, "quote", fmt.Sprintf("%s holds the price until %s: crowd run %s --quote %s", q.ID.Short(), q.Until.Local().Format("15:04"), file, q.ID))
	if err != nil || !why || len(q.Excluded) == 0 {
		return err
	}
	return a.table(excludeHeads, excludeRows(q.Excluded))
}

var excludeHeads = []string{">hosts", "who", "what", "asked for", "code"}

func excludeRows(all []crowd.Exclude) (rows [][]string) {
	for _, x := range all {
		rows = append(rows, []string{fmt.Sprint(x.Hosts), who(x.Reason), x.What, x.Asked, string(x.Reason)})
	}
	return rows
}

// who is a reason's party as the customer reads it.
func who(r crowd.Reason) string {
	if p := r.Party(); p != "customer" {
		return p
	}
	return "you"
}

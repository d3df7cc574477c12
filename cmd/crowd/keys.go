package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
)

func newKeysCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "keys", Short: "your API keys", Args: cobra.NoArgs, Example: "  crowd account keys\n  crowd account keys create --scope read --ttl 7d\n  crowd account keys rm key_x7kq2m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			l, err := c.Keys(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(l, func() error {
				var rows [][]string
				for _, k := range l.Items {
					most := ""
					if k.Cap > 0 {
						most = credits(k.Spent) + " of " + price(k.Cap)
					}
					rows = append(rows, []string{k.ID.Short(), k.Hint, scopesText(k.Scopes), most, clock(k.Created), clock(k.Expires)})
				}
				return a.table([]string{"id", "key", "scopes", "cap", "created", "expires"}, rows)
			})
		},
	}
	cmd.AddCommand(newKeyCreateCommand(a), newKeyRemoveCommand(a))
	return cmd
}

func scopesText(all []crowd.Scope) string {
	var s []string
	for _, x := range all {
		s = append(s, string(x))
	}
	return strings.Join(s, ",")
}

func newKeyCreateCommand(a *app) *cobra.Command {
	var scopes []string
	var most crowd.UCR
	var ttl time.Duration
	var repeat string
	cmd := &cobra.Command{
		Use: "create", Short: "a key that may do no more than yours; its secret on stdout, once", Args: cobra.NoArgs,
		Example: "  crowd account keys create --scope read,order --cap 100cr --ttl 7d\n  key=$(crowd account keys create --scope read -q)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []crowd.Scope
			for _, s := range scopes {
				list = append(list, crowd.Scope(s))
			}
			c, _, err := a.client()
			if err != nil {
				return err
			}
			k, err := c.CreateKey(idempotent(cmd.Context(), repeat), list, most, ttl)
			if err != nil {
				return err
			}
			return a.print(k, func() error {
				a.say("key %s (%s), shown only once:", k.ID.Short(), scopesText(k.Scopes))
				return a.printf("%s\n", k.Secret)
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&scopes, "scope", []string{"read", "order", "lend"}, "what it may do: read, order, lend, s3, operate")
	f.Var(creditFlag{&most}, "cap", "what orders under it may hold in all; it makes no keys then")
	f.Var(spanFlag{&ttl}, "ttl", "how long it is valid (default: for ever)")
	f.StringVar(&repeat, "idempotency-key", "", "for scripts: the same key makes one")
	return cmd
}

func newKeyRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm KEY…", Short: "delete keys, at once", Args: cobra.MinimumNArgs(1), Example: "  crowd account keys rm key_x7kq2m\n  crowd account keys rm ck_…d41x",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			for _, ref := range args {
				if err := c.DeleteKey(cmd.Context(), ref); err != nil {
					return err
				}
				if !a.json {
					a.say("%s is gone", ref)
				}
			}
			if a.json {
				return a.printJSON(listOf(args, ""))
			}
			return nil
		},
	}
}

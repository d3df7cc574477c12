package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

func newAccountCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "account", Short: "who you are at which broker, your keys and your money",
		Example: "  crowd account login https://cloud.example\n  crowd account balance\n  crowd account keys create --scope read,order --cap 100cr",
		Args:    cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLoginCommand(a), newUseCommand(a), newContextsCommand(a), newLogoutCommand(a), newKeysCommand(a), newBalanceCommand(a),
		newStatementCommand(a), newAccountCreateCommand(a), newGrantCommand(a))
	return cmd
}

func newLoginCommand(a *app) *cobra.Command {
	var key, name string
	var most crowd.UCR
	cmd := &cobra.Command{
		Use: "login URL", Short: "keep a key for a broker, as a context of the profile", Args: cobra.ExactArgs(1),
		Long: "Keep a key for a broker, as a context of the profile file.\n\nURL is the broker's address, with its key's fingerprint behind a # if it vouches for itself, as\n" +
			"`crowd broker run` prints it. The key comes from --key, from CROWD_KEY, or is asked for; --key - reads stdin. Prefer stdin or CROWD_KEY:\n" +
			"other users of the machine may see what stands on a command line.",
		Example: "  crowd account login https://cloud.example\n  crowd account login 'https://10.0.0.7:27693#b3f91c2e…' --name work --key - < key",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			broker, pin, err := brokerAndPin(args[0])
			if err != nil {
				return err
			}
			if pin == "" {
				pin = a.getenv("CROWD_PIN")
			}
			from := "--key"
			if key == "" {
				key, from = a.getenv("CROWD_KEY"), "CROWD_KEY"
			}
			if key == "" || key == "-" {
				if key, err = a.askKey(key == "-"); err != nil {
					return err
				}
				from = "what was typed"
			}
			c, err := client.New(client.Options{Broker: broker, Key: key, KeySource: from, TLS: pinned(pin), Log: a.log(), Delays: testDelays})
			if err != nil {
				return err
			}
			me, err := c.Me(ctx)
			if err != nil {
				return err
			}
			p, err := a.profile()
			if err != nil {
				return err
			}
			if name == "" {
				name = freeContext(p, broker, me.Name)
			}
			kept := client.Context{Broker: c.Broker(), Pin: pin, Account: me.Name, Key: key, MaxCost: p.Contexts[name].MaxCost}
			if most > 0 {
				kept.MaxCost = crowd.FormatCredits(most)
			}
			p.Contexts[name] = kept
			p.Current = name
			if err := p.Save(); err != nil {
				return err
			}
			return a.print(contextRow{name, kept.Broker, kept.Account, kept.Pin, kept.MaxCost, true}, func() error {
				a.say("you are %s at %s%s; context %q is in use", me.Name, kept.Broker, freeText(me), name)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "API key, or - for stdin (safer, as is CROWD_KEY)")
	f.StringVar(&name, "name", "", "name of the context (default: the account's or the broker's)")
	f.Var(creditFlag{&most}, "max-cost", "the most that an order may cost if it doesn't say itself")
	return cmd
}

// freeText is ", 12 cr free", or nothing if the key may not read it.
func freeText(me *client.Me) string {
	if me.Balances == nil {
		return ""
	}
	return ", " + price(me.Balances.Free) + " free"
}

// brokerAndPin takes "https://HOST#FINGERPRINT" apart.
func brokerAndPin(s string) (broker, pin string, err error) {
	s, pin, _ = strings.Cut(strings.TrimSpace(s), "#")
	broker, err = client.NormalBroker(s)
	return broker, pin, err
}

// freeContext is the account's name, or with the broker's behind it if another broker's context has that name.
func freeContext(p *client.Profile, broker, account string) string {
	if old, ok := p.Contexts[account]; !ok || old.Broker == broker {
		return account
	}
	u, err := url.Parse(broker)
	if err != nil {
		return account
	}
	return account + "@" + u.Hostname()
}

// askKey reads a key from a terminal without showing it, or from stdin.
func (a *app) askKey(stdin bool) (string, error) {
	if f, ok := a.in.(interface{ Fd() uintptr }); ok && !stdin {
		if _, tty := isTerminal(a.in); tty {
			_, _ = fmt.Fprint(a.err, "API key: ")
			b, err := term.ReadPassword(int(f.Fd()))
			_, _ = fmt.Fprintln(a.err)
			if err != nil {
				return "", crowd.Errorf(crowd.Invalid, "", "read the key: %w", err)
			}
			return strings.TrimSpace(string(b)), nil
		}
	}
	if !stdin {
		return "", crowd.Errorf(crowd.Invalid, "", "which key?").WithHint("--key - reads stdin · or CROWD_KEY")
	}
	line, err := bufio.NewReader(io.LimitReader(a.in, 4096)).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		return "", crowd.Errorf(crowd.Invalid, "", "no key on stdin: %v", err)
	}
	return line, nil
}

// contextRow is a context without its key.
type contextRow struct {
	Name    string `json:"name"`
	Broker  string `json:"broker"`
	Account string `json:"account,omitempty"`
	Pin     string `json:"pin,omitempty"`
	MaxCost string `json:"max_cost,omitempty"`
	Current bool   `json:"current"`
}

func newUseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "use this context from now on", Args: cobra.ExactArgs(1), Example: "  crowd account use work",
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := a.profile()
			if err != nil {
				return err
			}
			c, ok := p.Contexts[args[0]]
			if !ok {
				return noContext(p, args[0])
			}
			p.Current = args[0]
			if err := p.Save(); err != nil {
				return err
			}
			return a.print(contextRow{args[0], c.Broker, c.Account, c.Pin, c.MaxCost, true}, func() error {
				a.say("context %q is in use: %s at %s", args[0], c.Account, c.Broker)
				return nil
			})
		},
	}
}

func noContext(p *client.Profile, name string) error {
	e := crowd.Errorf(crowd.NotFound, "", "there is no context %q", name)
	if len(p.Contexts) == 0 {
		return e.WithHint("crowd account login URL")
	}
	return e.WithHint("there are: %s", strings.Join(p.Names(), ", "))
}

func newContextsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "the contexts of the profile", Args: cobra.NoArgs, Example: "  crowd account ls",
		RunE: func(*cobra.Command, []string) error {
			p, err := a.profile()
			if err != nil {
				return err
			}
			var rows []contextRow
			for _, n := range p.Names() {
				c := p.Contexts[n]
				rows = append(rows, contextRow{n, c.Broker, c.Account, c.Pin, c.MaxCost, n == p.Current})
			}
			return a.print(listOf(rows, ""), func() error {
				var cells [][]string
				for _, r := range rows {
					mark := ""
					if r.Current {
						mark = "*"
					}
					cells = append(cells, []string{mark, r.Name, r.Account, r.Broker, r.MaxCost})
				}
				return a.table([]string{"", "context", "account", "broker", "max cost"}, cells)
			})
		},
	}
}

func newLogoutCommand(a *app) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "logout [NAME]", Short: "delete the key at the broker, and the context", Args: cobra.MaximumNArgs(1), Example: "  crowd account logout\n  crowd account logout work --keep-key",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.profile()
			if err != nil {
				return err
			}
			name := a.context
			if name == "" {
				name = p.Current
			}
			if len(args) > 0 {
				name = args[0]
			}
			x, ok := p.Contexts[name]
			if !ok {
				return noContext(p, name)
			}
			if !keep {
				a.deleteOwnKey(cmd.Context(), x)
			}
			delete(p.Contexts, name)
			if p.Current == name {
				p.Current = ""
			}
			if err := p.Save(); err != nil {
				return err
			}
			return a.print(contextRow{name, x.Broker, x.Account, x.Pin, x.MaxCost, false}, func() error {
				a.say("context %q is gone", name)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-key", false, "leave the key valid at the broker")
	return cmd
}

// deleteOwnKey tries to make the context's key worthless; that it can't is only worth a warning.
func (a *app) deleteOwnKey(ctx context.Context, x client.Context) {
	c, err := client.New(client.Options{Broker: x.Broker, Key: x.Key, TLS: pinned(x.Pin), Delays: []time.Duration{}})
	if err == nil {
		var me *client.Me
		if me, err = c.Me(ctx); err == nil {
			if me.Key.Has(crowd.ScopeOperate) {
				a.say("warning: an operator's key stays valid at the broker: another one may not exist")
				return
			}
			err = c.DeleteKey(ctx, me.Key.ID.String())
		}
	}
	if err != nil && !crowd.KindIs(err, crowd.Denied) {
		a.say("warning: the key is still valid at %s: %s", x.Broker, oneLine(err.Error()))
	}
}

func newBalanceCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "balance", Short: "free, held and pending credit", Args: cobra.NoArgs, Example: "  crowd account balance\n  crowd account balance -q",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			me, err := c.Me(cmd.Context())
			if err == nil && me.Balances == nil {
				err = crowd.Errorf(crowd.Denied, crowd.CustomerScope, "key %s may not read balances", me.Key.Hint).WithHint("crowd account keys create --scope read")
			}
			if err != nil {
				return err
			}
			return a.print(me, func() error {
				if a.quiet {
					return a.printf("%s\n", credits(me.Balances.Free))
				}
				return a.facts("account", me.Name+" at "+c.Broker(), "free", price(me.Balances.Free), "held", price(me.Balances.Held)+" in escrow of jobs",
					"pending", price(me.Balances.Pending)+" earned, not settled")
			})
		},
	}
}

func newStatementCommand(a *app) *cobra.Command {
	var month string
	var limit int
	cmd := &cobra.Command{
		Use: "statement", Short: "every movement of your credit, newest first", Args: cobra.NoArgs, Example: "  crowd account statement\n  crowd account statement --month 2026-01 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var from, to time.Time
			if month != "" {
				t, err := time.ParseInLocation("2006-01", month, time.Local)
				if err != nil {
					return crowd.Errorf(crowd.Invalid, "", "--month: wanted 2026-01, found %q", month)
				}
				from, to = t, t.AddDate(0, 1, 0)
			}
			c, _, err := a.client()
			if err != nil {
				return err
			}
			rows, next, err := statement(cmd.Context(), c, from, to, limit)
			if err != nil {
				return err
			}
			return a.print(listOf(rows, next), func() error {
				var cells [][]string
				for _, p := range rows {
					cells = append(cells, []string{clock(p.At), credits(p.Amount), p.Txn})
				}
				return a.table([]string{"when", ">cr", "for"}, cells)
			})
		},
	}
	cmd.Flags().StringVar(&month, "month", "", "of one month: 2026-01")
	cmd.Flags().IntVar(&limit, "limit", 200, "at most so many")
	return cmd
}

// statement collects postings of a span of time.
func statement(ctx context.Context, c *client.Client, from, to time.Time, limit int) (rows []crowd.Posting, next string, err error) {
	for after := ""; ; after = next {
		p, err := c.Statement(ctx, client.Page{Limit: 200, After: after})
		if err != nil {
			return nil, "", err
		}
		for _, x := range p.Items {
			switch {
			case !from.IsZero() && x.At.Before(from):
				return rows, "", nil
			case !to.IsZero() && !x.At.Before(to):
				continue
			case len(rows) == limit:
				return rows, next, nil
			}
			rows = append(rows, x)
		}
		if p.Next == nil {
			return rows, "", nil
		}
		next = *p.Next
	}
}

func newAccountCreateCommand(a *app) *cobra.Command {
	var repeat string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "make an account and its first key (operators)", Args: cobra.ExactArgs(1), Example: "  crowd account create ada\n  key=$(crowd account create ada -q)",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			n, err := c.CreateAccount(idempotent(cmd.Context(), repeat), args[0])
			if err != nil {
				return err
			}
			return a.print(n, func() error {
				a.say("account %s (%s); its key, shown only once:", n.Name, n.ID.Short())
				return a.printf("%s\n", n.Secret)
			})
		},
	}
	cmd.Flags().StringVar(&repeat, "idempotency-key", "", "for scripts: the same key makes one account")
	return cmd
}

func newGrantCommand(a *app) *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use: "grant ACCOUNT AMOUNT", Short: "give an account credit (operators)", Args: cobra.ExactArgs(2), Example: "  crowd account grant ada 250cr\n  crowd account grant ada 250cr --id invoice-17",
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := parseCredits(args[1])
			if err != nil {
				return err
			}
			c, _, err := a.client()
			if err != nil {
				return err
			}
			g, err := c.Grant(cmd.Context(), args[0], client.Grant{ID: id, Amount: amount})
			if err != nil {
				return err
			}
			return a.print(g, func() error {
				a.say("%s has %s more", args[0], price(amount))
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "the same id twice is one grant")
	return cmd
}

package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
)

func newBrokerCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "broker", Short: "run a broker, see how it does, back it up", Args: cobra.NoArgs,
		Example: "  crowd broker run --listen 0.0.0.0:27693 --url https://broker.example:27693 --data /var/lib/crowd\n  crowd broker status",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newBrokerRunCommand(a), newBrokerStatusCommand(a), newBrokerAuditCommand(a), newBrokerBackupCommand(a), newBrokerRestoreCommand(a))
	return c
}

// brokerReady is what `broker run --json` says once it serves.
type brokerReady struct {
	Type  string `json:"type"`
	URL   string `json:"url"`
	Local string `json:"local"`
	Pin   string `json:"pin"`
	Link  string `json:"owner_link"`
	Key   string `json:"owner_key,omitempty"` // once, when the data folder was new
}

func newBrokerRunCommand(a *app) *cobra.Command {
	cfg := brokerConfig{PerGfuel: 100}
	var proxied bool
	c := &cobra.Command{
		Use: "run", Short: "the broker: API and hosts' links on one port", Args: cobra.NoArgs,
		Long: "Run the broker in the foreground. It makes its own key and certificate; links carry the key's fingerprint, and agents and the command pin it,\n" +
			"so that no certificate authority is needed. On a new data folder it prints the operator's first key, once.\n\n" +
			"Scope operate works from the broker's own machine only. A proxy or forwarder on that machine makes everybody look local: behind one give --proxied,\n" +
			"which turns the scope off. It is off too if --url isn't where the broker listens (another scheme or port, or it listens on loopback);\n" +
			"--proxied=false says that no proxy runs here, as when a router forwards the port.",
		Example: "  crowd broker run --data /var/lib/crowd --listen 0.0.0.0:27693 --url https://broker.example:27693\n  crowd broker run --plain-loopback --listen 127.0.0.1:27693",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Data, err = a.brokerDir(cfg.Data); err != nil {
				return err
			}
			if cfg.PerGfuel < 0 || cfg.FeePermille < 0 || cfg.FeePermille > 1000 {
				return crowd.Errorf(crowd.Invalid, "", "--price can't be negative, and --fee is 0 to 1000")
			}
			if cmd.Flags().Changed("proxied") {
				cfg.Proxied = &proxied
			}
			cfg.Log, cfg.Version = a.log(), versionText()
			b, err := startBroker(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if err := a.brokerReady(b); err != nil {
				_ = b.Close()
				return err
			}
			err = b.Wait()
			if err == nil && cmd.Context().Err() != nil {
				a.say("the broker has stopped; everything is saved")
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Data, "data", "", "folder of everything it keeps")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:27693", "HOST:PORT; port 0 takes a free one")
	f.StringVar(&cfg.URL, "url", "", "how people and machines reach it, for links")
	f.BoolVar(&cfg.Plain, "plain-loopback", false, "no TLS: for this machine only")
	f.BoolVar(&proxied, "proxied", false, "behind a proxy on this machine: turn scope operate off")
	f.Var(creditFlag{&cfg.PerGfuel}, "price", "pay for a billion of fuel, as 0.0001cr")
	f.IntVar(&cfg.FeePermille, "fee", 0, "the operator's share of each payment, in thousandths")
	f.Var(spanFlag{&cfg.Keep}, "keep", "how long the results of an ended job are kept (default 30d); then DIR/archive has who did what")
	return c
}

func (a *app) brokerReady(b *runningBroker) error {
	if b.Proxied {
		a.say("scope operate is off: requests from this machine may be a proxy's (--proxied=false if none runs here)")
	}
	link := b.Local + "/#" + b.Pin
	if a.json {
		return a.printJSON(brokerReady{"ready", b.URL, b.Local, b.Pin, link, b.OwnerKey})
	}
	if err := a.facts("broker", b.URL, "key", b.Pin, "owner link", link, "owner key", b.OwnerKey); err != nil {
		return err
	}
	if b.OwnerKey != "" {
		a.say("the owner key is told only now. on this machine: crowd account login '%s'", link)
	}
	return nil
}

func newBrokerStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "how the broker does (operators, on its machine)", Args: cobra.NoArgs, Example: "  crowd broker status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(s, func() error {
				return a.facts(
					"broker", fmt.Sprintf("%s, version %s, up %s", c.Broker(), s.Version, span(time.Since(s.Started).Round(time.Second))),
					"hosts", fmt.Sprintf("%d of %d connected", s.HostsOn, s.HostsTotal),
					"jobs", fmt.Sprintf("%d open, %s at work", s.JobsOpen, plural(s.Attempts, "attempt")),
					"ledger", "sums to "+credits(s.LedgerSum),
				)
			})
		},
	}
}

package main

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/seal"
)

// profile reads the profile file.
func (a *app) profile() (*client.Profile, error) {
	dir, err := client.ConfigDir(a.getenv)
	if err != nil {
		return nil, err
	}
	return client.LoadProfile(dir)
}

// settings are what the flags, the environment and the profile say, in this order.
func (a *app) settings() (client.Settings, error) {
	if a.context == "" && a.getenv("CROWD_BROKER") != "" && a.getenv("CROWD_KEY") != "" && a.getenv("CROWD_CONTEXT") == "" { // needs no file
		return (&client.Profile{}).Settings("", a.getenv)
	}
	p, err := a.profile()
	if err != nil {
		return client.Settings{}, err
	}
	return p.Settings(a.context, a.getenv)
}

// client is the broker that the settings name.
func (a *app) client() (*client.Client, client.Settings, error) {
	s, err := a.settings()
	if err != nil {
		return nil, s, err
	}
	if s.Broker.Value == "" {
		return nil, s, crowd.Errorf(crowd.Invalid, "", "which broker? there is no context yet").WithHint("crowd account login URL · or CROWD_BROKER and CROWD_KEY")
	}
	c, err := client.New(client.Options{
		Broker: s.Broker.Value, Key: s.Key.Value, KeySource: s.Key.From, TLS: pinned(s.Pin.Value), UserAgent: "crowd/" + versionText(), Log: a.log(), Delays: testDelays,
	})
	return c, s, err
}

// testDelays are between the client's tries; nil is its own choice.
var testDelays []time.Duration

// pinned trusts the holder of one key; "" is the system's authorities.
func pinned(fingerprint string) *tls.Config {
	if fingerprint == "" {
		return nil
	}
	return seal.PinnedTLS(fingerprint)
}

// stateDir is where this machine's agent lives: $XDG_STATE_HOME/crowd, else the system's folder.
func (a *app) stateDir() (string, error) {
	if d := a.getenv("XDG_STATE_HOME"); d != "" {
		return filepath.Join(d, "crowd"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", crowd.Errorf(crowd.Invalid, "", "there is no home folder: %w", err).WithHint("--state-dir DIR")
	}
	switch runtime.GOOS {
	case "windows":
		if d := a.getenv("LocalAppData"); d != "" {
			return filepath.Join(d, "crowd", "agent"), nil
		}
	case "darwin":
		return filepath.Join(home, "Library", "Application Support", "crowd-agent"), nil
	}
	return filepath.Join(home, ".local", "state", "crowd"), nil
}

// spanFlag is a --flag of a span: 90s, 15m, 2h, 7d.
type spanFlag struct{ d *time.Duration }

func (f spanFlag) String() string {
	if f.d == nil || *f.d == 0 {
		return ""
	}
	return span(*f.d)
}

func (f spanFlag) Set(s string) error {
	d, err := crowd.ParseSpan(s)
	if err != nil {
		if std, e := time.ParseDuration(s); e == nil && std > 0 {
			d, err = std, nil
		}
	}
	*f.d = d
	if err != nil {
		return crowd.AsError(err)
	}
	return nil
}

func (f spanFlag) Type() string { return "span" }

// creditFlag is a --flag of credits: 250cr, or 250.
type creditFlag struct{ u *crowd.UCR }

func (f creditFlag) String() string {
	if f.u == nil || *f.u == 0 {
		return ""
	}
	return crowd.FormatCredits(*f.u)
}

func (f creditFlag) Set(s string) error {
	u, err := parseCredits(s)
	if err == nil && u <= 0 {
		err = crowd.Errorf(crowd.Invalid, "", "wanted more than 0cr, found %q", s)
	}
	*f.u = u
	return err
}

func (f creditFlag) Type() string { return "credits" }

// unitsFlag is a --flag of a number of units.
type unitsFlag struct{ n *uint64 }

func (f unitsFlag) String() string {
	if f.n == nil || *f.n == 0 {
		return ""
	}
	return strconv.FormatUint(*f.n, 10)
}

func (f unitsFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 || n > crowd.Limits.Units {
		return crowd.Errorf(crowd.Invalid, "", "wanted a whole number from 1 to 2^40, found %q", s)
	}
	*f.n = n
	return nil
}

func (f unitsFlag) Type() string { return "number" }

// parseCredits reads 250cr and, on a command line, 250.
func parseCredits(s string) (crowd.UCR, error) {
	if n := len(s); n > 0 && s[n-1] >= '0' && s[n-1] <= '9' {
		s += "cr"
	}
	return crowd.ParseCredits(s)
}

// idempotent makes the command's call use the key that a script gave.
func idempotent(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	return client.WithIdempotencyKey(ctx, key)
}

package client

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/goccy/go-yaml"

	"github.com/crowdcloud/crowd"
)

// Profile is the file of contexts, readable by its owner only.
type Profile struct {
	Current  string             `yaml:"current,omitempty"`
	Contexts map[string]Context `yaml:"contexts,omitempty"`

	path string
}

// Context is a broker, an account there and its key.
type Context struct {
	Broker  string `yaml:"broker"`
	Pin     string `yaml:"pin,omitempty"` // fingerprint of the broker's key
	Account string `yaml:"account,omitempty"`
	Key     string `yaml:"key"`
	MaxCost string `yaml:"max_cost,omitempty"` // of an order that doesn't say price.max: "100cr"
}

// ConfigDir is where the profile lives: $XDG_CONFIG_HOME/crowd, else the system's folder for settings.
func ConfigDir(getenv func(string) string) (string, error) {
	if d := getenv("XDG_CONFIG_HOME"); d != "" {
		return filepath.Join(d, "crowd"), nil
	}
	d, err := os.UserConfigDir()
	if err != nil {
		return "", crowd.Errorf(crowd.Invalid, "", "there is no folder for settings: %w", err).WithHint("set XDG_CONFIG_HOME, or CROWD_BROKER and CROWD_KEY")
	}
	return filepath.Join(d, "crowd"), nil
}

// LoadProfile reads the profile in dir; none is an empty one. Denied if others than its owner can read it.
func LoadProfile(dir string) (*Profile, error) {
	p := &Profile{path: filepath.Join(dir, "config.yaml"), Contexts: map[string]Context{}}
	st, err := os.Stat(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "look at the profile: %w", err)
	}
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return nil, crowd.Errorf(crowd.Denied, "", "others can read %s, which holds keys (mode %04o)", p.path, st.Mode().Perm()).WithHint("chmod 600 %s", p.path)
	}
	b, err := os.ReadFile(p.path)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "read the profile: %w", err)
	}
	if err := yaml.UnmarshalWithOptions(b, p, yaml.Strict()); err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "%s isn't a profile: %s", p.path, yaml.FormatError(err, false, false)).
			WithHint("contexts: {NAME: {broker: …, key: ck_…}}; or move it away and crowd account login")
	}
	if p.Contexts == nil {
		p.Contexts = map[string]Context{}
	}
	return p, nil
}

// Path is the profile's file.
func (p *Profile) Path() string { return p.path }

// Names lists the contexts by name.
func (p *Profile) Names() []string { return slices.Sorted(maps.Keys(p.Contexts)) }

// Save writes the profile, whole or not at all.
func (p *Profile) Save() error {
	b, err := yaml.Marshal(p)
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "encode the profile: %w", err)
	}
	dir := filepath.Dir(p.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return crowd.Errorf(crowd.Internal, "", "make the settings' folder: %w", err)
	}
	f, err := os.CreateTemp(dir, ".config-*") // mode 0600
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "write the profile: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), p.path)
	}
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "write the profile: %w", err)
	}
	return nil
}

// Setting is a value and where it came from, in words: "CROWD_KEY", `context "work"`, "-c".
type Setting struct {
	Value string `json:"value"`
	From  string `json:"from"`
}

// Settings are what a command works with.
type Settings struct {
	Context Setting `json:"context"`
	Broker  Setting `json:"broker"`
	Pin     Setting `json:"pin"`
	Account Setting `json:"account"`
	Key     Setting `json:"-"`
	MaxCost Setting `json:"max_cost"`
}

// Settings picks: the flag's context before CROWD_CONTEXT before the profile's current one; CROWD_BROKER, CROWD_KEY, CROWD_PIN and
// CROWD_MAX_COST before what that context says, unless the flag named it. Another broker than the context's takes no key, pin or account from it. NotFound: no such context.
func (p *Profile) Settings(flag string, getenv func(string) string) (Settings, error) {
	var s Settings
	switch {
	case flag != "":
		s.Context = Setting{flag, "-c"}
	case getenv("CROWD_CONTEXT") != "":
		s.Context = Setting{getenv("CROWD_CONTEXT"), "CROWD_CONTEXT"}
	case p.Current != "":
		s.Context = Setting{p.Current, p.path}
	}
	env := func(name string) Setting {
		if v := getenv(name); v != "" && flag == "" {
			return Setting{v, name}
		}
		return Setting{}
	}
	s.Broker, s.Key, s.Pin, s.MaxCost = env("CROWD_BROKER"), env("CROWD_KEY"), env("CROWD_PIN"), env("CROWD_MAX_COST")
	c, ok := p.Contexts[s.Context.Value]
	if !ok {
		if s.Context.Value != "" && s.Broker.Value == "" {
			hint := "crowd account login"
			if len(p.Contexts) > 0 {
				hint = fmt.Sprintf("there are: %v", p.Names())
			}
			return s, crowd.Errorf(crowd.NotFound, "", "there is no context %q, which comes from %s", s.Context.Value, s.Context.From).WithHint("%s", hint)
		}
		s.Context = Setting{}
		return s, nil
	}
	from := fmt.Sprintf("context %q", s.Context.Value)
	fill := func(x *Setting, v string) {
		if x.Value == "" && v != "" {
			*x = Setting{v, from}
		}
	}
	fill(&s.MaxCost, c.MaxCost)
	if s.Broker.Value != "" && s.Broker.Value != c.Broker {
		s.Context = Setting{}
		return s, nil
	}
	fill(&s.Broker, c.Broker)
	fill(&s.Pin, c.Pin)
	if s.Key.Value == "" {
		fill(&s.Key, c.Key)
		fill(&s.Account, c.Account)
	}
	return s, nil
}

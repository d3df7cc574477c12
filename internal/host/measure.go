package host

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/seal"
	"github.com/crowdcloud/crowd/internal/sense"
)

// ThisPlatform is this machine's; device as its owner calls it ("" : desktop).
func ThisPlatform(version, device string) crowd.Platform {
	k := kernel()
	if device == "" {
		device = "desktop"
	}
	return crowd.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH, Kernel: k[:min(len(k), 64)], Agent: version, Device: device}
}

// Measure says what this machine lends by the policy: cores (as the control group allows), memory, disk under dir, and the speed of one slot by the
// engine's benchmark.
func Measure(ctx context.Context, dir string, e guest.Engine, p Policy) (crowd.Capacity, error) {
	c := lends(runtime.GOMAXPROCS(0), memory(), p)
	free, err := diskFree(dir)
	if err != nil {
		return c, crowd.Errorf(crowd.Internal, "", "measure the disk: %w", err)
	}
	if c.DiskBytes = p.Disk; c.DiskBytes == 0 {
		c.DiskBytes = min(free/10, 20<<30)
	}
	if c.Speed, err = e.Bench(ctx); err != nil {
		return c, err
	}
	return c, nil
}

func lends(cores int, memory int64, p Policy) crowd.Capacity {
	share := func(percent int) int64 {
		if percent <= 0 {
			return 50
		}
		return int64(min(percent, 100))
	}
	return crowd.Capacity{
		Slots:       max(1, int(int64(cores)*share(p.CPU)/100)),
		MemoryBytes: memory / 100 * share(p.Memory),
	}
}

// Check is one line of Doctor.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// Doctor looks at everything that this host needs, and says what is missing and what to do. It changes nothing and needs no running agent.
func Doctor(ctx context.Context, dir string, e guest.Engine, p Policy) []Check {
	cs := []Check{checkDir(dir)}
	profile, err := LoadProfile(dir)
	if err != nil {
		cs = append(cs, failed("membership", err))
	} else {
		cs = append(cs, Check{Name: "membership", OK: true, Text: fmt.Sprintf("%s at %s", profile.Host.Name, profile.Broker)})
		cs = append(cs, checkBroker(ctx, profile)...)
	}
	cs = append(cs, checkEngine(ctx, e))
	for _, l := range e.Layers() {
		c := Check{Name: "cage: " + l.Name, OK: l.Held, Text: "holds"}
		if !l.Held {
			c.Text = l.Why
		}
		cs = append(cs, c)
	}
	c := lends(runtime.GOMAXPROCS(0), memory(), p)
	cs = append(cs, Check{Name: "lends", OK: c.MemoryBytes >= crowd.DefaultMemory+crowd.DefaultOutput,
		Text: fmt.Sprintf("%d of %d cores, %d of %d MiB", c.Slots, runtime.GOMAXPROCS(0), c.MemoryBytes>>20, memory()>>20)})
	if p.Signed {
		cs = append(cs, Check{Name: "policy", Text: "only signed programs may run, and no program can be signed yet", Hint: "allow.signed: false"})
	}
	return append(cs, checkSleep(ctx), Check{Name: "presence", OK: false, Text: NoPresence, Hint: "crowd host pause, or hours in the host policy"})
}

func failed(name string, err error) Check {
	e := crowd.AsError(err)
	return Check{Name: name, Text: e.Error(), Hint: e.Hint}
}

func checkDir(dir string) Check {
	c := Check{Name: "folder", Text: dir}
	st, err := os.Stat(dir)
	switch {
	case err != nil:
		return failed("folder", err)
	case runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0:
		c.Text, c.Hint = fmt.Sprintf("others can look into %s", dir), "chmod 700 "+dir
		return c
	case len(filepath.Join(dir, controlName)) > socketPath:
		c.Text, c.Hint = dir+" is too long a path for a socket", "a shorter folder"
		return c
	}
	probe := filepath.Join(dir, ".probe")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		return failed("folder", err)
	}
	_ = os.Remove(probe)
	c.OK = true
	return c
}

// checkBroker asks for /healthz over a pinned connection and compares clocks by the Date header.
func checkBroker(ctx context.Context, p *Profile) []Check {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c := p.client(netip.Addr{})
	defer c.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Broker+"/healthz", nil)
	if err != nil {
		return []Check{failed("broker", err)}
	}
	begun := time.Now()
	resp, err := c.Do(r)
	if err != nil {
		if errors.Is(err, seal.ErrBrokerKey) {
			return []Check{{Name: "broker", OK: true, Text: "somebody answers"}, failed("broker's key", seal.ErrBrokerKey)}
		}
		return []Check{failed("broker", netError(err))}
	}
	resp.Body.Close()
	took := time.Since(begun)
	cs := []Check{{Name: "broker", OK: resp.StatusCode < 500, Text: fmt.Sprintf("answers in %d ms", took.Milliseconds())}}
	if strings.HasPrefix(p.Broker, "https:") {
		cs = append(cs, Check{Name: "broker's key", OK: true, Text: "is the pinned one"})
	} else {
		cs = append(cs, Check{Name: "broker's key", OK: true, Text: "is checked by the link; no TLS on this machine itself"})
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		off := clockOff(date, begun, took)
		k := Check{Name: "clock", OK: off.Abs() < crowd.Skew, Text: fmt.Sprintf("differs from the broker's by %v at least", off)}
		if !k.OK {
			k.Hint = "switch on network time"
		}
		cs = append(cs, k)
	}
	return cs
}

// clockOff is how far this machine's clock is surely before (+) or after (-) the broker's: the Date header has whole seconds only.
func clockOff(date, begun time.Time, took time.Duration) time.Duration {
	early, late := date.Sub(begun.Add(took)), date.Add(time.Second).Sub(begun)
	switch {
	case early > 0:
		return early.Round(time.Millisecond)
	case late < 0:
		return late.Round(time.Millisecond)
	}
	return 0
}

// checkSleep is never a fault: where nobody says that the machine sleeps, its work goes elsewhere a little later.
func checkSleep(ctx context.Context) Check {
	c := Check{Name: "sleep", OK: true}
	if most, err := sense.CheckSleep(ctx, ""); err != nil {
		c.Text = "isn't announced here: work that a sleep interrupts goes elsewhere after " + crowd.Term.String()
	} else {
		c.Text = fmt.Sprintf("is announced: the system waits up to %v for work to be handed on", most)
	}
	return c
}

func checkEngine(ctx context.Context, e guest.Engine) Check {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	speed, err := e.Bench(ctx)
	if err != nil {
		return failed("engine", err)
	}
	return Check{Name: "engine", OK: true, Text: fmt.Sprintf("runs a test program: %.2f billion fuel a second", speed)}
}

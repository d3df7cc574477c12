// Survive tells as one story that the cloud never loses anything: a broker and six hosters of six owners work for a customer while they are killed
// and started again, fall silent and go on too late; a unit goes on from its checkpoint; at the end the broker's store is thrown away and a backup from
// the middle goes back. It is a customer and an operator like anybody else: it runs the crowd command, reads the API, and sends signals.
//
//	go run ./examples/survive [--crowd bin/crowd] [--out out/demo] [--seed N] [--kills 40]
//
// It writes survive.json into --out. Exit status: 0 all as told, 1 anything else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/rig"
)

func main() {
	crowdBin := flag.String("crowd", "bin/crowd", "the crowd binary")
	out := flag.String("out", "out/demo", "folder for survive.json")
	seed := flag.Uint64("seed", 0, "of who is killed when; 0: another one each time")
	kills := flag.Int("kills", 40, "how often broker or a host is killed amid the job")
	root := flag.String("root", ".", "folder of the repository, for the programs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	if err := run(ctx, *crowdBin, *out, *root, *seed, *kills); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// hosters have a machine each, of an owner of the same name, in these places.
var (
	hosters = []string{"alice", "bob", "carol", "dave", "erin", "frank"}
	places  = []string{"DE", "DE", "FR", "FR", "US", "US"}
)

// story is one run of the demo.
type story struct {
	*rig.Town
	ada     string // the customer's key
	spin    string // her programs
	counter string
	rnd     *rand.Rand
	start   time.Time
	speed   float64 // rounds of spin a second, at best, on a core
	pace    float64 // on all hosts together, as things are
	jobs    []ordered
	report  result
	late    *rig.Host // who died with a finished chunk
	wrong   []string  // what isn't as it should be
	kept    uint64    // units that were decided when the backup began
	rising  []rising
}

// rising is a host that is being started.
type rising struct {
	host *rig.Host
	up   chan error
}

// ordered is a job and what its results must be.
type ordered struct {
	id, name, want string
}

func run(ctx context.Context, bin, out, root string, seed uint64, kills int) (err error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "crowd-survive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	town, err := rig.New(bin, dir)
	if err != nil {
		return err
	}
	defer town.Close()
	s := &story{
		Town: town, rnd: rand.New(rand.NewPCG(seed, 1)), start: time.Now(), report: result{Seed: seed},
		spin: filepath.Join(root, "cmd/crowd/testdata/spin.wasm"), counter: filepath.Join(root, "internal/guest/wasm/testdata/counter.wasm"),
	}
	defer func() { _ = s.risen(0) }()
	for _, p := range []*string{&s.spin, &s.counter} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	for _, act := range []func(context.Context) error{s.open, func(ctx context.Context) error { return s.kills(ctx, kills) }, s.checkpoint, s.decided, s.silence, s.check, s.restore} {
		if err := act(ctx); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
	return s.tell(out)
}

// open starts everybody, and measures how fast a unit goes here.
func (s *story) open(ctx context.Context) (err error) {
	s.Flags = append(s.Flags, "--fee", "100")
	if err := os.MkdirAll(filepath.Join(s.Dir, "tmp"), 0o700); err != nil {
		return err
	}
	if err := s.startBroker(); err != nil {
		return err
	}
	if s.ada, err = s.Account(ctx, "ada", 100_000); err != nil {
		return err
	}
	for i, name := range hosters {
		h, err := s.Join(ctx, name, places[i])
		if err != nil {
			return err
		}
		policy := fmt.Sprintf("kind: host-policy\nlend: {cpu: %d%%, memory: 10%%}\n", min(100, (100+runtime.NumCPU()-1)/runtime.NumCPU()))
		if err := os.WriteFile(filepath.Join(h.Dir, "host-policy.yaml"), []byte(policy), 0o600); err != nil {
			return err
		}
		s.rise(h)
	}
	if err := s.risen(0); err != nil {
		return err
	}
	s.say(fmt.Sprintf("a broker and %d hosters of %d owners run, each a process; seed %d", len(hosters), len(hosters), s.report.Seed), "")

	return s.measure(ctx, "probe")
}

// measure runs a small job to see how fast things go here and now.
func (s *story) measure(ctx context.Context, name string) error {
	const units, rounds = 12, 600_000_000
	probe, err := s.order(ctx, name, units, rounds, "chunk: 1\nverify: none")
	if err != nil {
		return err
	}
	j, err := s.done(ctx, probe)
	if err != nil {
		return err
	}
	tried, err := s.attempts(ctx, probe)
	if err != nil {
		return err
	}
	s.pace = units * rounds / j.Ended.Sub(j.Started).Seconds()
	for _, a := range tried {
		if a.State == crowd.AttemptReported {
			s.speed = max(s.speed, rounds/a.EndedAt.Sub(a.LeasedAt).Seconds())
		}
	}
	if s.speed == 0 {
		return fmt.Errorf("the probe wasn't worked: %+v", tried)
	}
	return nil
}

// temp keeps what a killed process leaves inside our folder.
func (s *story) temp() string { return "TMPDIR=" + filepath.Join(s.Dir, "tmp") }

func (s *story) startBroker() error { return s.Town.Start(s.temp()) }

// rise starts a host beside what goes on.
func (s *story) rise(h *rig.Host) {
	up := make(chan error, 1)
	s.rising = append(s.rising, rising{h, up})
	go func() { up <- h.Start(s.temp()) }() // ends before risen returns
}

// risen waits until no more than so many hosts are on their way up.
func (s *story) risen(most int) (err error) {
	for ; len(s.rising) > most; s.rising = s.rising[1:] {
		err = errors.Join(err, <-s.rising[0].up)
	}
	return err
}

// up are the hosts that run and are not on their way up.
func (s *story) up() (up []*rig.Host) {
	for _, name := range hosters {
		h := s.Hosts[name]
		if !slices.ContainsFunc(s.rising, func(r rising) bool { return r.host == h }) {
			up = append(up, h)
		}
	}
	return up
}

// kill ends a process as a power cut would.
func (s *story) kill(p *rig.Proc) {
	p.Kill()
	s.report.Kills++
}

// order orders units of spin.wasm.
func (s *story) order(ctx context.Context, name string, units, rounds uint64, more string) (string, error) {
	want := ""
	var b strings.Builder
	for u := range units {
		b.WriteString(rig.Spun(u, rounds))
	}
	want = b.String()
	return s.orderFile(ctx, name, want, fmt.Sprintf("program: %s\nargs: ['{unit}', '%d']\nunits: {count: %d}\n%s\n", s.spin, rounds, units, more))
}

func (s *story) orderFile(ctx context.Context, name, want, text string) (string, error) {
	path := filepath.Join(s.Dir, name+".yaml")
	text = fmt.Sprintf("kind: job\nname: %s\nprice: {max: 500cr}\nresources: {memory: 16MiB, disk: 16MiB}\n%s", name, text)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", err
	}
	out, err := s.Run(ctx, s.ada, "run", path, "-d", "-q")
	id := strings.TrimSpace(out)
	if err == nil {
		s.jobs = append(s.jobs, ordered{id, name, want})
	}
	return id, err
}

// done waits for a job's end.
func (s *story) done(ctx context.Context, job string) (crowd.JobDetail, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return s.Done(ctx, s.ada, job)
}

// until polls for what other processes do.
func until(ctx context.Context, what string, within time.Duration, ok func() bool) error {
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			return fmt.Errorf("after %v: not yet %s", within, what)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// amiss notes what isn't as it should be; the story goes on.
func (s *story) amiss(format string, args ...any) {
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
	s.say("but: "+s.wrong[len(s.wrong)-1], "")
}

func (s *story) clock() string {
	d := time.Since(s.start)
	return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}

func (s *story) say(text, reason string) {
	fmt.Println(strings.TrimRight(fmt.Sprintf("%6s  %-90s %s", s.clock(), text, reason), " "))
}

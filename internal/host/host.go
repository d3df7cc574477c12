// Package host is the role on a hoster's machine: it keeps one link to the broker, runs what it leases in caged guests, and obeys
// its owner at once.
//
// The owner comes first: a pause freezes every guest before anything else happens, whatever the broker or a guest does. What
// was computed is kept on disk until the broker has acknowledged it. A folder (Dir) is all that the agent leaves on a machine:
// profile and key, the owner's wishes, log, cache, and outcomes on their way.
package host

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/sense"
)

// Options are what an agent is made of.
type Options struct {
	Dir      string // as Join made it
	Engine   guest.Engine
	Policy   Policy
	Capacity crowd.Capacity // as measured and lent
	Platform crowd.Platform
	Log      *slog.Logger  // nil: none
	Grace    time.Duration // computes so long without a broker; 0: crowd.Grace

	// For many agents on one machine.
	LocalAddr netip.Addr // to dial from
	NoControl bool       // no control socket

	Self   string // the executable that takes over in an upgrade; empty: this agent is part of another program
	Failed error  // why the upgrade that went before failed

	backoff func(try int) time.Duration                     // tests
	stall   time.Duration                                   // tests
	boot    func() time.Duration                            // tests; nil: bootClock
	sleep   func(context.Context, sense.SleepOptions) error // tests; nil: sense.Sleep
}

// Agent is one host. Make it with New; all methods may be called concurrently while Run runs.
type Agent struct {
	o       Options
	profile Profile
	log     *slog.Logger
	session crowd.SessionID
	before  string // version of the process whose session this one goes on with
	started time.Time
	http    *http.Client
	cache   *Cache
	book    *logbook
	pace    pace // the mail loop's

	dials       int64 // these are the link loop's
	incarnation int64 // of the broker, the highest seen
	toldOld     bool  // that it is refused

	changed chan struct{} // of size 1: something to renew for
	mail    chan struct{} // of size 1: something in the outbox
	rethink chan struct{} // of size 1: the owner's wish changed
	awake   chan struct{} // of size 1: the machine woke up: dial now
	going   chan struct{} // of size 1: an upgrade was asked for

	gate sync.Mutex // one freeze or thaw at a time; taken before mu

	mu       sync.Mutex // guards all below and the attempts
	owner    owner
	frozen   bool
	thawed   chan struct{} // closed while not frozen
	held     map[crowd.AttemptRef]*attempt
	specs    map[crowd.JobID]*crowd.JobSpec
	conn     *link.Conn // nil: not connected
	speaks   int        // the link's version on conn
	renewed  int64      // number of the last Renew on conn
	answered int64      // number of the last Answer on conn
	bearer   string
	online   chan struct{} // closed while connected
	heard    time.Duration // of the broker, on clock
	clock    lease.Clock
	felt     felt
	done     int64     // attempts reported
	lastErr  error     // of the link
	full     time.Time // until then nothing is taken: there was no space
	up       *upgrade  // nil: none goes on
	work     sync.WaitGroup
	halted   bool // no new work: Run is about to return
}

// New takes what Join left in o.Dir. NotFound if the machine has not joined, Conflict if another agent runs in that folder.
func New(o Options) (*Agent, error) {
	p, err := LoadProfile(o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Grace == 0 {
		o.Grace = crowd.Grace
	}
	if o.backoff == nil {
		o.backoff = backoff
	}
	if o.stall == 0 {
		o.stall = transferStall
	}
	if o.boot == nil {
		o.boot = bootClock
	}
	a := &Agent{
		o: o, profile: *p, log: o.Log.With("host", p.Host.ID.Short()), session: newSession(), started: time.Now(),
		changed: make(chan struct{}, 1), mail: make(chan struct{}, 1), rethink: make(chan struct{}, 1),
		awake: make(chan struct{}, 1), going: make(chan struct{}, 1),
		thawed: make(chan struct{}), online: make(chan struct{}),
		held: map[crowd.AttemptRef]*attempt{}, specs: map[crowd.JobID]*crowd.JobSpec{},
	}
	a.o.Capacity.Slots = max(1, a.o.Capacity.Slots)
	close(a.thawed)
	a.http = p.client(o.LocalAddr)
	return a, nil
}

func newSession() (id crowd.SessionID) {
	var r [10]byte
	_, _ = rand.Read(r[:])
	mint(&id, r)
	return id
}

// mint lets the compiler find the kind of id.
func mint[K crowd.Kind](id *crowd.ID[K], r [10]byte) { *id = crowd.MakeID[K](time.Now(), r) }

// Run is the agent's life. It returns nil when ctx ends or the host has left, after giving back what isn't done (owner.stopped), and an
// error when the broker won't have this host any more or the folder can't be used. After Upgrade it is a *Handover. The engine stays the
// caller's to close.
func (a *Agent) Run(ctx context.Context) (err error) {
	lock, err := a.takeOver()
	if err != nil {
		return err
	}
	defer lock.close()
	if err := a.open(); err != nil {
		return err
	}
	defer a.book.close()
	defer a.http.CloseIdleConnections()

	loops, stop := context.WithCancel(context.WithoutCancel(ctx)) // the link outlives ctx by its last words
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	if !a.o.NoControl {
		c, err := listenControl(a)
		if err != nil {
			return err
		}
		wg.Go(func() { c.serve(loops) })
	}
	wg.Go(func() { a.ownerLoop(loops) })
	wg.Go(func() { a.mailLoop(loops) })
	wg.Go(func() { a.sleepLoop(loops) })
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	wg.Go(func() { a.upgradeLoop(loops, end) })

	a.book.add(Entry{What: "agent.started", Text: a.cameFrom()})
	err = a.linkLoop(life)
	a.halt(err)
	if err == nil && errors.Is(context.Cause(life), errHandover) {
		stop()
		wg.Wait() // nothing speaks for this session any more
		return a.handOver(lock)
	}
	a.dropUpgrade()
	a.book.add(Entry{What: "agent.stopped", Text: textOf(err)})
	return err
}

// open reads what an earlier life left.
func (a *Agent) open() (err error) {
	for _, d := range []string{"", "cache", "outbox"} {
		if err := os.MkdirAll(filepath.Join(a.o.Dir, d), 0o700); err != nil {
			return crowd.Errorf(crowd.Internal, "", "make the agent's folder: %w", err)
		}
	}
	if a.book, err = openLogbook(filepath.Join(a.o.Dir, logName)); err != nil {
		return err
	}
	if a.cache, err = OpenCache(filepath.Join(a.o.Dir, "cache"), a.o.Capacity.DiskBytes, a.fetch); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock.Advance(a.o.boot(), time.Now())
	a.owner = loadOwner(a.o.Dir)
	a.owner.policy = a.o.Policy
	a.incarnation = loadSeen(a.o.Dir, a.profile.Fingerprint)
	reports, err := loadOutbox(a.o.Dir)
	for _, r := range reports {
		a.held[r.AttemptRef] = &attempt{AttemptRef: r.AttemptRef, report: &r.Report, body: int64(len(r.body))}
	}
	if len(reports) > 0 {
		poke(a.mail)
	}
	return err
}

// halt ends all work: guests first, so that the owner gets the processor back at once.
func (a *Agent) halt(cause error) {
	a.mu.Lock()
	a.halted = true
	a.mu.Unlock()
	a.returnAll(crowd.OwnerStopped)
	a.work.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastErr = cause
}

// poke wakes whoever waits on c, now or next time.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

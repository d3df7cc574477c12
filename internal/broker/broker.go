// Package broker is the role in the middle: it takes orders, leases chunks to hosts, compares what comes back and pays. One file per noun.
//
// The store is the truth: whatever is told to anybody was committed before. What the broker keeps in memory (living jobs, their open
// chunks and runs, hosts) is owned by one mutex, held only to decide and never while something is written: a decision becomes
// a list of ops that a small pool of workers commits, and its consequences follow when it is durable. Until then its chunk is
// busy and everything else that concerns the chunk waits in line.
package broker

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// Config is what a broker is made of.
type Config struct {
	Dir         string // blobs and uploads; the store has its own
	Store       *store.Store
	Key         ed25519.PrivateKey
	URL         string // as people and machines reach it, for join links
	Log         *slog.Logger
	PerGfuel    crowd.UCR     // pay for 10⁹ fuel
	FeePermille int           // of the pay, for the broker
	Keep        time.Duration // how long results of ended jobs are kept; 0: 30 days
	Version     string
	Now         func() time.Time // nil: time.Now
	// CheckProgram validates a program and says its Needs and Memory. nil: any program will do.
	CheckProgram func(ctx context.Context, wasm []byte) (crowd.Program, error)
}

// Broker implements what face.go says. Make it with New, then Run it.
type Broker struct {
	cfg         Config
	st          *store.Store
	log         *slog.Logger
	now         func() time.Time
	started     time.Time
	begun       time.Time // the same by the clock of the file system
	incarnation int64
	pool        pool
	events      bells // rung when events were added
	met         *metrics
	rates       rates
	idem        inflight
	uploads     inflightBlobs
	naming      sync.RWMutex // read: a blob gets its name and its owner; write: one without an owner is removed
	unfinished  unfinished
	offenders   offenders
	bodies      budget         // of uploaded outcomes in memory
	conns       sync.WaitGroup // sessions of the link

	mu       sync.Mutex // guards all below and what it points to
	accounts map[crowd.AccountID]*crowd.Account
	hosts    map[crowd.HostID]*host
	jobs     map[crowd.JobID]*job    // living
	ordering map[crowd.AccountID]int // orders that are being made
	ring     sched.Ring
	expiry   expiry
	bearers  map[string]*session
	learnt   map[string]float64 // fuel per unit by program, from verdicts of this life
	live     int                // attempts leased
	rouse    bool               // some chunk or job became leasable: idle hosts are to be looked at
	wake     chan struct{}
	recheck  chan struct{} // of size 1: there are revisits
	closing  bool
}

// New makes a broker over its store and takes up what was there before: every attempt that was live counts as held until Term+Skew from now.
func New(cfg Config) (*Broker, error) {
	b := &Broker{
		cfg: cfg, st: cfg.Store, log: cfg.Log, now: cfg.Now,
		accounts: map[crowd.AccountID]*crowd.Account{}, hosts: map[crowd.HostID]*host{}, jobs: map[crowd.JobID]*job{}, ordering: map[crowd.AccountID]int{},
		bearers: map[string]*session{}, learnt: map[string]float64{}, wake: make(chan struct{}, 1), recheck: make(chan struct{}, 1),
	}
	if b.now == nil {
		b.now = time.Now
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.started, b.begun = b.now(), time.Now()
	b.bodies.left = bodiesAtOnce
	b.pool.init()
	b.met = newMetrics(b)
	for _, d := range []string{"blobs", "uploads", "outcomes", "states"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o700); err != nil {
			return nil, crowd.Errorf(crowd.Internal, "", "make the broker's folder: %w", err)
		}
	}
	if err := makeBlobDirs(filepath.Join(cfg.Dir, "blobs")); err != nil {
		return nil, err
	}
	b.sweep()
	b.countUploads()
	if err := b.load(context.Background()); err != nil {
		return nil, err
	}
	b.disbelieve()
	b.keepOutcomes()
	b.keepStates()
	return b, nil
}

// sweep removes uploads that nobody came back for in a week.
func (b *Broker) sweep() {
	dir := filepath.Join(b.cfg.Dir, "uploads")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil && time.Since(st.ModTime()) > 7*24*time.Hour {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

const (
	tickEvery = 100 * time.Millisecond
	saveEvery = 3 * time.Second
	workers   = 128
)

// Run owns the broker's loops; it returns when ctx ends and all has been saved.
func (b *Broker) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	b.pool.start(&wg, workers)
	loops, stop := context.WithCancel(ctx)
	var lw sync.WaitGroup
	lw.Go(func() { b.tickLoop(loops) })
	lw.Go(func() { b.saveLoop(loops) })
	lw.Go(func() { b.dispatchLoop(loops) })
	lw.Go(func() { b.recountLoop(loops) })
	lw.Go(func() { b.keepLoop(loops) })
	lw.Go(func() { b.revisitLoop(loops) })
	lw.Go(func() { b.sweepBlobs(loops) })
	lw.Go(func() { b.sumLoop(loops) })
	b.rouseAll()
	<-ctx.Done()
	stop()
	lw.Wait()
	b.closeSessions()
	b.conns.Wait()
	b.pool.drain()
	wg.Wait()
	return b.saveAll(context.WithoutCancel(ctx))
}

func (b *Broker) tickLoop(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			b.tick(b.now())
		}
	}
}

func (b *Broker) saveLoop(ctx context.Context) {
	t := time.NewTicker(saveEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := b.saveAll(ctx); err != nil && ctx.Err() == nil {
				b.log.Error("can't save progress", "err", err)
			}
		}
	}
}

// commit applies ops durably; a nil answer means that they may be told.
func (b *Broker) commit(ctx context.Context, ops ...store.Op) error {
	t := b.met.applyStart()
	err := b.st.Apply(ctx, ops...)
	b.met.applyEnd(t)
	if err == nil {
		for _, op := range ops {
			if ev, ok := op.(store.AddEvent); ok {
				b.events.ring(ev.Event.Account)
			}
		}
	}
	return err
}

// apply commits ops by a worker and then calls done with b.mu held; done returns what is to be said, which happens without the lock.
func (b *Broker) apply(ops []store.Op, done func(err error) []func()) {
	b.pool.add(func() {
		err := b.commit(context.Background(), ops...)
		if err != nil {
			b.log.Warn("a change was refused", "err", err)
		}
		b.mu.Lock()
		after := done(err)
		b.mu.Unlock()
		for _, f := range after {
			f()
		}
		b.rouseIf()
	})
}

// mint makes a fresh id.
func mint[K crowd.Kind](b *Broker, id *crowd.ID[K]) {
	var r [10]byte
	_, _ = rand.Read(r[:])
	*id = crowd.MakeID[K](b.now(), r)
}

func (b *Broker) event(subject string, account crowd.AccountID, what string, reason crowd.Reason, text string, data crowd.EventData) store.AddEvent {
	return store.AddEvent{Event: crowd.Event{At: b.now(), Subject: subject, Account: account, Actor: "broker", What: what, Reason: reason, Text: text, Data: data}}
}

// pool is a fixed number of workers over a queue without end; what is in it is bounded by what hosts and callers may have open.
type pool struct {
	mu      sync.Mutex
	more    *sync.Cond
	queue   []func()
	closing bool
}

func (p *pool) init() { p.more = sync.NewCond(&p.mu) }

func (p *pool) add(f func()) {
	p.mu.Lock()
	p.queue = append(p.queue, f)
	p.mu.Unlock()
	p.more.Signal()
}

func (p *pool) start(wg *sync.WaitGroup, n int) {
	for range n {
		wg.Go(func() {
			for {
				p.mu.Lock()
				for len(p.queue) == 0 && !p.closing {
					p.more.Wait()
				}
				if len(p.queue) == 0 {
					p.mu.Unlock()
					return
				}
				f := p.queue[0]
				p.queue[0] = nil
				p.queue = p.queue[1:]
				p.mu.Unlock()
				f()
			}
		})
	}
}

// drain lets the workers finish the queue and end.
func (p *pool) drain() {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.more.Broadcast()
}

// bell wakes all who listen.
type bell struct {
	mu sync.Mutex
	c  chan struct{}
}

// listen returns a channel that is closed at the next ring.
func (b *bell) listen() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

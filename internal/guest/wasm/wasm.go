// Package wasm runs WASI units under wazero, each task in a caged process of its own.
//
// The engine lives in the agent and touches no stranger's bytes: preparing, compiling and running a program is done by
// children (the running binary again, see [ChildMain]), which can do nothing but compute and talk over two pipes. What
// a unit sees is the same on every host, to the bit: see unit and machine.run for the rules.
package wasm

import (
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/cage"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/wasmprep"
)

// Options of an engine. The zero value will do.
type Options struct {
	CacheDir   string       // of prepared programs; empty: a folder of its own, removed by Close
	CacheBytes int64        // the cache is kept below this; 0: 1 GiB
	Pool       int          // children kept waiting, so that a slot starts at once, while there is work: see poolIdle; 0: none
	SlotBytes  int64        // private memory of a child, where the system can limit it; 0: 6 GiB
	Self       string       // program to run as a child; empty: this one
	Log        *slog.Logger // nil: none
}

const (
	poolIdle  = 2 * time.Minute // without a slot being taken, then the waiting children end until the next
	mostCheck = 2               // programs that are checked at once; each child may take prepareData and a processor
)

// Engine implements [guest.Engine].
type Engine struct {
	o         Options
	cache     *cache
	own       string // cache folder to remove
	interpret bool   // for tests
	polite    bool   // for tests: freeze by frames

	idle     time.Duration // poolIdle, but for tests
	checking chan struct{} // a token for each Check

	pool   chan *process
	taken  chan struct{} // of size 1: a slot was taken
	stop   context.CancelFunc
	stopCh <-chan struct{}
	keeper sync.WaitGroup

	mu     sync.Mutex
	closed bool
	slots  map[*Slot]bool
	layers []guest.Layer
}

// New makes an engine and starts to fill its pool.
func New(o Options) (*Engine, error) {
	e := &Engine{o: o, slots: map[*Slot]bool{}}
	if err := e.open(); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Engine) open() error {
	if e.o.Log == nil {
		e.o.Log = slog.New(slog.DiscardHandler)
	}
	if e.o.CacheBytes <= 0 {
		e.o.CacheBytes = 1 << 30
	}
	if e.o.SlotBytes <= 0 {
		e.o.SlotBytes = 6 << 30
	}
	if e.idle == 0 {
		e.idle = poolIdle
	}
	if e.o.CacheDir == "" {
		dir, err := os.MkdirTemp("", "crowd-wasm-")
		if err != nil {
			return failed("make a folder for prepared programs: %w", err)
		}
		e.o.CacheDir, e.own = dir, dir
	}
	var err error
	e.cache, err = newCache(e.o.CacheDir, e.o.CacheBytes, e.o.Log, func(what, dir string) (*process, error) {
		return e.startAs(what, prepareData, dir)
	})
	if err != nil {
		return failed("open the program cache: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	e.stop, e.stopCh = stop, ctx.Done()
	e.pool, e.taken = make(chan *process, max(0, e.o.Pool-1)), make(chan struct{}, 1)
	e.checking = make(chan struct{}, mostCheck)
	if e.o.Pool > 0 {
		e.keeper.Go(e.keepPool)
	}
	return nil
}

func (e *Engine) startAs(what string, data int64, dir string) (*process, error) {
	p, err := startProcess(e.o.Self, e.polite, what, data, dir)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.layers = p.layers
	return p, nil
}

func (e *Engine) startRun() (*process, error) {
	return e.startAs(childRun, e.o.SlotBytes, e.cache.dir)
}

// keepPool holds one child more than the channel does, and so has Pool of them waiting; none when no slot was taken for a while: a machine
// that nobody has work for gets its memory back.
func (e *Engine) keepPool() {
	idle := time.NewTimer(e.idle)
	defer idle.Stop()
	for {
		p, err := e.startRun()
		if err != nil {
			e.o.Log.Warn("can't start a child for the pool", "err", err)
			select {
			case <-time.After(5 * time.Second):
				continue
			case <-e.stopCh:
				return
			}
		}
		if !e.offer(p, idle) {
			return
		}
	}
}

// offer holds p until a slot takes it, or until none was taken for long: then all that wait end, and offer returns with the next slot. It gives
// false when the engine is closed.
func (e *Engine) offer(p *process, idle *time.Timer) bool {
	for {
		select {
		case e.pool <- p:
			return true
		case <-e.taken:
			idle.Reset(e.idle)
		case <-e.stopCh:
			p.kill()
			return false
		case <-idle.C:
			for ; p != nil; p = e.waiting() {
				p.kill()
			}
			select {
			case <-e.taken:
				idle.Reset(e.idle)
				return true
			case <-e.stopCh:
				return false
			}
		}
	}
}

// Slot implements [guest.Engine].
func (e *Engine) Slot(ctx context.Context, job crowd.JobID) (guest.Slot, error) {
	s, err := e.slot(ctx, job)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (e *Engine) slot(ctx context.Context, job crowd.JobID) (*Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	p := e.waiting()
	select {
	case e.taken <- struct{}{}:
	default:
	}
	if p == nil {
		var err error
		if p, err = e.startRun(); err != nil {
			return nil, err
		}
	}
	s := &Slot{e: e, job: job, p: p, watch: newWatch()}
	e.mu.Lock()
	closed := e.closed
	if !closed {
		e.slots[s] = true
	}
	e.mu.Unlock()
	if closed {
		p.kill()
		return nil, failed("%w", errStopped)
	}
	return s, nil
}

// waiting takes a child from the pool that still lives.
func (e *Engine) waiting() *process {
	for {
		select {
		case p := <-e.pool:
			if !p.ended() {
				return p
			}
			p.kill()
		default:
			return nil
		}
	}
}

func (e *Engine) forget(s *Slot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.slots, s)
}

//go:embed bench/bench.wasm
var benchModule []byte

// Bench implements [guest.Engine]: the program is bench/bench.c.
func (e *Engine) Bench(ctx context.Context) (float64, error) {
	var job crowd.JobID
	s, err := e.slot(ctx, job)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	blobs := memoryBlobs{digest.Of(benchModule): benchModule}
	task := guest.Task{Job: job, Program: digest.Of(benchModule), Plans: []crowd.Plan{{Args: []string{"bench"}}}}
	o, _, err := s.Run(ctx, task, blobs, nil)
	if err != nil {
		return 0, err
	}
	if u := o.Units[0]; u.Failed() {
		return 0, failed("the measuring program ended with code %d %s", u.Exit, u.Reason)
	}
	return float64(o.Fuel()) / float64(max(1, s.ran)), nil // fuel a nanosecond is Gfuel a second
}

// Check prepares a program in a caged child, with limits of time and memory, and says what it is. An error of kind
// Invalid says what is wrong with it.
func (e *Engine) Check(ctx context.Context, module []byte) (wasmprep.Report, error) {
	if int64(len(module)) > crowd.Limits.ProgramBytes {
		return wasmprep.Report{}, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "the program has %d bytes, at most %d are possible", len(module), crowd.Limits.ProgramBytes)
	}
	select {
	case e.checking <- struct{}{}:
		defer func() { <-e.checking }()
	case <-ctx.Done():
		return wasmprep.Report{}, context.Cause(ctx)
	}
	p, err := e.startAs(childCheck, prepareData, "")
	if err != nil {
		return wasmprep.Report{}, err
	}
	defer p.kill()
	return prepareIn(ctx, p, newWatch(), module)
}

// Layers implements [guest.Engine]. It starts a child if there was none yet.
func (e *Engine) Layers() []guest.Layer {
	e.mu.Lock()
	layers := e.layers
	e.mu.Unlock()
	if layers != nil {
		return layers
	}
	p, err := e.startRun()
	if err != nil {
		return []guest.Layer{{Name: cage.Descriptors, Why: err.Error()}}
	}
	defer p.kill()
	return p.layers
}

// Close implements [guest.Engine].
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	var open []*Slot
	for s := range e.slots {
		open = append(open, s)
	}
	e.mu.Unlock()
	e.stop()
	var wg sync.WaitGroup
	for _, s := range open {
		wg.Go(func() { _ = s.Close() })
	}
	wg.Wait()
	e.keeper.Wait()
	for p := e.waiting(); p != nil; p = e.waiting() {
		p.kill()
	}
	e.cache.close()
	if e.own != "" {
		return os.RemoveAll(e.own)
	}
	return nil
}

// memoryBlobs are blobs in memory.
type memoryBlobs map[crowd.Digest][]byte

type memoryBlob struct{ b []byte }

func (m memoryBlobs) Open(_ context.Context, d crowd.Digest) (guest.Blob, error) {
	b, ok := m[d]
	if !ok {
		return nil, crowd.Errorf(crowd.NotFound, "", "no blob %s", d.Short())
	}
	return memoryBlob{b}, nil
}

func (m memoryBlob) ReadAt(p []byte, off int64) (int, error) {
	if off > int64(len(m.b)) {
		off = int64(len(m.b))
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, errors.New("beyond the end")
	}
	return n, nil
}

func (m memoryBlob) Close() error { return nil }
func (m memoryBlob) Size() int64  { return int64(len(m.b)) }

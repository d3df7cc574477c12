package wasm

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/guest"
)

const (
	window    = 16              // units that a child is given ahead
	loadTime  = 5 * time.Minute // for a child to load a program
	silence   = 2 * time.Minute // of running without a sign of life: five seconds is the rule
	maxHead   = 10 << 20        // of a unit that left maxNodes files
	maxStderr = int64(8 << 20)  // of a task's units together
	maxTime   = 30 * 24 * time.Hour
)

// Slot is a caged child process with one job.
type Slot struct {
	e     *Engine
	job   crowd.JobID
	p     *process
	watch *watch

	busy sync.Mutex // held by Run

	ice    sync.Mutex // held while freezing and thawing
	frozen atomic.Bool

	ran     time.Duration // by the units of the last Run
	closing sync.Once
}

// Freeze implements [guest.Slot].
func (s *Slot) Freeze() error { return s.setFrozen(true) }

// Thaw implements [guest.Slot].
func (s *Slot) Thaw() error { return s.setFrozen(false) }

func (s *Slot) setFrozen(on bool) error {
	s.ice.Lock()
	defer s.ice.Unlock()
	if s.frozen.Load() == on {
		return nil
	}
	s.frozen.Store(on)
	s.e.cache.freeze(s, on)
	if on {
		s.watch.freeze(true)
		return s.p.freeze()
	}
	err := s.p.thaw()
	s.watch.freeze(false)
	return err
}

// SetDuty lets the guest run only a share of the time, from 0.001 to 1, in turns of some milliseconds.
func (s *Slot) SetDuty(share float64) error {
	share = min(max(share, 0.001), 1)
	s.watch.setShare(share)
	return s.p.send(toDuty, binary.BigEndian.AppendUint16(nil, uint16(share*1000)))
}

// Close implements [guest.Slot].
func (s *Slot) Close() error {
	s.closing.Do(func() {
		s.p.kill()
		s.e.forget(s)
	})
	return nil
}

// Run implements [guest.Slot].
func (s *Slot) Run(ctx context.Context, t guest.Task, blobs guest.Blobs, progress func(done, fuel uint64)) (o *crowd.Outcome, contents []crowd.UnitContent, err error) {
	if !s.busy.TryLock() {
		return nil, nil, failed("the slot is running another task")
	}
	defer s.busy.Unlock()
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if t.Limits, err = checkTask(t, s.job); err != nil {
		return nil, nil, err
	}
	entry, err := s.e.cache.entry(ctx, t.Program, blobs, s)
	if err != nil {
		return nil, nil, err
	}
	defer entry.release()
	r := &run{s: s, t: t, blobs: newOpenBlobs(blobs), asks: make(chan ask, 1), room: make(chan struct{}, window), o: &crowd.Outcome{First: t.First}}
	defer r.blobs.closeAll()
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	r.progress = progress
	if err := r.do(ctx, entry.dir); err != nil {
		return nil, nil, err
	}
	s.ran = r.ran
	return r.o, r.contents, nil
}

// checkTask fills in the limits' defaults and refuses what no child should see.
func checkTask(t guest.Task, job crowd.JobID) (guest.Limits, error) {
	l := t.Limits
	if l.Memory <= 0 {
		l.Memory = crowd.DefaultMemory
	}
	if l.Output <= 0 {
		l.Output = crowd.DefaultOutput
	}
	if l.Disk <= 0 {
		l.Disk = crowd.DefaultDisk
	}
	if l.Time <= 0 {
		l.Time = crowd.DefaultTime
	}
	l.Output, l.Time = min(l.Output, crowd.Limits.OutcomeBytes), min(l.Time, maxTime)
	if t.Job != job {
		return l, failed("the slot is another job's")
	}
	if len(t.Plans) == 0 || uint64(len(t.Plans)) > crowd.Limits.UnitsPerChunk {
		return l, failed("a task of %d units, from 1 to %d are possible", len(t.Plans), crowd.Limits.UnitsPerChunk)
	}
	if (t.Every > 0 || t.State != nil) && len(t.Plans) != 1 {
		return l, failed("a task of %d units with checkpoints, 1 is possible", len(t.Plans))
	}
	if int64(len(t.State)) > crowd.Limits.StateBytes || t.State != nil && len(t.State) == 0 {
		return l, failed("a state of %d bytes to begin with, from 1 to %d are possible", len(t.State), crowd.Limits.StateBytes)
	}
	for i := range t.Plans {
		for _, in := range t.Plans[i].Inputs {
			if err := checkName(in.As); err != nil {
				return l, failed("input %q of unit %d: %w", in.As, t.Plans[i].Unit, err)
			}
		}
	}
	return l, nil
}

// run is one Run of a slot.
type run struct {
	s        *Slot
	t        guest.Task
	blobs    *openBlobs
	progress func(done, fuel uint64)
	asks     chan ask
	room     chan struct{} // a token for each unit under way

	mu    sync.Mutex // guards sent, and the watch's being busy with it
	sent  int
	ended int // units whose end was received

	ready  bool
	fuel   uint64
	ran    time.Duration
	total  int64 // bytes of all contents but stderr
	stderr int64

	state   []byte // a checkpoint that is being received
	states  int    // received
	burnt   uint64 // by the last of them
	unsaved bool   // was said

	head   []byte // of the unit that is being received
	parts  *parts
	asking atomic.Bool // an ask is being answered

	o        *crowd.Outcome
	contents []crowd.UnitContent
}

type ask struct {
	digest crowd.Digest
	off    int64
	n      int
}

// do runs the units. It owns the goroutines that feed the child; they have ended when it returns.
func (r *run) do(ctx context.Context, entry string) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var helpers sync.WaitGroup
	defer func() {
		if err != nil {
			r.s.p.kill() // unblocks who writes to it
		}
		r.s.watch.work(false, true)
		cancel(nil)
		helpers.Wait()
	}()
	l := r.t.Limits
	w := wireTask{Entry: entry, Keep: r.t.Keep, Memory: l.Memory, Output: l.Output, Disk: l.Disk, Fuel: l.Fuel, Interpret: r.s.e.interpret}
	if r.t.Save != nil {
		w.Every = r.t.Every
	}
	b, err := json.Marshal(w)
	if err != nil {
		return failed("%w", err)
	}
	r.s.watch.work(true, true)
	helpers.Go(func() {
		err := r.s.p.send(toTask, b)
		for piece := range slices.Chunk(r.t.State, statePiece) {
			if err == nil {
				err = r.s.p.send(toState, piece)
			}
		}
		if err == nil {
			err = r.feed(ctx)
		}
		if err != nil {
			cancel(err)
		}
	})
	helpers.Go(func() {
		if err := r.answer(ctx); err != nil {
			cancel(err)
		}
	})
	return r.listen(ctx)
}

// listen receives until the last unit has ended, and keeps the time.
func (r *run) listen(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	alive := r.s.p.alive.Load()
	for r.ended < len(r.t.Plans) {
		limit := loadTime
		if r.ready {
			limit = r.t.Limits.Time
		}
		wait, late, silent := r.s.watch.left(limit, silence)
		if n := r.s.p.alive.Load(); n != alive {
			alive, silent = n, false
			r.s.watch.heard()
		}
		switch {
		case late && r.ready:
			return crowd.Errorf(crowd.Failed, crowd.GuestTime, "unit %d ran longer than %v", r.t.First+uint64(r.ended), limit)
		case late:
			return failed("loading the program took longer than %v", limit)
		case silent:
			return failed("the guest's process gave no sign of life for %v", silence)
		}
		timer.Reset(wait)
		select {
		case f, ok := <-r.s.p.frames:
			if !ok {
				if ctx.Err() != nil && !r.s.p.isGone() {
					return context.Cause(ctx)
				}
				return r.s.p.died(frame{})
			}
			r.s.watch.heard()
			if err := r.receive(f); err != nil {
				return err
			}
		case <-ctx.Done():
			return r.cause(ctx)
		case <-r.s.watch.changed:
		case <-timer.C:
		}
	}
	return nil
}

// cause prefers what the child says of its end over what came of it.
func (r *run) cause(ctx context.Context) error {
	err := context.Cause(ctx)
	if e := (*crowd.Error)(nil); !errors.As(err, &e) || e.Reason != crowd.HostFailed || !r.s.p.ended() {
		return err
	}
	for f := range r.s.p.frames {
		if f.t == fromFailed {
			return r.s.p.died(f)
		}
	}
	return r.s.p.died(frame{})
}

// feed sends plans, at most window ahead of the ends.
func (r *run) feed(ctx context.Context) error {
	for i := range r.t.Plans {
		plan := r.t.Plans[i]
		plan.Inputs = append([]crowd.Input(nil), plan.Inputs...)
		for k := range plan.Inputs {
			in := &plan.Inputs[k]
			size, err := r.blobs.open(ctx, in.Digest)
			if err != nil {
				return err
			}
			in.Size, in.From = size, ""
		}
		b, err := json.Marshal(plan)
		if err != nil {
			return failed("%w", err)
		}
		select {
		case r.room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		r.mu.Lock()
		r.sent++
		if r.ready && r.sent == r.ended+1 {
			r.s.watch.work(true, true)
		}
		r.mu.Unlock()
		if err := r.s.p.send(toUnit, b); err != nil {
			return err
		}
	}
	return nil
}

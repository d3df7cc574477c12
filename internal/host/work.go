package host

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/link"
)

// attempt is one that this host holds: waiting for a slot, running, frozen, or reported but unacknowledged. Agent.mu guards all but the atomics.
type attempt struct {
	crowd.AttemptRef
	count   uint64
	account crowd.AccountID // whose job it is
	spec    *crowd.JobSpec
	items   []crowd.Input
	state   *crowd.Resume // what its unit goes on from; nil: nothing
	program crowd.Digest
	since   time.Time
	limit   time.Duration // of running, as the broker says; 0: none
	spent   time.Duration // running, not frozen
	memory  int64
	running bool
	slot    guest.Slot
	cancel  context.CancelCauseFunc // nil once it doesn't run
	report  *crowd.Report           // nil until it is done
	said    *link.Conn              // the connection on which the report was said
	body    int64                   // bytes of the outcome

	unitsDone, fuel atomic.Uint64
}

// stop ends its running for a reason; needs Agent.mu.
func (at *attempt) stop(why error) {
	if at.cancel != nil {
		at.cancel(why)
	}
}

// takeLease accepts an attempt or gives it back at once. A repeated lease of one that is held changes nothing.
func (a *Agent) takeLease(l *crowd.Lease) {
	a.mu.Lock()
	if l.Spec != nil {
		a.specs[l.Job] = l.Spec
	}
	spec := a.specs[l.Job]
	_, have := a.held[l.AttemptRef]
	w := a.owner.want(time.Now())
	reason, text := a.refusesLocked(l, spec, w)
	var at *attempt
	if !have && reason == "" {
		program, _ := crowd.ParseDigest(spec.Program)
		at = &attempt{
			AttemptRef: l.AttemptRef, count: l.Count, account: l.Account, spec: spec, items: l.Items, state: l.State, program: program, since: time.Now(),
			limit: l.Deadline, memory: memoryOf(spec),
		}
		a.held[l.AttemptRef] = at
		if len(a.held) == 1 {
			poke(a.changed) // from now on it is renewed more often
		}
	}
	a.mu.Unlock()
	switch {
	case have:
	case reason != "":
		a.giveBack(&crowd.Return{AttemptRef: l.AttemptRef, Reason: reason, Text: text})
	default:
		a.book.add(Entry{What: "chunk.started"}.about(at))
		a.mu.Lock()
		a.startLocked()
		a.mu.Unlock()
	}
}

// refusesLocked says why a lease can't be taken.
func (a *Agent) refusesLocked(l *crowd.Lease, spec *crowd.JobSpec, w wish) (crowd.Reason, string) {
	switch {
	case a.halted || a.up != nil:
		return crowd.OwnerStopped, ""
	case w.State != crowd.Ready:
		return w.Why, ""
	case spec == nil:
		return crowd.HostFailed, "the job's spec didn't come with its first lease"
	case l.Count == 0 || l.Count > crowd.Limits.UnitsPerChunk:
		return crowd.HostFailed, fmt.Sprintf("a chunk of %d units", l.Count)
	case badState(l, spec) != "":
		return crowd.HostFailed, badState(l, spec)
	case a.o.Policy.refuses(l.Account, spec) != "":
		return a.o.Policy.refuses(l.Account, spec), ""
	case memoryOf(spec) > a.o.Capacity.MemoryBytes:
		return crowd.HostSmall, ""
	}
	live := 0
	for _, at := range a.held {
		if at.report == nil {
			live++
		}
	}
	if live >= 2*a.o.Capacity.Slots {
		return crowd.HostBusy, ""
	}
	return "", ""
}

// memoryOf is what one slot takes at most: linear memory, files and output, all in memory.
func memoryOf(spec *crowd.JobSpec) int64 {
	l := guest.LimitsOf(spec)
	return l.Memory + l.Output
}

// startLocked lets waiting attempts run while there are slots and memory; needs a.mu.
func (a *Agent) startLocked() {
	if a.halted {
		return
	}
	for {
		var next *attempt
		busy, memory := 0, int64(0)
		for _, at := range a.held {
			switch {
			case at.running:
				busy++
				memory += at.memory
			case at.report == nil && (next == nil || at.since.Before(next.since)):
				next = at
			}
		}
		if next == nil || busy >= a.o.Capacity.Slots || busy > 0 && memory+next.memory > a.o.Capacity.MemoryBytes {
			return
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		next.running, next.cancel = true, cancel
		a.work.Go(func() { a.run(ctx, next) })
	}
}

// run is the life of an attempt in a slot.
func (a *Agent) run(ctx context.Context, at *attempt) {
	out, err := a.compute(ctx, at)
	if err == nil {
		err = a.keep(at, out)
	}
	a.mu.Lock()
	at.running, at.slot = false, nil
	at.cancel(nil)
	at.cancel = nil
	held := a.held[at.AttemptRef] == at
	if err != nil && held {
		delete(a.held, at.AttemptRef)
	}
	stopping := a.halted
	a.startLocked()
	a.mu.Unlock()
	switch {
	case err == nil && held:
		poke(a.mail)
	case err == nil: // dropped while it was being kept
		_ = os.Remove(outboxPath(a.o.Dir, at.AttemptRef))
	case held:
		r := &crowd.Return{AttemptRef: at.AttemptRef, Reason: crowd.HostFailed, Text: told(err)}
		var e *crowd.Error
		switch {
		case stopping:
			r.Reason, r.Text = crowd.OwnerStopped, ""
		case errors.As(err, &e) && returnable(e.Reason):
			r.Reason = e.Reason
		}
		if diskFull(err) {
			r.Reason = crowd.HostSmall
			a.mu.Lock()
			a.full = time.Now().Add(fullWait)
			a.mu.Unlock()
		}
		if r.Reason == crowd.HostFailed || r.Reason == crowd.HostSmall {
			a.log.Warn("an attempt failed here", "job", at.Job.Short(), "chunk", at.First, "err", err)
		}
		a.giveBack(r)
		a.book.add(Entry{What: "chunk.returned", Reason: r.Reason, Text: r.Text}.about(at))
	}
	poke(a.changed)
}

// fullWait is how long nothing more is taken when there was no space for what was done.
const fullWait = time.Minute

// told is what strangers are told of an error: nothing of this machine's folders.
func told(err error) string {
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case diskFull(err):
		return "the machine's disk is full"
	case errors.As(err, &p):
		return oneLine("the machine's disk: " + p.Err.Error())
	case errors.As(err, &l):
		return oneLine("the machine's disk: " + l.Err.Error())
	}
	return oneLine(err.Error())
}

func returnable(r crowd.Reason) bool {
	switch r {
	case crowd.GuestTime, crowd.HostSmall, crowd.HostFailed, crowd.OwnerPaused, crowd.OwnerSchedule, crowd.OwnerStopped, crowd.OwnerLeft, crowd.OwnerPolicy, crowd.OwnerSleep:
		return true
	}
	return false
}

// compute runs the guest and returns what it left. What a unit with checkpoints burns depends on where it was interrupted: its manifest says 0.
func (a *Agent) compute(ctx context.Context, at *attempt) (*outgoing, error) {
	plans, err := at.plans()
	if err != nil {
		return nil, err
	}
	slot, err := a.o.Engine.Slot(ctx, at.Job)
	if err != nil {
		return nil, cause(ctx, err)
	}
	defer func() { _ = slot.Close() }() // the engine keeps it warm for the job, unless something went wrong
	if err := a.adopt(ctx, at, slot); err != nil {
		return nil, cause(ctx, err)
	}
	begun := time.Now()
	task := guest.Task{Job: at.Job, Program: at.program, First: at.First, Plans: plans, Limits: guest.LimitsOf(at.spec), Keep: at.spec.Outputs.Keep}
	endKeeper := func(bool) {}
	if task.Every = at.spec.CheckpointEvery(); task.Every > 0 {
		if task.State, err = a.stateOf(ctx, at); err != nil {
			return nil, cause(ctx, err)
		}
		var k *keeper
		k, endKeeper = a.startKeeper(at)
		task.Save = func(state []byte, fuel uint64) {
			at.fuel.Store(fuel)
			k.save(state, fuel)
		}
	}
	o, contents, err := slot.Run(ctx, task, a.cache, func(done, fuel uint64) {
		at.unitsDone.Store(done)
		at.fuel.Store(fuel)
	})
	a.mu.Lock()
	at.slot = nil
	a.mu.Unlock()
	if err != nil {
		err = cause(ctx, err)
		_ = slot.Close() // before the last checkpoint: the machine is its owner's
		endKeeper(!errors.Is(err, errDropped))
		return nil, err
	}
	endKeeper(false)
	fuel := o.Fuel()
	if task.Every > 0 {
		for i := range o.Units {
			o.Units[i].Fuel = 0
		}
	}
	out := &outgoing{body: o.Body(contents)}
	if int64(len(out.body)) > crowd.Limits.OutcomeBytes {
		return nil, crowd.Errorf(crowd.Failed, crowd.HostFailed, "the outcome has %d bytes, at most %d go to the broker", len(out.body), crowd.Limits.OutcomeBytes)
	}
	at.unitsDone.Store(at.count)
	at.fuel.Store(fuel)
	out.Report = crowd.Report{AttemptRef: at.AttemptRef, Digest: digest.Of(o.Manifest()), Fuel: fuel, Seconds: time.Since(begun).Seconds()}
	if len(out.body) > crowd.Limits.InlineBody {
		out.Ref = digest.Of(out.body)
	}
	out.Sig = ed25519.Sign(a.profile.key, crowd.ReportBytes(a.profile.Host.ID, at.AttemptRef, out.Digest, out.Fuel))
	return out, nil
}

// leakSlack is added to a lease's bound, which doesn't know how long its files take to come.
const leakSlack = time.Hour

// ageLocked adds d to what running attempts have taken and stops those beyond their bounds, unless the owner has them frozen; needs a.mu.
func (a *Agent) ageLocked(d time.Duration) {
	if a.frozen {
		return
	}
	for _, at := range a.held {
		if !at.running || at.limit <= 0 {
			continue
		}
		if at.spent += d; at.spent > at.limit+leakSlack {
			at.stop(crowd.Errorf(crowd.Failed, crowd.GuestTime, "beyond the lease's bound of %v", at.limit))
		}
	}
}

// plans are its units', in order.
func (at *attempt) plans() ([]crowd.Plan, error) {
	plans := make([]crowd.Plan, at.count)
	if len(at.items) > 0 && uint64(len(at.items)) != at.count {
		return nil, crowd.Errorf(crowd.Invalid, crowd.HostFailed, "%d units came with %d files", at.count, len(at.items))
	}
	for i := range plans {
		var item *crowd.Input
		if len(at.items) > 0 {
			item = &at.items[i]
		}
		p, err := at.spec.Plan(at.Job, at.First+uint64(i), item)
		if err != nil {
			return nil, err
		}
		plans[i] = p
	}
	return plans, nil
}

// cause prefers why ctx ended over what that led to.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// adopt gives a slot to an attempt, frozen if the host is, and waits until it may run.
func (a *Agent) adopt(ctx context.Context, at *attempt, slot guest.Slot) error {
	a.gate.Lock()
	a.mu.Lock()
	at.slot = slot
	frozen, thawed := a.frozen, a.thawed
	a.mu.Unlock()
	if frozen {
		_ = slot.Freeze()
	}
	a.gate.Unlock()
	select {
	case <-thawed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// keep makes a finished attempt durable; from then on it is only forgotten by the broker's word.
func (a *Agent) keep(at *attempt, out *outgoing) error {
	crash.Point("outbox.before")
	if err := storeOutgoing(a.o.Dir, out); err != nil {
		return crowd.Errorf(crowd.Internal, crowd.HostFailed, "keep the outcome: %w", err)
	}
	crash.Point("outbox.after")
	a.mu.Lock()
	defer a.mu.Unlock()
	at.report, at.body = &out.Report, int64(len(out.body))
	return nil
}

// giveBack says so if there is a connection; else the next Renew, which doesn't list it, does.
func (a *Agent) giveBack(r *crowd.Return) {
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	if conn != nil {
		_ = conn.Send(&crowd.Message{Return: r})
	}
}

// returnAll gives back every attempt that isn't done.
func (a *Agent) returnAll(reason crowd.Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ref, at := range a.held {
		if at.report != nil {
			continue
		}
		if at.running {
			at.stop(crowd.Errorf(crowd.Unavailable, reason, "the owner has it back"))
			continue // run returns it
		}
		delete(a.held, ref)
		if a.conn != nil {
			_ = a.conn.Send(&crowd.Message{Return: &crowd.Return{AttemptRef: ref, Reason: reason}})
		}
	}
}

func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

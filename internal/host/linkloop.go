package host

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
)

const (
	answerWait = crowd.Term             // for the Answer to a Renew: a broker that is silent so long is dialled again
	renewGap   = 100 * time.Millisecond // between Renews at least: changes are gathered
	redialMost = 30 * time.Second
	steady     = time.Second     // a connection that held so long was no failed try
	napMost    = 2 * time.Second // a machine that slept longer doesn't trust its connection
)

// backoff is how long to wait before dial number try of a row, jittered so that a crowd doesn't come back all at once.
func backoff(try int) time.Duration {
	d := min(250*time.Millisecond<<min(try, 10), redialMost)
	return d/2 + rand.N(d)
}

// linkLoop keeps a connection until ctx ends or the broker is done with this host. nil: ctx ended, or the host has left.
func (a *Agent) linkLoop(ctx context.Context) error {
	try := 0
	for {
		up, err := a.connect(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // what the end of ctx led to
		}
		if done, err := a.final(err); done {
			return err
		}
		if up >= steady {
			try = 0
		}
		a.log.Info("the link is down", "err", err, "try", try)
		if again, now := a.between(ctx, a.o.backoff(try)); !again {
			return nil
		} else if now {
			try = 0
		} else {
			try++
		}
	}
}

// final reports whether another dial is no use, and what Run returns then.
func (a *Agent) final(err error) (bool, error) {
	a.mu.Lock()
	a.lastErr = err
	left := a.owner.Left
	a.mu.Unlock()
	e := crowd.AsError(err)
	if left && e != nil && e.Reason == crowd.OwnerLeft {
		a.book.add(Entry{What: "host.left", Reason: crowd.OwnerLeft})
		return true, nil
	}
	var c *link.Closed
	if errors.As(err, &c) && c.Problem.Final { // another key at that address may be a café's login page: that is dialled again
		return true, err
	}
	return false, nil
}

// wait waits for d, or less if ctx ends (false).
func (a *Agent) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connect is one connection, from dial to end; up is how long it was there.
func (a *Agent) connect(ctx context.Context) (up time.Duration, err error) {
	a.dials++
	o := link.DialOptions{
		URL: a.profile.Broker, TLS: seal.PinnedTLS(a.profile.Fingerprint), Pin: seal.Pin(a.profile.Fingerprint),
		LocalAddr: a.o.LocalAddr, Key: a.profile.key, Host: a.profile.Host.ID, Session: a.session, DialNumber: a.dials, Seen: a.sees,
	}
	conn, w, err := link.Dial(ctx, o)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	a.conn, a.bearer, a.lastErr = conn, w.Bearer, nil
	a.renewed, a.answered, a.speaks = 0, 0, w.Version
	a.hearLocked()
	a.trimSpecsLocked()
	close(a.online)
	since := time.Now()
	a.mu.Unlock()
	a.log.Info("connected", "broker", a.profile.Broker)
	poke(a.mail)

	answers := make(chan int64, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- a.listen(conn, answers)
	}()
	err = a.renewLoop(ctx, conn, answers, ended)

	if ctx.Err() != nil { // our own end: give everything back while there is a connection
		a.halt(nil)
	}
	a.mu.Lock()
	a.conn, a.bearer = nil, ""
	a.online = make(chan struct{})
	a.mu.Unlock()
	conn.Close(nil)
	<-conn.Done()
	if e := <-ended; err == nil {
		err = e
	}
	return time.Since(since), err
}

// hearLocked notes that the broker lives; needs a.mu.
func (a *Agent) hearLocked() { a.heard = a.clock.Advance(a.o.boot(), time.Now()) }

// trimSpecsLocked forgets the specs of jobs that nothing is held of when there are many: a new connection brings them again. Needs a.mu.
func (a *Agent) trimSpecsLocked() {
	if len(a.specs) < 1000 {
		return
	}
	kept := map[crowd.JobID]*crowd.JobSpec{}
	for ref := range a.held {
		if s := a.specs[ref.Job]; s != nil {
			kept[ref.Job] = s
		}
	}
	a.specs = kept
}

// listen acts on the broker's words until the connection ends.
func (a *Agent) listen(conn *link.Conn, answers chan<- int64) error {
	for {
		m, err := conn.Receive(context.Background())
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.hearLocked()
		if m.Answer != nil {
			a.answered = m.Answer.N
		}
		a.mu.Unlock()
		switch {
		case m.Answer != nil:
			for _, ref := range m.Answer.Drop {
				a.forget(ref, Entry{What: "chunk.dropped", Text: "it isn't this machine's any more"})
			}
			select {
			case answers <- m.Answer.N:
			default: // a flood of answers is no reason to wait
			}
		case m.Lease != nil:
			a.takeLease(m.Lease)
		case m.Cancel != nil:
			a.forget(m.Cancel.AttemptRef, Entry{What: "chunk.cancelled", Reason: m.Cancel.Reason})
		case m.Reported != nil:
			a.reported(m.Reported)
		}
	}
}

// renewLoop says what is: at once, when something changed, and as often as the lease protocol wants. It returns when the connection or ctx ends.
func (a *Agent) renewLoop(ctx context.Context, conn *link.Conn, answers <-chan int64, ended chan error) error {
	var n, answered int64
	first := true
	timer := time.NewTimer(0)
	defer timer.Stop()
	var overdue <-chan time.Time
	var sent time.Time
	slept := a.watchSleep()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			ended <- err // for connect
			return err
		case answered = <-answers:
			if answered >= n {
				overdue = nil
			}
			continue
		case <-overdue:
			return crowd.Errorf(crowd.Unavailable, crowd.NetworkBroker, "the broker hasn't answered for %v", answerWait)
		case <-a.changed:
			if gap := renewGap - time.Since(sent); gap > 0 {
				timer.Reset(gap)
				continue
			}
		case <-timer.C:
		}
		if d := slept(); d > napMost {
			a.http.CloseIdleConnections()
			return crowd.Errorf(crowd.Unavailable, crowd.NetworkBroker, "the machine slept for %v", d.Round(time.Second))
		}
		n++
		r, leave, every := a.renewal(n, first)
		if leave && !first {
			_ = conn.Send(&crowd.Message{Leave: &crowd.Leave{}})
		}
		if err := conn.Send(&crowd.Message{Renew: r}); err != nil {
			return err
		}
		sent, first = time.Now(), false
		if overdue == nil {
			overdue = time.After(answerWait)
		}
		timer.Reset(every)
	}
}

// watchSleep gives a function that tells for how long the machine slept since it was called last.
func (a *Agent) watchSleep() func() time.Duration {
	sample := func() (time.Time, time.Duration) {
		a.mu.Lock()
		defer a.mu.Unlock()
		now := time.Now()
		return now, a.clock.Advance(a.o.boot(), now)
	}
	mono, clock := sample()
	return func() time.Duration {
		now, c := sample()
		d := c - clock - now.Sub(mono)
		mono, clock = now, c
		return d
	}
}

// renewal is what is, now; leave: nothing is held any more and the owner wants to leave; every: until the next one.
func (a *Agent) renewal(n int64, first bool) (r *crowd.Renew, leave bool, every time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.owner.want(time.Now())
	if a.halted {
		w.State, w.Why = crowd.Leaving, crowd.OwnerStopped
	}
	a.renewed = n
	r = &crowd.Renew{N: n, State: w.State, Why: w.Why, Capacity: a.o.Capacity}
	if first {
		p := a.o.Platform
		r.Platform = &p
	}
	live := 0
	r.Memory = a.o.Capacity.MemoryBytes
	for ref, at := range a.held {
		if at.report == nil {
			live++
			r.Memory -= at.memory
		}
		r.Attempts = append(r.Attempts, crowd.Holding{
			AttemptRef: ref, Done: at.unitsDone.Load(), Fuel: at.fuel.Load(), Frozen: a.frozen && at.report == nil,
		})
	}
	r.Memory = max(0, r.Memory)
	if free := memoryFree(); free > 0 { // what the owner's own programs need isn't lent
		r.Memory = min(r.Memory, free)
	}
	if w.State == crowd.Ready && a.up != nil { // not for ever: w goes on being ready
		r.State, r.Why = crowd.Leaving, crowd.OwnerStopped
	} else if w.State == crowd.Ready {
		r.Room = max(0, a.o.Capacity.Slots-live)
	}
	if time.Now().Before(a.full) {
		r.Room = 0
	}
	every = crowd.IdlePing - rand.N(crowd.IdlePing/8) // or a crowd that came at once would ping at once for ever
	switch {
	case w.State == crowd.Leaving && len(r.Attempts) == 0 && !a.halted:
		leave, every = true, time.Second
	case len(r.Attempts) > 0:
		every = crowd.RenewEvery
	}
	return r, leave, every
}

// orphanedLocked reports whether no broker was heard for longer than what is computed may go on without; else left is how long it still may.
// Needs a.mu.
func (a *Agent) orphanedLocked(now time.Duration) (is bool, left time.Duration) {
	if a.conn != nil {
		return false, a.o.Grace
	}
	return lease.Orphaned(a.heard, now, a.o.Grace), a.heard + a.o.Grace - now + 1
}

package host

import (
	"context"
	"errors"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/sense"
)

const (
	dozeWait   = 2 * time.Second         // for all that is said before the machine sleeps
	sayWait    = 1700 * time.Millisecond // of these: for reports and checkpoints; the rest is for the broker's last answer
	askAgain   = time.Minute             // for somebody who says when it sleeps
	lookAround = 5 * time.Millisecond    // how often what is waited for is looked at
)

// sleepLoop does what a sleep wants that the system announces; where none does, nothing: the clocks tell afterwards.
func (a *Agent) sleepLoop(ctx context.Context) {
	sleep := a.o.sleep
	if sleep == nil {
		sleep = sense.Sleep
	}
	for {
		err := sleep(ctx, sense.SleepOptions{Before: func() { a.doze(ctx) }, After: a.wake})
		if ctx.Err() != nil || errors.Is(err, sense.ErrNever) {
			return
		}
		a.log.Debug("no word of sleep", "err", err)
		if !a.wait(ctx, askAgain) {
			return
		}
	}
}

// doze makes this machine fit to sleep: guests stop at once, what is done is said, and the rest goes back to be done elsewhere, without blame.
func (a *Agent) doze(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, dozeWait)
	defer cancel()
	a.mu.Lock()
	a.owner.asleep = true
	why := crowd.OwnerSleep
	if a.conn != nil && a.speaks < 2 {
		why = crowd.OwnerPaused // what a broker of version 1 knows
	}
	a.mu.Unlock()
	a.obey(time.Now())
	poke(a.mail)
	a.returnAll(why) // each after its newest checkpoint
	say, done := context.WithTimeout(ctx, sayWait)
	a.waitFor(say, func() bool { return a.conn == nil || len(a.held) == 0 })
	done()
	a.mu.Lock()
	n := a.renewed
	a.mu.Unlock()
	poke(a.changed) // the answer to this Renew says that the broker has heard all before it
	a.waitFor(ctx, func() bool { return a.conn == nil || a.renewed > n && a.answered > n })
}

// wake lends again. The old connection may be dead without knowing it: there is a new one at once.
func (a *Agent) wake() {
	a.mu.Lock()
	a.owner.asleep = false
	conn := a.conn
	a.mu.Unlock()
	a.obey(time.Now())
	poke(a.rethink)
	poke(a.awake)
	if conn != nil {
		conn.Close(nil)
	}
}

// between waits before the next dial: for d, or less if the machine woke up (now) or ctx ended (not again).
func (a *Agent) between(ctx context.Context, d time.Duration) (again, now bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true, false
	case <-a.awake:
		return true, true
	case <-ctx.Done():
		return false, false
	}
}

// waitFor waits until ok, which is called with a.mu held, or ctx ends.
func (a *Agent) waitFor(ctx context.Context, ok func() bool) bool {
	t := time.NewTicker(lookAround)
	defer t.Stop()
	for {
		a.mu.Lock()
		is := ok()
		a.mu.Unlock()
		if is {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
}

// liveLocked counts the attempts that aren't done; needs a.mu.
func (a *Agent) liveLocked() (n int) {
	for _, at := range a.held {
		if at.report == nil {
			n++
		}
	}
	return n
}

// unsaidLocked counts the reports that the broker hasn't acknowledged; needs a.mu.
func (a *Agent) unsaidLocked() int { return len(a.held) - a.liveLocked() }

package wasm

import (
	"sync"
	"time"
)

// watch measures how long a child has been running: not while it is frozen, not while it has nothing to do, and by its
// share of the time.
type watch struct {
	mu      sync.Mutex
	spent   time.Duration // since reset
	quiet   time.Duration // since heard
	since   time.Time     // of the last reckoning
	busy    bool
	frozen  bool
	share   float64
	changed chan struct{} // poked when the rate may have changed
}

func newWatch() *watch {
	return &watch{share: 1, since: time.Now(), changed: make(chan struct{}, 1)}
}

// reckon adds what passed; needs mu.
func (w *watch) reckon() {
	now := time.Now()
	d := now.Sub(w.since)
	w.since = now
	if w.busy && !w.frozen {
		w.quiet += d
		d = time.Duration(float64(d) * w.share)
		w.spent += d
	}
}

func (w *watch) set(f func()) {
	w.mu.Lock()
	w.reckon()
	f()
	w.mu.Unlock()
	w.poke()
}

func (w *watch) poke() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *watch) freeze(on bool)     { w.set(func() { w.frozen = on }) }
func (w *watch) setShare(f float64) { w.set(func() { w.share = f }) }

// work says whether there is something to do; time since the last reset starts anew if so wanted. It gives that time.
func (w *watch) work(busy, reset bool) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reckon()
	if busy && !w.busy {
		w.poke()
	}
	w.busy = busy
	spent := w.spent
	if reset {
		w.spent, w.quiet = 0, 0
	}
	return spent
}

// running is the time since the last reset.
func (w *watch) running() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reckon()
	return w.spent
}

func (w *watch) heard() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reckon()
	w.quiet = 0
}

// left tells how long until the limits of running and of silence are reached at today's rate, and whether they are.
// A watch that stands reaches nothing.
func (w *watch) left(running, silence time.Duration) (wait time.Duration, late, silent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reckon()
	late, silent = w.spent >= running, w.quiet >= silence
	if !w.busy || w.frozen {
		return time.Hour, late, silent
	}
	wait = min(time.Duration(float64(running-w.spent)/w.share), silence-w.quiet)
	return max(wait, time.Millisecond), late, silent
}

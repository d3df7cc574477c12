package wasm

import (
	"sync"
	"sync/atomic"
	"time"
)

const beatEvery = 5 * time.Second

// gate is where a guest pauses: at every poll it looks whether it may go on.
type gate struct {
	polls atomic.Uint64
	look  atomic.Bool // there is something to look at

	mu      sync.Mutex
	thawed  *sync.Cond
	frozen  bool
	running bool
	said    bool // that it is frozen
	duty    int  // thousandths of the time to run
	resumed time.Time
	ack     func()
}

func (g *gate) init(ack func()) {
	g.thawed = sync.NewCond(&g.mu)
	g.duty, g.ack = 1000, ack
}

// breath is called by the guest at polls.
func (g *gate) breath() {
	g.polls.Add(1)
	if !g.look.Load() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wait()
	const turn = 5 * time.Millisecond
	ran := time.Since(g.resumed)
	if g.duty >= 1000 || ran < turn {
		return
	}
	rest := min(ran, 10*turn) * time.Duration(1000-g.duty) / time.Duration(g.duty)
	for until := time.Now().Add(rest); g.duty < 1000 && time.Now().Before(until); {
		g.mu.Unlock()
		time.Sleep(min(time.Until(until), 20*time.Millisecond))
		g.mu.Lock()
		g.wait()
	}
	g.resumed = time.Now()
}

// wait stays as long as the guest is frozen; needs mu.
func (g *gate) wait() {
	if !g.frozen {
		return
	}
	for g.frozen {
		g.sayLocked()
		g.thawed.Wait()
	}
	g.resumed = time.Now()
}

func (g *gate) sayLocked() {
	if !g.said {
		g.said = true
		g.ack()
	}
}

// begin is called before the guest runs, end when it has ended.
func (g *gate) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wait()
	g.running, g.resumed = true, time.Now()
}

func (g *gate) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = false
	if g.frozen {
		g.sayLocked()
	}
}

func (g *gate) freeze(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frozen = on
	g.look.Store(g.frozen || g.duty < 1000)
	if !on {
		g.said = false
		g.thawed.Broadcast()
	} else if !g.running {
		g.sayLocked()
	}
}

func (g *gate) setDuty(thousandths int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.duty = min(max(thousandths, 1), 1000)
	g.resumed = time.Now()
	g.look.Store(g.frozen || g.duty < 1000)
}

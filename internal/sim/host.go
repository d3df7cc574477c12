package sim

import (
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
)

// machine is a host's hardware and disk; its processes come and go.
type machine struct {
	Host
	w        *world
	index    int
	pending  crowd.Book    // of its owner
	wall     time.Duration // what its wall clock is off by
	slept    time.Duration // in all
	procs    []*proc       // the last of them is the machine's own, the others were or are clones
	pinned   int64         // the highest incarnation it greeted
	outbox   []*task       // on disk: finished, not answered
	muteTill time.Duration // what it says is lost until then
	deafTill time.Duration // what it is told is lost until then
}

// proc is one life of an agent process.
type proc struct {
	m       *machine
	w       *world
	name    string
	clone   bool
	session crowd.SessionID
	dials   int64
	tries   int
	dead    bool
	asleep  bool
	paused  bool
	since   time.Duration // it fell asleep
	stopped []stopped     // what goes on when it is awake
	pinned  int64
	conn    *conn
	n       int64 // of its last Renew
	first   bool  // no Renew on this connection yet
	clock   lease.Clock
	tasks   []*task
}

// stopped is a timer of a process that sleeps.
type stopped struct {
	left time.Duration
	f    func()
}

// task is an attempt that a process holds.
type task struct {
	crowd.AttemptRef
	id       int
	count    uint64
	plan     *Job
	done     *report // in the outbox
	said     *conn   // on which it was last said
	saidAt   time.Duration
	deadline time.Duration // until when it may leave checkpoints, on the process's clock
	by       *store        // whose broker took the Renew behind deadline while the lease was live; nil: it wasn't
	seq      int64
	gone     bool
}

const (
	dialWait  = 5 * time.Second
	sayAgain  = 15 * time.Second
	stateEach = 3 * time.Second
	redial    = 8 * time.Second // at most, between dials
)

// start begins a life with what the disk holds.
func (m *machine) start() {
	p := &proc{m: m, w: m.w, name: m.Name, session: crowd.SessionID(m.w.random()), pinned: m.pinned}
	for _, t := range m.outbox {
		x := *t
		x.said = nil
		p.tasks = append(p.tasks, &x)
	}
	m.procs = append(slices.DeleteFunc(m.procs, func(p *proc) bool { return p.dead }), p)
	m.w.say(m.Name, "starts, %d reports in its outbox", len(p.tasks))
	p.dial()
}

// proc is the machine's own process; nil if there is none now.
func (m *machine) proc() *proc {
	for _, p := range m.procs {
		if !p.dead && !p.clone {
			return p
		}
	}
	return nil
}

// crash ends a life; another begins after down.
func (m *machine) crash(down time.Duration) {
	p := m.proc()
	if p == nil {
		return
	}
	m.w.say(m.Name, "crashes")
	p.die()
	if m.w.broke(NoOutbox) {
		m.outbox = nil
	}
	m.w.after(down, func() {
		if m.proc() == nil {
			m.start()
		}
	})
}

// sleep stops the machine's processes; its clocks go on.
func (m *machine) sleep(d time.Duration) {
	p := m.proc()
	if p == nil || p.asleep {
		return
	}
	w := m.w
	w.say(m.Name, "sleeps for %v", d)
	p.asleep, p.since = true, w.now
	if c := p.conn; c != nil && d > 4*time.Second && w.chance(0.7) { // the other end finds out
		w.after(w.between(2*time.Second, 20*time.Second), func() {
			if p.asleep && c.up {
				c.snap()
			}
		})
	}
	w.after(d, func() {
		if p.dead {
			return
		}
		p.asleep = false
		m.slept += w.now - p.since
		w.say(m.Name, "wakes")
		line := p.stopped
		p.stopped = nil
		for _, s := range line {
			p.run(s.left, s.f)
		}
	})
}

// clone makes a second process that goes on from what p is now: as when a virtual machine is copied.
func (m *machine) clone(p *proc) {
	x := &proc{m: m, w: m.w, name: m.Name + "'", clone: true, session: p.session, dials: p.dials, pinned: p.pinned, clock: p.clock, n: p.n}
	for _, t := range p.tasks {
		y := *t
		y.said = nil
		x.tasks = append(x.tasks, &y)
		if y.done == nil {
			x.work(&y)
		}
	}
	m.procs = append([]*proc{x}, m.procs...)
	m.w.say(m.Name, "is cloned")
	x.run(m.w.between(0, 3*time.Second), x.dial)
}

func (p *proc) die() {
	p.dead = true
	if c := p.conn; c != nil {
		c.down = true
		c.snap()
	}
}

// run lets f happen in this life after d of its own time, which stands still while it sleeps.
func (p *proc) run(d time.Duration, f func()) {
	if p.dead {
		return
	}
	if p.asleep {
		p.stopped = append(p.stopped, stopped{d, f})
		return
	}
	if d <= 0 {
		f()
		return
	}
	at := p.w.now + d
	p.w.after(d, func() {
		switch {
		case p.dead:
		case p.asleep:
			p.stopped = append(p.stopped, stopped{max(0, at-p.since), f})
		default:
			f()
		}
	})
}

// own is the time of this life's clock now.
func (p *proc) own() time.Duration {
	w, m := p.w, p.m
	boot := w.now + time.Duration(float64(w.now)*m.Drift)
	wall := epoch.Add(w.now + m.wall)
	if m.Blind {
		boot -= m.slept
	}
	if w.broke(SleepyClock) {
		return p.clock.Advance(w.now-m.slept, epoch)
	}
	return p.clock.Advance(boot, wall)
}

// dial begins a connection: greeting, pin, proof, welcome.
func (p *proc) dial() {
	w := p.w
	if p.conn != nil {
		return
	}
	p.dials++
	b := w.broker
	if w.ghost != nil && w.chance(0.4) {
		b = w.ghost
	}
	again := func() {
		p.tries++
		most := min(500*time.Millisecond<<min(p.tries, 5), redial)
		p.run(w.between(most/2, most), p.dial)
	}
	if b == nil {
		again()
		return
	}
	c := &conn{w: w, p: p, b: b, up: true}
	p.conn, p.first = c, true
	p.run(dialWait, func() {
		if p.conn == c && p.first && !c.broken { // no welcome
			c.endAtHost()
		}
	})
	hello := crowd.Hello{Host: w.store.hosts[p.m.index].ID, Session: p.session, Dial: p.dials}
	c.toBroker(func() {
		inc := b.s.incarnation
		c.toHost(func() {
			if p.conn != c {
				return
			}
			if inc < p.pinned && !w.broke(NoPin) {
				w.res.Refused++
				w.say(p.name, "refuses a broker of incarnation %d: it has seen %d", inc, p.pinned)
				c.endAtHost()
				return
			}
			w.judge.greeted(p, b, inc)
			p.pinned = max(p.pinned, inc)
			p.m.pinned = max(p.m.pinned, p.pinned)
			c.toBroker(func() {
				b.hearHello(c, hello)
				b.dispatch()
			})
		})
	})
}

// welcomed begins to renew.
func (p *proc) welcomed(c *conn) {
	if p.conn != c || !p.first {
		return
	}
	p.tries = 0
	p.renew(c)
	p.post(c)
}

// unlinked goes on without a connection, and dials again.
func (p *proc) unlinked(c *conn) {
	p.conn = nil
	p.tries++
	p.run(p.w.between(100*time.Millisecond, min(500*time.Millisecond<<min(p.tries, 5), redial)), p.dial)
}

// refused is the broker's last word: this session is void. A clone's owner stops it; the machine's own process starts anew.
func (p *proc) refused(c *conn) {
	if p.dead || p.conn != c {
		return
	}
	p.w.say(p.name, "is told that its session is void")
	p.die()
	if !p.clone {
		p.w.after(p.w.between(2*time.Second, 10*time.Second), func() {
			if p.m.proc() == nil {
				p.m.start()
			}
		})
	}
}

// renew says what is, now and then.
func (p *proc) renew(c *conn) {
	if p.conn != c {
		return
	}
	p.n++
	sent, n := p.own(), p.n
	r := &crowd.Renew{N: n, State: crowd.Ready}
	if p.paused {
		r.State, r.Why = crowd.Paused, crowd.OwnerPaused
	}
	busy := 0
	for _, t := range p.tasks {
		r.Attempts = append(r.Attempts, crowd.Holding{AttemptRef: t.AttemptRef})
		if t.done == nil {
			busy++
		}
	}
	if !p.paused {
		r.Room = max(0, p.m.Slots-busy)
	}
	p.first = false
	listed := slices.Clone(p.tasks)
	answered := false
	c.toBroker(func() {
		c.b.hearRenew(c, r, func(a *crowd.Answer, granted []int) {
			if p.conn == c {
				answered = true
				p.hearAnswer(a, sent, listed, granted, c.b.s)
			}
		})
	})
	p.run(crowd.Term, func() {
		if p.conn == c && !answered && n == p.n { // dial anew
			c.endAtHost()
		}
	})
	every := crowd.RenewEvery
	if len(p.tasks) == 0 {
		every = crowd.IdlePing
	}
	p.run(every, func() {
		if n == p.n {
			p.renew(c)
		}
	})
}

// hearAnswer takes what should be.
func (p *proc) hearAnswer(a *crowd.Answer, sent time.Duration, listed []*task, granted []int, by *store) {
	for _, t := range listed {
		if d := lease.HostDeadline(sent); d > t.deadline {
			if t.deadline, t.by = d, nil; slices.Contains(granted, t.id) {
				t.by = by
			}
		}
	}
	for _, ref := range a.Drop {
		if t := p.task(ref); t != nil && t.done == nil { // a report is kept until it is answered
			p.w.say(p.name, "drops chunk %s", title{p.w.store, ref})
			p.forget(t)
		}
	}
}

func (p *proc) task(ref crowd.AttemptRef) *task {
	for _, t := range p.tasks {
		if t.AttemptRef == ref {
			return t
		}
	}
	return nil
}

func (p *proc) forget(t *task) {
	t.gone = true
	p.tasks = slices.DeleteFunc(p.tasks, func(x *task) bool { return x == t })
	if t.done != nil && !p.clone {
		p.m.outbox = slices.DeleteFunc(p.m.outbox, func(x *task) bool { return x.id == t.id })
	}
	if c := p.conn; c != nil && !p.first { // there is room
		p.renew(c)
	}
}

// hearLease takes a chunk up.
func (p *proc) hearLease(c *conn, l *crowd.Lease, plan *Job, id int) {
	if p.conn != c || p.task(l.AttemptRef) != nil {
		return
	}
	t := &task{AttemptRef: l.AttemptRef, id: id, count: l.Count, plan: plan}
	if p.paused {
		p.giveBack(t, crowd.OwnerPaused)
		return
	}
	p.tasks = append(p.tasks, t)
	p.work(t)
	p.renew(c)
}

// work computes; every now and then it leaves a checkpoint, if the lease still is its to act on.
func (p *proc) work(t *task) {
	w := p.w
	_, fuel := truth(t.plan, t.Job, t.First, t.count)
	if !w.calm() && w.chance(w.net.Fails) {
		p.run(w.between(0, 2*time.Second), func() {
			if !t.gone {
				p.forget(t)
				p.giveBack(t, crowd.HostFailed)
			}
		})
		return
	}
	p.run(time.Duration(float64(fuel)/p.m.Speed)+time.Millisecond, func() {
		if !t.gone {
			p.finish(t)
		}
	})
	p.run(stateEach, func() { p.checkpoint(t) })
}

func (p *proc) checkpoint(t *task) {
	if t.gone || t.done != nil {
		return
	}
	p.run(stateEach, func() { p.checkpoint(t) })
	if c := p.conn; c != nil && !p.first && p.own() < t.deadline {
		p.w.judge.acts(p, t)
		seq := t.seq + 1
		c.toBroker(func() {
			c.b.hearState(c, t.AttemptRef, seq, func(a crowd.StateAnswer) {
				if a != crowd.StateConflict {
					t.seq = max(t.seq, seq)
				}
			})
		})
	}
}

// finish puts the answer into the outbox and says it.
func (p *proc) finish(t *task) {
	digest, fuel := truth(t.plan, t.Job, t.First, t.count)
	if p.w.chance(p.m.Lies) {
		salt := uint64(p.m.index + 1)
		if p.m.Alike {
			salt = 1 << 40
		}
		digest = hash(t.Job, t.First, t.count, salt)
	}
	t.done = &report{AttemptRef: t.AttemptRef, digest: digest, fuel: fuel, count: t.count, id: t.id}
	if !p.clone { // the clone's disk is another's
		x := *t
		p.m.outbox = append(p.m.outbox, &x)
	}
	p.w.judge.finished(p, t)
	p.w.say(p.name, "has done chunk %s", title{p.w.store, t.AttemptRef})
	if c := p.conn; c != nil && !p.first {
		p.post(c)
		p.renew(c)
	}
}

// post says what is in the outbox, once a connection and again after a while.
func (p *proc) post(c *conn) {
	if p.conn != c {
		return
	}
	for _, t := range p.tasks {
		if t.done == nil || t.said == c && p.w.now-t.saidAt < sayAgain {
			continue
		}
		t.said, t.saidAt = c, p.w.now
		r := t.done
		c.toBroker(func() { c.b.hearReport(c, r) })
		p.run(sayAgain, func() { p.post(c) })
	}
}

// hearReported ends an attempt: its answer is durable.
func (p *proc) hearReported(r *report, a crowd.ReportAnswer) {
	if t := p.task(r.AttemptRef); t != nil && t.done != nil && t.id == r.id {
		p.w.say(p.name, "hears that its chunk %s is %s", title{p.w.store, r.AttemptRef}, a)
		p.w.judge.answered(p, t)
		p.forget(t)
	}
}

// hearCancel stops an attempt.
func (p *proc) hearCancel(c *crowd.Cancel, id int) {
	if t := p.task(c.AttemptRef); t != nil && t.id == id && t.done == nil {
		p.forget(t)
	}
}

// giveBack returns an attempt undone.
func (p *proc) giveBack(t *task, reason crowd.Reason) {
	if c := p.conn; c != nil && !p.first {
		r := &crowd.Return{AttemptRef: t.AttemptRef, Reason: reason}
		c.toBroker(func() { c.b.hearReturn(c, r) })
	}
}

// pause takes the machine back for its owner.
func (p *proc) pause(d time.Duration) {
	p.w.say(p.name, "is paused by its owner for %v", d)
	p.paused = true
	for _, t := range slices.Clone(p.tasks) {
		if t.done == nil {
			p.forget(t)
			p.giveBack(t, crowd.OwnerPaused)
		}
	}
	p.run(d, func() {
		p.paused = false
		if c := p.conn; c != nil && !p.first {
			p.renew(c)
		}
	})
}

// forge reports on and leaves a checkpoint for an attempt that another holds.
func (p *proc) forge() {
	c, w := p.conn, p.w
	if c == nil || p.first {
		return
	}
	for _, j := range w.store.jobs {
		for _, k := range j.chunks {
			for _, a := range k.attempts {
				if a.index == p.m.index || !a.leased() {
					continue
				}
				r := &report{AttemptRef: a.ref(), digest: hash(j.ID, k.First, k.Count, 99), fuel: 1, count: k.Count}
				ref, seq := a.ref(), a.seq+1
				w.say(p.name, "forges a report of chunk %s", title{w.store, ref})
				c.toBroker(func() { c.b.hearReport(c, r) })
				c.toBroker(func() { c.b.hearState(c, ref, seq, func(crowd.StateAnswer) {}) })
				return
			}
		}
	}
}

package broker

import (
	"context"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

const (
	leasesAtOnce = 16          // in one commit for one host
	scanWanting  = 256         // open chunks looked at for one host
	openSpare    = 256         // open chunks of a job beyond four per slot
	leaseBytes   = int64(96e3) // of unit files in a lease
	leaseSlack   = time.Hour   // of a lease's bound beyond twice its units' time, for fetching and frozen hosts
)

// rouseAll looks at every idle host soon.
func (b *Broker) rouseAll() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// rouseIf does so if something became leasable.
func (b *Broker) rouseIf() {
	b.mu.Lock()
	r := b.rouse
	b.rouse = false
	b.mu.Unlock()
	if r {
		b.rouseAll()
	}
}

// dispatchLoop offers work to idle hosts when there is some.
func (b *Broker) dispatchLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		}
		b.mu.Lock()
		b.rouse = false
		if b.ring.Len() > 0 {
			for _, h := range b.hosts {
				b.queueHost(h)
			}
		}
		b.mu.Unlock()
	}
}

// queueHost puts a host with room in line for dispatch. Called with b.mu held.
func (b *Broker) queueHost(h *host) {
	if h.queued || h.room <= 0 || h.conn == nil || h.ready != crowd.Ready || h.State != crowd.HostActive || b.closing {
		return
	}
	if len(h.live) > 0 && h.overdue(b.now()) {
		return
	}
	h.queued = true
	b.pool.add(func() { b.dispatch(h) })
}

// dispatch leases chunks to a host until it has no room or nothing fits.
func (b *Broker) dispatch(h *host) {
	b.mu.Lock()
	h.queued = false
	given, ops := b.pick(h, b.now())
	b.mu.Unlock()
	if len(given) == 0 {
		return
	}
	err := b.commit(context.Background(), ops...)
	if err != nil && len(given) > 1 { // one that can't be leased takes none of the others along
		for _, g := range given {
			b.mu.Lock()
			ops := b.leaseOps(g)
			b.mu.Unlock()
			b.leased(h, []*attempt{g}, b.commit(context.Background(), ops...))
		}
	} else {
		b.leased(h, given, err)
	}
	b.mu.Lock()
	b.queueHost(h)
	b.mu.Unlock()
	b.rouseIf()
}

// pick chooses what a host gets and marks it in memory; the ops make it true. Called with b.mu held.
func (b *Broker) pick(h *host, now time.Time) (given []*attempt, ops []store.Op) {
	for len(given) < leasesAtOnce && h.room > 0 && h.conn != nil && !b.closing {
		cand := h.candidate()
		ok := b.ring.Next(func(id crowd.JobID) bool {
			j := b.jobs[id]
			if j == nil || j.ending || now.Before(j.resume) || now.Before(h.avoid[id]) || j.order.Now(&cand).Reason != "" {
				return false
			}
			a := b.take(j, h, now)
			if a == nil {
				return false
			}
			given = append(given, a)
			return true
		})
		if !ok {
			break
		}
		a := given[len(given)-1]
		h.room--
		h.memory -= a.chunk.job.order.Memory
		ops = append(ops, b.leaseOps(a)...)
	}
	return given, ops
}

func (b *Broker) leaseOps(a *attempt) []store.Op {
	c := a.chunk
	row := c.Chunk
	ops := []store.Op{store.Lease{Chunk: row, Attempt: a.Attempt}}
	if j := c.job; a == j.starter {
		run := j.Job
		run.State, run.Started, run.Reason = crowd.JobRunning, a.LeasedAt, ""
		ops = append(ops, store.SetJob{Job: run}, b.event(j.ID.String(), j.Account, "job.running", "", "the first chunk was leased", crowd.EventData{Job: j.ID, Host: a.host.ID}))
	}
	return ops
}

// take chooses a chunk of a job for a host: an open one that wants votes, else a new one; nil if there is none.
func (b *Broker) take(j *job, h *host, now time.Time) *attempt {
	c := b.takeOpen(j, h, now)
	if c == nil {
		c = b.cut(j, h, now)
	}
	if c == nil {
		return nil
	}
	a := &attempt{
		Attempt: crowd.Attempt{Job: j.ID, First: c.First, N: len(c.attempts) + 1, Host: h.ID, Owner: h.Account, Group: h.group,
			State: crowd.AttemptLeased, LeasedAt: now},
		chunk: c, host: h, counts: true, pending: true, session: h.session,
		until: lease.ExpiresAt(now), network: h.Network, expect: b.expected(j, c.Count),
	}
	a.Lineage = c.resumes()
	limit := time.Duration(j.Spec.Resources.Time) * time.Second
	if limit == 0 {
		limit = crowd.DefaultTime
	}
	a.stop = now.Add(min(time.Duration(min(c.Count, 1000))*limit*2+leaseSlack, 7*24*time.Hour) + crowd.Term)
	c.attempts = append(c.attempts, a)
	c.hold()
	h.accrue(now)
	if len(h.live) == 0 {
		h.due = now.Add(crowd.RenewEvery)
	}
	h.live[a.Ref()] = a
	b.live++
	j.atWork[h.ID]++
	j.leasedTo[h.ID] = true
	j.reserved += a.expect
	if j.State == crowd.JobQueued && j.starter == nil {
		j.starter = a
	}
	return a
}

func (b *Broker) takeOpen(j *job, h *host, now time.Time) *chunk {
	var best *chunk
	bestCost := 1 << 30
	tried := make([]sched.Tried, 0, 16)
	taker := sched.Taker{Group: h.group, Host: h.ID, Network: h.Network}
	kept := j.wanting[:0]
	i := 0
	for ; i < len(j.wanting) && i < scanWanting && bestCost > 0; i++ {
		c := j.open[j.wanting[i]]
		if c == nil {
			continue
		}
		if c.wants() <= 0 && !c.busy {
			c.listed = false
			continue
		}
		kept = append(kept, c.First)
		if c.busy {
			c.missed = true
			continue
		}
		tried = tried[:0]
		if slices.ContainsFunc(c.attempts, func(a *attempt) bool { return a.Attempt.Host == h.ID && a.State == crowd.AttemptExpired && h.lists(a) }) {
			continue // it is at it still, and that will count
		}
		if c.bars(h.group) {
			continue
		}
		for _, a := range c.attempts {
			tried = append(tried, sched.Tried{Group: a.Group, Host: a.Attempt.Host, Network: a.network, Seat: a.counts,
				Failed: a.State == crowd.AttemptFailed, Ago: now.Sub(a.EndedAt)})
		}
		if ok, cost := sched.MayTake(taker, tried); ok && cost < bestCost {
			best, bestCost = c, cost
		}
	}
	if i > len(kept) {
		j.wanting = append(kept, j.wanting[i:]...)
	}
	return best
}

// cut makes the next chunk of a job.
func (b *Broker) cut(j *job, h *host, now time.Time) *chunk {
	if j.next >= j.Units {
		return nil
	}
	if now.Sub(j.slotsAt) > time.Second || j.slotsAt.IsZero() {
		b.countSlots(j, now)
	}
	if len(j.open) >= 4*j.slots+openSpare {
		return nil
	}
	cut := sched.Cut{Fixed: j.Spec.Chunk, Left: j.Units - j.next, Slots: j.slots, Replicas: j.order.Need, Speed: sched.Speed(&h.Host), Known: j.chunks}
	if j.units > 0 {
		cut.FuelPerUnit = j.fuelSeen / float64(j.units)
	}
	if j.items != nil {
		cut.Most = j.items.most(j.next, leaseBytes)
	}
	n := cut.Units()
	if j.spec.CheckpointEvery() > 0 {
		n = 1
	}
	if n = min(n, b.affords(j)); n == 0 {
		return nil
	}
	c := &chunk{Chunk: crowd.Chunk{Job: j.ID, First: j.next, Count: n, Need: j.order.Need, State: crowd.ChunkOpen}, job: j}
	j.next += n
	j.open[c.First] = c
	j.Progress.Chunks++
	return c
}

// countSlots looks at which hosts a job's chunks may go to. Called with b.mu held.
func (b *Broker) countSlots(j *job, now time.Time) {
	j.slots, j.slotsAt = 0, now
	for _, x := range b.hosts {
		c := x.candidate()
		if x.conn != nil && j.order.Never(&c).Reason == "" {
			j.slots += max(1, x.Capacity.Slots)
		}
	}
}

// leased follows the commit of leases: what is durable is told.
func (b *Broker) leased(h *host, given []*attempt, err error) {
	crash.Point("lease.after")
	b.mu.Lock()
	var send []*crowd.Lease
	var to *session
	for _, a := range given {
		c, j := a.chunk, a.chunk.job
		a.pending = false
		if err != nil {
			b.log.Warn("a lease was refused", "job", j.ID.Short(), "chunk", c.First, "host", h.ID.Short(), "err", err)
			b.hostEnds(a)
			c.attempts = c.attempts[:len(c.attempts)-1]
			h.room++
			j.resume = b.now().Add(time.Second) // whatever it is, it isn't tried in a hot loop
			if j.starter == a {
				j.starter = nil
			}
		} else {
			if j.starter == a && j.State == crowd.JobQueued {
				j.State, j.Started, j.Reason = crowd.JobRunning, a.LeasedAt, ""
				j.bump(b.now())
			}
			j.Progress.Attempts++
			j.Progress.AtWork = len(j.atWork)
			b.touch(j)
			b.watchExpiry(a)
			b.met.leases.Inc()
			if h.conn != nil && a.leased() {
				to = h.conn
				send = append(send, b.leaseWords(a, to))
			}
		}
		b.free(c)
		b.want(c)
	}
	b.mu.Unlock()
	for _, l := range send {
		b.tell(to, l)
	}
}

// leaseWords are the words for an attempt; the spec is in the first lease of a job in a session. Called with b.mu held.
func (b *Broker) leaseWords(a *attempt, to *session) *crowd.Lease {
	j := a.chunk.job
	l := &crowd.Lease{AttemptRef: a.Ref(), Account: j.Account, Count: a.chunk.Count, Deadline: a.stop.Sub(a.LeasedAt), State: a.resume()}
	if !to.specs[j.ID] {
		to.specs[j.ID] = true
		l.Spec = j.spec
	}
	a.session = to.hello.Session
	return l
}

// tell sends a lease with the files of its units. One that can't be sent on a connection that lives would be held for ever: its attempt fails.
func (b *Broker) tell(to *session, l *crowd.Lease) {
	b.mu.Lock()
	j := b.jobs[l.Job]
	b.mu.Unlock()
	if j != nil && j.items != nil {
		items, err := j.items.slice(l.First, l.Count)
		if err != nil {
			b.log.Error("can't read the files of a chunk", "job", l.Job.Short(), "err", err)
			b.untold(to, l.AttemptRef)
			return
		}
		l.Items = items
	}
	if err := to.wire.Send(&crowd.Message{Lease: l}); crowd.KindIs(err, crowd.Internal) { // what is lost with its connection is said again
		b.log.Warn("can't send a lease", "job", l.Job.Short(), "chunk", l.First, "host", to.host.ID.Short(), "err", err)
		b.untold(to, l.AttemptRef)
	}
}

// untold fails the attempt of a lease that its host never got.
func (b *Broker) untold(to *session, ref crowd.AttemptRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := to.host.live[ref]
	if a == nil || a.session != to.hello.Session {
		return
	}
	to.host.avoid[ref.Job] = b.now().Add(sched.RetryAfter)
	a.chunk.when(func() {
		if a.leased() && to.host.live[ref] == a {
			b.endAttempt(a, crowd.AttemptFailed, crowd.HostFailed, "its lease could not be sent")
		}
	})
}

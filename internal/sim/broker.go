package sim

import (
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/quorum"
	"github.com/crowdcloud/crowd/internal/sched"
)

// broker is the model of a broker: what it holds beside the store is lost when it dies.
type broker struct {
	w     *world
	s     *store
	dead  bool
	began time.Time
	peers []*peer // by host
	works map[crowd.JobID]*work
	ring  sched.Ring
	rouse bool // something may have become leasable
}

// peer is a host as the broker sees it now.
type peer struct {
	row     *hostRow
	conn    *conn
	fresh   bool // no Renew on it yet
	broke   time.Time
	ready   crowd.Readiness
	room    int
	listed  []crowd.AttemptRef // by its last Renew
	holds   []*hold
	avoided map[crowd.JobID]time.Time
}

// hold is a live attempt.
type hold struct {
	j       *jobRow
	c       *chunkRow
	a       *attemptRow
	p       *peer
	until   time.Time
	suspect bool
	session crowd.SessionID // it was told to; zero: before this life of the broker
}

// work is a living job.
type work struct {
	j      *jobRow
	order  sched.Order
	losses int // in a row
	resume time.Time
	fuel   float64 // over units of verdicts
	units  uint64
	known  int64
}

// tx is what follows a transaction once it is durable.
type tx struct {
	b     *broker
	words []func()
}

func (t *tx) tell(f func()) { t.words = append(t.words, f) }

func newBroker(w *world, s *store) *broker {
	b := &broker{w: w, s: s, began: w.clock(), works: map[crowd.JobID]*work{}}
	for _, h := range s.hosts {
		b.peers = append(b.peers, &peer{row: h, ready: crowd.Paused, avoided: map[crowd.JobID]time.Time{}})
	}
	return b
}

// main reports whether this is the broker whose word counts.
func (b *broker) main() bool { return b.w.store == b.s }

// say adds to the trace; a ghost's words are marked.
func (b *broker) say(who, format string, args ...any) {
	if !b.w.o.Trace {
		return
	}
	if !b.main() {
		format = "(ghost) " + format
	}
	b.w.say(who, format, args...)
}

// after runs f, unless this life of the broker is over by then.
func (b *broker) after(d time.Duration, f func()) {
	b.w.after(d, func() {
		if !b.dead {
			f()
			b.dispatch()
		}
	})
}

// stop ends this life.
func (b *broker) stop() {
	b.dead = true
	for _, p := range b.peers {
		if p.conn != nil {
			p.conn.up = false
			p.conn.snap()
		}
	}
}

// act makes a transaction: all that change does to the store, or nothing, and then the words that it wants said, if the broker lives to say them.
func (b *broker) act(change func(*tx)) {
	if b.dead {
		return
	}
	w := b.w
	before, after := false, false
	if b.main() && !w.calm() && w.chance(w.net.Kill) {
		before = w.chance(0.5)
		after = !before
	}
	down := func() time.Duration { return w.between(100*time.Millisecond, 20*time.Second) }
	if before && !w.broke(WordFirst) {
		w.kill(down())
		return
	}
	t := &tx{b: b}
	if before {
		past := b.s.clone()
		change(t)
		for _, f := range t.words {
			f()
		}
		w.store = past
		w.kill(down())
		return
	}
	change(t)
	b.s.seq++
	if b.main() {
		w.res.Commits++
	}
	if after {
		w.kill(down())
		return
	}
	for _, f := range t.words {
		f()
	}
}

// load takes up what the store holds.
func (b *broker) load() {
	for _, j := range b.s.jobs {
		b.repost(j)
		if j.State.Ended() {
			continue
		}
		b.take(j)
		for _, c := range j.chunks {
			for _, a := range c.attempts {
				if a.leased() {
					h := &hold{j: j, c: c, a: a, p: b.peers[a.index], until: lease.AfterStart(b.began)}
					if b.w.broke(NoAfterStart) {
						h.until = lease.ExpiresAt(a.LeasedAt)
					}
					h.p.holds = append(h.p.holds, h)
					b.watch(h)
				}
			}
		}
	}
}

// take begins to work at a job.
func (b *broker) take(j *jobRow) *work {
	spec := &crowd.JobSpec{Verify: crowd.Verify{None: j.plan.Quorum <= 1, Quorum: j.plan.Quorum}}
	if spec.Verify.None {
		spec.Verify.Quorum = 0
	}
	k := &work{j: j, order: sched.NewOrder(spec, j.Account.String(), j.PerGfuel)}
	b.works[j.ID] = k
	b.ring.Add(j.Account, j.ID, 1)
	b.rouse = true
	return k
}

// watch looks at an attempt when it is to expire.
func (b *broker) watch(h *hold) {
	b.after(h.until.Sub(b.w.clock()), func() {
		switch {
		case !h.a.leased():
		case b.w.clock().Before(h.until):
			b.watch(h)
		default:
			b.lose(h)
		}
	})
}

// facts are what the table of the lease asks.
func (b *broker) facts(j *jobRow, c *chunkRow, a *attemptRow) lease.Facts {
	f := lease.Facts{State: a.State, Open: j.open(c), Voted: c.seat(a), Decided: c.State == crowd.ChunkDecided}
	if b.w.broke(GroupTwice) {
		f.Voted = false
	}
	return f
}

// drop takes an attempt out of its host's hands.
func (b *broker) drop(a *attemptRow) {
	p := b.peers[a.index]
	if i := slices.IndexFunc(p.holds, func(h *hold) bool { return h.a == a }); i >= 0 {
		p.holds = slices.Delete(p.holds, i, i+1)
	}
}

// lose ends a live attempt whose host is silent.
func (b *broker) lose(h *hold) {
	eff := lease.Step(b.facts(h.j, h.c, h.a), lease.Silent)
	b.act(func(*tx) {
		b.end(h.a, eff.State, crowd.HostLost)
		b.drop(h.a)
		b.say(b.name(h.a), "chunk %s expired", b.title(h.a.ref()))
	})
	if k := b.works[h.j.ID]; k != nil && !b.dead {
		if k.losses++; k.losses >= crowd.Limits.LossesInARow {
			k.losses, k.resume = 0, b.w.clock().Add(time.Minute)
			b.after(time.Minute, func() { b.rouse = true })
		}
	}
	b.rouse = true
}

// end moves an attempt that ends without an answer.
func (b *broker) end(a *attemptRow, state crowd.AttemptState, reason crowd.Reason) {
	a.State, a.Reason, a.EndedAt, a.counts, a.Paid = state, reason, b.w.clock(), false, 0
}

func (b *broker) name(a *attemptRow) string { return b.s.hosts[a.index].Name }

func (b *broker) title(r crowd.AttemptRef) title { return title{b.s, r} }

// dispatch gives hosts with room what there is.
func (b *broker) dispatch() {
	for b.rouse && !b.dead {
		b.rouse = false
		for _, p := range b.peers {
			for !b.dead && b.give(p) {
			}
		}
	}
}

// give leases one chunk to a host, if it has room and something fits.
func (b *broker) give(p *peer) bool {
	if p.conn == nil || p.room <= 0 || p.ready != crowd.Ready {
		return false
	}
	now := b.w.clock()
	cand := sched.Candidate{Host: &p.row.Host, Group: p.row.group, Online: true, Ready: p.ready, Room: p.room, Memory: 8 << 30, Link: crowd.ProtocolVersion}
	var j *jobRow
	var c *chunkRow
	cut := false
	ok := b.ring.Next(func(id crowd.JobID) bool {
		k := b.works[id]
		if k == nil || now.Before(k.resume) || now.Before(p.avoided[id]) || k.order.Now(&cand).Reason != "" {
			return false
		}
		j = k.j
		c = b.wanting(j, p)
		if cut = c == nil; cut {
			c = b.cut(k, p)
		}
		return c != nil
	})
	if !ok {
		return false
	}
	b.w.ids++
	a := &attemptRow{id: b.w.ids, index: p.row.index, counts: true, Attempt: crowd.Attempt{Job: j.ID, First: c.First, N: len(c.attempts) + 1,
		Host: p.row.ID, Owner: p.row.Account, Group: p.row.group, State: crowd.AttemptLeased, LeasedAt: now}}
	h := &hold{j: j, c: c, a: a, p: p, until: lease.ExpiresAt(now), session: p.conn.hello.Session}
	if b.w.broke(EarlyExpiry) {
		h.until = h.until.Add(-crowd.Skew)
	}
	conn := p.conn
	b.act(func(t *tx) {
		b.judge(func(u *judge) { u.leases(c, a, conn) })
		if cut {
			j.chunks = append(j.chunks, c)
			j.next = c.First + c.Count
		}
		if j.State == crowd.JobQueued {
			j.State, j.Started = crowd.JobRunning, now
		}
		c.attempts = append(c.attempts, a)
		if b.main() {
			b.w.res.Leases++
		}
		b.say("broker", "leases chunk %s to %s", b.title(a.ref()), p.row.Name)
		t.tell(func() { b.tellLease(conn, h) })
	})
	if !b.dead {
		p.room--
		p.holds = append(p.holds, h)
		b.watch(h)
		b.rouse = true
	}
	return true
}

func (b *broker) tellLease(conn *conn, h *hold) {
	h.session = conn.hello.Session
	b.judge(func(u *judge) { u.told(h.a.id, conn.hello.Session) })
	l := crowd.Lease{AttemptRef: h.a.ref(), Account: h.j.Account, Count: h.c.Count}
	id, plan := h.a.id, &h.j.plan
	conn.toHost(func() { conn.p.hearLease(conn, &l, plan, id) })
}

// judge calls f if this broker's deeds are judged.
func (b *broker) judge(f func(*judge)) {
	if b.main() {
		f(b.w.judge)
	}
}

// votes are the counted answers of a chunk.
func (b *broker) votes(c *chunkRow) (vs []quorum.Vote, by []*attemptRow) {
	for _, a := range c.attempts {
		if a.State == crowd.AttemptReported && a.counts {
			v := quorum.Vote{Digest: a.Digest, Group: a.Group, Host: a.Host}
			if b.w.broke(GroupTwice) {
				v.Group = a.Host.String()
			}
			vs = append(vs, v)
			by = append(by, a)
		}
	}
	return vs, by
}

// wants is how many more attempts a chunk should have now.
func (b *broker) wants(c *chunkRow) int {
	if c.State != crowd.ChunkOpen {
		return 0
	}
	vs, _ := b.votes(c)
	n := quorum.Decide(vs, c.Need).Want
	for _, a := range c.attempts {
		if !a.leased() {
			continue
		}
		suspect := slices.ContainsFunc(b.peers[a.index].holds, func(h *hold) bool { return h.a == a && h.suspect })
		if !suspect {
			n--
		}
	}
	return n
}

// wanting is the open chunk of a job that suits a host best; nil: none.
func (b *broker) wanting(j *jobRow, p *peer) (best *chunkRow) {
	taker := sched.Taker{Group: p.row.group, Host: p.row.ID, Network: p.row.Network}
	least := 1 << 30
	for _, c := range j.chunks {
		if b.wants(c) <= 0 {
			continue
		}
		var tried []sched.Tried
		atIt := false
		for _, a := range c.attempts {
			atIt = atIt || a.Host == p.row.ID && a.State == crowd.AttemptExpired && slices.Contains(p.listed, a.ref())
			x := sched.Tried{Group: a.Group, Host: a.Host, Network: b.s.hosts[a.index].Network, Seat: a.counts,
				Failed: a.State == crowd.AttemptFailed, Ago: b.w.clock().Sub(a.EndedAt)}
			if b.w.broke(GroupTwice) && a.Host != p.row.ID {
				x.Group = a.Host.String()
			}
			tried = append(tried, x)
		}
		if atIt { // that will count
			continue
		}
		if ok, cost := sched.MayTake(taker, tried); ok && cost < least {
			best, least = c, cost
		}
	}
	return best
}

// cut makes the next chunk of a job; it is the job's once it is leased.
func (b *broker) cut(k *work, p *peer) *chunkRow {
	j := k.j
	slots := 0
	for _, x := range b.peers {
		if x.conn != nil && x.row.State == crowd.HostActive {
			slots += x.row.Capacity.Slots
		}
	}
	cut := sched.Cut{Fixed: j.plan.Chunk, Left: j.Units - j.next, Slots: slots, Replicas: j.plan.Quorum, Speed: sched.Speed(&p.row.Host), Known: k.known}
	if k.units > 0 {
		cut.FuelPerUnit = k.fuel / float64(k.units)
	}
	n := cut.Units()
	if n == 0 {
		return nil
	}
	first := j.next
	if b.w.broke(DoubleCut) && first > 0 {
		first--
	}
	return &chunkRow{Chunk: crowd.Chunk{Job: j.ID, First: first, Count: n, Need: k.order.Need, State: crowd.ChunkOpen}}
}

package sim

import (
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/sched"
)

// report is a host's word that an attempt is done. count and id are the simulation's: what the manifest would tell, and which lease it was.
type report struct {
	crowd.AttemptRef
	digest crowd.Digest
	fuel   uint64
	count  uint64
	id     int
}

// hearHello admits a dial or not, by the rules for forks and second sessions.
func (b *broker) hearHello(c *conn, hello crowd.Hello) {
	if c.pair != nil { // said twice
		return
	}
	w := b.w
	var p *peer
	for _, x := range b.peers {
		if x.row.ID == hello.Host {
			p = x
		}
	}
	row := p.row
	final := func() {
		c.toHost(func() { c.p.refused(c) })
		w.after(time.Second, c.endAtBroker)
	}
	fork := hello.Session == row.session && hello.Dial <= row.dial
	switch {
	case row.voided[hello.Session]:
		b.say(row.Name, "dials in a void session: refused")
		final()
		return
	case fork && !w.broke(NoFork):
		b.act(func(t *tx) {
			b.judge(func(u *judge) { u.dials(row, hello) })
			if b.main() {
				w.res.Forks++
			}
			if !w.broke(VoidKept) {
				row.voided[hello.Session] = true
			}
			b.say(row.Name, "dial %d again: a clone, its session is void", hello.Dial)
			b.voidHeld(t, p, crowd.HostCloned)
			t.tell(final)
			if old := p.conn; old != nil {
				t.tell(func() {
					old.toHost(func() { old.p.refused(old) })
					old.endAtBroker()
				})
			}
		})
		return
	}
	b.act(func(t *tx) {
		b.judge(func(u *judge) { u.dials(row, hello) })
		if hello.Session != row.session && !row.session.IsZero() {
			row.voided[row.session] = true
		}
		row.session, row.dial = hello.Session, hello.Dial
		b.say(row.Name, "is connected, dial %d", hello.Dial)
		t.tell(func() {
			if old := p.conn; old != nil {
				other := old.hello.Session != hello.Session
				if other {
					old.toHost(func() { old.p.refused(old) })
				}
				p.conn = nil
				old.endAtBroker()
			}
			c.hello, c.pair = hello, p
			p.conn, p.fresh, p.room, p.listed, p.ready, p.broke = c, true, 0, nil, crowd.Paused, time.Time{}
			c.toHost(func() { c.p.welcomed(c) })
		})
	})
}

// lost notes that a connection is gone; a while later others may begin beside its attempts.
func (b *broker) lost(c *conn) {
	p := c.pair
	if p.conn != c {
		return
	}
	now := b.w.clock()
	p.conn, p.room, p.broke = nil, 0, now
	b.judge(func(u *judge) { u.brokeOff(p.row.index) })
	from := lease.NextFrom(now)
	if b.w.broke(EarlySuspect) {
		from = now.Add(crowd.SuspectFor / 4)
	}
	b.after(from.Sub(now), func() {
		if p.conn != nil || !p.broke.Equal(now) {
			return
		}
		for _, h := range p.holds {
			if lease.Step(b.facts(h.j, h.c, h.a), lease.Suspect).Next {
				h.suspect, b.rouse = true, true
			}
		}
	})
}

// hears reports whether a word on c is its host's to say.
func (b *broker) hears(c *conn) bool { return c.pair != nil && c.pair.conn == c }

// hearRenew takes what a host says is, and answers what should be. granted are the leases that it made longer.
func (b *broker) hearRenew(c *conn, r *crowd.Renew, got func(a *crowd.Answer, granted []int)) {
	if !b.hears(c) {
		return
	}
	now, p := b.w.clock(), c.pair
	p.ready = r.State
	p.listed = p.listed[:0]
	answer := &crowd.Answer{N: r.N}
	var granted []int
	for _, x := range r.Attempts {
		p.listed = append(p.listed, x.AttemptRef)
		if i := slices.IndexFunc(p.holds, func(h *hold) bool { return h.a.ref() == x.AttemptRef }); i >= 0 {
			h := p.holds[i]
			if lease.Step(b.facts(h.j, h.c, h.a), lease.Renew).Extend {
				h.until, h.suspect = lease.ExpiresAt(now), false
				if b.w.broke(EarlyExpiry) {
					h.until = h.until.Add(-crowd.Skew)
				}
				granted = append(granted, h.a.id)
				b.judge(func(u *judge) { u.heard(h.a.id) })
			}
			continue
		}
		j, ch, a := b.s.find(x.AttemptRef)
		if a == nil || a.Host != p.row.ID || lease.Step(b.facts(j, ch, a), lease.Renew).Drop {
			answer.Drop = append(answer.Drop, x.AttemptRef)
		}
	}
	flight := 0
	for _, h := range slices.Clone(p.holds) {
		switch {
		case slices.Contains(p.listed, h.a.ref()):
		case !p.fresh && !b.w.broke(EagerGone):
			flight++
		case (h.session == c.hello.Session || h.session.IsZero()) && !b.w.broke(EagerGone): // the lease was lost with an earlier connection
			flight++
			b.tellLease(c, h)
		default: // the process that had it is gone
			b.judge(func(u *judge) { u.gone(h.a.id, c.hello.Session) })
			b.lose(h)
		}
		if b.dead {
			return
		}
	}
	p.fresh = false
	p.room = max(0, r.Room-flight)
	if r.State != crowd.Ready {
		p.room = 0
	}
	b.rouse = true
	c.toHost(func() { got(answer, granted) })
	b.dispatch()
}

// hearReport takes an answer to a chunk.
func (b *broker) hearReport(c *conn, r *report) {
	if !b.hears(c) {
		return
	}
	w, p := b.w, c.pair
	j, ch, a := b.s.find(r.AttemptRef)
	reply := func(ans crowd.ReportAnswer) func() {
		return func() {
			b.judge(func(u *judge) { u.toldReport(a, r, ans) })
			c.toHost(func() { c.p.hearReported(r, ans) })
		}
	}
	b.judge(func(u *judge) { u.before(j, ch, a) })
	ans := crowd.ReportConflict
	switch {
	case a == nil || a.Host != p.row.ID && !w.broke(AnyHolder):
		b.say(p.row.Name, "report chunk %s %s -> conflict", b.title(r.AttemptRef), short(r.digest))
		reply(ans)()
	default:
		f := b.facts(j, ch, a)
		f.Same = a.Digest == r.digest
		if w.broke(PayRepeat) && f.Open && a.State == crowd.AttemptReported {
			f.State = crowd.AttemptExpired
		}
		if w.broke(DropLate) && f.State == crowd.AttemptExpired {
			f.State = crowd.AttemptFailed
		}
		eff := lease.Step(f, lease.Report)
		ans = eff.Answer
		if ans == crowd.ReportAccepted && r.count != ch.Count { // no manifest of that chunk
			ans = crowd.ReportVoid
			b.act(func(t *tx) {
				if a.leased() {
					b.failed(t, j, ch, a, crowd.HostFailed)
				}
				b.say(p.row.Name, "report chunk %s of other units -> void", b.title(r.AttemptRef))
				t.tell(reply(ans))
			})
			break
		}
		switch ans {
		case crowd.ReportAccepted:
			b.accept(j, ch, a, r, reply(ans))
		case crowd.ReportDecided:
			b.act(func(t *tx) {
				a.State, a.EndedAt, a.Digest, a.Fuel, a.counts = eff.State, w.clock(), r.digest, r.fuel, false
				b.drop(a)
				if w.broke(PayDecided) {
					b.payLate(j, ch, a)
				}
				if b.main() {
					w.res.Unpaid++
				}
				b.say(p.row.Name, "report chunk %s %s -> decided, unpaid", b.title(r.AttemptRef), short(r.digest))
				t.tell(reply(ans))
			})
		default:
			if a.State != eff.State && !w.broke(PayRepeat) {
				b.act(func(t *tx) {
					b.end(a, eff.State, a.Reason)
					b.drop(a)
					t.tell(reply(ans))
				})
			} else {
				reply(ans)()
			}
			b.say(p.row.Name, "report chunk %s %s -> %s", b.title(r.AttemptRef), short(r.digest), ans)
		}
	}
	if b.main() {
		w.res.Reports[string(ans)]++
	}
	b.judge(func(u *judge) { u.reported(p.row, ch, a, r, ans) })
	b.rouse = true
	b.dispatch()
}

// hearReturn ends an attempt undone.
func (b *broker) hearReturn(c *conn, r *crowd.Return) {
	if !b.hears(c) {
		return
	}
	p := c.pair
	i := slices.IndexFunc(p.holds, func(h *hold) bool { return h.a.ref() == r.AttemptRef })
	if i < 0 {
		return
	}
	h, reason := p.holds[i], r.Reason
	if !lease.MayReturn(reason) {
		reason = crowd.HostFailed
	}
	if reason.Party() != "owner" {
		p.avoided[r.Job] = b.w.clock().Add(sched.RetryAfter)
		b.after(sched.RetryAfter, func() { b.rouse = true })
	}
	b.act(func(t *tx) {
		b.say(p.row.Name, "returns chunk %s: %s", b.title(r.AttemptRef), reason)
		b.failed(t, h.j, h.c, h.a, reason)
	})
	b.rouse = true
	b.dispatch()
}

// failed ends an attempt that was given back or failed; too many of them fail the chunk.
func (b *broker) failed(t *tx, j *jobRow, c *chunkRow, a *attemptRow, reason crowd.Reason) {
	b.end(a, lease.Step(b.facts(j, c, a), lease.Return).State, reason)
	b.drop(a)
	n := 0
	for _, x := range c.attempts {
		if x.State == crowd.AttemptFailed && lease.Weigh(x.Reason) == lease.Failure {
			n++
		}
	}
	most := crowd.Limits.FailedAttempts
	if b.w.broke(SoonFailed) {
		most = 1
	}
	if n >= most && j.open(c) {
		b.giveUp(t, j, c)
		b.endIfDone(t, j)
	}
}

// hearState takes a checkpoint of an attempt: durable before it is answered, and only from who has it.
func (b *broker) hearState(c *conn, ref crowd.AttemptRef, seq int64, got func(crowd.StateAnswer)) {
	if !b.hears(c) {
		return
	}
	p := c.pair
	j, ch, a := b.s.find(ref)
	b.judge(func(u *judge) { u.before(j, ch, a) })
	ans := crowd.StateConflict
	say := func() { c.toHost(func() { got(ans) }) }
	mine := a != nil && a.Host == p.row.ID
	live := mine && (a.leased() || b.w.broke(StaleState))
	switch {
	case live && seq == a.seq+1:
		ans = crowd.StateAccepted
		b.act(func(t *tx) {
			a.seq = seq
			if b.main() {
				b.w.res.States++
			}
			t.tell(say)
		})
	case live && seq == a.seq:
		ans = crowd.StateRepeat
		say()
	default:
		say()
	}
	b.judge(func(u *judge) { u.stated(p.row, a, ans) })
}

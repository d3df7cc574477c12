package broker

import (
	"fmt"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/quorum"
	"github.com/crowdcloud/crowd/internal/store"
)

// verdict is a decided chunk on its way to the store: by[i] voted votes[i]; rows are the attempts as they will be.
type verdict struct {
	c       *chunk
	v       quorum.Verdict
	by      []*attempt
	rows    []crowd.Attempt
	outcome *crowd.Outcome
	body    crowd.Digest
	gross   crowd.UCR // each winner's pay, before the fee
	net     crowd.UCR // and after it
	total   crowd.UCR // out of escrow
	at      time.Time
	fuel    uint64 // that a winner is paid for
	cheats  []*host
	recheck []*job     // in which a cheat's word counts
	extra   []*attempt // still leased: not wanted any more
}

// verdictOps are the one transaction of a verdict: votes, chunk, pay, who is proved wrong. It takes the money from what the
// job has left at once; undo gives it back. Called with b.mu held.
func (b *Broker) verdictOps(d *verdict) (ops []store.Op, err error) {
	c, j, v := d.c, d.c.job, d.v
	n := crowd.UCR(len(v.Winners))
	d.net = d.gross - b.fee(d.gross)
	d.total = d.gross * n
	j.left -= d.total

	last := len(d.by) - 1
	end := func(i int) { // the newest vote has yet to be recorded; of the others only what changed
		ops = append(ops, store.End{Attempt: d.rows[i], Counts: d.rows[i].State == crowd.AttemptReported, Body: d.body})
	}
	for _, i := range v.Winners {
		said := d.rows[i].Paid
		d.rows[i].Paid = d.net
		if i == last {
			end(i)
		} else if said != d.net { // the fee changed since
			ops = append(ops, store.SetPaid{Attempt: d.rows[i]})
		}
	}
	for _, i := range v.Losers {
		d.rows[i].Paid = 0
		if v.Convict && c.mixed(d.by[i]) { // whose fault it is nobody knows
			d.rows[i].State, d.rows[i].Reason = crowd.AttemptVoid, crowd.HostLineage
			end(i)
		} else if v.Convict {
			d.rows[i].State, d.rows[i].Reason = crowd.AttemptVoid, crowd.HostCheated
			end(i)
			ops = append(ops, b.convictOps(d, i)...)
		} else if i == last {
			end(i)
		}
	}
	for _, a := range c.attempts {
		if a.leased() && a != d.by[last] {
			row := a.Attempt
			row.State, row.EndedAt = crowd.AttemptExpired, d.at
			if a.suspect {
				row.Reason = crowd.HostLost
			}
			ops = append(ops, store.End{Attempt: row})
			d.extra = append(d.extra, a)
		}
	}
	row := c.Chunk
	row.State, row.Version, row.Digest, row.Failed, row.Decided = crowd.ChunkDecided, c.Version+1, v.Digest, d.outcome.FailedUnits(), d.at
	ops = append(ops, store.Decide{Chunk: row, Body: d.body})
	ops = append(ops, c.dropStates()...)
	legs, err := b.payLegs(d, row.Version)
	if len(legs) > 0 {
		ops = append(ops, store.Post{Postings: legs})
	}
	return ops, err
}

// convictOps quarantine the host of a vote that a verdict proves wrong.
func (b *Broker) convictOps(d *verdict, i int) []store.Op {
	c, j, h := d.c, d.c.job, d.by[i].host
	if h.State == crowd.HostQuarantined {
		return nil
	}
	d.cheats = append(d.cheats, h)
	row := h.Host
	if row.State.May(crowd.HostQuarantined) { // else it left
		row.State, row.Reason = crowd.HostQuarantined, crowd.HostCheated
	}
	row.Record.Differed++
	first, n := c.First, d.by[i].N
	owners := map[string]bool{}
	for _, w := range d.v.Winners {
		owners[d.by[w].Group] = true
	}
	data := crowd.EventData{Job: j.ID, Host: h.ID, First: &first, N: &n}
	text := fmt.Sprintf("chunk %d of %s: it answered %s; hosts of %d other owners agree on %s", c.First, j.ID.Short(), d.rows[i].Digest.Short(), len(owners), d.v.Digest.Short())
	ops, jobs := b.revisitOps(h)
	d.recheck = append(d.recheck, jobs...)
	return append(ops,
		store.PutHost{Host: row},
		b.event(h.ID.String(), h.Account, "host.quarantined", crowd.HostCheated, text, data),
		b.event(j.ID.String(), j.Account, "chunk.differed", crowd.HostCheated,
			fmt.Sprintf("%s differs from %d other owners on chunk %d: quarantined, unpaid", h.Name, len(owners), c.First), data),
	)
}

// undo takes back what verdictOps took in memory.
func (d *verdict) undo(j *job) { j.left += d.total }

// decided draws a verdict's consequences, once it is durable. Called with b.mu held.
func (b *Broker) decided(d *verdict) (out []func()) {
	c, j, v := d.c, d.c.job, d.v
	b.met.verdicts.Inc()
	j.Paid += d.total
	j.fuelSeen += float64(d.fuel)
	j.units += c.Count
	j.chunks++
	b.learnt[j.Spec.Program] = j.fuelSeen / float64(j.units)
	for _, i := range v.Winners {
		a := d.by[i]
		a.Attempt = d.rows[i]
		h, s := a.host, b.share(j, a.host)
		s.Counted++
		s.Earned += d.net
		j.earned[a.Owner] += d.net
		r := &h.Record
		r.Counted++
		r.Earned += d.net
		if seconds := a.EndedAt.Sub(a.LeasedAt).Seconds(); c.Need > 1 && seconds > 0 {
			r.Fuel += a.Fuel
			r.Seconds += seconds
			r.Speed = float64(r.Fuel) / 1e9 / r.Seconds
		}
		h.dirty = true
	}
	for _, i := range v.Losers {
		d.by[i].Attempt, d.by[i].counts = d.rows[i], false
		b.share(j, d.by[i].host).Differ++
		j.Progress.Differed++
		j.reasons[d.rows[i].Reason]++
	}
	for _, a := range d.extra {
		b.hostEnds(a)
		a.State, a.EndedAt, a.counts = crowd.AttemptExpired, d.at, false
		if a.suspect {
			j.Progress.Lost++
			j.reasons[crowd.HostLost]++
			b.share(j, a.host).Lost++
			a.host.Record.Lost++
		}
		if s := a.host.conn; s != nil {
			ref := a.Ref()
			out = append(out, func() { s.send(&crowd.Message{Cancel: &crowd.Cancel{AttemptRef: ref}}) })
			b.freed(s)
		}
	}
	for _, h := range d.cheats { // before the job may end
		for _, j := range d.recheck {
			b.revisit(j, h.ID)
		}
	}
	c.Digest = v.Digest
	b.chunkClosed(c, crowd.ChunkDecided, d.outcome.FailedUnits(), d.at)
	for _, h := range d.cheats {
		if h.State.May(crowd.HostQuarantined) {
			h.State, h.Reason = crowd.HostQuarantined, crowd.HostCheated
		}
		h.Record.Differed++
		h.dirty = true
		b.met.quarantined.Inc()
		b.voidLive(h, crowd.HostCheated)
		b.voidVotes(h, crowd.HostCheated)
	}
	return out
}

// disbelieve finishes at the start what a conviction had yet to do: the host's votes on open chunks count for nothing, nor do its live attempts.
func (b *Broker) disbelieve() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.hosts {
		if h.State == crowd.HostQuarantined && h.Reason == crowd.HostCheated {
			b.voidLive(h, crowd.HostCheated)
			b.voidVotes(h, crowd.HostCheated)
		}
	}
}

// voidLive takes every live attempt from a host; what it says to them is worth nothing. Called with b.mu held.
func (b *Broker) voidLive(h *host, reason crowd.Reason) {
	for _, a := range h.live {
		a.chunk.when(func() {
			b.stands(a, reason)
			if a.leased() && h.live[a.Ref()] == a {
				b.endAttempt(a, crowd.AttemptVoid, reason, "its lease is void")
				if s := h.conn; s != nil {
					ref := a.Ref()
					b.pool.add(func() { s.send(&crowd.Message{Cancel: &crowd.Cancel{AttemptRef: ref, Reason: reason}}) })
				}
			}
		})
	}
}

// voidVotes takes a host's votes on open chunks away. Called with b.mu held.
func (b *Broker) voidVotes(h *host, reason crowd.Reason) {
	for _, j := range b.jobs {
		for _, c := range j.open {
			for _, a := range c.attempts {
				if a.Attempt.Host != h.ID || a.leased() || a.State == crowd.AttemptVoid || a.State == crowd.AttemptFailed {
					continue
				}
				c.when(func() { b.voidVote(a, reason) })
			}
		}
	}
}

// stands looks again at the job of a convicted host's answer that became part of a verdict while the conviction was on its way to the store. Called
// with b.mu held.
func (b *Broker) stands(a *attempt, reason crowd.Reason) {
	if j := a.chunk.job; reason == crowd.HostCheated && a.chunk.State == crowd.ChunkDecided && a.State == crowd.AttemptReported && a.counts && !j.finishing {
		h := a.Attempt.Host
		b.revisit(j, h) // at once, and durably
		b.apply([]store.Op{store.PutRevisit{Job: j.ID, Host: h}}, func(error) []func() {
			b.revisit(j, h)
			return nil
		})
	}
}

func (b *Broker) voidVote(a *attempt, reason crowd.Reason) {
	c := a.chunk
	b.stands(a, reason)
	if c.State != crowd.ChunkOpen || !a.State.May(crowd.AttemptVoid) {
		return
	}
	row := a.Attempt
	row.State, row.Reason, row.Paid = crowd.AttemptVoid, reason, 0
	c.hold()
	b.apply([]store.Op{store.End{Attempt: row}}, func(err error) []func() {
		if err == nil {
			a.Attempt, a.counts = row, false
			b.doneWith(a)
			c.job.reasons[reason]++
		}
		b.free(c)
		b.want(c)
		return nil
	})
}

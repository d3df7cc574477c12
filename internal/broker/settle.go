package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/price"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// payFor is the pay for some fuel; it saturates.
func payFor(fuel uint64, perGfuel crowd.UCR) crowd.UCR {
	p, err := price.Pay(fuel, perGfuel)
	if err != nil {
		return math.MaxInt64 / 16 // more than any escrow, and a sum of some of them doesn't overflow
	}
	return min(p, math.MaxInt64/16)
}

// worth is what an answer earns if it is agreed on: its voted fuel. Nobody votes on an unchecked one, so it earns no more than
// the time that the broker saw it take can have burnt, at the speed that checked work showed; and the host's slots no more than they had time for
// together. seconds is what it takes of that time.
func (b *Broker) worth(j *job, a *attempt, row crowd.Attempt) (pay crowd.UCR, seconds float64) {
	h := a.host
	h.accrue(b.now())
	fuel, speed := row.Fuel, h.Record.Speed
	if speed <= 0 {
		speed = min(sched.Speed(&h.Host), 1)
	}
	seconds = min(row.EndedAt.Sub(row.LeasedAt).Seconds(), max(0, h.bank)+1e-3)
	if j.order.Need <= 1 {
		fuel = price.WitnessedFuel(fuel, seconds, speed)
	}
	return payFor(fuel, j.PerGfuel), min(seconds, float64(fuel)/1e9/speed)
}

// fee is the operator's part of a pay.
func (b *Broker) fee(gross crowd.UCR) crowd.UCR {
	_, fee, err := price.SplitFee(gross, b.cfg.FeePermille*price.FeeWhole/1000)
	if err != nil {
		return 0
	}
	return fee
}

// expected is what one attempt at n units will cost, by what was learnt so far; 0 while nothing was.
func (b *Broker) expected(j *job, n uint64) crowd.UCR {
	if j.units == 0 {
		return 0
	}
	return payFor(uint64(min(j.fuelSeen/float64(j.units)*float64(n), math.MaxUint64/2)), j.PerGfuel)
}

// estimate is what units may cost when one burns about fuel.
func (b *Broker) estimate(units uint64, fuel float64, need int) (low, likely, high crowd.UCR, err error) {
	return price.Estimate(units, uint64(math.Ceil(fuel)), need, b.cfg.PerGfuel)
}

// affords is how many more units what is left of a job's escrow pays for, beside what is at work.
func (b *Broker) affords(j *job) uint64 {
	cost := b.expected(j, 1)
	if cost <= 0 {
		return crowd.Limits.Units
	}
	return uint64(max(0, j.left-j.reserved) / cost / crowd.UCR(j.order.Need))
}

// payLegs move a verdict's pay out of escrow.
func (b *Broker) payLegs(d *verdict, version int) ([]crowd.Posting, error) {
	pays := make([]ledger.Pay, 0, len(d.v.Winners))
	for _, i := range d.v.Winners {
		pays = append(pays, ledger.Pay{Owner: d.rows[i].Owner, Amount: d.net})
	}
	return ledger.Verdict(d.c.Job, d.c.First, version, pays, d.total-d.net*crowd.UCR(len(pays)), d.at)
}

// endJob ends a job as soon as nothing of it is being committed: what was earned settles and the rest goes back. Called with b.mu held.
func (b *Broker) endJob(j *job, state crowd.JobState, reason crowd.Reason, text string) {
	if j.ending {
		return
	}
	j.ending = true
	j.end = func() (crowd.JobState, crowd.Reason, string) { return state, reason, text }
	b.ring.Remove(j.Account, j.ID)
	if j.busy == 0 {
		b.finish(j)
	}
}

// ending is the end of a job on its way to the store.
type ending struct {
	j       *job
	row     crowd.Job
	stopped []*attempt
}

// finish commits the end of a job, as soon as it is known who earned what. Called with b.mu held.
func (b *Broker) finish(j *job) {
	if j.finishing || j.recount != nil || len(j.revisits) > 0 {
		return
	}
	state, reason, text := j.end()
	if state == crowd.JobDone && j.Progress.UnitsDone < j.Units { // a verdict was taken back meanwhile
		b.goesOn(j)
		for _, c := range j.open {
			b.want(c)
		}
		return
	}
	j.finishing = true
	e := &ending{j: j, row: j.Job}
	e.row.State, e.row.Reason = state, reason
	var ops []store.Op
	for _, c := range j.open {
		ops = append(ops, c.dropStates()...)
		for _, a := range c.attempts {
			if a.leased() {
				r := a.Attempt
				r.State, r.Reason, r.EndedAt = crowd.AttemptFailed, reason, b.now()
				ops = append(ops, store.End{Attempt: r})
				e.stopped = append(e.stopped, a)
			} else if a.State == crowd.AttemptReported {
				ops = append(ops, store.End{Attempt: voided(a, reason)})
			}
		}
	}
	settle, err := b.endOps(e, slices.Clone(j.runs), j.earned, text)
	if err != nil { // it stays as it is; the next tick tries again
		b.log.Error("can't settle a job", "job", j.ID.Short(), "err", err)
		b.goesOn(j)
		return
	}
	ops = append(ops, settle...)
	b.apply(ops, func(err error) []func() {
		if err != nil { // the next tick tries again
			b.log.Error("can't end a job", "job", j.ID.Short(), "err", err)
			b.goesOn(j)
			return nil
		}
		return b.ended(e)
	})
}

// goesOn takes back that a job ends. Called with b.mu held.
func (b *Broker) goesOn(j *job) {
	j.ending, j.finishing = false, false
	b.ring.Add(j.Account, j.ID, 1)
}

// endWith ends a job in the transaction of its last verdict, whose ops take the money already, if nothing else of the job is under way; else it is
// nil. Called with b.mu held.
func (b *Broker) endWith(d *verdict) (*ending, []store.Op) {
	c, j := d.c, d.c.job
	if j.ending || j.recount != nil || len(j.revisits) > 0 || len(d.recheck) > 0 || j.busy > 0 || len(j.open) != 1 || j.Progress.UnitsDone+c.Count != j.Units {
		return nil, nil
	}
	j.ending, j.finishing = true, true
	b.ring.Remove(j.Account, j.ID)
	e := &ending{j: j, row: j.Job}
	e.row.State, e.row.Reason = crowd.JobDone, ""
	e.row.Paid += d.total
	p := &e.row.Progress
	p.UnitsDone += c.Count
	p.UnitsFailed += d.outcome.FailedUnits()
	p.ChunksDone++
	p.Differed += int64(len(d.v.Losers))
	for _, a := range d.extra {
		if a.suspect {
			p.Lost++
		}
	}
	earned := maps.Clone(j.earned)
	for _, i := range d.v.Winners {
		earned[d.rows[i].Owner] += d.net
	}
	ops, err := b.endOps(e, addRun(slices.Clone(j.runs), c.First, c.Count), earned, "every unit is decided")
	if err != nil { // the verdict stands; the end will be tried by itself
		b.log.Error("can't settle a job", "job", j.ID.Short(), "err", err)
		b.goesOn(j)
		return nil, nil
	}
	return e, ops
}

// endOps settle a job: what was earned becomes the owners', the rest goes back. e.row is the job as it is to be but for when and what goes back. Called
// with b.mu held.
func (b *Broker) endOps(e *ending, runs []store.Run, earned map[crowd.AccountID]crowd.UCR, text string) ([]store.Op, error) {
	j, row, now := e.j, &e.row, b.now()
	row.Ended, row.Returned = now, j.left
	row.Progress.AtWork = 0
	row.Version = j.Version + 1
	ops := []store.Op{store.SetJob{Job: *row}, store.Done{Job: j.ID, Next: j.next, Runs: runs}}
	owners := make([]crowd.AccountID, 0, len(earned))
	for id := range earned {
		owners = append(owners, id)
	}
	slices.SortFunc(owners, func(a, b crowd.AccountID) int { return bytes.Compare(a[:], b[:]) })
	pays := make([]ledger.Pay, 0, len(owners))
	for _, id := range owners {
		pays = append(pays, ledger.Pay{Owner: id, Amount: earned[id]})
	}
	legs, err := ledger.Settle(j.ID, pays, now)
	back, err2 := ledger.Refund(j.ID, j.Account, j.left, now)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	if legs = append(legs, back...); len(legs) > 0 {
		ops = append(ops, store.Post{Postings: legs})
	}
	if !j.Key.IsZero() && j.left > 0 {
		ops = append(ops, store.Spend{Key: j.Key, Amount: -j.left})
	}
	return append(ops, b.event(j.ID.String(), j.Account, "job."+string(row.State), row.Reason,
		fmt.Sprintf("%s; held %s, paid %s, returned %s", text, money(j.Escrow), money(row.Paid), money(j.left)), crowd.EventData{Job: j.ID, UCR: j.left})), nil
}

// ended follows the commit of a job's end. Called with b.mu held.
func (b *Broker) ended(e *ending) (out []func()) {
	crash.Point("job.end.after")
	j := e.j
	for _, a := range e.stopped {
		b.hostEnds(a)
		a.State, a.Reason = crowd.AttemptFailed, e.row.Reason
		if s := a.host.conn; s != nil {
			ref := a.Ref()
			out = append(out, func() {
				s.send(&crowd.Message{Cancel: &crowd.Cancel{AttemptRef: ref, Reason: e.row.Reason}})
				b.mu.Lock()
				b.freed(s)
				b.mu.Unlock()
			})
		}
	}
	j.Job = e.row
	delete(b.jobs, j.ID)
	j.changed.ring()
	close(j.gone)
	for _, c := range j.open {
		b.removeStates(c)
		for _, a := range c.attempts {
			b.doneWith(a)
		}
	}
	for _, x := range j.line {
		out = append(out, func() { b.pool.add(func() { b.lateReport(x) }) })
	}
	b.met.jobsEnded.WithLabelValues(string(e.row.State)).Inc()
	return out
}

// saveAll writes down what changed of every living job and host.
func (b *Broker) saveAll(ctx context.Context) error {
	crash.Point("save.before")
	b.mu.Lock()
	var lists [][]store.Op
	var saved []*host
	for _, j := range b.jobs {
		if !j.dirty || j.ending || j.finishing {
			continue
		}
		j.dirty = false
		lists = append(lists, []store.Op{store.SetJob{Job: j.Job}, store.Done{Job: j.ID, Next: j.next, Runs: slices.Clone(j.runs)}})
	}
	var hosts []store.Op
	for _, h := range b.hosts {
		if h.dirty {
			h.dirty = false
			saved = append(saved, h)
			hosts = append(hosts, store.PutHost{Host: h.Host})
		}
	}
	b.mu.Unlock()
	var first error
	if len(hosts) > 0 {
		if first = b.commit(ctx, hosts...); first != nil { // the next time
			b.mu.Lock()
			for _, h := range saved {
				h.dirty = true
			}
			b.mu.Unlock()
		}
	}
	for _, l := range lists {
		// a job that ended meanwhile refuses; its end was saved
		if err := b.commit(ctx, l...); err != nil && !crowd.KindIs(err, crowd.Conflict) && first == nil {
			first = err
		}
	}
	return first
}

// money is an amount for people: "61.40 cr".
func money(u crowd.UCR) string { return cents(u) + " cr" }

// cents rounds to two decimals.
func cents(u crowd.UCR) string {
	sign := ""
	if u < 0 {
		sign, u = "-", -u
	}
	u = (u + 5_000) / 10_000
	return fmt.Sprintf("%s%d.%02d", sign, u/100, u%100)
}

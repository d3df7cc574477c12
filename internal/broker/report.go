package broker

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/quorum"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// answer is a report on its way: who said it, what it holds, and when it came. Its host's reporting names it until over.
type answer struct {
	s        *session
	r        *crowd.Report
	outcome  *crowd.Outcome // nil: it was malformed
	fault    string
	body     []byte
	held     int64 // bytes of the budget
	unfueled bool  // its manifest says no fuel: the unit has checkpoints
	at       time.Time
}

func (b *Broker) say(s *session, ref crowd.AttemptRef, a crowd.ReportAnswer) func() {
	b.met.reports.WithLabelValues(string(a)).Inc()
	return func() {
		crash.Point("answer.before")
		b.mu.Lock()
		if s.host.conn != nil { // it may have dialled again since
			s = s.host.conn
		}
		b.mu.Unlock()
		s.send(&crowd.Message{Reported: &crowd.Reported{AttemptRef: ref, Answer: a}})
	}
}

// reportsAtOnce is how many reports of a host may be in progress.
const reportsAtOnce = 1024

// hearReport takes a report up; one that says again what is in progress is dropped, since that will be answered. false ends the connection: the
// host says on the next what wasn't answered.
func (b *Broker) hearReport(s *session, r *crowd.Report) bool {
	b.mu.Lock()
	h := s.host
	known, many := h.reporting[r.AttemptRef], len(h.reporting) >= reportsAtOnce
	if !known && !many {
		h.reporting[r.AttemptRef] = true
	}
	b.mu.Unlock()
	switch {
	case known:
	case many:
		s.end(&crowd.Problem{Kind: crowd.Exhausted.String(), Text: "too many reports at once; dial again"})
		return false
	default:
		x := &answer{s: s, r: r, at: b.now()}
		b.pool.add(func() { b.report(x) })
	}
	return true
}

// over ends a report's being in progress. Called with b.mu held.
func (b *Broker) over(x *answer) {
	b.letGo(x)
	delete(x.s.host.reporting, x.r.AttemptRef)
}

// reply ends a report's being in progress and answers it. Called without b.mu.
func (b *Broker) reply(x *answer, a crowd.ReportAnswer) {
	b.mu.Lock()
	b.over(x)
	b.mu.Unlock()
	b.say(x.s, x.r.AttemptRef, a)()
}

// report takes an answer to a chunk. It is evidence about a pure unit: no lease makes it true, no lateness makes it false.
func (b *Broker) report(x *answer) {
	h, r := x.s.host, x.r
	if b.letIn(h.ID) != nil { // what a paused host said last isn't worth a look
		b.mu.Lock()
		b.over(x)
		b.mu.Unlock()
		return
	}
	if !ed25519.Verify(ed25519.PublicKey(h.Key), crowd.ReportBytes(h.ID, r.AttemptRef, r.Digest, r.Fuel), r.Sig) {
		b.log.Warn("a report's signature is wrong", "host", h.ID.Short(), "job", r.Job.Short(), "chunk", r.First)
		b.garbage(x.s, garbageForged, "the signature of a report was wrong")
		b.reply(x, crowd.ReportVoid)
		return
	}
	b.mu.Lock()
	a := b.openAttempt(r.AttemptRef)
	mine := a != nil && a.Attempt.Host == h.ID
	votes := mine && a.mayUpload()
	if votes {
		x.unfueled = a.chunk.job.spec.CheckpointEvery() > 0
	}
	b.mu.Unlock()
	weigh := func() {
		b.mu.Lock()
		a.chunk.when(func() { b.weigh(x, a) })
		b.mu.Unlock()
	}
	switch {
	case a == nil:
		b.lateReport(x)
	case !mine:
		b.garbage(x.s, garbageOther, "it reported another machine's work")
		b.reply(x, crowd.ReportConflict)
	case votes:
		b.withBody(x, a.chunk.Count, weigh)
	default: // whatever it holds changes nothing
		weigh()
	}
}

// again takes a report up once more in a while, if the store couldn't take it for want of room or the like. Its host isn't answered meanwhile. Called
// with b.mu held.
func (b *Broker) again(x *answer, j *job, err error) {
	if crowd.KindIs(err, crowd.Conflict) { // it will never take it
		b.over(x)
		return
	}
	b.letGo(x)
	j.line = append(j.line, x)
	j.retry = b.now().Add(time.Second)
}

// openAttempt finds an attempt at a chunk that is open, nil if there is none. Called with b.mu held.
func (b *Broker) openAttempt(ref crowd.AttemptRef) *attempt {
	j := b.jobs[ref.Job]
	if j == nil {
		return nil
	}
	c := j.open[ref.First]
	if c == nil || ref.N < 1 || ref.N > len(c.attempts) {
		return nil
	}
	return c.attempts[ref.N-1]
}

// weigh decides what a report is worth, by the table of evidence. Called with b.mu held, the chunk not busy.
func (b *Broker) weigh(x *answer, a *attempt) {
	c, j := a.chunk, a.chunk.job
	ref := a.Ref()
	if c.State != crowd.ChunkOpen || j.ending || b.jobs[j.ID] != j {
		b.letGo(x)
		if c.State == crowd.ChunkOpen && b.jobs[j.ID] == j {
			j.line = append(j.line, x)
		} else {
			b.pool.add(func() { b.lateReport(x) })
		}
		return
	}
	eff := lease.Step(lease.Facts{State: a.State, Open: true, Voted: c.seat(a), Same: a.Digest == x.r.Digest}, lease.Report)
	switch {
	case eff.Answer == crowd.ReportAccepted && x.outcome != nil:
		b.accept(x, a)
		return
	case eff.Answer == crowd.ReportAccepted:
		b.log.Warn("a report is malformed", "host", a.host.ID.Short(), "job", j.ID.Short(), "chunk", c.First, "fault", x.fault)
		eff.Answer = crowd.ReportVoid
		b.garbage(x.s, garbageContent, "a report was malformed: "+x.fault)
		b.doneWith(a)
		if a.host.live[ref] == a {
			b.freed(x.s)
		}
		if a.leased() {
			a.host.avoid[j.ID] = b.now().Add(sched.RetryAfter)
			b.endAttempt(a, crowd.AttemptFailed, crowd.HostFailed, "its report was malformed: "+x.fault)
		}
	}
	b.over(x)
	b.pool.add(b.say(x.s, ref, eff.Answer))
}

// freed notes that a host has room again. Called with b.mu held.
func (b *Broker) freed(s *session) {
	h := s.host
	if h.conn == s && h.ready == crowd.Ready {
		h.room++
		b.queueHost(h)
	}
}

// accept counts a vote; with it the chunk may be decided, paid and its job ended. Called with b.mu held.
func (b *Broker) accept(x *answer, a *attempt) {
	c, j := a.chunk, a.chunk.job
	row := a.Attempt
	row.State, row.Reason, row.EndedAt, row.Digest, row.Fuel = crowd.AttemptReported, "", x.at, x.r.Digest, x.r.Fuel
	votes, by := c.votes()
	votes = append(votes, quorum.Vote{Digest: row.Digest, Group: row.Group, Host: row.Host})
	v := quorum.Decide(votes, c.Need)

	body := crowd.Digest{}
	for i, o := range by {
		if votes[i].Digest == row.Digest && !o.body.IsZero() {
			body = o.body
		}
	}
	var ops []store.Op
	if body.IsZero() {
		body = digest.Of(x.body)
		ops = append(ops, store.PutBody{Job: j.ID, Digest: body, Body: x.body})
	}
	paid := row
	if j.spec.CheckpointEvery() > 0 {
		paid.Fuel = b.unvotedFuel(c, append(by[:len(by):len(by)], a), row, v.Winners)
	}
	gross, seconds := b.worth(j, a, paid)
	row.Paid = gross - b.fee(gross)                            // what it gets if the verdict is its own
	if v.Decided && gross*crowd.UCR(len(v.Winners)) > j.left { // nobody is paid a part, and nothing is told that wasn't paid for
		b.letGo(x)
		j.line = append(j.line, x)
		b.endJob(j, crowd.JobFailed, crowd.CustomerPrice, "what is left of price.max doesn't pay the next chunk")
		return
	}
	verdict := &verdict{c: c, v: v, by: append(by, a), rows: make([]crowd.Attempt, len(votes)), outcome: x.outcome, body: body, gross: gross, fuel: paid.Fuel, at: x.at}
	for i, o := range by {
		verdict.rows[i] = o.Attempt
	}
	verdict.rows[len(by)] = row
	var end *ending
	switch {
	case v.Decided:
		decide, err := b.verdictOps(verdict)
		if err != nil { // no answer
			b.log.Error("can't pay a verdict", "job", j.ID.Short(), "chunk", c.First, "err", err)
			verdict.undo(j)
			b.again(x, j, err)
			return
		}
		ops = append(ops, decide...)
		var last []store.Op
		end, last = b.endWith(verdict)
		ops = append(ops, last...)
	case v.Over:
		row.Paid = 0
		ops = append(ops, store.End{Attempt: row, Body: body})
		ops = append(ops, b.failChunkOps(c, crowd.CustomerQuorum, fmt.Sprintf("has %d answers that don't agree", len(votes)), x.at)...)
	default:
		ops = append(ops, store.End{Attempt: row, Counts: true, Body: body})
	}
	c.hold()
	a.host.bank -= seconds
	if v.Decided {
		crash.Point("verdict.before")
	}
	b.apply(ops, func(err error) (out []func()) {
		if err != nil {
			a.host.bank += seconds
			verdict.undo(j)
			if end != nil {
				b.goesOn(j)
			}
			b.again(x, j, err)
			b.free(c)
			b.want(c)
			return nil
		}
		b.over(x)
		if v.Decided {
			crash.Point("verdict.after")
		}
		if b.hostEnds(a) {
			b.freed(x.s)
		}
		a.Attempt, a.counts, a.body, a.suspect = row, true, body, false
		j.losses = 0
		b.doneWith(a)
		out = append(out, b.say(x.s, a.Ref(), crowd.ReportAccepted))
		switch {
		case v.Decided:
			out = append(out, b.decided(verdict)...)
			if end != nil {
				b.free(c)
				return append(out, b.ended(end)...)
			}
		case v.Over:
			b.chunkClosed(c, crowd.ChunkFailed, c.Count, x.at)
		}
		b.free(c)
		b.want(c)
		b.touch(j)
		return out
	})
}

// lateAgain is again for a report whose chunk isn't open.
func (b *Broker) lateAgain(x *answer, err error) {
	if crowd.KindIs(err, crowd.Conflict) {
		b.mu.Lock()
		b.over(x)
		b.mu.Unlock()
		return // no answer: the host says it again on its next connection
	}
	time.AfterFunc(time.Second, func() { b.pool.add(func() { b.lateReport(x) }) })
}

// lateReport answers a report whose chunk is no longer open, from what the store holds.
func (b *Broker) lateReport(x *answer) {
	ctx := context.Background()
	r, h := x.r, x.s.host
	rows, err := b.st.Attempts(ctx, r.Job, r.First)
	if err != nil && !crowd.KindIs(err, crowd.NotFound) {
		b.log.Error("can't look up a report's attempt", "err", err)
		b.lateAgain(x, err)
		return
	}
	var row *crowd.Attempt
	for i := range rows {
		if rows[i].N == r.N && rows[i].Host == h.ID {
			row = &rows[i]
		}
	}
	if row == nil {
		b.garbage(x.s, garbageUnknown, "it reported what it was never given")
		b.reply(x, crowd.ReportConflict)
		return
	}
	ans := lease.Step(lease.Facts{State: row.State, Same: row.Digest == r.Digest}, lease.Report).Answer
	if ans == crowd.ReportDecided {
		end := *row
		end.State, end.EndedAt, end.Digest, end.Fuel = crowd.AttemptReported, x.at, r.Digest, r.Fuel
		if err := b.commit(ctx, store.End{Attempt: end}); err != nil {
			b.log.Warn("a late report was refused", "err", err)
			b.lateAgain(x, err)
			return
		}
	}
	b.mu.Lock()
	if a := h.live[r.AttemptRef]; a != nil && b.hostEnds(a) {
		b.freed(x.s)
	}
	b.mu.Unlock()
	b.reply(x, ans)
}

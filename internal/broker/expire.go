package broker

import (
	"container/heap"
	"fmt"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/store"
)

// bumpEvery bounds how often a job's version rises by progress alone.
const bumpEvery = 200 * time.Millisecond

// touch notes that a reader could see a change of the job.
func (b *Broker) touch(j *job) {
	j.dirty, j.pending = true, true
	if now := b.now(); now.Sub(j.bumped) >= bumpEvery {
		j.bump(now)
	}
}

// bump raises the version and wakes those who watch; the last version is that of the job's end.
func (j *job) bump(now time.Time) {
	if j.finishing {
		return
	}
	j.Version++
	j.dirty, j.pending, j.bumped = true, false, now
	j.changed.ring()
}

// tick does what time alone causes. Loops call it; tests may.
func (b *Broker) tick(now time.Time) {
	b.mu.Lock()
	for len(b.expiry) > 0 && !now.Before(b.expiry[0].at) {
		a := heap.Pop(&b.expiry).(expiring).a
		switch {
		case !a.leased() || a.host.live[a.Ref()] != a:
		case now.Before(a.until) && now.Before(a.stop):
			heap.Push(&b.expiry, expiring{minTime(a.until, a.stop), a})
		default:
			if a.host.overdue(now) {
				a.host.room = 0 // until it says so again
			}
			b.lose(a, now)
		}
	}
	for _, h := range b.hosts {
		for id, at := range h.avoid {
			if !now.Before(at) {
				delete(h.avoid, id)
				b.rouse = true
			}
		}
		if h.conn == nil && !h.broke.IsZero() && !now.Before(lease.NextFrom(h.broke)) {
			b.suspect(h)
		}
	}
	for _, j := range b.jobs {
		if j.pending && now.Sub(j.bumped) >= bumpEvery {
			j.bump(now)
		}
		if !j.resume.IsZero() && !now.Before(j.resume) {
			j.resume = time.Time{}
			b.rouse = true
			if j.State == crowd.JobWaiting && !j.ending {
				j.State, j.Reason = crowd.JobRunning, ""
				j.bump(now)
				b.applySoon(store.SetJob{Job: j.Job}, b.event(j.ID.String(), j.Account, "job.running", "", "it goes on", crowd.EventData{Job: j.ID}))
			}
		}
		if len(j.line) > 0 && !j.ending && !now.Before(j.retry) { // it was to end, but goes on; or the store didn't take them
			for _, x := range j.line {
				b.pool.add(func() { b.report(x) })
			}
			j.line = nil
		}
		switch {
		case j.ending:
		case !j.deadline.IsZero() && !now.Before(j.deadline):
			b.endJob(j, crowd.JobCancelled, crowd.CustomerDead, "the order's deadline passed")
		case j.next < j.Units && len(j.atWork) == 0 && len(j.open) == 0 && b.affords(j) == 0:
			b.endJob(j, crowd.JobFailed, crowd.CustomerPrice, "what is left of price.max doesn't pay another chunk")
		case j.Progress.UnitsDone == j.Units && len(j.revisits) == 0: // its last two verdicts were committed side by side
			b.endJob(j, crowd.JobDone, "", "every unit is decided")
		}
	}
	b.mu.Unlock()
	b.rouseIf()
}

// suspect lets the next attempts start beside those of a host whose connection broke a moment ago. Called with b.mu held.
func (b *Broker) suspect(h *host) {
	h.broke = time.Time{}
	jobs := map[*job]int{}
	for _, a := range h.live {
		if !a.suspect {
			a.suspect = true
			jobs[a.chunk.job]++
			b.want(a.chunk)
		}
	}
	for j, n := range jobs {
		b.applySoon(b.event(j.ID.String(), j.Account, "host.silent", crowd.HostLost, fmt.Sprintf("%s went silent; %d chunks go to other hosts", h.Name, n), crowd.EventData{Job: j.ID, Host: h.ID}))
	}
}

// applySoon commits what nothing waits for.
func (b *Broker) applySoon(ops ...store.Op) {
	b.apply(ops, func(error) []func() { return nil })
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// lose ends a live attempt whose host went silent. It is evidence still: a late report may count. Called with b.mu held.
func (b *Broker) lose(a *attempt, now time.Time) {
	a.chunk.when(func() {
		if a.leased() && a.host.live[a.Ref()] == a {
			b.endAttempt(a, crowd.AttemptExpired, crowd.HostLost, "")
		}
	})
}

// endAttempt ends a live attempt without an answer; its chunk must not be busy. Called with b.mu held.
func (b *Broker) endAttempt(a *attempt, state crowd.AttemptState, reason crowd.Reason, text string) {
	c, j, h, now := a.chunk, a.chunk.job, a.host, b.now()
	row := a.Attempt
	row.State, row.Reason, row.EndedAt = state, reason, now
	if text == "" {
		text = fmt.Sprintf("chunk %d is free for another host", c.First)
	}
	n, first := a.N, c.First
	ops := []store.Op{
		store.End{Attempt: row},
		b.event(j.ID.String(), j.Account, "lease.ended", reason, h.Name+": "+text, crowd.EventData{Job: j.ID, Host: h.ID, First: &first, N: &n}),
	}
	var failed *chunk
	if state == crowd.AttemptFailed && blames(reason) {
		if n := c.blamed() + 1; n >= j.tries() && c.State == crowd.ChunkOpen {
			failed = c
			ops = append(ops, b.failChunkOps(c, reason, fmt.Sprintf("failed on %d hosts", n), now)...)
		}
	}
	if state == crowd.AttemptExpired && reason == crowd.HostLost {
		j.losses++
	}
	if j.losses >= crowd.Limits.LossesInARow && j.State == crowd.JobRunning && !j.ending {
		job := j.Job
		job.State, job.Reason = crowd.JobWaiting, crowd.BrokerLosses
		ops = append(ops, store.SetJob{Job: job}, b.event(j.ID.String(), j.Account, "job.waiting", crowd.BrokerLosses,
			fmt.Sprintf("%d hosts in a row were lost on it: it waits for 60 s", crowd.Limits.LossesInARow), crowd.EventData{Job: j.ID}))
		j.State, j.Reason, j.resume, j.losses = crowd.JobWaiting, crowd.BrokerLosses, now.Add(time.Minute), 0
	}
	c.hold()
	b.hostEnds(a)
	b.apply(ops, func(err error) []func() {
		if err == nil {
			a.Attempt, a.counts = row, false
			j.reasons[reason]++
			b.met.ended.WithLabelValues(string(state), string(reason)).Inc()
			if state != crowd.AttemptExpired {
				b.doneWith(a)
			} else {
				h.accrue(b.now())
				a.late = true
				h.late++
			}
			switch {
			case state == crowd.AttemptExpired:
				j.Progress.Lost++
				h.Record.Lost++
				b.share(j, h).Lost++
			case state == crowd.AttemptFailed && blames(reason):
				h.Record.Failed++
				b.share(j, h).Failed++
			}
			h.dirty = true
			if failed != nil {
				b.chunkClosed(c, crowd.ChunkFailed, c.Count, now)
			}
		} else {
			h.accrue(b.now())
			h.live[a.Ref()] = a // it is what it was
			b.live++
			j.atWork[h.ID]++
			a.until = now.Add(crowd.Term)
			b.watchExpiry(a)
		}
		b.free(c)
		b.want(c)
		b.queueHost(h)
		b.touch(j)
		b.rouse = true
		return nil
	})
}

// tries is how many attempts at one chunk may fail by themselves: the first and its retries.
func (j *job) tries() int {
	retries := crowd.DefaultRetries
	if r := j.spec.Retries; r != nil {
		retries = *r
	}
	return max(1, min(retries+1, crowd.Limits.FailedAttempts))
}

// failChunkOps close a chunk that can't be had.
func (b *Broker) failChunkOps(c *chunk, reason crowd.Reason, what string, now time.Time) []store.Op {
	row := c.Chunk
	row.State, row.Version, row.Failed, row.Decided = crowd.ChunkFailed, c.Version+1, c.Count, now
	first := c.First
	ops := append([]store.Op{store.Decide{Chunk: row}}, c.dropStates()...)
	for _, a := range c.attempts {
		if a.State == crowd.AttemptReported {
			ops = append(ops, store.End{Attempt: voided(a, "")})
		}
	}
	return append(ops,
		b.event(c.Job.String(), c.job.Account, "chunk.failed", reason, fmt.Sprintf("chunk %d %s: its %d units count as failed", c.First, what, c.Count),
			crowd.EventData{Job: c.Job, First: &first}))
}

// voided is an attempt's row when its vote counts for nothing.
func voided(a *attempt, reason crowd.Reason) crowd.Attempt {
	row := a.Attempt
	row.State, row.Reason, row.Paid = crowd.AttemptVoid, reason, 0
	return row
}

// chunkClosed takes a decided or failed chunk out of memory. Called with b.mu held after the commit.
func (b *Broker) chunkClosed(c *chunk, state crowd.ChunkState, failed uint64, now time.Time) {
	j := c.job
	c.State, c.Version, c.Failed, c.Decided = state, c.Version+1, failed, now
	delete(j.open, c.First)
	b.removeStates(c)
	for _, a := range c.attempts {
		b.doneWith(a)
	}
	j.runs = addRun(j.runs, c.First, c.Count)
	j.Progress.UnitsDone += c.Count
	j.Progress.UnitsFailed += failed
	j.Progress.ChunksDone++
	j.dirty = true
	b.touch(j)
	if j.Progress.UnitsDone == j.Units && !j.ending && len(j.revisits) == 0 {
		b.endJob(j, crowd.JobDone, "", "every unit is decided")
	}
}

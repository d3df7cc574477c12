package broker

import (
	"context"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/store"
)

// sumsAtOnce is how many chunks are added up in one read.
const sumsAtOnce = 20_000

// recount is what a job was before this start: who earned what over the chunks that were decided then. They change no more, so it is added up
// beside the work; the job's end waits for it.
type recount struct {
	runs  []store.Run    // decided at the start
	saved crowd.Progress // as the sums stood when they were last saved
	tally
}

// tally are sums over attempts.
type tally struct {
	shares   map[crowd.HostID]*crowd.HostShare
	earned   map[crowd.AccountID]crowd.UCR
	reasons  map[crowd.Reason]int
	attempts int64
	lost     int64
	chunks   int64
	failed   uint64
}

func newTally() tally {
	return tally{shares: map[crowd.HostID]*crowd.HostShare{}, earned: map[crowd.AccountID]crowd.UCR{}, reasons: map[crowd.Reason]int{}}
}

// add takes up attempts that ended alike; paid says that what they may have earned was paid: their chunk is decided.
func (t *tally) add(s store.AttemptSum, paid bool) {
	t.attempts += s.N
	if s.Reason != "" {
		t.reasons[s.Reason] += int(s.N)
	}
	h := t.shares[s.Host]
	if h == nil {
		h = &crowd.HostShare{Host: s.Host, Owner: s.Owner}
		t.shares[s.Host] = h
	}
	switch {
	case s.State == crowd.AttemptReported && paid:
		h.Counted += s.Agreed
		h.Earned += s.Earned
		t.earned[s.Owner] += s.Earned
	case s.Reason == crowd.HostLost:
		t.lost += s.N
		h.Lost += s.N
	case s.Reason == crowd.HostCheated:
		h.Differ += s.Differ
	case s.State == crowd.AttemptFailed && blames(s.Reason):
		h.Failed += s.N
	}
}

func (t *tally) page(s store.Sums) {
	t.chunks += s.Chunks
	t.failed += s.Failed
	for _, a := range s.Attempts {
		t.add(a, true)
	}
}

// addTo adds a tally to a job's sums. Called with b.mu held.
func (t *tally) addTo(b *Broker, j *job) {
	for id, s := range t.shares {
		h := b.hosts[id]
		if h == nil {
			continue
		}
		x := b.share(j, h)
		x.Counted += s.Counted
		x.Failed += s.Failed
		x.Lost += s.Lost
		x.Differ += s.Differ
		x.Earned += s.Earned
	}
	for id, e := range t.earned {
		j.earned[id] += e
	}
	for r, n := range t.reasons {
		j.reasons[r] += n
	}
}

// recountLater notes what is to be added up of a job that was just loaded; its open chunks' attempts are in memory and count at once.
func (j *job) recountLater(runs []store.Run, open []store.OpenChunk) {
	r := &recount{saved: j.Progress, tally: newTally()}
	r.runs = append(r.runs, runs...)
	for _, o := range open {
		for _, a := range o.Attempts {
			r.add(store.AttemptSum{Host: a.Host, Owner: a.Owner, State: a.State, Reason: a.Reason, N: 1}, false)
		}
	}
	j.recount = r
}

// recountLoop adds up every job that was there at the start, and ends.
func (b *Broker) recountLoop(ctx context.Context) {
	b.mu.Lock()
	var all []*job
	for _, j := range b.jobs {
		if j.recount != nil {
			all = append(all, j)
		}
	}
	b.mu.Unlock()
	for _, j := range all {
		for {
			err := b.recount(ctx, j)
			if err == nil {
				break
			}
			if ctx.Err() == nil {
				b.log.Error("can't add up a job", "job", j.ID.Short(), "err", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}
}

// recount adds up one job; it goes on where an error ended it.
func (b *Broker) recount(ctx context.Context, j *job) error {
	r := j.recount // this goroutine's alone until it is nil
	for len(r.runs) > 0 {
		at := &r.runs[0]
		s, next, err := b.st.Sums(ctx, j.ID, at.First, at.First+at.Count, sumsAtOnce)
		if err != nil {
			return err
		}
		r.page(s)
		at.Count -= next - at.First
		at.First = next
		if at.Count == 0 {
			r.runs = r.runs[1:]
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r.addTo(b, j)
	p, open := &j.Progress, int64(len(j.open))
	p.Attempts += r.attempts - r.saved.Attempts
	p.Lost += r.lost - r.saved.Lost
	p.ChunksDone += r.chunks - r.saved.ChunksDone
	p.UnitsFailed += r.failed - r.saved.UnitsFailed // wraps, twice
	p.Chunks = p.ChunksDone + open
	j.recount = nil
	b.touch(j)
	if j.ending && j.busy == 0 {
		b.finish(j)
	}
	return nil
}

// recountPast sums up an ended job, at most a million chunks of it.
func (b *Broker) recountPast(ctx context.Context, j *job) error {
	t := newTally()
	for at, n := uint64(0), 0; at < j.Units && n < 1_000_000; n += sumsAtOnce {
		s, next, err := b.st.Sums(ctx, j.ID, at, j.Units, sumsAtOnce)
		if err != nil {
			return err
		}
		t.page(s)
		at = next
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t.addTo(b, j)
	return nil
}

package broker

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/quorum"
	"github.com/crowdcloud/crowd/internal/store"
)

// When a host is convicted, its word is worth nothing in any job that hasn't settled: each verdict that rests on it is taken back, its pay reversed,
// and unless the other votes carry it the chunk is open again. What is to be done stands in the store until it is done, and the job
// doesn't settle before.

const (
	revisitScan  = 20_000 // chunks looked at in one read
	revisitPiece = 64     // verdicts taken back before another job has its turn
	revisitPause = 100 * time.Millisecond
)

// revisiting is what is to be seen to of one job and host. Broker.mu guards it.
type revisiting struct {
	asked int       // how often
	from  uint64    // how far it is seen to
	n     int       // verdicts taken back
	wait  time.Time // it can't go on before
}

// revisit notes that no verdict of a job may rest on a host's word. Called with b.mu held, or before anybody else can.
func (b *Broker) revisit(j *job, h crowd.HostID) {
	if j.revisits == nil {
		j.revisits = map[crowd.HostID]*revisiting{}
	}
	r := j.revisits[h]
	if r == nil {
		r = &revisiting{}
		j.revisits[h] = r
	}
	r.asked++
	select {
	case b.recheck <- struct{}{}:
	default:
	}
}

// revisitOps say so durably for every job that a host has, or may have, worked on: an answer of it may be on its way to the store just now. Called with
// b.mu held.
func (b *Broker) revisitOps(h *host) (ops []store.Op, jobs []*job) {
	for _, j := range b.jobs {
		if j.shares[h.ID] != nil || j.leasedTo[h.ID] || j.recount != nil {
			ops = append(ops, store.PutRevisit{Job: j.ID, Host: h.ID})
			jobs = append(jobs, j)
		}
	}
	return ops, jobs
}

// revisitLoop sees to it, a piece of one job and host after another: one that has to wait keeps no other.
func (b *Broker) revisitLoop(ctx context.Context) {
	for {
		j, h, r, asked, wait := b.nextRevisit()
		switch {
		case r != nil:
			from, err := b.retakeSome(ctx, j, h, r)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				b.log.Error("can't take verdicts back", "job", j.ID.Short(), "host", h.Short(), "err", err)
				b.putOff(r, time.Second)
			} else if from == math.MaxUint64 {
				b.revisited(j, h, r, asked)
			}
		case wait:
			if !b.pause(ctx, revisitPause) {
				return
			}
		default:
			select {
			case <-ctx.Done():
				return
			case <-b.recheck:
			}
		}
	}
}

func (b *Broker) pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (b *Broker) putOff(r *revisiting, d time.Duration) {
	b.mu.Lock()
	r.wait = b.now().Add(d)
	b.mu.Unlock()
}

// nextRevisit is what can be seen to now; asked is how often it was asked for so far; wait: there is something, but not now.
func (b *Broker) nextRevisit() (j *job, h crowd.HostID, r *revisiting, asked int, wait bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for _, j := range b.jobs {
		for h, r := range j.revisits {
			if !now.Before(r.wait) {
				return j, h, r, r.asked, true
			}
			wait = true
		}
	}
	return nil, h, nil, 0, wait
}

// revisited notes that it is done, unless it was asked for again meanwhile.
func (b *Broker) revisited(j *job, h crowd.HostID, r *revisiting, asked int) {
	b.mu.Lock()
	if r.asked != asked {
		r.from = 0
		b.mu.Unlock()
		return
	}
	name := h.Short()
	if x := b.hosts[h]; x != nil {
		name = x.Name
	}
	b.mu.Unlock()
	ops := []store.Op{store.DropRevisit{Job: j.ID, Host: h}}
	if r.n > 0 {
		ops = append(ops, b.event(j.ID.String(), j.Account, "verdicts.reversed", crowd.HostCheated,
			fmt.Sprintf("%d verdicts rested on the word of %s, which was proved wrong elsewhere: their pay is taken back and they are checked again", r.n, name), crowd.EventData{Job: j.ID, Host: h}))
	}
	if err := b.commit(context.Background(), ops...); err != nil {
		b.log.Error("can't note that verdicts were taken back", "job", j.ID.Short(), "err", err) // it is looked at again at the next start
	}
	b.mu.Lock()
	if r.asked == asked {
		delete(j.revisits, h)
	} else {
		r.from, r.n = 0, 0
	}
	b.touch(j)
	if j.ending && j.busy == 0 {
		b.finish(j)
	}
	b.mu.Unlock()
	b.rouseIf()
}

// retakeSome takes back verdicts of a job that rest on a host's word, as far as the job has room for open chunks and its sums are whole; from is how
// far everything is seen to: math.MaxUint64 is all.
func (b *Broker) retakeSome(ctx context.Context, j *job, h crowd.HostID, r *revisiting) (from uint64, err error) {
	b.mu.Lock()
	from = r.from
	ready := j.recount == nil && (j.ending || len(j.open) < 4*j.slots+2*openSpare)
	b.mu.Unlock()
	if !ready {
		b.putOff(r, revisitPause)
		return from, nil
	}
	firsts, next, err := b.st.RestingOn(ctx, j.ID, h, from, revisitScan)
	if err != nil {
		return from, err
	}
	took := 0
	if len(firsts) > revisitPiece {
		firsts, next = firsts[:revisitPiece], firsts[revisitPiece]
	}
	for _, first := range firsts {
		ok, err := b.retake(ctx, j, h, first)
		if err != nil {
			return from, err
		}
		if ok {
			took++
		}
	}
	b.mu.Lock()
	r.from = next
	r.n += took
	b.mu.Unlock()
	return next, nil
}

// retake takes back one verdict; false: it doesn't rest on that host any more. It returns when the change is durable.
func (b *Broker) retake(ctx context.Context, j *job, cheat crowd.HostID, first uint64) (bool, error) {
	row, err := b.st.ChunkOf(ctx, j.ID, first)
	if err != nil || row.First != first || row.State != crowd.ChunkDecided {
		return false, err
	}
	attempts, err := b.st.Attempts(ctx, j.ID, first)
	if err != nil {
		return false, err
	}
	paid, err := b.st.Txn(ctx, ledger.VerdictTxn(j.ID, first, row.Version))
	if err != nil && !crowd.KindIs(err, crowd.NotFound) {
		return false, err
	}
	t := &taking{j: j, row: row, now: b.now()}
	ops, err := t.plan(attempts, paid, cheat)
	if err != nil || len(t.gone) == 0 {
		return false, err
	}
	done := make(chan error, 1)
	b.mu.Lock()
	if c := j.open[first]; c != nil && !j.finishing { // its verdict is durable, and about to be known here
		b.mu.Unlock()
		if !b.pause(ctx, revisitPause) {
			return false, ctx.Err()
		}
		return b.retake(ctx, j, cheat, first)
	}
	if j.finishing {
		b.mu.Unlock()
		return false, nil
	}
	c := &chunk{Chunk: row.Chunk, job: j}
	if t.stands.Decided {
		c.Version++
	} else {
		c.Digest, c.Failed, c.Decided, c.State = crowd.Digest{}, 0, time.Time{}, crowd.ChunkOpen
		j.open[first] = c
		for _, a := range t.rows {
			c.attempts = append(c.attempts, &attempt{Attempt: a, chunk: c, host: b.hosts[a.Host], counts: a.Counts})
		}
	}
	c.hold()
	b.apply(ops, func(err error) []func() {
		if err == nil {
			b.taken(t)
		} else if !t.stands.Decided { // it is what it was
			c.State = crowd.ChunkDecided
			delete(j.open, first)
		}
		b.free(c)
		b.want(c)
		b.touch(j)
		done <- err
		return nil
	})
	b.mu.Unlock()
	return true, <-done
}

// taking is a verdict on its way back.
type taking struct {
	j      *job
	row    store.ChunkRow
	now    time.Time
	rows   []crowd.Attempt // as they will be
	won    []crowd.Attempt // those whose answer is the verdict's, as they are
	gone   []int           // of won: the convicted host's
	stands quorum.Verdict  // of the others
	back   crowd.UCR       // into escrow, all in all
}

// plan finds what changes.
func (t *taking) plan(attempts []crowd.Attempt, paid []crowd.Posting, cheat crowd.HostID) (ops []store.Op, err error) {
	var votes []quorum.Vote
	var rest []ledger.Pay
	for _, a := range attempts {
		if a.Counts && a.State == crowd.AttemptReported {
			winner := a.Digest == t.row.Digest
			if winner {
				t.won = append(t.won, a)
			}
			if winner && a.Host == cheat {
				t.gone = append(t.gone, len(t.won)-1)
				a.State, a.Reason, a.Paid, a.Counts = crowd.AttemptVoid, crowd.HostCheated, 0, false
				ops = append(ops, store.End{Attempt: a})
			} else {
				votes = append(votes, quorum.Vote{Digest: a.Digest, Group: a.Group, Host: a.Host})
				if winner {
					rest = append(rest, ledger.Pay{Owner: a.Owner, Amount: a.Paid})
				}
			}
		}
		t.rows = append(t.rows, a)
	}
	if len(t.gone) == 0 {
		return nil, nil
	}
	ops = append(ops, store.Reopen{Chunk: t.row.Chunk})
	if len(paid) > 0 {
		legs, err := ledger.Reverse(paid, "", t.now)
		if err != nil {
			return nil, err
		}
		for _, l := range legs {
			if l.Book == crowd.EscrowBook(t.j.ID) {
				t.back += l.Amount
			}
		}
		ops = append(ops, store.Post{Postings: legs})
	}
	if t.stands = quorum.Decide(votes, t.row.Need); t.stands.Decided && t.stands.Digest == t.row.Digest { // the others agree without it
		again := t.row.Chunk
		again.Version++
		ops = append(ops, store.Decide{Chunk: again, Body: t.row.Body})
		if t.back > 0 {
			each := t.back / crowd.UCR(len(t.won))
			legs, err := ledger.Verdict(t.j.ID, t.row.First, again.Version, rest, each*crowd.UCR(len(rest))-sumOf(rest), t.now)
			if err != nil {
				return nil, err
			}
			t.back -= each * crowd.UCR(len(rest))
			ops = append(ops, store.Post{Postings: legs})
		}
	} else {
		t.stands = quorum.Verdict{}
	}
	return ops, nil
}

func sumOf(pays []ledger.Pay) (sum crowd.UCR) {
	for _, p := range pays {
		sum += p.Amount
	}
	return sum
}

// taken draws the consequences, once it is durable. Called with b.mu held.
func (b *Broker) taken(t *taking) {
	j := t.j
	j.left += t.back
	j.Paid -= t.back
	for i, a := range t.won {
		gone := slices.Contains(t.gone, i)
		if t.stands.Decided && !gone {
			continue
		}
		j.earned[a.Owner] -= a.Paid
		if h := b.hosts[a.Host]; h != nil {
			s := b.share(j, h)
			s.Counted--
			s.Earned -= a.Paid
			h.Record.Counted--
			h.Record.Earned -= a.Paid
			h.dirty = true
			if gone {
				s.Differ++
				j.reasons[crowd.HostCheated]++
			}
		}
	}
	if t.stands.Decided {
		return
	}
	c := t.row.Chunk
	j.runs = dropRun(j.runs, c.First, c.Count)
	p := &j.Progress
	p.UnitsDone -= c.Count
	p.UnitsFailed -= t.row.Failed
	p.ChunksDone--
	b.rouse = true
}

// dropRun takes units [first, first+count), which one run holds, out of ascending runs.
func dropRun(runs []store.Run, first, count uint64) []store.Run {
	i := slices.IndexFunc(runs, func(r store.Run) bool { return r.First <= first && first+count <= r.First+r.Count })
	if i < 0 {
		return runs
	}
	r := runs[i]
	var parts []store.Run
	if r.First < first {
		parts = append(parts, store.Run{First: r.First, Count: first - r.First})
	}
	if end, rEnd := first+count, r.First+r.Count; end < rEnd {
		parts = append(parts, store.Run{First: end, Count: rEnd - end})
	}
	return slices.Replace(runs, i, i+1, parts...)
}

package broker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/store"
)

func notFound(what, ref string) error {
	return crowd.Errorf(crowd.NotFound, "", "there is no %s %s", what, clipText(ref))
}

func ambiguous[T any](ref string, found []T, name func(T) string) error {
	all := make([]string, 0, len(found))
	for _, x := range found {
		all = append(all, name(x))
	}
	return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%s is ambiguous: %s", clipText(ref), strings.Join(all, ", "))
}

// parseID reads a full id.
func parseID[K crowd.Kind](s string, id *crowd.ID[K]) bool {
	var err error
	*id, err = crowd.ParseID[K](s)
	return err == nil
}

// findJob finds a job of the caller by id, short id or name: living ones first, else the newest of that name.
func (b *Broker) findJob(ctx context.Context, c Caller, ref string) (crowd.Job, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return crowd.Job{}, err
	}
	var id crowd.JobID
	if parseID(ref, &id) {
		return b.jobByID(ctx, c, id)
	}
	var found []crowd.Job
	b.mu.Lock()
	for _, j := range b.jobs {
		if j.Account == c.Account.ID && (j.Name == ref || j.ID.Short() == ref) {
			found = append(found, b.snapshot(j))
		}
	}
	b.mu.Unlock()
	if len(found) == 0 {
		f := store.JobFilter{Account: c.Account.ID, Limit: 1000}
		short := strings.HasPrefix(ref, "job_")
		if !short {
			f.Name, f.Limit = ref, 1
		}
		for {
			rows, err := b.st.Jobs(ctx, f)
			if err != nil {
				return crowd.Job{}, err
			}
			for _, j := range rows {
				if j.Name == ref || j.ID.Short() == ref {
					found = append(found, j)
				}
			}
			if !short || len(rows) < f.Limit {
				break
			}
			f.Before = rows[len(rows)-1].ID
		}
	}
	switch len(found) {
	case 0:
		return crowd.Job{}, notFound("job", ref)
	case 1:
		return found[0], nil
	}
	return crowd.Job{}, ambiguous(ref, found, func(j crowd.Job) string { return j.ID.String() })
}

// jobByID reads a job that the caller may see.
func (b *Broker) jobByID(ctx context.Context, c Caller, id crowd.JobID) (crowd.Job, error) {
	b.mu.Lock()
	j := b.jobs[id]
	var row crowd.Job
	if j != nil {
		row = b.snapshot(j)
	}
	b.mu.Unlock()
	if j == nil {
		var err error
		if row, err = b.st.Job(ctx, id); err != nil {
			if crowd.KindIs(err, crowd.NotFound) {
				return row, notFound("job", id.String())
			}
			return row, err
		}
	}
	if row.Account != c.Account.ID && !operates(c) {
		return crowd.Job{}, notFound("job", id.String())
	}
	return row, nil
}

// snapshot is a living job as a reader sees it. Called with b.mu held.
func (b *Broker) snapshot(j *job) crowd.Job { return j.Job }

// Job is a job with its hosts and reasons.
func (b *Broker) Job(ctx context.Context, c Caller, ref string) (crowd.JobDetail, error) {
	row, err := b.findJob(ctx, c, ref)
	if err != nil {
		return crowd.JobDetail{}, err
	}
	d := crowd.JobDetail{Job: row, Hosts: []crowd.HostShare{}, Reasons: map[crowd.Reason]int{}}
	b.mu.Lock()
	j := b.jobs[row.ID]
	var past *job
	if j != nil {
		for _, s := range j.shares {
			d.Hosts = append(d.Hosts, *s)
		}
		maps.Copy(d.Reasons, j.reasons)
		d.Counting = j.recount != nil
	} else {
		past = b.newJob(row)
	}
	b.mu.Unlock()
	if past != nil {
		if err := b.recountPast(ctx, past); err != nil {
			return crowd.JobDetail{}, err
		}
		for _, s := range past.shares {
			d.Hosts = append(d.Hosts, *s)
		}
		d.Reasons = past.reasons
	}
	delete(d.Reasons, "")
	slices.SortFunc(d.Hosts, func(a, b crowd.HostShare) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Host[:]), string(b.Host[:])))
	})
	return d, nil
}

// Jobs lists the caller's jobs, newest first.
func (b *Broker) Jobs(ctx context.Context, c Caller, f JobsFilter) ([]crowd.Job, string, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return nil, "", err
	}
	sf := store.JobFilter{Account: c.Account.ID, State: f.State, Living: f.Living, Label: f.Label, Since: f.Since, Limit: PageLimit(f.Limit)}
	if f.After != "" && !parseID(f.After, &sf.Before) {
		return nil, "", crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%q is no cursor", clipText(f.After))
	}
	rows, err := b.st.Jobs(ctx, sf)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(rows) == sf.Limit {
		next = rows[len(rows)-1].ID.String()
	}
	b.mu.Lock()
	for i := range rows {
		if j := b.jobs[rows[i].ID]; j != nil {
			rows[i] = b.snapshot(j)
		}
	}
	b.mu.Unlock()
	return rows, next, nil
}

// CancelJob pays what is done and returns the rest. Of an ended job it changes nothing.
func (b *Broker) CancelJob(ctx context.Context, c Caller, ref string) (crowd.Job, error) {
	if err := need(c, crowd.ScopeOrder); err != nil {
		return crowd.Job{}, err
	}
	row, err := b.findJob(ctx, c, ref)
	if err != nil {
		return row, err
	}
	b.mu.Lock()
	j := b.jobs[row.ID]
	if j != nil {
		b.endJob(j, crowd.JobCancelled, crowd.CustomerCancel, "cancelled by its customer")
	}
	b.mu.Unlock()
	if j == nil {
		return row, nil
	}
	select {
	case <-j.gone:
	case <-ctx.Done():
		return row, crowd.Errorf(crowd.Unavailable, "", "it is being cancelled: %w", ctx.Err())
	}
	return b.jobByID(ctx, c, row.ID)
}

// WatchJob returns the job when its Version differs from version, or as it is when ctx ends.
func (b *Broker) WatchJob(ctx context.Context, c Caller, ref string, version int64) (crowd.Job, error) {
	row, err := b.findJob(ctx, c, ref)
	for err == nil && row.Version == version {
		var changed <-chan struct{}
		b.mu.Lock()
		j := b.jobs[row.ID]
		if j != nil {
			row = b.snapshot(j)
			changed = j.changed.listen()
		}
		b.mu.Unlock()
		if row.Version != version {
			break
		}
		if j == nil { // it ended between, or for long
			if row, err = b.jobByID(context.WithoutCancel(ctx), c, row.ID); err != nil || row.Version != version {
				break
			}
		}
		select {
		case <-ctx.Done():
			return row, nil
		case <-changed:
		}
		row, err = b.jobByID(context.WithoutCancel(ctx), c, row.ID)
	}
	return row, err
}

// Units says where units stand, from one on.
func (b *Broker) Units(ctx context.Context, c Caller, ref string, from uint64, limit int) ([]crowd.UnitRow, error) {
	out := []crowd.UnitRow{}
	err := b.EachUnit(ctx, c, ref, from, limit, func(u crowd.UnitRow, _ *crowd.UnitContent) bool {
		out = append(out, u)
		return true
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// EachUnit walks along units from one on, at most so many, until each returns false; see face. A chunk's body is read once.
func (b *Broker) EachUnit(ctx context.Context, c Caller, ref string, from uint64, limit int, each func(crowd.UnitRow, *crowd.UnitContent) bool) error {
	row, err := b.findJob(ctx, c, ref)
	if err == nil {
		err = b.kept(ctx, row)
	}
	if err != nil {
		return err
	}
	end := row.Units
	if limit := uint64(PageLimit(limit)); from < end {
		end = min(end, from+min(limit, end-from))
	}
	for from < end {
		ch, err := b.st.ChunkOf(ctx, row.ID, from)
		if crowd.KindIs(err, crowd.NotFound) { // not cut, or not leased
			to := from + 1
			if rows, err := b.st.Chunks(ctx, row.ID, to, 1); err == nil && len(rows) == 0 {
				to = end
			}
			for ; from < to; from++ {
				if !each(crowd.UnitRow{Unit: from, State: crowd.ChunkOpen}, nil) {
					return nil
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		var o *crowd.Outcome
		var contents []crowd.UnitContent
		var seconds float64
		if ch.State == crowd.ChunkDecided {
			if o, contents, err = b.outcome(ctx, ch); err != nil {
				return err
			}
			seconds = b.secondsOf(ctx, ch)
		}
		for ; from < min(end, ch.First+ch.Count); from++ {
			u, content := crowd.UnitRow{Unit: from, State: ch.State, Seconds: seconds}, (*crowd.UnitContent)(nil)
			if o != nil {
				u.Result, content = &o.Units[from-ch.First], &contents[from-ch.First]
			}
			if !each(u, content) {
				return nil
			}
		}
	}
	return nil
}

// secondsOf is about how long a unit of a decided chunk took: the winners' time, shared out.
func (b *Broker) secondsOf(ctx context.Context, ch store.ChunkRow) float64 {
	rows, err := b.st.Attempts(ctx, ch.Job, ch.First)
	if err != nil {
		return 0
	}
	best := 0.0
	for _, a := range rows {
		if s := a.EndedAt.Sub(a.LeasedAt).Seconds(); a.State == crowd.AttemptReported && a.Digest == ch.Digest && (best == 0 || s < best) {
			best = s
		}
	}
	return best / float64(ch.Count)
}

func (b *Broker) outcome(ctx context.Context, ch store.ChunkRow) (*crowd.Outcome, []crowd.UnitContent, error) {
	body, err := b.st.Body(ctx, ch.Job, ch.Body)
	if err != nil {
		return nil, nil, err
	}
	o, contents, err := crowd.ParseBody(body, ch.First, ch.Count)
	if err != nil {
		return nil, nil, crowd.Errorf(crowd.Internal, "", "a stored outcome is damaged: %w", err)
	}
	return o, contents, nil
}

// UnitContent is a decided unit's result with its bytes.
func (b *Broker) UnitContent(ctx context.Context, c Caller, ref string, unit uint64) (crowd.UnitResult, crowd.UnitContent, error) {
	row, err := b.findJob(ctx, c, ref)
	if err == nil {
		err = b.kept(ctx, row)
	}
	if err != nil {
		return crowd.UnitResult{}, crowd.UnitContent{}, err
	}
	if unit >= row.Units {
		return crowd.UnitResult{}, crowd.UnitContent{}, notFound("unit", fmt.Sprintf("%d of %s: it has %d", unit, row.Name, row.Units))
	}
	ch, err := b.st.ChunkOf(ctx, row.ID, unit)
	switch {
	case crowd.KindIs(err, crowd.NotFound) || err == nil && ch.State == crowd.ChunkOpen:
		return crowd.UnitResult{}, crowd.UnitContent{}, crowd.Errorf(crowd.Conflict, "", "unit %d of %s is not decided yet", unit, row.Name)
	case err != nil:
		return crowd.UnitResult{}, crowd.UnitContent{}, err
	case ch.State == crowd.ChunkFailed:
		return crowd.UnitResult{}, crowd.UnitContent{}, crowd.Errorf(crowd.Failed, crowd.HostFailed, "unit %d of %s has no result: its chunk failed everywhere", unit, row.Name)
	}
	o, contents, err := b.outcome(ctx, ch)
	if err != nil {
		return crowd.UnitResult{}, crowd.UnitContent{}, err
	}
	return o.Units[unit-ch.First], contents[unit-ch.First], nil
}

// JobChunks lists the touched chunks of a job.
func (b *Broker) JobChunks(ctx context.Context, c Caller, ref string, from uint64, limit int) ([]crowd.Chunk, error) {
	row, err := b.findJob(ctx, c, ref)
	if err == nil {
		err = b.kept(ctx, row)
	}
	if err != nil {
		return nil, err
	}
	rows, err := b.st.Chunks(ctx, row.ID, from, PageLimit(limit))
	if err != nil {
		return nil, err
	}
	out := make([]crowd.Chunk, 0, len(rows))
	for _, r := range rows {
		out = append(out, r.Chunk)
	}
	return out, nil
}

// JobAttempts lists who tried, by chunk and number. A vote on an open chunk isn't paid yet.
func (b *Broker) JobAttempts(ctx context.Context, c Caller, ref string, after crowd.AttemptRef, limit int) ([]crowd.Attempt, error) {
	row, err := b.findJob(ctx, c, ref)
	if err == nil {
		err = b.kept(ctx, row)
	}
	if err != nil {
		return nil, err
	}
	after.Job = row.ID
	rows, err := b.st.JobAttempts(ctx, row.ID, after, PageLimit(limit))
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if j := b.jobs[row.ID]; j != nil {
		for i := range rows {
			if j.open[rows[i].First] != nil {
				rows[i].Paid = 0
			}
		}
	}
	if rows == nil {
		rows = []crowd.Attempt{}
	}
	return rows, nil
}

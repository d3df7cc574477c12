package store

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"strings"

	"github.com/crowdcloud/crowd"
)

const jobColumns = `SELECT j.id, j.account, j.key, j.name, j.units, j.created, j.state, j.json, s.json
	FROM jobs j JOIN job_specs s ON s.job = j.num `

func scanJob(scan func(...any) error) (j crowd.Job, err error) {
	var id, account, key []byte
	var units, created int64
	var rest, spec string
	if err = scan(&id, &account, &key, &j.Name, &units, &created, &j.State, &rest, &spec); err != nil {
		return j, err
	}
	copy(j.ID[:], id)
	copy(j.Account[:], account)
	copy(j.Key[:], key)
	j.Units, j.Created = uint64(units), instant(created)
	var r jobRest
	if err = unmarshal(rest, &r); err != nil {
		return j, err
	}
	r.into(&j)
	return j, unmarshal(spec, &j.Spec)
}

// Job reads one job.
func (s *Store) Job(ctx context.Context, id crowd.JobID) (crowd.Job, error) {
	j, err := scanJob(s.rd.QueryRowContext(ctx, jobColumns+"WHERE j.id = ?", id[:]).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return j, crowd.Errorf(crowd.NotFound, "", "no such job: %s", id)
	}
	return j, wrap("read job", err)
}

// Jobs selects jobs, newest first.
func (s *Store) Jobs(ctx context.Context, f JobFilter) (jobs []crowd.Job, err error) {
	var where []string
	var args []any
	and := func(cond string, arg ...any) {
		where = append(where, cond)
		args = append(args, arg...)
	}
	if !f.Account.IsZero() {
		and("j.account = ?", f.Account[:])
	}
	if f.State != "" {
		and("j.state = ?", string(f.State))
		f.Living = f.Living || !f.State.Ended()
	}
	if f.Living {
		and("j.living = 1")
	}
	if f.Name != "" {
		and("j.name = ?", f.Name)
	}
	if f.Label != "" {
		and("j.num IN (SELECT job FROM job_labels WHERE label = ?)", f.Label)
	}
	if !f.Since.IsZero() {
		and("j.created >= ?", nanos(f.Since))
	}
	if !f.Before.IsZero() {
		and("j.id < ?", f.Before[:])
	}
	q := jobColumns
	if len(where) > 0 {
		q += "WHERE " + strings.Join(where, " AND ")
	}
	err = s.each(ctx, func(scan func(...any) error) error {
		j, err := scanJob(scan)
		jobs = append(jobs, j)
		return err
	}, q+" ORDER BY j.id DESC LIMIT ?", append(args, limitOr(f.Limit, 50))...)
	return jobs, wrap("read jobs", err)
}

func limitOr(limit, otherwise int) int64 {
	if limit <= 0 {
		return int64(otherwise)
	}
	return int64(limit)
}

// JobProgress reads what a broker needs to go on with a job: the saved map, completed by the chunks decided since, without the chunks that are
// open; and those. NotFound: no such job. It doesn't read the decided chunks that the map holds, unless the saved map is damaged: then it is
// rebuilt from them.
func (s *Store) JobProgress(ctx context.Context, job crowd.JobID) (Progress, error) {
	p, err := s.jobProgress(ctx, job)
	if errors.Is(err, errRuns) {
		if err = s.RebuildDone(ctx, job); err == nil {
			p, err = s.jobProgress(ctx, job)
		}
	}
	return p, err
}

func (s *Store) jobProgress(ctx context.Context, job crowd.JobID) (p Progress, err error) {
	tx, err := s.rd.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return p, wrap("read progress", err)
	}
	defer func() { _ = tx.Rollback() }()
	var num int64
	if err = tx.QueryRowContext(ctx, "SELECT num FROM jobs WHERE id = ?", job[:]).Scan(&num); errors.Is(err, sql.ErrNoRows) {
		return p, crowd.Errorf(crowd.NotFound, "", "no such job: %s", job)
	}
	if err == nil {
		err = p.read(ctx, tx, job, num)
	}
	return p, wrap("read progress", err)
}

func (p *Progress) read(ctx context.Context, tx *sql.Tx, job crowd.JobID, num int64) error {
	var next, cut int64
	var packed []byte
	err := tx.QueryRowContext(ctx, "SELECT next, runs FROM job_done WHERE job = ?", num).Scan(&next, &packed)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	err = tx.QueryRowContext(ctx, "SELECT first + count FROM chunks WHERE job = ? ORDER BY first DESC LIMIT 1", num).Scan(&cut)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	p.Next = uint64(max(next, cut))
	runs, err := unpackRuns(packed)
	if err != nil {
		return err
	}
	if checkRuns(runs, uint64(next)) != nil {
		return errRuns
	}
	var since []Run
	err = each(ctx, tx, func(scan func(...any) error) error {
		var first, count int64
		err := scan(&first, &count)
		if k := len(since) - 1; k >= 0 && since[k].end() == uint64(first) {
			since[k].Count += uint64(count)
		} else {
			since = append(since, Run{uint64(first), uint64(count)})
		}
		return err
	}, "SELECT first, count FROM job_since WHERE job = ? ORDER BY first", num)
	if err != nil {
		return err
	}
	var open []Run
	err = each(ctx, tx, func(scan func(...any) error) error {
		c, err := scanChunk(job, scan)
		p.Open = append(p.Open, OpenChunk{Chunk: c.Chunk})
		open = append(open, Run{c.First, c.Count})
		return err
	}, chunkColumns+"FROM chunks INDEXED BY chunks_open WHERE job = ? AND state = 0 ORDER BY first", num)
	if err != nil {
		return err
	}
	at := 0
	err = each(ctx, tx, func(scan func(...any) error) error {
		a, err := scanAttempt(job, scan)
		for at < len(p.Open) && p.Open[at].Chunk.First < a.First {
			at++
		}
		if err == nil {
			p.Open[at].Attempts = append(p.Open[at].Attempts, a)
		}
		return err
	}, attemptColumns+`FROM chunks c INDEXED BY chunks_open CROSS JOIN attempts a ON a.job = c.job AND a.first = c.first
		WHERE c.job = ? AND c.state = 0 ORDER BY c.first, a.n`, num)
	p.Runs = subtract(union(runs, since), open)
	if err != nil || len(p.Open) == 0 {
		return err
	}
	at = 0
	return each(ctx, tx, func(scan func(...any) error) error {
		u, err := scanState(job, scan)
		for at < len(p.Open) && p.Open[at].Chunk.First < u.First {
			at++
		}
		if err == nil && at < len(p.Open) && p.Open[at].Chunk.First == u.First {
			p.Open[at].States = append(p.Open[at].States, u)
		}
		return err
	}, stateColumns+"WHERE job = ? ORDER BY first, lineage", num)
}

const chunkColumns = "SELECT first, count, need, state, version, digest, body, failed, decided "

func scanChunk(job crowd.JobID, scan func(...any) error) (c ChunkRow, err error) {
	var first, count, state, failed, decided int64
	var digest, body sql.RawBytes
	if err = scan(&first, &count, &c.Need, &state, &c.Version, &digest, &body, &failed, &decided); err != nil {
		return c, err
	}
	c.Job, c.First, c.Count, c.State = job, uint64(first), uint64(count), stateOf(chunkStates, state)
	c.Digest, c.Body, c.Failed, c.Decided = toDigest(digest), toDigest(body), uint64(failed), instant(decided)
	return c, nil
}

const theJob = "(SELECT num FROM jobs WHERE id = ?)"

// Chunks are the job's touched chunks with First >= from, ascending; limit 0: 100.
func (s *Store) Chunks(ctx context.Context, job crowd.JobID, from uint64, limit int) (rows []ChunkRow, err error) {
	if from > math.MaxInt64 {
		return nil, nil
	}
	err = s.each(ctx, func(scan func(...any) error) error {
		c, err := scanChunk(job, scan)
		rows = append(rows, c)
		return err
	}, chunkColumns+"FROM chunks WHERE job = "+theJob+" AND first >= ? ORDER BY first LIMIT ?", job[:], int64(from), limitOr(limit, 100))
	return rows, wrap("read chunks", err)
}

// ChunkOf is the touched chunk that holds a unit: NotFound if there is none yet.
func (s *Store) ChunkOf(ctx context.Context, job crowd.JobID, unit uint64) (row ChunkRow, err error) {
	found := false
	if unit <= math.MaxInt64 {
		err = s.each(ctx, func(scan func(...any) error) (err error) {
			row, err = scanChunk(job, scan)
			found = unit-row.First < row.Count
			return err
		}, chunkColumns+"FROM chunks WHERE job = "+theJob+" AND first <= ? ORDER BY first DESC LIMIT 1", job[:], int64(unit))
	}
	if err == nil && !found {
		return ChunkRow{}, crowd.Errorf(crowd.NotFound, "", "unit %d of job %s is in no chunk yet", unit, job.Short())
	}
	return row, wrap("read chunk", err)
}

const attemptColumns = "SELECT a.first, a.n, a.host, a.owner, a.grp, a.state, a.reason, a.leased_at, a.ended_at, a.digest, a.fuel, a.paid, a.lineage, a.voter IS NOT NULL "

func scanAttempt(job crowd.JobID, scan func(...any) error) (a crowd.Attempt, err error) {
	var first, state, leased, ended, fuel, paid int64
	var host, owner, digest, grp, reason sql.RawBytes
	if err = scan(&first, &a.N, &host, &owner, &grp, &state, &reason, &leased, &ended, &digest, &fuel, &paid, &a.Lineage, &a.Counts); err != nil {
		return a, err
	}
	a.Job, a.First, a.State = job, uint64(first), stateOf(attemptStates, state)
	copy(a.Host[:], host)
	copy(a.Owner[:], owner)
	a.Group, a.Reason, a.Digest = string(grp), crowd.Reason(reason), toDigest(digest)
	a.LeasedAt, a.EndedAt, a.Fuel, a.Paid = instant(leased), instant(ended), uint64(fuel), crowd.UCR(paid)
	return a, nil
}

// Attempts are those of one chunk, by number.
func (s *Store) Attempts(ctx context.Context, job crowd.JobID, first uint64) ([]crowd.Attempt, error) {
	return s.attempts(ctx, job, "AND a.first = ? ORDER BY a.n", int64(first))
}

// JobAttempts are a job's attempts after one (zero: from the start) in order of chunk and number; limit 0: 100.
func (s *Store) JobAttempts(ctx context.Context, job crowd.JobID, after crowd.AttemptRef, limit int) ([]crowd.Attempt, error) {
	first, n := int64(after.First), int64(after.N)
	if after == (crowd.AttemptRef{}) {
		first, n = -1, 0
	}
	return s.attempts(ctx, job, "AND (a.first, a.n) > (?, ?) ORDER BY a.first, a.n LIMIT ?", first, n, limitOr(limit, 100))
}

func (s *Store) attempts(ctx context.Context, job crowd.JobID, rest string, args ...any) (all []crowd.Attempt, err error) {
	err = s.each(ctx, func(scan func(...any) error) error {
		a, err := scanAttempt(job, scan)
		all = append(all, a)
		return err
	}, attemptColumns+"FROM attempts a WHERE a.job = "+theJob+" "+rest, append([]any{job[:]}, args...)...)
	return all, wrap("read attempts", err)
}

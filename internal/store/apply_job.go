package store

import (
	"database/sql/driver"
	"math"

	"github.com/crowdcloud/crowd"
)

func planJob(o AddJob) (step, error) {
	j := o.Job
	spec, err := marshal(j.Spec)
	if err != nil {
		return nil, err
	}
	rest, err := marshal(restOf(j))
	if err != nil {
		return nil, err
	}
	if j.Units > math.MaxInt64 {
		return nil, crowd.Errorf(crowd.Invalid, "", "job %q has too many units", j.Name)
	}
	return func(w *writer) error {
		_, num, err := w.change("INSERT INTO jobs (id, part, account, key, name, units, created, state, living, json) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			j.ID[:], partOf(j.ID), j.Account[:], idOrNull(j.Key), j.Name, int64(j.Units), nanos(j.Created), string(j.State), flag(!j.State.Ended()), rest)
		if isConstraint(err) {
			return crowd.Errorf(crowd.Conflict, "", "a living job is named %q already", j.Name).WithHint("choose another name, or cancel that job")
		}
		if err != nil {
			return err
		}
		if _, _, err = w.change("INSERT INTO job_specs (job, json) VALUES (?, ?)", num, spec); err != nil {
			return err
		}
		for k, v := range j.Spec.Labels {
			if _, _, err = w.change("INSERT INTO job_labels (label, job) VALUES (?, ?)", k+"="+v, num); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func planSetJob(o SetJob) (step, error) {
	j := o.Job
	rest, err := marshal(restOf(j))
	return func(w *writer) error {
		num, err := w.jobNum(j.ID)
		if err != nil {
			return err
		}
		row, err := w.one("SELECT state FROM jobs WHERE num = ?", num)
		if err != nil {
			return err
		}
		if old := crowd.JobState(row[0].(string)); old != j.State && !old.May(j.State) {
			return crowd.Errorf(crowd.Conflict, "", "job %s is %s: it can't become %s", j.ID.Short(), old, j.State)
		}
		_, _, err = w.change("UPDATE jobs SET state = ?, living = ?, json = ? WHERE num = ?", string(j.State), flag(!j.State.Ended()), rest, num)
		return err
	}, err
}

func planLease(o Lease) (step, error) {
	c, a := o.Chunk, o.Attempt
	if c.Job != a.Job || c.First != a.First || c.Count == 0 || c.First+c.Count > math.MaxInt64 || c.First+c.Count < c.First {
		return nil, crowd.Errorf(crowd.Internal, "", "store: lease of a malformed chunk %s %d+%d", c.Job.Short(), c.First, c.Count)
	}
	state, ok := attemptCode[a.State]
	chunk, ok2 := chunkCode[c.State]
	if !ok || !ok2 {
		return nil, crowd.Errorf(crowd.Internal, "", "store: lease in unknown state %q of a chunk that is %q", a.State, c.State)
	}
	seat := seatOf(a.Owner, a.Group)
	var other any // than the owner
	if a.Group != "" {
		other = seat
	}
	return func(w *writer) error {
		num, err := w.jobNum(c.Job)
		if err != nil {
			return err
		}
		n, _, err := w.change(`INSERT INTO chunks (job, first, count, need, state, version, digest, body, failed, decided) VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?, ?)
			ON CONFLICT (job, first) DO UPDATE SET need = max(need, excluded.need) WHERE count = excluded.count`,
			num, int64(c.First), int64(c.Count), int64(c.Need), chunk, int64(c.Version), digestOrNull(c.Digest), int64(c.Failed), nanos(c.Decided))
		if err != nil {
			return err
		}
		if n == 0 {
			return crowd.Errorf(crowd.Conflict, "", "chunk %d of job %s was cut with another size than %d", c.First, c.Job.Short(), c.Count)
		}
		_, _, err = w.change(`INSERT INTO attempts (job, first, n, host, owner, grp, seat, voter, state, reason, leased_at, ended_at, digest, body, fuel, paid, lineage)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?)`,
			num, int64(a.First), int64(a.N), a.Host[:], a.Owner[:], textOrNull(a.Group), other, seat, state, textOrNull(a.Reason),
			nanos(a.LeasedAt), nanos(a.EndedAt), digestOrNull(a.Digest), int64(a.Fuel), int64(a.Paid), int64(a.Lineage))
		switch codeOf(err) {
		case codeUnique:
			return crowd.Errorf(crowd.Conflict, crowd.CustomerSelf, "chunk %d of job %s: an attempt of that owner's group lives or counts already", a.First, a.Job.Short())
		case codePrimaryKey:
			return crowd.Errorf(crowd.Conflict, "", "chunk %d of job %s has an attempt %d already", a.First, a.Job.Short(), a.N)
		}
		return err
	}, nil
}

func planEnd(o End) (step, error) {
	a := o.Attempt
	state, ok := attemptCode[a.State]
	if !ok {
		return nil, crowd.Errorf(crowd.Internal, "", "store: end in unknown state %q", a.State)
	}
	from := attemptFrom[a.State]
	return func(w *writer) error {
		num, err := w.jobNum(a.Job)
		if err != nil {
			return err
		}
		n, _, err := w.change(`UPDATE attempts SET state = ?, reason = ?, ended_at = ?, digest = ?, body = ?, fuel = ?, paid = ?,
			voter = CASE WHEN ? THEN coalesce(seat, owner) END WHERE job = ? AND first = ? AND n = ? AND (? >> state) & 1`,
			state, textOrNull(a.Reason), nanos(a.EndedAt), digestOrNull(a.Digest), digestOrNull(o.Body), int64(a.Fuel), int64(a.Paid),
			flag(o.Counts), num, int64(a.First), int64(a.N), from)
		if isConstraint(err) {
			return crowd.Errorf(crowd.Conflict, crowd.CustomerSelf, "chunk %d of job %s: another attempt of that owner's group counts", a.First, a.Job.Short())
		}
		if err != nil || n == 1 {
			return err
		}
		row, err := w.one("SELECT state FROM attempts WHERE job = ? AND first = ? AND n = ?", num, int64(a.First), int64(a.N))
		if err != nil {
			return err
		}
		if row == nil {
			return crowd.Errorf(crowd.NotFound, "", "job %s has no attempt %d at chunk %d", a.Job.Short(), a.N, a.First)
		}
		return crowd.Errorf(crowd.Conflict, "", "attempt %d at chunk %d of job %s is %s: it can't become %s",
			a.N, a.First, a.Job.Short(), stateOf(attemptStates, row[0].(int64)), a.State)
	}, nil
}

func (w *writer) setPaid(a crowd.Attempt) error {
	num, err := w.jobNum(a.Job)
	if err != nil {
		return err
	}
	n, _, err := w.change("UPDATE attempts SET paid = ? WHERE job = ? AND first = ? AND n = ? AND state = ?",
		int64(a.Paid), num, int64(a.First), int64(a.N), attemptCode[crowd.AttemptReported])
	if err == nil && n == 0 {
		return crowd.Errorf(crowd.Conflict, "", "job %s has no answer of attempt %d at chunk %d to pay", a.Job.Short(), a.N, a.First)
	}
	return err
}

func planDecide(o Decide) (step, error) {
	c := o.Chunk
	state, ok := chunkCode[c.State]
	if !ok {
		return nil, crowd.Errorf(crowd.Internal, "", "store: verdict in unknown state %q", c.State)
	}
	from := chunkFrom[c.State]
	return func(w *writer) error {
		num, err := w.jobNum(c.Job)
		if err != nil {
			return err
		}
		n, _, err := w.change(`UPDATE chunks SET state = ?, version = ?, digest = ?, body = ?, failed = ?, decided = ?, need = max(need, ?)
			WHERE job = ? AND first = ? AND count = ? AND version = ? AND (? >> state) & 1`,
			state, int64(c.Version), digestOrNull(c.Digest), digestOrNull(o.Body), int64(c.Failed), nanos(c.Decided), int64(c.Need),
			num, int64(c.First), int64(c.Count), int64(c.Version-1), from)
		if err != nil {
			return err
		}
		if n == 1 {
			if c.Version == 1 { // a later version's units are in the map, or here, already: Reopen leaves them, an open chunk's aren't read
				_, _, err = w.change("INSERT INTO job_since (job, first, count) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", num, int64(c.First), int64(c.Count))
			}
			return err
		}
		row, err := w.one("SELECT state, version, count FROM chunks WHERE job = ? AND first = ?", num, int64(c.First))
		if err != nil {
			return err
		}
		if row == nil {
			return crowd.Errorf(crowd.NotFound, "", "job %s has no chunk at %d", c.Job.Short(), c.First)
		}
		return crowd.Errorf(crowd.Conflict, "", "chunk %d+%d of job %s is %s with verdict %d: it can't become %s with verdict %d",
			c.First, row[2], c.Job.Short(), stateOf(chunkStates, row[0].(int64)), row[1], c.State, c.Version)
	}, nil
}

// planDone saves a job's map. The map only grows: it becomes the union of what is stored and what is given, and Next the higher one, so that a map
// taken before another and saved after it takes nothing away. A chunk decided since stays noted until a saved map holds all its units.
func planDone(o Done) (step, error) {
	runs := append([]Run(nil), o.Runs...)
	if err := checkRuns(runs, o.Next); err != nil {
		return nil, err
	}
	return func(w *writer) error {
		num, err := w.jobNum(o.Job)
		if err != nil {
			return err
		}
		next, all := o.Next, runs
		row, err := w.one("SELECT next, runs FROM job_done WHERE job = ?", num)
		if err != nil {
			return err
		}
		if row != nil {
			b, _ := row[1].([]byte)
			old, err := unpackRuns(b)
			if err != nil {
				return err
			}
			next, all = max(next, uint64(row[0].(int64))), union(old, runs)
		}
		if _, _, err = w.change("INSERT INTO job_done (job, next, runs) VALUES (?, ?, ?) ON CONFLICT (job) DO UPDATE SET next = excluded.next, runs = excluded.runs",
			num, int64(next), packRuns(all)); err != nil {
			return err
		}
		return w.dropSince(num, all)
	}, nil
}

// dropSince forgets the chunks decided since whose units all runs hold, a range of neighbours at a time.
func (w *writer) dropSince(num int64, all []Run) error {
	var ranges [][2]int64
	open := false // the last range may grow
	left := all
	err := w.each(func(row []driver.Value) error {
		first, count := row[0].(int64), row[1].(int64)
		in := false
		if in, left = inside(left, uint64(first), uint64(count)); !in {
			open = false
			return nil
		}
		if !open {
			ranges = append(ranges, [2]int64{first, first})
			open = true
		}
		ranges[len(ranges)-1][1] = first
		return nil
	}, "SELECT first, count FROM job_since WHERE job = ? ORDER BY first", num)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if _, _, err := w.change("DELETE FROM job_since WHERE job = ? AND first BETWEEN ? AND ?", num, r[0], r[1]); err != nil {
			return err
		}
	}
	return nil
}

package store

import "github.com/crowdcloud/crowd"

// reopen takes a verdict back. The chunk's units stay in the job's map: those of open chunks don't count when it is read.
func (w *writer) reopen(c crowd.Chunk) error {
	num, err := w.jobNum(c.Job)
	if err != nil {
		return err
	}
	n, _, err := w.change("UPDATE chunks SET state = ?, digest = NULL, body = NULL, failed = 0, decided = 0 WHERE job = ? AND first = ? AND version = ? AND state = ?",
		chunkCode[crowd.ChunkOpen], num, int64(c.First), int64(c.Version), chunkCode[crowd.ChunkDecided])
	if err == nil && n == 0 {
		return crowd.Errorf(crowd.Conflict, "", "chunk %d of job %s has no verdict %d to take back", c.First, c.Job.Short(), c.Version)
	}
	return err
}

func (w *writer) putState(u crowd.UnitState) error {
	num, err := w.jobNum(u.Job)
	if err != nil {
		return err
	}
	conflict := crowd.Errorf(crowd.Conflict, "", "attempt %d at chunk %d of job %s can't leave checkpoint %d", u.N, u.First, u.Job.Short(), u.Seq)
	row, err := w.one("SELECT state, lineage FROM attempts WHERE job = ? AND first = ? AND n = ?", num, int64(u.First), int64(u.N))
	if err != nil {
		return err
	}
	if row == nil || row[0].(int64) != attemptCode[crowd.AttemptLeased] || row[1].(int64) != int64(u.Lineage) && (row[1].(int64) != 0 || u.Lineage != u.N) {
		return conflict
	}
	n, _, err := w.change(`INSERT INTO states (job, first, lineage, n, seq, root, size, fuel, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
		ON CONFLICT (job, first, lineage) DO UPDATE SET n = excluded.n, seq = excluded.seq, root = excluded.root, size = excluded.size, fuel = excluded.fuel, at = excluded.at
		WHERE seq < excluded.seq`,
		num, int64(u.First), int64(u.Lineage), int64(u.N), u.Seq, u.Root[:], u.Size, int64(u.Fuel), nanos(u.At))
	if err != nil || n == 1 {
		return err
	}
	row, err = w.one("SELECT seq, root FROM states WHERE job = ? AND first = ? AND lineage = ?", num, int64(u.First), int64(u.Lineage))
	if err == nil && (row == nil || row[0].(int64) != u.Seq || string(row[1].([]byte)) != string(u.Root[:])) {
		return conflict
	}
	return err
}

func (w *writer) dropStates(o DropStates) error {
	return w.ofJob(o.Job, "DELETE FROM states WHERE job = ?1 AND first = ?2 AND (?3 = 0 OR lineage = ?3)", int64(o.First), int64(o.Lineage))
}

// ofJob runs a statement whose first argument is a job's number.
func (w *writer) ofJob(job crowd.JobID, q string, args ...any) error {
	num, err := w.jobNum(job)
	if err != nil {
		return err
	}
	_, _, err = w.change(q, append([]any{num}, args...)...)
	return err
}

const stateColumns = "SELECT first, lineage, n, seq, root, size, fuel, at FROM states "

func scanState(job crowd.JobID, scan func(...any) error) (u crowd.UnitState, err error) {
	var first, fuel, at int64
	var root []byte
	err = scan(&first, &u.Lineage, &u.N, &u.Seq, &root, &u.Size, &fuel, &at)
	u.Job, u.First, u.Root, u.Fuel, u.At = job, uint64(first), toDigest(root), uint64(fuel), instant(at)
	return u, err
}

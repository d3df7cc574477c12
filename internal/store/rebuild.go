package store

import (
	"context"
	"database/sql/driver"

	"github.com/crowdcloud/crowd"
)

// RebuildDone makes a job's map of decided units anew from its chunks: for when the saved one is damaged, or in doubt. It reads every chunk of the
// job in the writer's transaction; others wait for it. NotFound: no such job.
func (s *Store) RebuildDone(ctx context.Context, job crowd.JobID) error {
	return s.Apply(ctx, rebuildDone{job})
}

type rebuildDone struct{ job crowd.JobID }

func (rebuildDone) op() {}

func (o rebuildDone) step(w *writer) error {
	num, err := w.jobNum(o.job)
	if err != nil {
		return err
	}
	row, err := w.one("SELECT units FROM jobs WHERE num = ?", num)
	if err != nil {
		return err
	}
	units := uint64(row[0].(int64))
	var next uint64
	if row, err = w.one("SELECT next FROM job_done WHERE job = ?", num); err != nil {
		return err
	}
	if row != nil {
		next = min(uint64(max(0, row[0].(int64))), units)
	}
	var runs runBuilder
	err = w.each(func(row []driver.Value) error {
		first, count := uint64(row[0].(int64)), uint64(row[1].(int64))
		if row[2].(int64) != chunkCode[crowd.ChunkOpen] {
			runs.add(first, count)
		}
		next = max(next, first+count)
		return nil
	}, "SELECT first, count, state FROM chunks WHERE job = ? ORDER BY first", num)
	if err != nil {
		return err
	}
	if _, _, err := w.change("INSERT INTO job_done (job, next, runs) VALUES (?, ?, ?) ON CONFLICT (job) DO UPDATE SET next = excluded.next, runs = excluded.runs",
		num, int64(next), packRuns(runs)); err != nil {
		return err
	}
	_, _, err = w.change("DELETE FROM job_since WHERE job = ?", num)
	return err
}

// runBuilder collects units in ascending order.
type runBuilder []Run

func (b *runBuilder) add(first, count uint64) {
	if k := len(*b) - 1; k >= 0 && (*b)[k].end() == first {
		(*b)[k].Count += count
		return
	}
	*b = append(*b, Run{first, count})
}

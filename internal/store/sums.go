package store

import (
	"context"
	"database/sql"

	"github.com/crowdcloud/crowd"
)

// Sums are what the attempts at a range of a job's chunks come to.
type Sums struct {
	Chunks   int64  // decided or failed
	Failed   uint64 // units of them that failed
	Attempts []AttemptSum
}

// AttemptSum is what attempts of one host that ended alike come to.
type AttemptSum struct {
	Host   crowd.HostID
	Owner  crowd.AccountID
	State  crowd.AttemptState
	Reason crowd.Reason
	N      int64 // attempts
	Agreed int64 // those of them whose answer is the verdict's
	Differ int64 // those whose answer is another than the verdict's
	Earned crowd.UCR
}

// Sums adds up at most so many touched chunks with from <= First < to, and their attempts; next is where to go on, to when there are no more. It is
// for a job of many million chunks: the rows stay where they are, and no read lasts long.
func (s *Store) Sums(ctx context.Context, job crowd.JobID, from, to uint64, chunks int) (sum Sums, next uint64, err error) {
	to = min(to, 1<<62)
	next = to
	tx, err := s.rd.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return sum, 0, wrap("read sums", err)
	}
	defer func() { _ = tx.Rollback() }()
	err = each(ctx, tx, func(scan func(...any) error) error {
		var first int64
		err := scan(&first)
		next = uint64(first)
		return err
	}, "SELECT first FROM chunks WHERE job = "+theJob+" AND first >= ? AND first < ? ORDER BY first LIMIT 1 OFFSET ?", job[:], int64(from), int64(to), int64(chunks))
	if err == nil {
		err = tx.QueryRowContext(ctx, "SELECT count(*), coalesce(sum(failed), 0) FROM chunks WHERE job = "+theJob+" AND first >= ? AND first < ? AND state <> 0",
			job[:], int64(from), int64(next)).Scan(&sum.Chunks, &sum.Failed)
	}
	if err == nil {
		err = each(ctx, tx, func(scan func(...any) error) error {
			var a AttemptSum
			var host, owner, reason sql.RawBytes
			var state int64
			err := scan(&host, &owner, &state, &reason, &a.N, &a.Agreed, &a.Differ, &a.Earned)
			copy(a.Host[:], host)
			copy(a.Owner[:], owner)
			a.State, a.Reason = stateOf(attemptStates, state), crowd.Reason(reason)
			sum.Attempts = append(sum.Attempts, a)
			return err
		}, `SELECT a.host, a.owner, a.state, a.reason, count(*), coalesce(sum(a.digest = c.digest), 0), coalesce(sum(a.digest <> c.digest), 0), sum(a.paid)
			FROM attempts a JOIN chunks c ON c.job = a.job AND c.first = a.first
			WHERE a.job = `+theJob+` AND a.first >= ? AND a.first < ? GROUP BY a.host, a.owner, a.state, a.reason`, job[:], int64(from), int64(next))
	}
	return sum, next, wrap("read sums", err)
}

package store

import (
	"context"
	"math"

	"github.com/crowdcloud/crowd"
)

// Revisits are the hosts on whose word no verdict of a job may rest, as far as that isn't done yet.
func (s *Store) Revisits(ctx context.Context, job crowd.JobID) (hosts []crowd.HostID, err error) {
	err = s.each(ctx, func(scan func(...any) error) error {
		var id []byte
		err := scan(&id)
		hosts = append(hosts, crowd.HostID(id))
		return err
	}, "SELECT host FROM revisits WHERE job = "+theJob, job[:])
	return hosts, wrap("read revisits", err)
}

// RestingOn finds, among at most so many touched chunks from one on, those whose verdict a host's answer is part of. next is where to go on;
// math.MaxUint64: there are no more.
func (s *Store) RestingOn(ctx context.Context, job crowd.JobID, host crowd.HostID, from uint64, chunks int) (firsts []uint64, next uint64, err error) {
	to := int64(math.MaxInt64)
	err = s.each(ctx, func(scan func(...any) error) error { return scan(&to) },
		"SELECT first FROM chunks WHERE job = "+theJob+" AND first >= ? ORDER BY first LIMIT 1 OFFSET ?", job[:], int64(from), int64(chunks))
	if err == nil {
		err = s.each(ctx, func(scan func(...any) error) error {
			var first int64
			err := scan(&first)
			firsts = append(firsts, uint64(first))
			return err
		}, `SELECT a.first FROM attempts a JOIN chunks c ON c.job = a.job AND c.first = a.first
			WHERE a.job = `+theJob+` AND a.first >= ? AND a.first < ? AND a.host = ? AND a.state = ? AND a.voter IS NOT NULL AND c.state = ? AND a.digest = c.digest
			ORDER BY a.first`, job[:], int64(from), to, host[:], attemptCode[crowd.AttemptReported], chunkCode[crowd.ChunkDecided])
	}
	if next = uint64(to); to == math.MaxInt64 {
		next = math.MaxUint64
	}
	return firsts, next, wrap("read verdicts", err)
}

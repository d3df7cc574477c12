package store

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// BenchmarkFullPath is the whole durable life of a chunk under verify: none, from 64 goroutines: one Apply leases it, one ends the attempt, decides the chunk,
// posts three legs and stores a body of 200 random bytes a unit.
func BenchmarkFullPath(b *testing.B) {
	for _, units := range []uint64{1, 16, 64} {
		b.Run(fmt.Sprintf("units=%d", units), func(b *testing.B) { fullPath(b, units, 64) })
	}
}

func fullPath(b *testing.B, units uint64, workers int) {
	s := open(b, b.TempDir())
	job := addJob(b, s, "bench")
	escrow := crowd.EscrowBook(job.ID)
	must(b, s.Apply(ctx, legs("order", crowd.BookMint, -1<<50, escrow, 1<<50)))
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range workers {
		wg.Go(func() {
			owner, host := newID[crowd.AccountID](), newID[crowd.HostID]()
			pending := crowd.PendingBook(owner)
			body := make([]byte, 200*units)
			_, _ = rand.Read(body)
			for {
				i := next.Add(1) - 1
				if i >= int64(b.N) {
					return
				}
				c := chunk(job.ID, uint64(i)*units, units)
				a := attempt(job.ID, c.First, 0, owner)
				a.Host = host
				if err := s.Apply(ctx, Lease{c, a}); err != nil {
					b.Error(err)
					return
				}
				copy(body, strconv.FormatInt(i, 10))
				d := digest.Of(body)
				a.State, a.EndedAt, a.Digest, a.Fuel, a.Paid = crowd.AttemptReported, t0, d, 1e9, 1000
				txn := "chunk:" + job.ID.String() + ":" + strconv.FormatUint(c.First, 10) + ":1"
				err := s.Apply(ctx, PutBody{job.ID, d, body}, End{a, true, d}, Decide{decided(c, 1).Chunk, d},
					legs(txn, escrow, -1000, pending, 950, crowd.BookFee, 50))
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)*float64(units)/b.Elapsed().Seconds(), "units/s")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "chunks/s")
	b.ReportMetric(float64(2*b.N)/float64(s.w.commits), "lists/commit")
	if sum := must1(s.LedgerSum(ctx))(b); sum != 0 {
		b.Fatal("ledger sum", sum)
	}
}

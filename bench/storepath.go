package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/store"
)

func random() (r [10]byte) {
	_, _ = rand.Read(r[:])
	return r
}

func newJob() (id crowd.JobID)         { return fresh(id) }
func newHost() (id crowd.HostID)       { return fresh(id) }
func newAccount() (id crowd.AccountID) { return fresh(id) }
func newSession() (id crowd.SessionID) { return fresh(id) }

func fresh[K crowd.Kind](crowd.ID[K]) crowd.ID[K] { return crowd.MakeID[K](time.Now(), random()) }

// noopOutcome is what a chunk of programs that print nothing gives.
func noopOutcome(first, count uint64) (*crowd.Outcome, []byte) {
	o := &crowd.Outcome{First: first, Units: make([]crowd.UnitResult, count)}
	for i := range o.Units {
		o.Units[i].Fuel = 1000
	}
	return o, o.Body(make([]crowd.UnitContent, count))
}

// storePath is the reference of dispatch: lease, then end, verdict, postings and body of a chunk, straight into a store of the same schema, by as
// many goroutines as there are hosts. It returns units a second.
func storePath(ctx context.Context, workers int, perChunk, chunks uint64) (float64, error) {
	dir, err := os.MkdirTemp("", "crowd-bench-store-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	st, err := store.Open(ctx, dir, store.Options{})
	if err != nil {
		return 0, err
	}
	defer st.Close()
	now := time.Now()
	ada := crowd.Account{ID: newAccount(), Name: "ada", Created: now}
	job := crowd.Job{ID: newJob(), Account: ada.ID, Name: "bench", Units: perChunk * chunks, State: crowd.JobRunning, Created: now, Version: 1}
	ops := []store.Op{store.PutAccount{Account: ada}, store.AddJob{Job: job}, store.Post{Postings: []crowd.Posting{
		{Txn: "deposit:bench", Leg: 0, Book: crowd.BookMint, Amount: -1 << 50, At: now},
		{Txn: "deposit:bench", Leg: 1, Book: crowd.EscrowBook(job.ID), Amount: 1 << 50, At: now}}}}
	owners := make([]crowd.AccountID, workers)
	hosts := make([]crowd.HostID, workers)
	for i := range workers {
		owners[i], hosts[i] = newAccount(), newHost()
		ops = append(ops, store.PutAccount{Account: crowd.Account{ID: owners[i], Name: fmt.Sprint("owner", i), Created: now}},
			store.PutHost{Host: crowd.Host{ID: hosts[i], Account: owners[i], Name: fmt.Sprint("host", i), State: crowd.HostActive, Created: now}})
	}
	if err := st.Apply(ctx, ops...); err != nil {
		return 0, err
	}
	var next atomic.Uint64
	errs := make(chan error, workers)
	t0 := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for c := next.Add(1) - 1; c < chunks; c = next.Add(1) - 1 {
				if err := storeChunk(ctx, st, job.ID, hosts[w], owners[w], c*perChunk, perChunk); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	span := time.Since(t0)
	close(errs)
	return float64(perChunk*chunks) / span.Seconds(), <-errs
}

func storeChunk(ctx context.Context, st *store.Store, job crowd.JobID, host crowd.HostID, owner crowd.AccountID, first, count uint64) error {
	now := time.Now()
	chunk := crowd.Chunk{Job: job, First: first, Count: count, Need: 1, State: crowd.ChunkOpen}
	at := crowd.Attempt{Job: job, First: first, Host: host, Owner: owner, Group: owner.String(), State: crowd.AttemptLeased, LeasedAt: now}
	if err := st.Apply(ctx, store.Lease{Chunk: chunk, Attempt: at}); err != nil {
		return err
	}
	o, body := noopOutcome(first, count)
	d := digest.Of(body)
	at.State, at.EndedAt, at.Digest, at.Fuel, at.Paid = crowd.AttemptReported, time.Now(), digest.Of(o.Manifest()), o.Fuel(), 100
	chunk.State, chunk.Version, chunk.Digest, chunk.Decided = crowd.ChunkDecided, 1, at.Digest, at.EndedAt
	txn := fmt.Sprintf("chunk:%s:%d:1", job, first)
	return st.Apply(ctx, store.PutBody{Job: job, Digest: d, Body: body}, store.End{Attempt: at, Counts: true, Body: d},
		store.Decide{Chunk: chunk, Body: d}, store.Post{Postings: []crowd.Posting{
			{Txn: txn, Leg: 0, Book: crowd.EscrowBook(job), Amount: -100, At: now},
			{Txn: txn, Leg: 1, Book: crowd.PendingBook(owner), Amount: 100, At: now}}})
}

// Package store is the broker's memory: one SQLite file and, beside it, append-only body logs, one per job.
//
// Writing is Apply: a list of ops in one transaction, durable when it returns. One writer goroutine merges waiting lists into one
// commit (group commit). Reads see what was committed. A job's decided units are a run-length map (Done) that is saved every few seconds;
// after a restart it is completed by the chunks that were decided since (Progress), so that a job of many million chunks
// is loaded without reading them.
package store

import (
	"context"
	"time"

	"github.com/crowdcloud/crowd"
)

// Meta is the store's own row. Incarnation is the high part of every epoch.
type Meta struct {
	Incarnation int64
	BrokerKey   []byte // public
	Schema      int64
}

// Progress is what a broker needs to go on with a job after a start. Units below Next in neither Runs nor Open are Holes.
type Progress struct {
	Next uint64      // first unit never cut
	Runs []Run       // decided runs, ascending, merged
	Open []OpenChunk // every chunk without verdict, ascending
}

// OpenChunk is a chunk without verdict and its attempts by number.
type OpenChunk struct {
	Chunk    crowd.Chunk
	Attempts []crowd.Attempt
	States   []crowd.UnitState // by lineage
}

// JobFilter selects jobs; zero fields select all. Newest first.
type JobFilter struct {
	Account crowd.AccountID
	State   crowd.JobState
	Living  bool // only those that haven't ended
	Name    string
	Label   string // KEY=VALUE
	Since   time.Time
	Before  crowd.JobID // page: only older ones
	Limit   int         // 0: 50
}

// EventFilter selects events in order of Seq (or newest first if Newest). Account zero sees all.
type EventFilter struct {
	Subject string // an id; events whose Data names it count too
	Account crowd.AccountID
	After   int64
	Newest  bool
	Limit   int // 0: 100
}

// Options of Open.
type Options struct {
	Now func() time.Time // nil: time.Now
}

// The reads. Each is NotFound (or an empty list) when there is nothing.
type reads interface {
	Meta(context.Context) (Meta, error)
	SetBrokerKey(context.Context, []byte) error // once; another key than the stored one: Conflict
	Account(context.Context, crowd.AccountID) (crowd.Account, error)
	AccountByName(context.Context, string) (crowd.Account, error)
	Accounts(context.Context) ([]crowd.Account, error)
	KeyByHash(context.Context, [32]byte) (crowd.Key, error)
	Keys(context.Context, crowd.AccountID) ([]crowd.Key, error)
	Token(ctx context.Context, hash [32]byte) (crowd.JoinToken, error)
	Host(context.Context, crowd.HostID) (crowd.Host, error)
	Hosts(context.Context) ([]crowd.Host, error)
	Session(context.Context, crowd.HostID) (PutSession, error) // the newest
	Program(context.Context, crowd.Digest) (crowd.Program, error)
	HasBlob(context.Context, crowd.AccountID, crowd.Digest) (bool, error)
	Job(context.Context, crowd.JobID) (crowd.Job, error)
	Jobs(context.Context, JobFilter) ([]crowd.Job, error)
	JobProgress(context.Context, crowd.JobID) (Progress, error)
	Chunks(ctx context.Context, job crowd.JobID, from uint64, limit int) ([]ChunkRow, error) // touched chunks with First >= from, ascending
	ChunkOf(ctx context.Context, job crowd.JobID, unit uint64) (ChunkRow, error)             // the chunk that holds a unit
	Attempts(ctx context.Context, job crowd.JobID, first uint64) ([]crowd.Attempt, error)    // of one chunk
	JobAttempts(ctx context.Context, job crowd.JobID, after crowd.AttemptRef, limit int) ([]crowd.Attempt, error)
	Body(ctx context.Context, job crowd.JobID, d crowd.Digest) ([]byte, error)
	Balance(context.Context, crowd.Book) (crowd.UCR, error)
	Postings(ctx context.Context, b crowd.Book, after string, limit int) ([]crowd.Posting, error) // newest first; after: Cursor of the last one seen
	Txn(ctx context.Context, name string) ([]crowd.Posting, error)                                // the legs of one transaction
	LedgerSum(context.Context) (crowd.UCR, error)                                                 // over all postings; zero, always
	Events(context.Context, EventFilter) ([]crowd.Event, error)
	Idem(ctx context.Context, account crowd.AccountID, key string) (PutIdem, error)
	Quote(context.Context, crowd.QuoteID) (crowd.Quote, error)
}

// ChunkRow is a chunk with the digest under which its agreed body is stored.
type ChunkRow struct {
	crowd.Chunk
	Body crowd.Digest
}

var _ reads = (*Store)(nil)

package store

import (
	"context"
	"crypto/rand"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

var (
	ctx = context.Background()
	t0  = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
)

// newID makes a fresh id of any kind.
func newID[T ~[16]byte]() (id T) {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	copy(id[:], b)
	id[6], id[8] = 0x70, 0x80
	return id
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(ctx, dir, Options{Now: func() time.Time { return t0 }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must1 is for reads.
func must1[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func wantKind(t testing.TB, err error, k crowd.ErrKind) {
	t.Helper()
	if err == nil || !crowd.KindIs(err, k) {
		t.Fatalf("got error %v, want one of kind %s", err, k)
	}
}

// addJob inserts a running job.
func addJob(t testing.TB, s *Store, name string) crowd.Job {
	t.Helper()
	j := crowd.Job{ID: newID[crowd.JobID](), Account: newID[crowd.AccountID](), Name: name, Units: 1 << 40, State: crowd.JobRunning, Created: t0}
	must(t, s.Apply(ctx, AddJob{j}))
	return j
}

func chunk(job crowd.JobID, first, count uint64) crowd.Chunk {
	return crowd.Chunk{Job: job, First: first, Count: count, Need: 2, State: crowd.ChunkOpen}
}

func attempt(job crowd.JobID, first uint64, n int, owner crowd.AccountID) crowd.Attempt {
	return crowd.Attempt{Job: job, First: first, N: n, Host: newID[crowd.HostID](), Owner: owner, State: crowd.AttemptLeased, LeasedAt: t0}
}

func lease(job crowd.JobID, first, count uint64, n int) Lease {
	return Lease{chunk(job, first, count), attempt(job, first, n, newID[crowd.AccountID]())}
}

func decided(c crowd.Chunk, version int) Decide {
	c.State, c.Version, c.Digest, c.Decided = crowd.ChunkDecided, version, digest.Of([]byte{byte(version)}), t0
	return Decide{Chunk: c}
}

// legs are the postings of one transaction: book, amount; and so on.
func legs(txn string, books ...any) Post {
	var p Post
	for i := 0; i < len(books); i += 2 {
		p.Postings = append(p.Postings, crowd.Posting{Txn: txn, Leg: i / 2, Book: books[i].(crowd.Book), Amount: crowd.UCR(books[i+1].(int)), At: t0})
	}
	return p
}

// tempDir and openRapid serve property tests, which have no Cleanup per case.
func tempDir(t *rapid.T) string {
	dir, err := os.MkdirTemp(tempRoot, "case")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func openRapid(t *rapid.T, dir string) *Store {
	s, err := Open(ctx, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tempRoot holds what outlives a test's own folder.
var tempRoot string

func TestMain(m *testing.M) {
	if dir := os.Getenv("CROWD_STORE_CRASH"); dir != "" {
		crashChild(dir)
		return
	}
	var err error
	if tempRoot, err = os.MkdirTemp("", "crowd-store"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(tempRoot)
	os.Exit(code)
}

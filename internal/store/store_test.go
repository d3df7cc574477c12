package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir() + "/a b%20c?#" // a path that is awkward in a URI
	s := open(t, dir)
	m := must1(s.Meta(ctx))(t)
	if m.Incarnation != 1 || m.Schema < 2 || m.BrokerKey != nil {
		t.Fatalf("fresh store: %+v", m)
	}
	if _, err := os.Stat(filepath.Join(dir, "crowd.db")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(ctx, dir, Options{})
	wantKind(t, err, crowd.Conflict)
	if crowd.AsError(err).Hint == "" {
		t.Fatal("no hint")
	}
	must(t, s.SetBrokerKey(ctx, []byte("key")))
	must(t, s.SetBrokerKey(ctx, []byte("key")))
	wantKind(t, s.SetBrokerKey(ctx, []byte("other")), crowd.Conflict)
	wantKind(t, s.SetBrokerKey(ctx, nil), crowd.Invalid)
	must(t, s.Close())
	must(t, s.Close())
	wantKind(t, s.Apply(ctx), crowd.Unavailable)
	s = open(t, dir)
	if m = must1(s.Meta(ctx))(t); string(m.BrokerKey) != "key" {
		t.Fatalf("after restart: %+v", m)
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "page_size": "8192"} {
		row, err := s.w.one("PRAGMA " + pragma)
		if err != nil || fmt.Sprint(row[0]) != want {
			t.Errorf("%s is %v, %v", pragma, row, err)
		}
	}
	if _, err := s.rd.Exec("DELETE FROM meta"); err == nil {
		t.Error("a reader may write")
	}
}

// Each case is a list applied to the fixture; kind OK means that it is accepted. Refused lists must leave nothing behind.
func TestConditions(t *testing.T) {
	s := open(t, t.TempDir())
	acc := crowd.Account{ID: newID[crowd.AccountID](), Name: "ann", Created: t0}
	key := crowd.Key{ID: newID[crowd.KeyID](), Account: acc.ID, Hash: [32]byte{1}, Cap: 100, Created: t0}
	job := crowd.Job{ID: newID[crowd.JobID](), Account: acc.ID, Name: "j", Units: 1000, State: crowd.JobQueued, Created: t0}
	ended := crowd.Job{ID: newID[crowd.JobID](), Account: acc.ID, Name: "j2", State: crowd.JobDone, Created: t0}
	owner, twin := newID[crowd.AccountID](), newID[crowd.AccountID]()
	first := Lease{chunk(job.ID, 0, 10), attempt(job.ID, 0, 0, owner)}
	dec := decided(chunk(job.ID, 100, 10), 1)
	must(t, s.Apply(ctx, PutAccount{acc}, PutKey{key}, AddJob{job}, AddJob{ended}, first, lease(job.ID, 100, 10, 0), dec,
		PutToken{crowd.JoinToken{Hash: [32]byte{9}, Account: acc.ID, Expires: t0.Add(time.Hour)}},
		PutToken{crowd.JoinToken{Hash: [32]byte{8}, Account: acc.ID, Expires: t0.Add(-time.Hour)}},
		PutIdem{acc.ID, "k", [32]byte{1}, 200, []byte("{}"), t0},
		legs("deposit:1", crowd.BookMint, -50, crowd.BalanceBook(acc.ID), 50)))

	with := func(j crowd.Job, f func(*crowd.Job)) crowd.Job { f(&j); return j }
	att := func(a crowd.Attempt, f func(*crowd.Attempt)) crowd.Attempt { f(&a); return a }
	end := func(a crowd.Attempt, st crowd.AttemptState, counts bool) End {
		a.State, a.EndedAt = st, t0
		return End{Attempt: a, Counts: counts}
	}
	bal := crowd.BalanceBook(acc.ID)
	for _, c := range []struct {
		name   string
		kind   crowd.ErrKind
		reason crowd.Reason
		ops    []Op
	}{
		{"nothing", crowd.OK, "", nil},
		{"account again", crowd.OK, "", []Op{PutAccount{acc}}},
		{"account's name taken", crowd.Conflict, "", []Op{PutAccount{crowd.Account{ID: twin, Name: "ann"}}}},
		{"key's secret taken", crowd.Conflict, "", []Op{PutKey{crowd.Key{ID: newID[crowd.KeyID](), Hash: key.Hash}}}},
		{"no such key to delete", crowd.OK, "", []Op{DeleteKey{newID[crowd.KeyID]()}}},
		{"spend to the cap", crowd.OK, "", []Op{Spend{key.ID, 100}, Spend{key.ID, -60}, Spend{key.ID, 60}}},
		{"spend beyond the cap", crowd.Exhausted, crowd.CustomerCap, []Op{Spend{key.ID, 100}, Spend{key.ID, 1}}},
		{"spend by no key", crowd.NotFound, "", []Op{Spend{newID[crowd.KeyID](), 1}}},
		{"return to no key", crowd.OK, "", []Op{Spend{newID[crowd.KeyID](), -1}}},
		{"token", crowd.OK, "", []Op{UseToken{[32]byte{9}, t0}}},
		{"token twice", crowd.Denied, crowd.BrokerToken, []Op{UseToken{[32]byte{9}, t0}, UseToken{[32]byte{9}, t0}}},
		{"token expired", crowd.Denied, crowd.BrokerToken, []Op{UseToken{[32]byte{8}, t0}}},
		{"token unknown", crowd.Denied, crowd.BrokerToken, []Op{UseToken{[32]byte{7}, t0}}},
		{"idem same", crowd.OK, "", []Op{PutIdem{acc.ID, "k", [32]byte{1}, 200, nil, t0}}},
		{"idem other body", crowd.Conflict, "", []Op{PutIdem{acc.ID, "k", [32]byte{2}, 200, nil, t0}}},
		{"idem other body a day later", crowd.OK, "", []Op{PutIdem{acc.ID, "k", [32]byte{2}, 200, nil, t0.Add(25 * time.Hour)}}},
		{"job's name taken", crowd.Conflict, "", []Op{AddJob{with(job, func(j *crowd.Job) { j.ID = newID[crowd.JobID]() })}}},
		{"job's name of one that ended", crowd.OK, "", []Op{AddJob{with(ended, func(j *crowd.Job) { j.ID, j.State = newID[crowd.JobID](), crowd.JobQueued })}}},
		{"job's name freed in the list", crowd.OK, "", []Op{SetJob{with(job, func(j *crowd.Job) { j.State = crowd.JobCancelled })},
			AddJob{with(job, func(j *crowd.Job) { j.ID = newID[crowd.JobID]() })}}},
		{"job's id taken", crowd.Conflict, "", []Op{AddJob{with(job, func(j *crowd.Job) { j.Name = "x" })}}},
		{"job same state", crowd.OK, "", []Op{SetJob{job}}},
		{"job bad move", crowd.Conflict, "", []Op{SetJob{with(job, func(j *crowd.Job) { j.State = crowd.JobWaiting })}}},
		{"job back to life", crowd.Conflict, "", []Op{SetJob{with(ended, func(j *crowd.Job) { j.State = crowd.JobRunning })}}},
		{"job unknown", crowd.NotFound, "", []Op{SetJob{with(job, func(j *crowd.Job) { j.ID = newID[crowd.JobID]() })}}},
		{"lease beside", crowd.OK, "", []Op{lease(job.ID, 0, 10, 1)}},
		{"lease of no job", crowd.NotFound, "", []Op{lease(newID[crowd.JobID](), 0, 10, 1)}},
		{"lease same number", crowd.Conflict, "", []Op{lease(job.ID, 0, 10, 0)}},
		{"lease same owner", crowd.Conflict, crowd.CustomerSelf, []Op{Lease{chunk(job.ID, 0, 10), attempt(job.ID, 0, 1, owner)}}},
		{"lease in a group named by that owner", crowd.Conflict, crowd.CustomerSelf,
			[]Op{Lease{chunk(job.ID, 0, 10), att(attempt(job.ID, 0, 1, twin), func(a *crowd.Attempt) { a.Group = owner.String() })}}},
		{"lease same group", crowd.Conflict, crowd.CustomerSelf, []Op{
			Lease{chunk(job.ID, 0, 10), att(attempt(job.ID, 0, 1, newID[crowd.AccountID]()), func(a *crowd.Attempt) { a.Group = "g" })},
			Lease{chunk(job.ID, 0, 10), att(attempt(job.ID, 0, 2, newID[crowd.AccountID]()), func(a *crowd.Attempt) { a.Group = "g" })}}},
		{"lease of another size", crowd.Conflict, "", []Op{lease(job.ID, 0, 11, 1)}},
		{"lease torn", crowd.Internal, "", []Op{Lease{chunk(job.ID, 0, 10), attempt(job.ID, 10, 1, twin)}}},
		{"lease after a loss without its seat", crowd.OK, "", []Op{end(first.Attempt, crowd.AttemptFailed, false),
			Lease{chunk(job.ID, 0, 10), attempt(job.ID, 0, 1, owner)}}},
		{"lease after a loss with its seat", crowd.Conflict, crowd.CustomerSelf, []Op{end(first.Attempt, crowd.AttemptExpired, true),
			Lease{chunk(job.ID, 0, 10), attempt(job.ID, 0, 1, owner)}}},
		{"seat regained by a late report", crowd.OK, "", []Op{end(first.Attempt, crowd.AttemptExpired, false), end(first.Attempt, crowd.AttemptReported, true)}},
		{"seat taken when the late report comes", crowd.Conflict, crowd.CustomerSelf, []Op{end(first.Attempt, crowd.AttemptExpired, false),
			Lease{chunk(job.ID, 0, 10), attempt(job.ID, 0, 1, owner)}, end(first.Attempt, crowd.AttemptReported, true)}},
		{"end twice", crowd.Conflict, "", []Op{end(first.Attempt, crowd.AttemptReported, true), end(first.Attempt, crowd.AttemptReported, true)}},
		{"end bad move", crowd.Conflict, "", []Op{end(first.Attempt, crowd.AttemptFailed, false), end(first.Attempt, crowd.AttemptReported, true)}},
		{"end of no attempt", crowd.NotFound, "", []Op{end(attempt(job.ID, 0, 7, owner), crowd.AttemptVoid, false)}},
		{"end void after report", crowd.OK, "", []Op{end(first.Attempt, crowd.AttemptReported, true), end(first.Attempt, crowd.AttemptVoid, false)}},
		{"decide", crowd.OK, "", []Op{decided(chunk(job.ID, 0, 10), 1)}},
		{"decide twice", crowd.Conflict, "", []Op{decided(chunk(job.ID, 0, 10), 1), decided(chunk(job.ID, 0, 10), 1)}},
		{"decide anew without taking back", crowd.Conflict, "", []Op{decided(chunk(job.ID, 100, 10), 2)}},
		{"decide anew", crowd.OK, "", []Op{Reopen{decided(chunk(job.ID, 100, 10), 1).Chunk}, decided(chunk(job.ID, 100, 10), 2)}},
		{"decide skipping a version", crowd.Conflict, "", []Op{Reopen{decided(chunk(job.ID, 100, 10), 1).Chunk}, decided(chunk(job.ID, 100, 10), 3)}},
		{"decide the old version", crowd.Conflict, "", []Op{Reopen{decided(chunk(job.ID, 100, 10), 1).Chunk}, decided(chunk(job.ID, 100, 10), 1)}},
		{"take back another version", crowd.Conflict, "", []Op{Reopen{decided(chunk(job.ID, 100, 10), 2).Chunk}}},
		{"take back twice", crowd.Conflict, "", []Op{Reopen{decided(chunk(job.ID, 100, 10), 1).Chunk}, Reopen{decided(chunk(job.ID, 100, 10), 1).Chunk}}},
		{"take back what is open", crowd.Conflict, "", []Op{Reopen{chunk(job.ID, 0, 10)}}},
		{"checkpoint", crowd.OK, "", []Op{state(first.Attempt, 1, 7)}},
		{"checkpoint again", crowd.OK, "", []Op{state(first.Attempt, 1, 7), state(first.Attempt, 1, 7), state(first.Attempt, 2, 8)}},
		{"checkpoint of the same number", crowd.Conflict, "", []Op{state(first.Attempt, 1, 7), state(first.Attempt, 1, 8)}},
		{"checkpoint beyond the next", crowd.OK, "", []Op{state(first.Attempt, 2, 7), state(first.Attempt, 9, 8)}},
		{"checkpoint before the last", crowd.Conflict, "", []Op{state(first.Attempt, 1, 7), state(first.Attempt, 2, 8), state(first.Attempt, 1, 7)}},
		{"checkpoint of an expired attempt", crowd.Conflict, "", []Op{end(first.Attempt, crowd.AttemptExpired, false), state(first.Attempt, 1, 7)}},
		{"checkpoint of another lineage", crowd.Conflict, "", []Op{PutState{crowd.UnitState{AttemptRef: first.Attempt.Ref(), Lineage: 3, Seq: 1, Root: digest.Of(nil)}}}},
		{"checkpoint of no attempt", crowd.Conflict, "", []Op{state(attempt(job.ID, 0, 7, owner), 1, 7)}},
		{"decide of no chunk", crowd.NotFound, "", []Op{decided(chunk(job.ID, 50, 10), 1)}},
		{"decide another size", crowd.Conflict, "", []Op{decided(chunk(job.ID, 0, 9), 1)}},
		{"done", crowd.OK, "", []Op{Done{job.ID, 110, []Run{{100, 10}}}}},
		{"done touching runs", crowd.Internal, "", []Op{Done{job.ID, 110, []Run{{0, 10}, {10, 10}}}}},
		{"done beyond next", crowd.Internal, "", []Op{Done{job.ID, 10, []Run{{0, 11}}}}},
		{"post", crowd.OK, "", []Op{legs("a", bal, -50, crowd.BookFee, 50)}},
		{"post twice is once", crowd.OK, "", []Op{legs("a", bal, -50, crowd.BookFee, 50), legs("a", bal, -50, crowd.BookFee, 50)}},
		{"post too much", crowd.Exhausted, crowd.CustomerCredit, []Op{legs("a", bal, -51, crowd.BookFee, 51)}},
		{"post too much in two", crowd.Exhausted, crowd.CustomerCredit, []Op{legs("a", bal, -30, crowd.BookFee, 30), legs("b", bal, -30, crowd.BookFee, 30)}},
		{"post and back within one", crowd.OK, "", []Op{legs("a", bal, -60, bal, 10, crowd.BookFee, 50)}},
		{"post unbalanced", crowd.Internal, "", []Op{legs("a", bal, -10, crowd.BookFee, 9)}},
		{"post no name", crowd.Internal, "", []Op{legs("", bal, -10, crowd.BookFee, 10)}},
		{"post same leg twice", crowd.Internal, "", []Op{Post{[]crowd.Posting{{Txn: "a", Book: bal, Amount: -1}, {Txn: "a", Book: crowd.BookFee, Amount: 1}}}}},
		{"post overflow", crowd.Internal, "", []Op{legs("a", crowd.BookFee, 1<<62, bal, -(1 << 62), crowd.BookFee, 1<<62, crowd.BookMint, -(1 << 62))}},
		{"body of no job", crowd.NotFound, "", []Op{PutBody{newID[crowd.JobID](), digest.Of(nil), nil}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := dump(t, s)
			// a list of its own, so that what is accepted can be taken back
			err := s.Apply(ctx, append(c.ops, failIf(c.kind == crowd.OK)...)...)
			if c.kind == crowd.OK {
				if !errors.Is(err, errTest) {
					t.Fatal(err)
				}
			} else {
				wantKind(t, err, c.kind)
				if r := crowd.AsError(err).Reason; r != c.reason {
					t.Errorf("reason %q, want %q", r, c.reason)
				}
			}
			if after := dump(t, s); after != before {
				t.Errorf("a refused list changed\n%s\nto\n%s", before, after)
			}
		})
	}
}

// state is checkpoint seq of an attempt that began by itself.
func state(a crowd.Attempt, seq int64, content byte) PutState {
	return PutState{crowd.UnitState{AttemptRef: a.Ref(), Lineage: a.Line(), Seq: seq, Root: digest.Of([]byte{content}), Size: 1, At: t0}}
}

// A chunk whose verdict was taken back is open at the next start, though the job's map holds it; decided anew, it is decided.
func TestReopen(t *testing.T) {
	s := open(t, t.TempDir())
	job := addJob(t, s, "again")
	c, l := chunk(job.ID, 0, 10), lease(job.ID, 0, 10, 1)
	must(t, s.Apply(ctx, l, decided(c, 1), Done{job.ID, 10, []Run{{0, 10}}}))
	must(t, s.Apply(ctx, Reopen{decided(c, 1).Chunk}))
	must(t, s.Apply(ctx, Done{job.ID, 10, []Run{{0, 10}}})) // saved before, committed after
	next := lease(job.ID, 0, 10, 2)
	next.Chunk.Version, next.Attempt.Lineage = 1, 1
	must(t, s.Apply(ctx, next, PutState{crowd.UnitState{AttemptRef: next.Attempt.Ref(), Lineage: 1, Seq: 1, Root: digest.Of(nil), Fuel: 5, At: t0}}))
	p := must1(s.JobProgress(ctx, job.ID))(t)
	if len(p.Runs) != 0 || len(p.Open) != 1 || p.Open[0].Chunk.Version != 1 || len(p.Open[0].Attempts) != 2 || p.Open[0].Attempts[1].Line() != 1 ||
		len(p.Open[0].States) != 1 || p.Open[0].States[0].N != 2 || p.Open[0].States[0].Fuel != 5 {
		t.Fatalf("after it was taken back: %+v", p)
	}
	must(t, s.Apply(ctx, decided(c, 2), DropStates{Job: job.ID, First: 0}))
	if p := must1(s.JobProgress(ctx, job.ID))(t); len(p.Open) != 0 || len(p.Runs) != 1 || p.Runs[0] != (Run{0, 10}) {
		t.Errorf("decided anew: %+v", p)
	}
}

// opFunc is an op of the tests' own.
type opFunc func(*writer) error

func (opFunc) op()                    {}
func (f opFunc) step(w *writer) error { return f(w) }

var errTest = crowd.Errorf(crowd.Failed, "", "refused by the test")

func failIf(b bool) []Op {
	if b {
		return []Op{opFunc(func(*writer) error { return errTest })}
	}
	return nil
}

// dump is every row of every table.
func dump(t testing.TB, s *Store) string {
	t.Helper()
	var out strings.Builder
	var tables []string
	must(t, s.each(ctx, func(scan func(...any) error) error {
		var n string
		err := scan(&n)
		tables = append(tables, n)
		return err
	}, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'goose%' ORDER BY name"))
	for _, table := range tables {
		rows, err := s.rd.Query("SELECT * FROM " + table)
		must(t, err)
		cols, _ := rows.Columns()
		for rows.Next() {
			vals, ptrs := make([]any, len(cols)), make([]any, len(cols))
			for i := range vals {
				ptrs[i] = &vals[i]
			}
			must(t, rows.Scan(ptrs...))
			fmt.Fprintln(&out, table, vals)
		}
		must(t, rows.Close())
	}
	return out.String()
}

func TestApplyContext(t *testing.T) {
	s := open(t, t.TempDir())
	gone, cancel := context.WithCancel(ctx)
	cancel()
	err := s.Apply(gone, PutAccount{crowd.Account{ID: newID[crowd.AccountID](), Name: "a"}})
	wantKind(t, err, crowd.Unavailable)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}

	// while the writer is held up, one caller gives up and another waits
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Apply(ctx, opFunc(func(*writer) error { close(held); <-hold; return nil }))
	})
	<-held
	left, leave := context.WithCancel(ctx)
	wg.Go(func() {
		wantKind(t, s.Apply(left, PutAccount{crowd.Account{ID: newID[crowd.AccountID](), Name: "left"}}), crowd.Unavailable)
		close(hold)
	})
	for len(s.queue) == 0 {
		time.Sleep(time.Millisecond) // until it waits in the queue
	}
	leave()
	wg.Wait()
	must(t, s.Apply(ctx, PutAccount{crowd.Account{ID: newID[crowd.AccountID](), Name: "b"}}))
	if all := must1(s.Accounts(ctx))(t); len(all) != 1 || all[0].Name != "b" {
		t.Fatal(all)
	}
}

// One transaction holds good lists and bad ones; the bad ones, before and after they changed something, are undone alone.
func TestGroupCommit(t *testing.T) {
	s := open(t, t.TempDir())
	job := addJob(t, s, "j")
	bal := crowd.BalanceBook(job.Account)
	must(t, s.Apply(ctx, legs("d", crowd.BookMint, -100, bal, 100)))
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Apply(ctx, opFunc(func(*writer) error { close(held); <-hold; return nil }))
	})
	<-held
	const n = 60
	errs := make([]error, n)
	for i := range n {
		ops := []Op{lease(job.ID, uint64(i)*10, 10, 0), legs(fmt.Sprint("t", i), bal, -1, crowd.Book(fmt.Sprint("x", i)), 1),
			AddEvent{crowd.Event{At: t0, Subject: job.ID.String(), Actor: "broker", What: "lease.made"}},
			PutBody{job.ID, digest.Of([]byte{byte(i)}), []byte{byte(i)}}}
		switch i % 3 {
		case 1: // refused late
			ops = append(ops, legs(fmt.Sprint("u", i), bal, -1000, crowd.BookFee, 1000))
		case 2: // refused at once
			ops = append([]Op{UseToken{}}, ops...)
		}
		wg.Go(func() { errs[i] = s.Apply(ctx, ops...) })
	}
	for len(s.queue) < n {
		time.Sleep(time.Millisecond) // until all wait in the queue
	}
	commits := s.w.commits
	close(hold)
	wg.Wait()
	must(t, s.Apply(ctx))
	if got := s.w.commits - commits; got > 4 || s.w.again == 0 {
		t.Errorf("%d commits, %d made again", got, s.w.again)
	}
	for i, err := range errs {
		switch i % 3 {
		case 0:
			must(t, err)
		case 1:
			wantKind(t, err, crowd.Exhausted)
		case 2:
			wantKind(t, err, crowd.Denied)
		}
		b := must1(s.Balance(ctx, crowd.Book(fmt.Sprint("x", i))))(t)
		if a := must1(s.Attempts(ctx, job.ID, uint64(i)*10))(t); len(a) != int(b) || (b == 1) != (i%3 == 0) {
			t.Errorf("list %d: %d attempts, balance %d", i, len(a), b)
		}
	}
	if b := must1(s.Balance(ctx, bal))(t); b != 80 {
		t.Errorf("balance %d", b)
	}
	if e := must1(s.Events(ctx, EventFilter{Limit: 1000}))(t); len(e) != 20 {
		t.Errorf("%d events", len(e))
	}
	if sum := must1(s.LedgerSum(ctx))(t); sum != 0 {
		t.Errorf("sum %d", sum)
	}
}

func TestConcurrentApply(t *testing.T) {
	s := open(t, t.TempDir())
	job := addJob(t, s, "j")
	var wg sync.WaitGroup
	const workers, each = 64, 20
	for w := range workers {
		wg.Go(func() {
			owner := newID[crowd.AccountID]()
			for i := range each {
				first := uint64(w*each+i) * 8
				a := attempt(job.ID, first, 0, owner)
				body := []byte(strings.Repeat(fmt.Sprint(first, " "), 2000+i))
				d := digest.Of(body)
				err := s.Apply(ctx, Lease{chunk(job.ID, first, 8), a})
				a.State = crowd.AttemptReported
				if err == nil {
					err = s.Apply(ctx, End{a, true, d}, Decide{decided(chunk(job.ID, first, 8), 1).Chunk, d}, PutBody{job.ID, d, body},
						legs(fmt.Sprint("c", first), crowd.BookMint, -3, crowd.PendingBook(owner), 3))
				}
				got, err2 := s.Body(ctx, job.ID, d)
				if err != nil || err2 != nil || string(got) != string(body) {
					t.Error(err, err2)
				}
			}
		})
	}
	wg.Wait()
	p := must1(s.JobProgress(ctx, job.ID))(t)
	if want := []Run{{0, workers * each * 8}}; !reflect.DeepEqual(p.Runs, want) || len(p.Open) != 0 || p.Next != want[0].Count || p.Holes() != nil {
		t.Fatalf("%+v", p)
	}
	if b := must1(s.Balance(ctx, crowd.BookMint))(t); b != -3*workers*each {
		t.Fatal(b)
	}
}

// A body log that can't be written fails the commit at hand and no other.
func TestBrokenLog(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	job := addJob(t, s, "j")
	random := func(i byte) PutBody {
		var b []byte
		for d := digest.Of([]byte{i}); len(b) < 8000; d = digest.Of(d[:]) {
			b = append(b, d[:]...)
		}
		return PutBody{job.ID, digest.Of(b), b}
	}
	must(t, s.Apply(ctx, random(0)))
	l := s.w.logs.open[job.ID]
	file := l.f
	must(t, file.Close())
	wantKind(t, s.Apply(ctx, random(1)), crowd.Internal)
	must(t, s.Apply(ctx, PutAccount{crowd.Account{ID: newID[crowd.AccountID](), Name: "a"}}))
	l.f, l.wait = must1(os.OpenFile(file.Name(), os.O_RDWR, 0))(t), nil
	must(t, s.Apply(ctx, random(1)))

	must(t, s.Close())
	s = open(t, dir)
	for i := range byte(2) {
		if b := must1(s.Body(ctx, job.ID, random(i).Digest))(t); len(b) < 8000 {
			t.Fatal(len(b))
		}
	}
}

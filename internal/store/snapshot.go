package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// View opens the store in dir for reading only, whether a broker has it open or none: Apply refuses. NotFound: dir holds no store. Conflict: it has
// another schema than this version's. Close it when done.
func View(ctx context.Context, dir string) (_ *Store, err error) {
	defer func() { err = wrap("look at "+dir, err) }()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := hasStore(dir); err != nil {
		return nil, err
	}
	s := &Store{now: time.Now, logDir: filepath.Join(dir, "bodies"), closing: make(chan struct{}), stopped: make(chan struct{})}
	close(s.closing)
	if s.coder, err = newCoder(); err != nil {
		return nil, err
	}
	if s.rd, err = sql.Open("sqlite", readDSN(filepath.Join(dir, dbName), "")); err != nil {
		s.coder.close()
		return nil, err
	}
	s.query = s.rd
	s.rd.SetMaxOpenConns(max(4, 2*runtime.NumCPU()))
	s.close = sync.OnceValue(func() error {
		err := s.rd.Close()
		s.coder.close()
		return wrap("close", err)
	})
	m, err := s.Meta(ctx)
	if err == nil && m.Schema != newestSchema() {
		err = crowd.Errorf(crowd.Conflict, "", "the store in %s has schema %d; this crowd knows %d", dir, m.Schema, newestSchema()).
			WithHint("use the version of crowd that its broker has; starting a newer broker brings the store up to date")
	}
	if err != nil {
		_ = s.close()
		return nil, err
	}
	return s, nil
}

// Snapshot is one instant of the store for who checks all of it: reads that walk along whatever there is, a row at a time. Callbacks may read from it
// too. One goroutine at a time. It keeps the database from tidying its log: Close it soon.
type Snapshot struct {
	s     *Store
	tx    *sql.Tx
	stmts map[string]*sql.Stmt // prepared once: a job has many chunks
}

// Snapshot begins one.
func (s *Store) Snapshot(ctx context.Context) (*Snapshot, error) {
	tx, err := s.rd.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, wrap("read", err)
	}
	return &Snapshot{s, tx, map[string]*sql.Stmt{}}, nil
}

// Close ends it.
func (v *Snapshot) Close() {
	for _, st := range v.stmts {
		_ = st.Close()
	}
	_ = v.tx.Rollback()
}

// one scans the first row: false, if there is none.
func (v *Snapshot) one(ctx context.Context, dest []any, q string, args ...any) (bool, error) {
	st := v.stmts[q]
	if st == nil {
		var err error
		if st, err = v.tx.PrepareContext(ctx, q); err != nil {
			return false, wrap("read", err)
		}
		v.stmts[q] = st
	}
	err := st.QueryRowContext(ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, wrap("read", err)
}

func (v *Snapshot) each(ctx context.Context, f func(scan func(...any) error) error, q string, args ...any) error {
	return wrap("read", each(ctx, v.tx, f, q, args...))
}

// BookSum is a book's balance as it is kept, and as its postings say.
type BookSum struct {
	Book         crowd.Book
	Balance, Sum crowd.UCR
}

// Books walks along all books.
func (v *Snapshot) Books(ctx context.Context, f func(BookSum) error) error {
	return v.each(ctx, func(scan func(...any) error) error {
		var b BookSum
		if err := scan(&b.Book, &b.Balance, &b.Sum); err != nil {
			return err
		}
		return f(b)
	}, `SELECT b.name, b.balance, coalesce(sum(p.amount), 0) FROM books b LEFT JOIN postings p ON p.book = b.num GROUP BY b.num ORDER BY b.num`)
}

// TxnSum is a transaction: how many legs it was written with, how many postings there are, and their sum.
type TxnSum struct {
	Txn            string // "": postings without a transaction
	Legs, Postings int
	Sum            crowd.UCR
}

// Txns walks along all transactions, oldest first, and along postings that belong to none.
func (v *Snapshot) Txns(ctx context.Context, f func(TxnSum) error) error {
	sums, err := v.tx.QueryContext(ctx, "SELECT txn, sum(amount), count(*) FROM postings GROUP BY txn ORDER BY txn")
	if err != nil {
		return wrap("read", err)
	}
	defer sums.Close()
	var at int64
	var sum TxnSum
	more := true
	next := func() error {
		if more = sums.Next(); !more {
			return sums.Err()
		}
		return sums.Scan(&at, &sum.Sum, &sum.Postings)
	}
	strays := func(below int64) error { // sums of transactions that aren't there
		for more && at < below {
			if err := f(TxnSum{Postings: sum.Postings, Sum: sum.Sum}); err != nil {
				return err
			}
			if err := next(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := next(); err != nil {
		return wrap("read", err)
	}
	err = v.each(ctx, func(scan func(...any) error) error {
		var num int64
		var t TxnSum
		var legs sql.RawBytes
		if err := scan(&num, &t.Txn, &legs); err != nil {
			return err
		}
		for b := []byte(legs); len(b) > 0; t.Legs++ {
			_, n := binary.Uvarint(b)
			_, m := binary.Uvarint(b[max(n, 0):])
			if n <= 0 || m <= 0 {
				t.Legs = -1 // damaged
				break
			}
			b = b[n+m:]
		}
		if err := strays(num); err != nil {
			return err
		}
		if more && at == num {
			t.Sum, t.Postings = sum.Sum, sum.Postings
			if err := next(); err != nil {
				return err
			}
		}
		return f(t)
	}, "SELECT num, name, legs FROM txns ORDER BY num")
	if err != nil {
		return err
	}
	return wrap("read", errors.Join(strays(1<<62), sums.Err()))
}

// Txn are the legs of one transaction, none if there is no such one.
func (v *Snapshot) Txn(ctx context.Context, name string) (legs []crowd.Posting, err error) {
	var num, at int64
	var index []byte
	if ok, err := v.one(ctx, []any{&num, &at, &index}, "SELECT num, at, legs FROM txns WHERE name = ?", name); err != nil || !ok {
		return nil, err
	}
	for len(index) > 0 {
		leg, n := binary.Uvarint(index)
		book, m := binary.Uvarint(index[max(n, 0):])
		if n <= 0 || m <= 0 {
			return legs, nil // said by Txns
		}
		index = index[n+m:]
		p := crowd.Posting{Txn: name, Leg: int(leg), At: instant(at)}
		ok, err := v.one(ctx, []any{&p.Book, &p.Amount},
			"SELECT b.name, p.amount FROM postings p JOIN books b ON b.num = p.book WHERE p.book = ? AND p.txn = ? AND p.leg = ?", int64(book), num, int64(leg))
		if err != nil {
			return nil, err
		}
		if ok {
			legs = append(legs, p)
		}
	}
	return legs, nil
}

// TxnNames walks along the names of the transactions whose name begins with prefix, which ends with a ":".
func (v *Snapshot) TxnNames(ctx context.Context, prefix string, f func(name string) error) error {
	return v.each(ctx, func(scan func(...any) error) error {
		var name string
		if err := scan(&name); err != nil {
			return err
		}
		return f(name)
	}, "SELECT name FROM txns WHERE name >= ? AND name < ? ORDER BY name", prefix, prefix[:len(prefix)-1]+";")
}

// BookPostings walks along a book's postings.
func (v *Snapshot) BookPostings(ctx context.Context, b crowd.Book, f func(txn string, amount crowd.UCR) error) error {
	return v.each(ctx, func(scan func(...any) error) error {
		var txn string
		var amount crowd.UCR
		if err := scan(&txn, &amount); err != nil {
			return err
		}
		return f(txn, amount)
	}, `SELECT coalesce(t.name, ''), p.amount FROM postings p LEFT JOIN txns t ON t.num = p.txn
		WHERE p.book = (SELECT num FROM books WHERE name = ?) ORDER BY p.txn`, string(b))
}

// Job reads a job, and whether its chunks went to the archive.
func (v *Snapshot) Job(ctx context.Context, id crowd.JobID) (j crowd.Job, archived bool, err error) {
	j, err = scanJob(v.tx.QueryRowContext(ctx, jobColumns+"WHERE j.id = ?", id[:]).Scan)
	if err == nil {
		_, err = v.one(ctx, []any{&archived}, "SELECT archived > 0 FROM jobs WHERE id = ?", id[:])
	}
	return j, archived, wrap("read job", err)
}

// AttemptRow is an attempt and its seat: whether it counts for its group, and whether that is the group's own.
type AttemptRow struct {
	crowd.Attempt
	Counts bool
	Seated bool // the seat it has is its group's, or it has none
}

// Chunks walks along a job's touched chunks with their attempts. Attempts at no chunk come with a chunk of no units.
func (v *Snapshot) Chunks(ctx context.Context, job crowd.JobID, f func(ChunkRow, []AttemptRow) error) error {
	rows, err := v.tx.QueryContext(ctx, attemptColumns+", a.voter FROM attempts a WHERE a.job = "+theJob+" ORDER BY a.first, a.n", job[:])
	if err != nil {
		return wrap("read attempts", err)
	}
	defer rows.Close()
	var ahead *AttemptRow
	next := func() error {
		ahead = nil
		if !rows.Next() {
			return rows.Err()
		}
		a := AttemptRow{}
		var voter sql.RawBytes
		var err error
		a.Attempt, err = scanAttempt(job, func(dest ...any) error { return rows.Scan(append(dest, &voter)...) })
		a.Counts = voter != nil
		a.Seated = voter == nil || string(voter) == string(seatOf(a.Owner, a.Group))
		ahead = &a
		return err
	}
	take := func(first uint64) (all []AttemptRow, err error) {
		for ahead != nil && ahead.First == first {
			all = append(all, *ahead)
			if err := next(); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
	strays := func(more func(first uint64) bool) error {
		for ahead != nil && more(ahead.First) {
			first := ahead.First
			all, err := take(first)
			if err != nil {
				return err
			}
			if err := f(ChunkRow{Chunk: crowd.Chunk{Job: job, First: first}}, all); err != nil {
				return err
			}
		}
		return nil
	}
	if err := next(); err != nil {
		return wrap("read attempts", err)
	}
	err = v.each(ctx, func(scan func(...any) error) error {
		c, err := scanChunk(job, scan)
		if err != nil {
			return err
		}
		if err := strays(func(first uint64) bool { return first < c.First }); err != nil {
			return err
		}
		all, err := take(c.First)
		if err != nil {
			return err
		}
		return f(c, all)
	}, chunkColumns+"FROM chunks WHERE job = "+theJob+" ORDER BY first", job[:])
	if err != nil {
		return err
	}
	return wrap("read attempts", errors.Join(strays(func(uint64) bool { return true }), rows.Err()))
}

// Done is a job's map of decided units as JobProgress would read it, but for units of open chunks. damaged: it isn't as it was written.
func (v *Snapshot) Done(ctx context.Context, job crowd.JobID) (next uint64, runs []Run, damaged bool, err error) {
	var packed []byte
	var n int64
	if _, err = v.one(ctx, []any{&n, &packed}, "SELECT next, runs FROM job_done WHERE job = "+theJob, job[:]); err != nil {
		return 0, nil, false, err
	}
	if runs, err = unpackRuns(packed); err != nil || checkRuns(runs, uint64(n)) != nil {
		return 0, nil, true, nil
	}
	var since runBuilder
	err = v.each(ctx, func(scan func(...any) error) error {
		var first, count int64
		err := scan(&first, &count)
		since.add(uint64(first), uint64(count))
		return err
	}, "SELECT first, count FROM job_since WHERE job = "+theJob+" ORDER BY first", job[:])
	return uint64(n), union(runs, since), false, err
}

// Without takes the units of b from those of a; both ascending, each apart.
func Without(a, b []Run) []Run { return subtract(a, b) }

// Body reads a body and checks that it is the one named, as Store.Body, and as long as its row says.
func (v *Snapshot) Body(ctx context.Context, job crowd.JobID, d crowd.Digest) ([]byte, error) {
	b, err := v.s.body(ctx, v.tx, job, d)
	if err != nil {
		return b, err
	}
	var size int64
	_, err = v.one(ctx, []any{&size}, "SELECT size FROM bodies WHERE job = "+theJob+" AND mark = ? AND digest = ?", job[:], int64(binary.LittleEndian.Uint64(d[:8])), d[:])
	if err == nil && size != int64(len(b)) {
		err = crowd.Errorf(crowd.Internal, "", "store: body %s has %d bytes; its row says %d", d.Short(), len(b), size)
	}
	return b, err
}

// HasBody reports whether there is a row for the body.
func (v *Snapshot) HasBody(ctx context.Context, job crowd.JobID, d crowd.Digest) (has bool, err error) {
	_, err = v.one(ctx, []any{&has}, "SELECT EXISTS (SELECT 1 FROM bodies WHERE job = "+theJob+" AND mark = ? AND digest = ?)", job[:], int64(binary.LittleEndian.Uint64(d[:8])), d[:])
	return has, err
}

// MissingTables are tables that a store has and this one hasn't.
func (v *Snapshot) MissingTables(ctx context.Context) (missing []string, err error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		b, err := migrations.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for _, m := range createTable.FindAllSubmatch(b, -1) {
			has := false
			if _, err := v.one(ctx, []any{&has}, "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?)", string(m[1])); err != nil {
				return nil, err
			}
			if !has {
				missing = append(missing, string(m[1]))
			}
		}
	}
	return missing, nil
}

var createTable = regexp.MustCompile(`(?m)^CREATE TABLE (\w+)`)

// QuickCheck calls f with what the engine finds wrong with the database's file, 100 faults at most.
func (v *Snapshot) QuickCheck(ctx context.Context, f func(fault string) error) error {
	return v.each(ctx, func(scan func(...any) error) error {
		var s string
		if err := scan(&s); err != nil || s == "ok" {
			return err
		}
		return f(s)
	}, "PRAGMA quick_check(100)")
}

// Incarnation is the store's, and the last that there is.
func (v *Snapshot) Incarnation(ctx context.Context) (n, last int64, err error) {
	_, err = v.one(ctx, []any{&n}, "SELECT incarnation FROM meta")
	return n, maxIncarnation, err
}

// LedgerSums adds up all postings, whatever they belong to, and all books' balances.
func (v *Snapshot) LedgerSums(ctx context.Context) (postings, balances crowd.UCR, err error) {
	_, err = v.one(ctx, []any{&postings, &balances}, "SELECT (SELECT coalesce(sum(amount), 0) FROM postings), (SELECT coalesce(sum(balance), 0) FROM books)")
	return postings, balances, err
}

// rowOf says what is wrong with a row that stands as JSON, by its columns.
type rowOf struct {
	table, q string
	check    func(js []byte, cols [][]byte) (id string, err error)
}

var errColumns = errors.New("its columns and its JSON say different things")

// agree makes a check of rows: same compares what the JSON says with the columns.
func agree[T any](id func([]byte) string, same func(v T, cols [][]byte) bool) func([]byte, [][]byte) (string, error) {
	return func(js []byte, cols [][]byte) (string, error) {
		var v T
		err := json.Unmarshal(js, &v)
		if err == nil && !same(v, cols) {
			err = errColumns
		}
		return id(cols[0]), err
	}
}

// IDText is an id as people read it, whatever its bytes are.
func IDText[T interface {
	~[16]byte
	String() string
}](b []byte) string {
	var id T
	if copy(id[:], b) == len(b) && len(b) == 16 && id.String() != "" {
		return id.String()
	}
	return fmt.Sprintf("x'%x'", b)
}

func digestText(b []byte) string {
	if len(b) == 32 {
		return crowd.Digest(b).String()
	}
	return fmt.Sprintf("x'%x'", b)
}

var rowsOf = []rowOf{
	{"accounts", "SELECT json, id, name FROM accounts", agree(IDText[crowd.AccountID], func(a crowd.Account, c [][]byte) bool {
		return string(a.ID[:]) == string(c[0]) && a.Name == string(c[1])
	})},
	{"keys", "SELECT json, id, account, cap FROM keys", agree(IDText[crowd.KeyID], func(k crowd.Key, c [][]byte) bool {
		return string(k.ID[:]) == string(c[0]) && string(k.Account[:]) == string(c[1]) && strconv.FormatInt(int64(k.Cap), 10) == string(c[2])
	})},
	{"hosts", "SELECT json, id, account FROM hosts", agree(IDText[crowd.HostID], func(h crowd.Host, c [][]byte) bool {
		return string(h.ID[:]) == string(c[0]) && string(h.Account[:]) == string(c[1])
	})},
	{"programs", "SELECT json, digest FROM programs", agree(digestText, func(p crowd.Program, c [][]byte) bool { return string(p.Digest[:]) == string(c[0]) })},
	{"quotes", "SELECT json, id FROM quotes", agree(IDText[crowd.QuoteID], func(q crowd.Quote, c [][]byte) bool { return string(q.ID[:]) == string(c[0]) })},
}

// Rows walks along the rows of accounts, keys, hosts, programs and quotes: fault is nil, or why one can't be read or isn't what it is found by.
func (v *Snapshot) Rows(ctx context.Context, f func(table, id string, fault error) error) error {
	for _, r := range rowsOf {
		n := strings.Count(r.q[:strings.Index(r.q, " FROM")], ",") + 1
		err := v.each(ctx, func(scan func(...any) error) error {
			raw, dest := make([]sql.RawBytes, n), make([]any, n)
			for i := range raw {
				dest[i] = &raw[i]
			}
			if err := scan(dest...); err != nil {
				return err
			}
			cols := make([][]byte, n-1)
			for i := range cols {
				cols[i] = raw[i+1]
			}
			id, fault := r.check(raw[0], cols)
			return f(r.table, id, fault)
		}, r.q)
		if err != nil {
			return err
		}
	}
	return nil
}

// stray finds rows that refer to what isn't there, by groups: how many, and what they refer to.
type stray struct {
	text, q string // text: of the number, and of what
	id      func([]byte) string
}

func numberText(b []byte) string { return string(b) }

var strays = append([]stray{
	{"%d postings are of book number %s, which isn't there", "SELECT count(*), book FROM postings WHERE book NOT IN (SELECT num FROM books) GROUP BY book", numberText},
	{"%d jobs are of %s, which isn't there", "SELECT count(*), account FROM jobs WHERE account NOT IN (SELECT id FROM accounts) GROUP BY account", IDText[crowd.AccountID]},
	{"%.0d%s has no spec", "SELECT 0, id FROM jobs WHERE num NOT IN (SELECT job FROM job_specs)", IDText[crowd.JobID]},
	{"%d keys are of %s, which isn't there", "SELECT count(*), account FROM keys WHERE account NOT IN (SELECT id FROM accounts) GROUP BY account", IDText[crowd.AccountID]},
	{"%d hosts are of %s, which isn't there", "SELECT count(*), account FROM hosts WHERE account NOT IN (SELECT id FROM accounts) GROUP BY account", IDText[crowd.AccountID]},
	{"%d blobs are of %s, which isn't there", "SELECT count(*), account FROM blobs WHERE account NOT IN (SELECT id FROM accounts) GROUP BY account", IDText[crowd.AccountID]},
	{"%d sums of blobs are of %s, which isn't there", "SELECT count(*), account FROM blob_sums WHERE account NOT IN (SELECT id FROM accounts) GROUP BY account", IDText[crowd.AccountID]},
	{"%d attempts are of %s, which isn't there", "SELECT count(*), host FROM attempts WHERE host NOT IN (SELECT id FROM hosts) GROUP BY host", IDText[crowd.HostID]},
	{"%d attempts earn for %s, which isn't there", "SELECT count(*), owner FROM attempts WHERE owner NOT IN (SELECT id FROM accounts) GROUP BY owner", IDText[crowd.AccountID]},
	{"%d attempts of %s earn for another account than its own", "SELECT count(*), a.host FROM attempts a JOIN hosts h ON h.id = a.host WHERE a.owner <> h.account GROUP BY a.host", IDText[crowd.HostID]},
	{"%d jobs are by %s, which isn't there and wasn't deleted", `SELECT count(*), key FROM jobs WHERE key NOT IN (SELECT id FROM keys) GROUP BY key`, IDText[crowd.KeyID]},
}, straysOfJobs()...)

func straysOfJobs() (all []stray) {
	for _, table := range []string{"chunks", "attempts", "bodies", "job_specs", "job_labels", "job_done", "job_since", "states", "revisits"} {
		all = append(all, stray{"%d rows of " + table + " are of job number %s, which isn't there",
			"SELECT count(*), job FROM " + table + " WHERE job NOT IN (SELECT num FROM jobs) GROUP BY job", numberText})
	}
	return all
}

// Strays looks, a kind of reference at a time, for rows that refer to what isn't there: "" is a kind without any.
func (v *Snapshot) Strays(ctx context.Context, f func(fault string) error) error {
	for _, s := range strays {
		found := false
		err := v.each(ctx, func(scan func(...any) error) error {
			var n int64
			var raw sql.RawBytes
			if err := scan(&n, &raw); err != nil {
				return err
			}
			id := s.id(raw)
			if strings.Contains(s.q, "SELECT count(*), key FROM jobs") {
				deleted := false
				_, err := v.one(ctx, []any{&deleted}, "SELECT EXISTS (SELECT 1 FROM event_names x JOIN events e ON e.seq = x.seq WHERE x.name = ? AND e.what = 'key.deleted')", id)
				if err != nil || deleted {
					return err
				}
			}
			found = true
			return f(fmt.Sprintf(s.text, n, id))
		}, s.q)
		if err == nil && !found {
			err = f("")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// BookOwner reports whether that is there which a book is named by: one of the broker's own books, an account's or a job's.
func (v *Snapshot) BookOwner(ctx context.Context, b crowd.Book) (has bool, err error) {
	kind, id, _ := strings.Cut(string(b), ":")
	switch kind {
	case "balance", "pending":
		acc, err := parseAccount(id)
		if err == nil && string(b) == kind+":"+acc.String() {
			_, err = v.one(ctx, []any{&has}, "SELECT EXISTS (SELECT 1 FROM accounts WHERE id = ?)", acc[:])
			return has, err
		}
		return false, nil
	case "escrow":
		var job crowd.JobID
		if job.UnmarshalText([]byte(id)) == nil && b == crowd.EscrowBook(job) {
			_, err = v.one(ctx, []any{&has}, "SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?)", job[:])
		}
		return has, err
	}
	return b == crowd.BookMint || b == crowd.BookFee, nil
}

// JobRow is what finds a job, though nothing else of it can be read.
type JobRow struct {
	Num    int64
	ID     []byte
	State  crowd.JobState
	Living bool
}

// JobRows are some jobs' rows, newest first: those below a number, 0 for all.
func (v *Snapshot) JobRows(ctx context.Context, below int64, limit int) (rows []JobRow, err error) {
	if below <= 0 {
		below = math.MaxInt64
	}
	err = v.each(ctx, func(scan func(...any) error) error {
		var r JobRow
		err := scan(&r.Num, &r.ID, &r.State, &r.Living)
		rows = append(rows, r)
		return err
	}, "SELECT num, id, state, living <> 0 FROM jobs WHERE num < ? ORDER BY num DESC LIMIT ?", below, int64(limit))
	return rows, err
}

// KeySums walks along all API keys: what is kept of their spending, and what their jobs hold or have kept. read is false where a job can't be read.
func (v *Snapshot) KeySums(ctx context.Context, f func(id string, spent, sum crowd.UCR, read bool) error) error {
	return v.each(ctx, func(scan func(...any) error) error {
		var id sql.RawBytes
		var spent, sum crowd.UCR
		var bad bool
		if err := scan(&id, &spent, &sum, &bad); err != nil {
			return err
		}
		return f(IDText[crowd.KeyID](id), spent, sum, !bad)
	}, `SELECT k.id, k.spent, coalesce(s.sum, 0), coalesce(s.bad, 0) FROM keys k LEFT JOIN (
			SELECT key, sum(CASE WHEN json_valid(json) THEN coalesce(json_extract(json, '$.held_ucr'), 0) - coalesce(json_extract(json, '$.returned_ucr'), 0) ELSE 0 END) AS sum,
				max(NOT json_valid(json)) AS bad FROM jobs WHERE key IS NOT NULL GROUP BY key
		) s ON s.key = k.id ORDER BY k.id`)
}

// BlobSums walks along the accounts that have blobs: what is kept of their size, and what it comes to.
func (v *Snapshot) BlobSums(ctx context.Context, f func(account string, kept, sum int64) error) error {
	var at []byte
	var sum int64
	tell := func() error {
		if at == nil {
			return nil
		}
		var kept int64
		if _, err := v.one(ctx, []any{&kept}, "SELECT bytes FROM blob_sums WHERE account = ?", at); err != nil {
			return err
		}
		return f(IDText[crowd.AccountID](at), kept, sum)
	}
	err := v.each(ctx, func(scan func(...any) error) error {
		var account sql.RawBytes
		var size int64
		if err := scan(&account, &size); err != nil {
			return err
		}
		if string(account) != string(at) {
			if err := tell(); err != nil {
				return err
			}
			at, sum = slices.Clone(account), 0
		}
		sum += BlobCost(size)
		return nil
	}, "SELECT account, size FROM blobs ORDER BY account, digest")
	if err == nil {
		err = tell()
	}
	if err != nil {
		return err
	}
	return v.each(ctx, func(scan func(...any) error) error {
		var account sql.RawBytes
		var kept int64
		if err := scan(&account, &kept); err != nil {
			return err
		}
		return f(IDText[crowd.AccountID](account), kept, 0)
	}, "SELECT account, bytes FROM blob_sums WHERE account NOT IN (SELECT account FROM blobs)")
}

// Blobs walks along what accounts uploaded, each content once: fault says what is wrong with its file; if whole is set, all of it is read.
func (v *Snapshot) Blobs(ctx context.Context, whole bool, f func(name, fault string) error) error {
	return v.each(ctx, func(scan func(...any) error) error {
		var raw sql.RawBytes
		var least, most int64
		if err := scan(&raw, &least, &most); err != nil {
			return err
		}
		name := digestText(raw)
		if len(raw) != 32 {
			return f(name, "it has no digest")
		}
		d := toDigest(raw)
		fault, err := v.s.fileFault(ctx, blobName(d), least, whole, d)
		if err == nil && fault == "" && least != most {
			fault = fmt.Sprintf("it has %d bytes to one account and %d to another", least, most)
		}
		if err != nil {
			return err
		}
		return f(name, fault)
	}, "SELECT digest, min(size), max(size) FROM blobs GROUP BY digest")
}

// fileFault says what is wrong with a file of the store, "" is nothing: it has another size or, if it is read, another digest.
func (s *Store) fileFault(ctx context.Context, name string, size int64, read bool, d crowd.Digest) (string, error) {
	f, st, err := openRegular(filepath.Join(filepath.Dir(s.logDir), filepath.FromSlash(name)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "its file isn't there", nil
	case err != nil:
		return "its file can't be read: " + err.Error(), nil
	}
	defer f.Close()
	if st.Size() != size {
		return fmt.Sprintf("its file has %d bytes; it has %d", st.Size(), size), nil
	}
	if !read {
		return "", nil
	}
	h := digest.New()
	if _, err := io.Copy(h, &ctxReader{ctx, f}); err != nil {
		return "its file can't be read: " + err.Error(), ctx.Err()
	}
	if h.Sum() != d {
		return "its file is damaged: it has another digest", nil
	}
	return "", nil
}

// States walks along all checkpoints: fault says what is wrong with its file.
func (v *Snapshot) States(ctx context.Context, f func(job crowd.JobID, first uint64, fault string) error) error {
	return v.each(ctx, func(scan func(...any) error) error {
		var id, root []byte
		var job, first, lineage, seq, size int64
		if err := scan(&id, &job, &first, &lineage, &seq, &root, &size); err != nil {
			return err
		}
		if len(id) != 16 || len(root) != 32 {
			return f(crowd.JobID{}, uint64(first), "its row isn't as it was written")
		}
		fault, err := v.s.fileFault(ctx, fmt.Sprintf("states/%s-%d-%d-%d-%x", crowd.JobID(id), first, lineage, seq, root[:8]), size, false, crowd.Digest{})
		if err != nil {
			return err
		}
		if fault != "" { // a newer one may have taken its place since this snapshot
			still := false
			err := v.s.first(ctx, "checkpoint", []any{&still}, "SELECT EXISTS (SELECT 1 FROM states WHERE job = ? AND first = ? AND lineage = ? AND seq = ?)", job, first, lineage, seq)
			if err != nil {
				return err
			}
			if !still {
				fault = ""
			}
		}
		return f(crowd.JobID(id), uint64(first), fault)
	}, "SELECT j.id, s.job, s.first, s.lineage, s.seq, s.root, s.size FROM states s JOIN jobs j ON j.num = s.job")
}

package broker

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/store"
)

// long answers with 9 KB that don't compress, so that bodies stand in logs.
func long(_, unit uint64, _ *crowd.UnitResult, c *crowd.UnitContent) {
	c.Stdout = fmt.Appendf(nil, "unit %d\n", unit)
	for len(c.Stdout) < 9000 {
		d := digest.Of(c.Stdout)
		c.Stdout = append(c.Stdout, d[:]...)
	}
}

func audited(t testing.TB, dir string, bodies AuditBodies) *AuditReport {
	t.Helper()
	r, err := AuditDir(context.Background(), dir, bodies, time.Now())
	must(t, err)
	return r
}

// clean fails unless nothing is wrong and something was looked at.
func clean(t testing.TB, r *AuditReport) {
	t.Helper()
	if r.Wrong != 0 {
		t.Errorf("%d places are wrong: %+v", r.Wrong, r.Findings)
	}
	for _, c := range r.Checks {
		if c.Checked == 0 && c.Name != "archive" && c.Name != "checkpoints" {
			t.Errorf("%s: nothing was looked at", c.Name)
		}
	}
}

// busyWorld is a stopped broker's folder with a job that is done (and a liar among its hosts), one that was cancelled and one that runs.
func busyWorld(t *testing.T) (dir string, done crowd.Job) {
	dir = t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir)
		all := w.owners("alice", "bob", "carol", "mallory")
		for _, f := range all {
			f.result = long
			f.run()
		}
		all[3].set(func() { all[3].result = liar })
		s := w.spec(200)
		s.Chunk = 4
		done = w.done(w.submit(s), time.Hour)
		s.Units.Count, s.Name = 100_000, "long"
		s.Price.Max = 300 * crowd.Credit
		cancelled := w.submit(s)
		w.await(cancelled, time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone > 50 })
		_, err := w.b.CancelJob(context.Background(), w.ada, cancelled.ID.String())
		must(t, err)
		s.Name = "runs"
		w.await(w.submit(s), time.Hour, func(j crowd.Job) bool { return j.Progress.UnitsDone > 50 })
		w.close()
	})
	return dir, done
}

// An audit of an honest record finds nothing; of one that was tampered with it finds that, and nothing else.
func TestAudit(t *testing.T) {
	dir, j := busyWorld(t)
	r := audited(t, dir, BodiesAll)
	clean(t, r)
	if r.Jobs != 3 || r.Chunks < 60 || r.Bodies < 60 {
		t.Errorf("%+v", r)
	}
	theJob := fmt.Sprintf("(SELECT num FROM jobs WHERE id = x'%x')", j.ID[:])
	won := " WHERE job = " + theJob + " AND first = 0 AND state = 2 AND voter IS NOT NULL"
	for _, c := range []struct {
		name, sql string
		want      []string // check: text
	}{
		{"a deposit's posting", "UPDATE postings SET amount = amount + 1 WHERE txn = (SELECT num FROM txns WHERE name LIKE 'deposit:%') AND book <> (SELECT num FROM books WHERE name = 'mint')",
			[]string{"transactions: sums to 1", "ledger: it sums to 1", "books: its postings sum to"}},
		{"a posting that is gone", "DELETE FROM postings WHERE txn = (SELECT num FROM txns WHERE name LIKE 'deposit:%') AND book = (SELECT num FROM books WHERE name = 'mint')",
			[]string{"transactions: sums to", "ledger: it sums to", "books: mint holds"}},
		{"a balance", "UPDATE books SET balance = balance + 1 WHERE name = 'fee'", []string{"books: fee holds", "ledger: the balances sum to 1"}},
		{"a digest", "UPDATE chunks SET digest = zeroblob(31) || x'01' WHERE job = " + theJob + " AND first = 4", []string{"verdicts: its verdict is b3:0000…; 2 votes agree on b3:"}},
		{"a vote", "UPDATE attempts SET voter = NULL" + won + " AND n = (SELECT min(n) FROM attempts" + won + ")", []string{"verdicts: 1 votes of 2 wanted don't decide it"}},
		{"a seat", "UPDATE attempts SET voter = zeroblob(16)" + won + " AND n = (SELECT min(n) FROM attempts" + won + ")", []string{"seats: has another group's seat"}},
		{"a pay", "UPDATE attempts SET paid = paid + 1" + won + " AND n = (SELECT min(n) FROM attempts" + won + ")", []string{"payments: its attempts say"}},
		{"a pay for nothing", "UPDATE attempts SET paid = 1 WHERE job = " + theJob + " AND state = 4", []string{"paid once: says that it was paid 1"}},
		{"a run more", "UPDATE job_done SET next = 100000, runs = x'00a08d06' WHERE job = (SELECT job FROM job_done WHERE job <> " + theJob + " LIMIT 1)", []string{"progress: no chunk of them is decided"}},
		{"a run less", "UPDATE job_done SET runs = x'00c701' WHERE job = " + theJob, []string{"progress: lacks units 199 to 199"}},
		{"a damaged map", "UPDATE job_done SET runs = x'80' WHERE job = " + theJob, []string{"progress: is damaged"}},
		{"a chunk that is gone", "DELETE FROM chunks WHERE job = " + theJob + " AND first = 8", []string{
			"seats: at a chunk that isn't there", "payments: :8:1 pays for a verdict that there never was", "progress: units 8 to 11", "settlement: its verdicts paid"}},
		{"a job's sum", "UPDATE jobs SET json = json_set(json, '$.paid_ucr', 1) WHERE num = " + theJob, []string{"escrow: it says that it paid 1"}},
		{"a settlement", "UPDATE txns SET name = 'x' WHERE name = 'settle:" + j.ID.String() + "'", []string{"settlement: 0 of pending:"}},
		{"a payment's name", fmt.Sprintf("UPDATE txns SET name = 'chunk:%s:0:9' WHERE name = 'chunk:%s:0:1'", j.ID, j.ID),
			[]string{"payments: there is no payment", "payments: chunk:" + j.ID.String() + ":0:9 pays for a verdict that there never was", "settlement: its verdicts paid"}},
		{"a body that is gone", "DELETE FROM bodies WHERE job = " + theJob + " AND digest = (SELECT body FROM chunks WHERE job = " + theJob + " AND first = 0)", []string{"bodies: has no body"}},
		{"an archive that is gone", "UPDATE jobs SET archived = 1 WHERE num = " + theJob, []string{"archive: so is its file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			copied := copyOf(t, dir)
			tamper(t, copied, c.sql)
			expect(t, audited(t, copied, BodiesAll), c.want)
		})
	}
	t.Run("a byte of a body", func(t *testing.T) {
		copied := copyOf(t, dir)
		log := filepath.Join(copied, "bodies", j.ID.String()+".log")
		b, err := os.ReadFile(log)
		must(t, err)
		b[len(b)/2] ^= 1
		must(t, os.WriteFile(log, b, 0o600))
		expect(t, audited(t, copied, BodiesAll), []string{"bodies: is damaged on disk"})
		clean(t, audited(t, copied, BodiesNone).without("bodies"))
	})
	_, err := AuditDir(context.Background(), dir, "some", time.Now())
	wantErr(t, err, crowd.Invalid, "")
}

// An audit finds what isn't there any more, what is called otherwise and what was changed, and goes on past what it can't read.
func TestAuditRubble(t *testing.T) {
	dir, j := busyWorld(t)
	theJob := fmt.Sprintf("(SELECT num FROM jobs WHERE id = x'%x')", j.ID[:])
	acc, key := j.Account.String(), j.Key.String()
	won := " WHERE job = " + theJob + " AND first = 0 AND state = 2 AND voter IS NOT NULL"
	program := parseDigest(t, j.Spec.Program)
	blob := func(dir string) string {
		return filepath.Join(dir, "blobs", fmt.Sprintf("%02x", program[0]), fmt.Sprintf("%x", program[:]))
	}
	archive := func(t *testing.T, dir string) string {
		s, err := store.Open(context.Background(), dir, store.Options{})
		must(t, err)
		must(t, s.Archive(context.Background(), j.ID))
		must(t, s.Close())
		clean(t, audited(t, dir, BodiesAll))
		return filepath.Join(dir, "archive", j.ID.String()+".json.zst")
	}
	change := func(t *testing.T, file string, f func([]byte) []byte) {
		b, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(file, f(b), 0o600))
	}
	for _, c := range []struct {
		name, sql string
		do        func(t *testing.T, dir string)
		want      []string // check: text; there may be others
	}{
		{name: "a book that is gone", sql: "DELETE FROM books WHERE name = 'fee'", want: []string{"references: postings are of book number", "ledger: the balances sum to"}},
		{name: "an account's book that is gone", sql: "DELETE FROM books WHERE name = 'balance:" + acc + "'", want: []string{"references: postings are of book number", "ledger: the balances sum to"}},
		{name: "a book's name", sql: "UPDATE books SET name = 'fees' WHERE name = 'fee'", want: []string{"references: the book fees is of nothing"}},
		{name: "a book of nobody", sql: "UPDATE books SET name = 'balance:acc_7zzzzzzzzzzzzzzzzzzzzzzzzz' WHERE name = 'balance:" + acc + "'", want: []string{"references: is of nothing that is there"}},
		{name: "both sides of a posting", sql: "DELETE FROM postings WHERE txn = (SELECT num FROM txns WHERE name LIKE 'deposit:%')", want: []string{"transactions: has no postings", "books: mint holds"}},
		{name: "postings of a book that never was", sql: "UPDATE postings SET book = 9999 WHERE book = (SELECT num FROM books WHERE name = 'mint')", want: []string{"references: postings are of book number 9999"}},
		{name: "a job that is gone", sql: "DELETE FROM jobs WHERE num = " + theJob, want: []string{
			"references: rows of chunks are of job number", "references: rows of attempts are of job number", "references: rows of bodies are of job number",
			"references: rows of job_specs are of job number", "references: rows of job_done are of job number", "references: the book escrow:" + j.ID.String(), "keys: " + key + " has spent"}},
		{name: "a job's id", sql: "UPDATE jobs SET id = x'00000000000000000000000000000001' WHERE num = " + theJob, want: []string{"references: the book escrow:" + j.ID.String(), "escrow: its order put 0"}},
		{name: "a job's id as text", sql: "UPDATE jobs SET id = zeroblob(15) || x'01' WHERE num = " + theJob, want: []string{"rows: jobs: it has no spec, or"}},
		{name: "a job without an id", sql: "UPDATE jobs SET id = x'0102' WHERE num = " + theJob, want: []string{"rows: has no id"}},
		{name: "accounts that are gone", sql: "DELETE FROM accounts WHERE id = " + fmt.Sprintf("x'%x'", j.Account[:]), want: []string{
			"references: jobs are of " + acc, "references: keys are of " + acc, "references: blobs are of " + acc, "references: the book balance:" + acc}},
		{name: "an account's name", sql: "UPDATE accounts SET name = 'eda' WHERE name = 'ada'", want: []string{"rows: accounts: " + acc + ": its columns"}},
		{name: "an account's id", sql: "UPDATE accounts SET id = zeroblob(15) || x'01' WHERE name = 'ada'", want: []string{"rows: its columns", "references: jobs are of " + acc}},
		{name: "keys that are gone", sql: "DELETE FROM keys WHERE 1", want: []string{"references: jobs are by " + key}},
		{name: "a key's account", sql: "UPDATE keys SET account = zeroblob(16)", want: []string{"rows: keys: " + key, "references: keys are of x'0000"}},
		{name: "a key's cap", sql: "UPDATE keys SET cap = cap + 1", want: []string{"rows: keys: " + key}},
		{name: "a spec that is gone", sql: "DELETE FROM job_specs WHERE job = " + theJob, want: []string{"references: " + j.ID.String() + " has no spec"}},
		{name: "blobs that are gone", sql: "DELETE FROM blobs WHERE 1", want: []string{"blobs: " + acc + " has 4096 bytes of its quota in use; its blobs come to 0"}},
		{name: "a blob's name", sql: "UPDATE blobs SET digest = zeroblob(32)", want: []string{"blobs: its file isn't there"}},
		{name: "a blob's size", sql: "UPDATE blobs SET size = size + 1", want: []string{"blobs: " + program.String() + ": its file has"}},
		{name: "a quota", sql: "UPDATE blob_sums SET bytes = bytes + 999", want: []string{"blobs: has 5095 bytes"}},
		{name: "a quota that is gone", sql: "DELETE FROM blob_sums WHERE 1", want: []string{"blobs: has 0 bytes"}},
		{name: "a quota of nobody", sql: "INSERT INTO blob_sums VALUES (zeroblob(16), 5)", want: []string{"blobs: has 5 bytes", "references: sums of blobs are of x'0000"}},
		{name: "spent", sql: "UPDATE keys SET spent = spent + 1 WHERE spent > 0", want: []string{"keys: " + key + " has spent"}},
		{name: "a winner's fuel", sql: "UPDATE attempts SET fuel = fuel * 2" + won + " AND n = (SELECT min(n) FROM attempts" + won + ")", want: []string{"fuel: of one outcome", "fuel: its outcome has"}},
		{name: "all fuel", sql: "UPDATE attempts SET fuel = fuel * 2 WHERE job = " + theJob, want: []string{"fuel: are worth", "fuel: its outcome has"}},
		{name: "a host", sql: "UPDATE attempts SET host = zeroblob(15) || x'01'" + won, want: []string{"references: attempts are of host_"}},
		{name: "another's host", sql: "UPDATE attempts SET host = (SELECT max(id) FROM hosts)" + won, want: []string{"references: earn for another account"}},
		{name: "hosts that are gone", sql: "DELETE FROM hosts WHERE 1", want: []string{"references: attempts are of host_"}},
		{name: "a body's size", sql: "UPDATE bodies SET size = size + 1", want: []string{"bodies: its row says"}},
		{name: "a living job", sql: "UPDATE jobs SET living = 1 - living WHERE num = " + theJob, want: []string{"jobs: is kept as one that lives"}},
		{name: "a job that doesn't live", sql: "UPDATE jobs SET living = 0 WHERE name = 'runs'", want: []string{"jobs: is kept as one that has ended"}},
		{name: "no incarnation", sql: "UPDATE meta SET incarnation = 0", want: []string{"database: its incarnation is 0"}},
		{name: "no such incarnation", sql: "UPDATE meta SET incarnation = 8192", want: []string{"database: its incarnation is 8192"}},
		{name: "a checkpoint", sql: "INSERT INTO states VALUES ((SELECT num FROM jobs WHERE name = 'runs'), 0, 1, 1, 1, zeroblob(32), 3, 0, 0)", want: []string{"checkpoints: its file isn't there"}},
		{name: "rubble in jobs", sql: "UPDATE jobs SET json = '{' WHERE num = " + theJob, want: []string{"rows: jobs: its record can't be read"}},
		{name: "rubble in specs", sql: "UPDATE job_specs SET json = '' WHERE job = " + theJob, want: []string{"rows: jobs: its record can't be read"}},
		{name: "rubble in accounts", sql: "UPDATE accounts SET json = 'x' WHERE name = 'ada'", want: []string{"rows: accounts: " + acc + ": invalid character"}},
		{name: "rubble in hosts", sql: "UPDATE hosts SET json = ''", want: []string{"rows: hosts: host_"}},
		{name: "rubble in keys", sql: "UPDATE keys SET json = '[]'", want: []string{"rows: keys: " + key}},
		{name: "text among numbers", sql: "UPDATE chunks SET need = 'two' WHERE job = " + theJob + " AND first = 4", want: []string{"rows: jobs: its record can't be read"}},
		{name: "a blob's file that is gone", do: func(t *testing.T, dir string) { must(t, os.Remove(blob(dir))) }, want: []string{"blobs: " + program.String() + ": its file isn't there"}},
		{name: "a byte of a blob", do: func(t *testing.T, dir string) {
			change(t, blob(dir), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
			clean(t, audited(t, dir, BodiesSample))
		}, want: []string{"blobs: its file is damaged"}},
		{name: "an empty archive file", do: func(t *testing.T, dir string) {
			change(t, archive(t, dir), func([]byte) []byte { return nil })
		}, want: []string{"archive: is damaged"}},
		{name: "a cut archive file", do: func(t *testing.T, dir string) {
			change(t, archive(t, dir), func(b []byte) []byte { return b[:len(b)-9] })
		}, want: []string{"archive: is damaged"}},
		{name: "a page of the database", do: func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, "crowd.db"), func(b []byte) []byte {
				copy(b[len(b)/8192/2*8192:], strings.Repeat("rubble", 1365))
				return b
			})
		}, want: []string{"database: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			copied := copyOf(t, dir)
			if c.sql != "" {
				tamper(t, copied, c.sql)
			} else {
				c.do(t, copied)
			}
			r := audited(t, copied, BodiesAll)
			if len(r.Findings) > auditFindings || r.Wrong < int64(len(r.Findings)) {
				t.Errorf("%d findings told, %d places wrong", len(r.Findings), r.Wrong)
			}
			for _, s := range c.want {
				check, text, _ := strings.Cut(s, ": ")
				if !slices.ContainsFunc(r.Findings, func(f AuditFinding) bool { return f.Check == check && strings.Contains(f.Text, text) }) {
					t.Errorf("wanted %q; found %+v", s, r.Findings)
				}
			}
			if strings.HasPrefix(c.name, "rubble in jobs") && r.Jobs != 2 {
				t.Errorf("%d jobs were looked at, wanted the others", r.Jobs)
			}
		})
	}
	t.Run("a table that is gone", func(t *testing.T) {
		copied := copyOf(t, dir)
		tamper(t, copied, "UPDATE meta SET one = one")
		db, err := sql.Open("sqlite", filepath.Join(copied, "crowd.db"))
		must(t, err)
		_, err = db.Exec("DROP TABLE chunks")
		must(t, err)
		must(t, db.Close())
		_, err = AuditDir(context.Background(), copied, BodiesAll, time.Now())
		wantErr(t, err, crowd.Internal, "", "no table chunks")
	})
}

// A key that its owner deleted isn't missed.
func TestAuditDeletedKey(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		for _, f := range w.owners("alice", "bob") {
			f.run()
		}
		j := w.done(w.submit(w.spec(20)), time.Hour)
		must(t, w.b.DeleteKey(ctx, w.ada, j.Key.String()))
		r, err := Audit(ctx, w.st, BodiesAll, w.b.now())
		must(t, err)
		clean(t, r)
	})
}

func parseDigest(t *testing.T, s string) crowd.Digest {
	d, err := crowd.ParseDigest(s)
	must(t, err)
	return d
}

func (r *AuditReport) without(check string) *AuditReport {
	r.Checks = slices.DeleteFunc(r.Checks, func(c AuditCheck) bool { return c.Name == check })
	return r
}

func copyOf(t *testing.T, dir string) string {
	to := filepath.Join(t.TempDir(), "copy")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

func tamper(t *testing.T, dir, q string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "crowd.db"))
	must(t, err)
	defer db.Close()
	r, err := db.Exec(q)
	must(t, err)
	if n, err := r.RowsAffected(); n == 0 || err != nil {
		t.Fatalf("%s changed %d rows, %v", q, n, err)
	}
}

// expect wants findings of these checks with these words, at least one each, and no others.
func expect(t *testing.T, r *AuditReport, want []string) {
	t.Helper()
	if r.Wrong == 0 {
		t.Error("nothing was found")
	}
	for _, f := range r.Findings {
		if !slices.ContainsFunc(want, func(s string) bool {
			check, text, _ := strings.Cut(s, ": ")
			return f.Check == check && strings.Contains(f.Text, text)
		}) {
			t.Errorf("found %+v", f)
		}
	}
	for _, s := range want {
		check, text, _ := strings.Cut(s, ": ")
		if !slices.ContainsFunc(r.Findings, func(f AuditFinding) bool { return f.Check == check && strings.Contains(f.Text, text) }) {
			t.Errorf("wanted %q; found %+v", s, r.Findings)
		}
	}
}

// Backups that are taken while the broker is at full work each restore to a store that audits clean.
func TestBackupUnderWork(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir)
	defer w.close()
	for _, f := range w.owners("alice", "bob", "carol") {
		f.slots, f.takes, f.result = 4, 0, long
		f.run()
	}
	s := w.spec(1_000_000)
	s.Chunk = 2
	s.Price.Max = 900 * crowd.Credit
	j := w.submit(s)
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	last := uint64(0)
	for i := range rounds {
		j = w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.UnitsDone > last+20 || j.State.Ended() })
		last = j.Progress.UnitsDone
		began := time.Now()
		file := filepath.Join(t.TempDir(), "backup")
		b, err := store.WriteBackup(context.Background(), dir, file, false, nil)
		must(t, err)
		took := time.Since(began)
		if i == rounds/2 {
			clean(t, audited(t, dir, BodiesSample)) // beside the work
		}
		to := filepath.Join(t.TempDir(), "restored")
		began = time.Now()
		r, err := store.Restore(context.Background(), file, to, store.RestoreOptions{})
		must(t, err)
		a := audited(t, to, BodiesAll)
		clean(t, a)
		if len(b.Missing) != 1 || r.Chunks != b.Chunks || a.Chunks != b.Chunks { // this world's key is in no file
			t.Errorf("backup %+v, audit of %d chunks", b, a.Chunks)
		}
		t.Logf("%d chunks, %d bytes in %s; restored and audited in %s", b.Chunks, b.Bytes, took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		must(t, os.RemoveAll(to))
	}
	_, err := w.b.CancelJob(context.Background(), w.ada, j.ID.String())
	must(t, err)
}

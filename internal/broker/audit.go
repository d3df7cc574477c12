package broker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/quorum"
	"github.com/crowdcloud/crowd/internal/store"
)

// AuditBodies says how many of the bodies that verdicts name an audit reads.
type AuditBodies string

// How many.
const (
	BodiesSample AuditBodies = "sample" // the first of each job and one in 64
	BodiesAll    AuditBodies = "all"
	BodiesNone   AuditBodies = "none"
)

// AuditCheck is one thing that must hold wherever it is looked at.
type AuditCheck struct {
	Name    string `json:"name"`
	Means   string `json:"means"`
	Checked int64  `json:"checked"`
	Wrong   int64  `json:"wrong"`
}

// AuditFinding is one place where a check doesn't hold.
type AuditFinding struct {
	Check string      `json:"check"`
	Job   crowd.JobID `json:"job,omitzero"`
	First *uint64     `json:"chunk,omitempty"`
	Text  string      `json:"text"`
}

// AuditReport is what an audit found.
type AuditReport struct {
	At       time.Time      `json:"at"`
	Jobs     int64          `json:"jobs"`
	Chunks   int64          `json:"chunks"`
	Bodies   int64          `json:"bodies"` // read
	Wrong    int64          `json:"wrong"`
	Checks   []AuditCheck   `json:"checks"`
	Findings []AuditFinding `json:"findings"` // at most auditFindings, of each check that is wrong at least one
}

// auditFindings is how many findings a report tells; others are counted.
const auditFindings = 20

// The checks, in the order in which a report lists them.
var auditChecks = []AuditCheck{
	{Name: "database", Means: "its file is sound, and its incarnation one that there is"},
	{Name: "rows", Means: "every row can be read and says what it is found by"},
	{Name: "references", Means: "what a row refers to is there"},
	{Name: "transactions", Means: "each sums to zero and has the postings it was written with"},
	{Name: "ledger", Means: "all postings sum to zero, and so do all balances"},
	{Name: "books", Means: "each balance is the sum of its postings; no account, pending or escrow book is below zero"},
	{Name: "keys", Means: "what a key has spent is what its jobs hold or have kept"},
	{Name: "jobs", Means: "a job lives until its state says that it ended"},
	{Name: "escrow", Means: "what an order held is what its verdicts took, what went back and what is left"},
	{Name: "settlement", Means: "what a job settled is what its verdicts paid, owner by owner"},
	{Name: "verdicts", Means: "the votes of a decided chunk agree on its digest, by the rules of the quorum"},
	{Name: "payments", Means: "a decided chunk has one payment, which gives its winners what their attempts say"},
	{Name: "fuel", Means: "winners say the same fuel, which their outcome has and their pay is for"},
	{Name: "paid once", Means: "a verdict that was taken back was paid back; nobody else's attempt says that it was paid"},
	{Name: "seats", Means: "a group has one counted attempt at a chunk, in its own seat"},
	{Name: "progress", Means: "the map of decided units is what the chunks say"},
	{Name: "bodies", Means: "what a verdict names is there, and is what was agreed on"},
	{Name: "blobs", Means: "what an account uploaded is there, and counts against its quota"},
	{Name: "checkpoints", Means: "a checkpoint that a row names is there"},
	{Name: "archive", Means: "a job whose rows are gone has its file, which is whole"},
}

// Audit recomputes from the record what must follow from it. It only reads, a job at a time, each as of one instant: a broker may work meanwhile, and the store may
// be one of store.View. What is wrong is in the report; an error says that it couldn't look.
func Audit(ctx context.Context, st *store.Store, bodies AuditBodies, now time.Time) (*AuditReport, error) {
	switch bodies {
	case "":
		bodies = BodiesSample
	case BodiesSample, BodiesAll, BodiesNone:
	default:
		return nil, crowd.Errorf(crowd.Invalid, "", "--bodies: wanted sample, all or none, found %q", clipText(string(bodies)))
	}
	a := &auditor{st: st, bodies: bodies, r: &AuditReport{At: now.UTC(), Checks: slices.Clone(auditChecks), Findings: []AuditFinding{}}}
	err := a.snapshot(ctx, func(ctx context.Context, v *store.Snapshot) error {
		missing, err := v.MissingTables(ctx)
		if err == nil && len(missing) > 0 {
			err = crowd.Errorf(crowd.Internal, "", "the database has no table %s", strings.Join(missing, ", ")).WithHint("put a backup back: crowd broker restore")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		what string
		look func(context.Context, *store.Snapshot) error
	}{{"the database", a.database}, {"the incarnation", a.incarnation}, {"rows", a.rows}, {"references", a.references}, {"the ledger", a.ledger},
		{"keys", a.keys}, {"blobs", a.blobs}, {"checkpoints", a.checkpoints}} {
		if err := a.readable(ctx, part.what, crowd.JobID{}, a.snapshot(ctx, part.look)); err != nil {
			return nil, err
		}
	}
	const atOnce = 1000
	for below := int64(0); ; {
		var jobs []store.JobRow
		err := a.readable(ctx, "jobs", crowd.JobID{}, a.snapshot(ctx, func(ctx context.Context, v *store.Snapshot) (err error) {
			jobs, err = v.JobRows(ctx, below, atOnce)
			return err
		}))
		if err != nil {
			return nil, err
		}
		for _, row := range jobs {
			below = row.Num
			if len(row.ID) != 16 {
				a.check("rows", crowd.JobID{}, nil, fmt.Sprintf("job number %d has no id", row.Num))
				continue
			}
			id := crowd.JobID(row.ID)
			wrong := ""
			if row.Living == row.State.Ended() {
				wrong = fmt.Sprintf("it is %s, and is kept as one that has ended", row.State)
				if row.Living {
					wrong = fmt.Sprintf("it is %s, and is kept as one that lives", row.State)
				}
			}
			a.check("jobs", id, nil, wrong)
			err := a.snapshot(ctx, func(ctx context.Context, v *store.Snapshot) error { return a.job(ctx, v, id) })
			if errors.Is(err, sql.ErrNoRows) {
				a.check("rows", id, nil, "jobs: it has no spec, or can't be found by its id")
				continue
			}
			if err := a.readable(ctx, "jobs: its record", id, err); err != nil {
				return nil, err
			}
		}
		if len(jobs) < atOnce {
			return a.r, nil
		}
	}
}

// readable notes whether something could be read: if not, the audit goes on with the rest, unless its context is over.
func (a *auditor) readable(ctx context.Context, what string, job crowd.JobID, err error) error {
	if err == nil {
		a.check("rows", job, nil, "")
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	a.check("rows", job, nil, what+" can't be read: "+crowd.AsError(err).Message)
	return nil
}

type auditor struct {
	st     *store.Store
	v      *store.Snapshot
	bodies AuditBodies
	r      *AuditReport
}

func (a *auditor) snapshot(ctx context.Context, f func(context.Context, *store.Snapshot) error) error {
	v, err := a.st.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer v.Close()
	a.v = v
	return f(ctx, v)
}

// check notes that one thing was looked at, and what is wrong with it: "" is nothing.
func (a *auditor) check(name string, job crowd.JobID, first *uint64, wrong string) {
	i := slices.IndexFunc(a.r.Checks, func(c AuditCheck) bool { return c.Name == name })
	a.r.Checks[i].Checked++
	if wrong == "" {
		return
	}
	a.r.Checks[i].Wrong++
	a.r.Wrong++
	if len(a.r.Findings) >= auditFindings {
		if a.r.Checks[i].Wrong > 1 {
			return
		}
		told := map[string]int{} // the first of each check is told: in place of the last of one that has many
		for _, f := range a.r.Findings {
			told[f.Check]++
		}
		for k := len(a.r.Findings) - 1; k >= 0; k-- {
			if told[a.r.Findings[k].Check] > 1 {
				a.r.Findings = slices.Delete(a.r.Findings, k, k+1)
				break
			}
		}
	}
	a.r.Findings = append(a.r.Findings, AuditFinding{name, job, first, wrong})
}

// database checks the file itself.
func (a *auditor) database(ctx context.Context, v *store.Snapshot) error {
	sound := true
	err := v.QuickCheck(ctx, func(fault string) error {
		sound = false
		a.check("database", crowd.JobID{}, nil, fault)
		return nil
	})
	if err == nil && sound {
		a.check("database", crowd.JobID{}, nil, "")
	}
	return err
}

func (a *auditor) incarnation(ctx context.Context, v *store.Snapshot) error {
	n, last, err := v.Incarnation(ctx)
	if err != nil {
		return err
	}
	wrong := ""
	if n < 1 || n > last {
		wrong = fmt.Sprintf("its incarnation is %d; there are only those from 1 to %d", n, last)
	}
	a.check("database", crowd.JobID{}, nil, wrong)
	return nil
}

func (a *auditor) rows(ctx context.Context, v *store.Snapshot) error {
	return v.Rows(ctx, func(table, id string, fault error) error {
		wrong := ""
		if fault != nil {
			wrong = fmt.Sprintf("%s: %s: %s", table, id, fault)
		}
		a.check("rows", crowd.JobID{}, nil, wrong)
		return nil
	})
}

func (a *auditor) references(ctx context.Context, v *store.Snapshot) error {
	return v.Strays(ctx, func(fault string) error {
		a.check("references", crowd.JobID{}, nil, fault)
		return nil
	})
}

func (a *auditor) keys(ctx context.Context, v *store.Snapshot) error {
	return v.KeySums(ctx, func(id string, spent, sum crowd.UCR, read bool) error {
		if !read { // which is said
			return nil
		}
		wrong := ""
		if spent != sum {
			wrong = fmt.Sprintf("%s has spent %d; its jobs hold or have kept %d", id, spent, sum)
		}
		a.check("keys", crowd.JobID{}, nil, wrong)
		return nil
	})
}

func (a *auditor) blobs(ctx context.Context, v *store.Snapshot) error {
	err := v.BlobSums(ctx, func(account string, kept, sum int64) error {
		wrong := ""
		if kept != sum {
			wrong = fmt.Sprintf("%s has %d bytes of its quota in use; its blobs come to %d", account, kept, sum)
		}
		a.check("blobs", crowd.JobID{}, nil, wrong)
		return nil
	})
	if err != nil {
		return err
	}
	return v.Blobs(ctx, a.bodies == BodiesAll, func(name, fault string) error {
		if fault != "" {
			fault = name + ": " + fault
		}
		a.check("blobs", crowd.JobID{}, nil, fault)
		return nil
	})
}

func (a *auditor) checkpoints(ctx context.Context, v *store.Snapshot) error {
	return v.States(ctx, func(job crowd.JobID, first uint64, fault string) error {
		a.check("checkpoints", job, &first, fault)
		return nil
	})
}

// ledger checks what holds over all jobs.
func (a *auditor) ledger(ctx context.Context, v *store.Snapshot) error {
	err := v.Txns(ctx, func(t store.TxnSum) error {
		wrong := ""
		switch {
		case t.Txn == "":
			wrong = fmt.Sprintf("%d postings belong to no transaction", t.Postings)
		case t.Sum != 0:
			wrong = fmt.Sprintf("%s sums to %d", t.Txn, t.Sum)
		case t.Postings == 0:
			wrong = fmt.Sprintf("%s has no postings", t.Txn)
		case t.Legs != t.Postings:
			wrong = fmt.Sprintf("%s was written with %d postings and has %d", t.Txn, t.Legs, t.Postings)
		}
		a.check("transactions", crowd.JobID{}, nil, wrong)
		return nil
	})
	if err != nil {
		return err
	}
	all, balances, err := v.LedgerSums(ctx)
	if err != nil {
		return err
	}
	wrong := ""
	if all != 0 {
		wrong = fmt.Sprintf("it sums to %d", all)
	}
	a.check("ledger", crowd.JobID{}, nil, wrong)
	wrong = ""
	if balances != 0 {
		wrong = fmt.Sprintf("the balances sum to %d", balances)
	}
	a.check("ledger", crowd.JobID{}, nil, wrong)
	return v.Books(ctx, func(b store.BookSum) error {
		wrong := ""
		kind, _, _ := strings.Cut(string(b.Book), ":")
		switch {
		case b.Balance != b.Sum:
			wrong = fmt.Sprintf("%s holds %d; its postings sum to %d", b.Book, b.Balance, b.Sum)
		case b.Balance < 0 && (kind == "balance" || kind == "pending" || kind == "escrow"):
			wrong = fmt.Sprintf("%s holds %d", b.Book, b.Balance)
		}
		a.check("books", crowd.JobID{}, nil, wrong)
		has, err := v.BookOwner(ctx, b.Book)
		if err != nil {
			return err
		}
		wrong = ""
		if !has {
			wrong = fmt.Sprintf("the book %s is of nothing that is there", b.Book)
		}
		a.check("references", crowd.JobID{}, nil, wrong)
		return nil
	})
}

// jobAudit is what an audit learns along a job's chunks.
type jobAudit struct {
	crowd.Job
	earned map[crowd.Book]crowd.UCR // by pending book, over verdicts that stand
	txns   int64                    // verdict transactions that belong to a chunk
	done   []store.Run
	open   []store.Run
	end    uint64 // of the last chunk
	faults string // of its chunks' order
}

func (a *auditor) job(ctx context.Context, v *store.Snapshot, id crowd.JobID) error {
	row, archived, err := v.Job(ctx, id)
	if err != nil {
		return err
	}
	a.r.Jobs++
	j := &jobAudit{Job: row, earned: map[crowd.Book]crowd.UCR{}}
	if archived {
		wrong := ""
		if !a.st.HasArchive(id) {
			wrong = "its rows are gone, and so is its file in the archive"
		} else if err := a.st.CheckArchive(ctx, id); err != nil {
			if ctx.Err() != nil {
				return err
			}
			wrong = crowd.AsError(err).Message
		}
		a.check("archive", id, nil, wrong)
		err = a.archivedTxns(ctx, v, j)
	} else {
		err = a.chunks(ctx, v, j)
	}
	if err != nil {
		return err
	}
	if err := a.escrow(ctx, v, j); err != nil {
		return err
	}
	return a.settlement(ctx, v, j)
}

// archivedTxns adds up the verdicts of a job whose chunks are gone.
func (a *auditor) archivedTxns(ctx context.Context, v *store.Snapshot, j *jobAudit) error {
	for _, prefix := range []string{"chunk:" + j.ID.String() + ":", "reverse:chunk:" + j.ID.String() + ":"} {
		err := v.TxnNames(ctx, prefix, func(name string) error {
			legs, err := v.Txn(ctx, name)
			for _, p := range legs {
				if strings.HasPrefix(string(p.Book), "pending:") {
					j.earned[p.Book] += p.Amount
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// chunks checks every chunk of a job, and then what they come to.
func (a *auditor) chunks(ctx context.Context, v *store.Snapshot, j *jobAudit) error {
	err := v.Chunks(ctx, j.ID, func(c store.ChunkRow, all []store.AttemptRow) error {
		if c.Count == 0 {
			a.check("seats", j.ID, &c.First, fmt.Sprintf("%d attempts at a chunk that isn't there", len(all)))
			return nil
		}
		a.r.Chunks++
		if c.First < j.end || c.First+c.Count > j.Units {
			j.faults = fmt.Sprintf("chunk %d+%d overlaps another, or is beyond the job's %d units", c.First, c.Count, j.Units)
		}
		j.end = c.First + c.Count
		if c.State == crowd.ChunkOpen {
			j.open = append(j.open, store.Run{First: c.First, Count: c.Count})
		} else {
			j.done = addRun(j.done, c.First, c.Count)
		}
		a.seats(j, c, all)
		ver, votes := a.verdict(j, c, all)
		if err := a.payments(ctx, v, j, c, all, ver, votes); err != nil {
			return err
		}
		return a.body(ctx, v, j, c, ver, votes)
	})
	if err != nil {
		return err
	}
	if err := a.strayTxns(ctx, v, j); err != nil {
		return err
	}
	return a.progress(ctx, v, j)
}

func (a *auditor) seats(j *jobAudit, c store.ChunkRow, all []store.AttemptRow) {
	wrong, groups := "", map[string]int{}
	for _, x := range all {
		if !x.Counts {
			continue
		}
		g := groupOfRow(&x.Attempt)
		if n := groups[g]; n != 0 {
			wrong = fmt.Sprintf("attempts %d and %d count both, for one group", n, x.N)
		} else if !x.Seated {
			wrong = fmt.Sprintf("attempt %d has another group's seat", x.N)
		}
		groups[g] = x.N
	}
	a.check("seats", j.ID, &c.First, wrong)
}

func groupOfRow(x *crowd.Attempt) string {
	if x.Group != "" {
		return x.Group
	}
	return x.Owner.String()
}

// verdict decides a decided chunk again; votes are the attempts that the verdict's indices mean.
func (a *auditor) verdict(j *jobAudit, c store.ChunkRow, all []store.AttemptRow) (ver quorum.Verdict, votes []*crowd.Attempt) {
	if c.State != crowd.ChunkDecided {
		return ver, nil
	}
	var vs []quorum.Vote
	for i := range all {
		if x := &all[i]; x.Counts && x.State == crowd.AttemptReported {
			vs = append(vs, quorum.Vote{Digest: x.Digest, Group: groupOfRow(&x.Attempt), Host: x.Host})
			votes = append(votes, &x.Attempt)
		}
	}
	ver = quorum.Decide(vs, c.Need)
	wrong := ""
	switch {
	case !ver.Decided:
		wrong = fmt.Sprintf("it is decided; %d votes of %d wanted don't decide it", len(vs), c.Need)
	case ver.Digest != c.Digest:
		wrong = fmt.Sprintf("its verdict is %s; %d votes agree on %s", c.Digest.Short(), len(ver.Winners), ver.Digest.Short())
	}
	a.check("verdicts", j.ID, &c.First, wrong)
	return ver, votes
}

// payments checks the transactions of a chunk: one that pays its verdict, and earlier ones that were taken back.
func (a *auditor) payments(ctx context.Context, v *store.Snapshot, j *jobAudit, c store.ChunkRow, all []store.AttemptRow, ver quorum.Verdict, votes []*crowd.Attempt) error {
	wrong := ""
	for n := 1; n <= c.Version; n++ {
		name := ledger.VerdictTxn(c.Job, c.First, n)
		legs, err := v.Txn(ctx, name)
		if err != nil {
			return err
		}
		back, err := v.Txn(ctx, ledger.ReverseTxn(name))
		if err != nil {
			return err
		}
		if len(legs) > 0 {
			j.txns++
		}
		stands := n == c.Version && c.State == crowd.ChunkDecided
		switch {
		case stands && len(back) > 0:
			wrong = "its verdict stands, and its payment was taken back"
		case !stands && len(legs) > 0 && len(back) == 0:
			wrong = fmt.Sprintf("verdict %d doesn't stand, and its payment wasn't taken back", n)
		case !stands && !opposite(legs, back):
			wrong = fmt.Sprintf("what was taken back of verdict %d isn't what was paid", n)
		}
		for _, p := range slices.Concat(legs, back) {
			if strings.HasPrefix(string(p.Book), "pending:") {
				j.earned[p.Book] += p.Amount
			}
		}
		if stands && ver.Decided { // else who won isn't known, which is said
			a.check("payments", j.ID, &c.First, paysRight(j.ID, legs, ver, votes))
			a.check("fuel", j.ID, &c.First, fuelPays(j, legs, ver, votes))
		}
	}
	for _, x := range all {
		if c.State == crowd.ChunkDecided && !ver.Decided {
			break
		}
		won := ver.Decided && slices.ContainsFunc(ver.Winners, func(i int) bool { return votes[i].N == x.N })
		if x.Paid != 0 && !won && c.State != crowd.ChunkOpen && wrong == "" {
			wrong = fmt.Sprintf("attempt %d isn't part of the verdict and says that it was paid %d", x.N, x.Paid)
		}
	}
	a.check("paid once", j.ID, &c.First, wrong)
	return nil
}

// opposite reports whether back is legs, every amount negated.
func opposite(legs, back []crowd.Posting) bool {
	if len(legs) != len(back) {
		return false
	}
	for _, p := range legs {
		if !slices.ContainsFunc(back, func(q crowd.Posting) bool { return q.Leg == p.Leg && q.Book == p.Book && q.Amount == -p.Amount }) {
			return false
		}
	}
	return true
}

// paysRight says what is wrong with a verdict's payment: escrow gives, each winner's owner gets what the attempts say, and the rest is the fee.
func paysRight(job crowd.JobID, legs []crowd.Posting, ver quorum.Verdict, votes []*crowd.Attempt) string {
	want := map[crowd.Book]crowd.UCR{}
	for _, i := range ver.Winners {
		if votes[i].Paid != 0 {
			want[crowd.PendingBook(votes[i].Owner)] += votes[i].Paid
		}
	}
	if len(legs) == 0 {
		if len(want) > 0 {
			return "its winners were paid, by their attempts; there is no payment"
		}
		return ""
	}
	got := map[crowd.Book]crowd.UCR{}
	for _, p := range legs {
		switch {
		case p.Book == crowd.EscrowBook(job) && p.Amount < 0, p.Book == crowd.BookFee && p.Amount >= 0:
		case strings.HasPrefix(string(p.Book), "pending:"):
			got[p.Book] += p.Amount
		default:
			return fmt.Sprintf("it moves %d of %s", p.Amount, p.Book)
		}
	}
	if b, ok := differ(want, got); ok {
		return fmt.Sprintf("%s gets %d; its attempts say %d", b, got[b], want[b])
	}
	return ""
}

// fuelPays says what is wrong with the fuel of a verdict: winners agree on it, for it is part of what they voted for (but for checkpoints), and what
// escrow gives is the job's price of it. Nobody voted on an unchecked job's.
func fuelPays(j *jobAudit, legs []crowd.Posting, ver quorum.Verdict, votes []*crowd.Attempt) string {
	if j.Spec.CheckpointEvery() > 0 || len(ver.Winners) == 0 {
		return ""
	}
	w := votes[ver.Winners[0]]
	for _, i := range ver.Winners[1:] {
		if votes[i].Fuel != w.Fuel {
			return fmt.Sprintf("attempt %d says %d of fuel, attempt %d says %d, of one outcome", w.N, w.Fuel, votes[i].N, votes[i].Fuel)
		}
	}
	if j.Spec.Verify.Need() <= 1 || len(legs) == 0 {
		return ""
	}
	var took crowd.UCR
	for _, p := range legs {
		if p.Book == crowd.EscrowBook(j.ID) {
			took -= p.Amount
		}
	}
	if want := payFor(w.Fuel, j.PerGfuel) * crowd.UCR(len(ver.Winners)); took != want {
		return fmt.Sprintf("its verdict took %d; %d winners with %d of fuel are worth %d", took, len(ver.Winners), w.Fuel, want)
	}
	return ""
}

// differ finds a book in which two sums differ; the least by name.
func differ(a, b map[crowd.Book]crowd.UCR) (book crowd.Book, found bool) {
	for _, m := range []map[crowd.Book]crowd.UCR{a, b} {
		for k := range m {
			if a[k] != b[k] && (!found || k < book) {
				book, found = k, true
			}
		}
	}
	return book, found
}

// strayTxns finds verdict transactions that belong to no chunk, if there are more than the chunks account for.
func (a *auditor) strayTxns(ctx context.Context, v *store.Snapshot, j *jobAudit) error {
	prefix := "chunk:" + j.ID.String() + ":"
	var n int64
	if err := v.TxnNames(ctx, prefix, func(string) error { n++; return nil }); err != nil || n == j.txns {
		return err
	}
	return v.TxnNames(ctx, prefix, func(name string) error {
		first, version, ok := parseVerdictTxn(name[len(prefix):])
		if ok {
			c, err := a.st.ChunkOf(ctx, j.ID, first)
			if err != nil && !crowd.KindIs(err, crowd.NotFound) {
				return err
			}
			if ok = err == nil && c.First == first && version >= 1 && version <= c.Version; ok {
				return nil
			}
		}
		a.check("payments", j.ID, nil, name+" pays for a verdict that there never was")
		return nil
	})
}

func parseVerdictTxn(s string) (first uint64, version int, ok bool) {
	f, n, ok := strings.Cut(s, ":")
	first, err := strconv.ParseUint(f, 10, 64)
	version, err2 := strconv.Atoi(n)
	return first, version, ok && err == nil && err2 == nil
}

func (a *auditor) progress(ctx context.Context, v *store.Snapshot, j *jobAudit) error {
	_, runs, damaged, err := v.Done(ctx, j.ID)
	if err != nil {
		return err
	}
	if !damaged {
		runs = store.Without(runs, j.open) // those of a chunk that was opened again stay in the map
	}
	wrong := j.faults
	switch extra, lost := store.Without(runs, j.done), store.Without(j.done, runs); {
	case damaged:
		wrong = "its map of decided units is damaged"
	case len(extra) > 0:
		wrong = fmt.Sprintf("its map holds units %d to %d; no chunk of them is decided", extra[0].First, extra[0].First+extra[0].Count-1)
	case len(lost) > 0:
		wrong = fmt.Sprintf("its map lacks units %d to %d, which are decided", lost[0].First, lost[0].First+lost[0].Count-1)
	case j.State == crowd.JobDone && (len(j.done) != 1 || j.done[0] != store.Run{Count: j.Units}):
		wrong = "it is done, and not every unit is decided"
	}
	a.check("progress", j.ID, nil, wrong)
	return nil
}

// body checks what a decided chunk names.
func (a *auditor) body(ctx context.Context, v *store.Snapshot, j *jobAudit, c store.ChunkRow, ver quorum.Verdict, votes []*crowd.Attempt) error {
	if c.State != crowd.ChunkDecided || a.bodies == BodiesNone {
		return nil
	}
	if a.bodies == BodiesSample && c.First != 0 && c.First/max(1, c.Count)%64 != 0 {
		has, err := v.HasBody(ctx, j.ID, c.Body)
		if err == nil && !has {
			a.check("bodies", j.ID, &c.First, "what its verdict names isn't there")
		}
		return err
	}
	a.r.Bodies++
	b, err := v.Body(ctx, j.ID, c.Body)
	if err != nil && ctx.Err() != nil {
		return err
	}
	wrong := ""
	if err != nil {
		if gone, _ := a.st.Archived(ctx, j.ID); gone { // since this snapshot
			return nil
		}
		wrong = crowd.AsError(err).Message
	} else {
		agreed := c.Digest
		if ver.Decided {
			agreed = ver.Digest
		}
		var fuel uint64
		if wrong, fuel = outcomeFault(b, c, agreed); wrong == "" && j.Spec.CheckpointEvery() == 0 {
			for _, i := range ver.Winners {
				if x := votes[i]; x.Fuel != fuel {
					a.check("fuel", j.ID, &c.First, fmt.Sprintf("attempt %d says %d of fuel; its outcome has %d", x.N, x.Fuel, fuel))
				}
			}
		}
	}
	a.check("bodies", j.ID, &c.First, wrong)
	return nil
}

// outcomeFault says why a body isn't the outcome that a chunk's votes agree on, and the fuel in it.
func outcomeFault(body []byte, c store.ChunkRow, agreed crowd.Digest) (wrong string, fuel uint64) {
	o, contents, err := crowd.ParseBody(body, c.First, c.Count)
	if err != nil {
		return "its body is no outcome: " + crowd.AsError(err).Message, 0
	}
	if d := digest.Of(o.Manifest()); d != agreed {
		return fmt.Sprintf("its body is of %s; its votes agree on %s", d.Short(), agreed.Short()), 0
	}
	if n := o.FailedUnits(); n != c.Failed {
		return fmt.Sprintf("%d of its units failed; it says %d", n, c.Failed), 0
	}
	for i, u := range o.Units {
		ok := u.Stdout.Size == 0 || digest.Of(contents[i].Stdout) == u.Stdout.Digest
		for k, f := range u.Files {
			ok = ok && (f.Size == 0 || digest.Of(contents[i].Files[k]) == f.Digest)
		}
		if !ok {
			return fmt.Sprintf("what unit %d wrote isn't what its manifest says", c.First+uint64(i)), 0
		}
	}
	return "", o.Fuel()
}

// escrow checks a job's own money.
func (a *auditor) escrow(ctx context.Context, v *store.Snapshot, j *jobAudit) error {
	var in, out, back, left crowd.UCR
	other := ""
	id := j.ID.String()
	err := v.BookPostings(ctx, crowd.EscrowBook(j.ID), func(txn string, amount crowd.UCR) error {
		left += amount
		switch {
		case txn == "order:"+id:
			in += amount
		case txn == "refund:"+id:
			back -= amount
		case strings.HasPrefix(txn, "chunk:"+id+":"), strings.HasPrefix(txn, "reverse:chunk:"+id+":"):
			out -= amount
		default:
			other = txn
		}
		return nil
	})
	if err != nil {
		return err
	}
	wrong := ""
	switch ended := j.State.Ended(); {
	case other != "":
		wrong = fmt.Sprintf("%s moves its escrow", other)
	case in != j.Escrow:
		wrong = fmt.Sprintf("its order put %d into escrow; it says %d", in, j.Escrow)
	case ended && left != 0:
		wrong = fmt.Sprintf("it has ended, and %d is left in escrow", left)
	case ended && out != j.Paid:
		wrong = fmt.Sprintf("its verdicts took %d; it says that it paid %d", out, j.Paid)
	case ended && back != j.Returned:
		wrong = fmt.Sprintf("%d went back; it says %d", back, j.Returned)
	case !ended && back != 0:
		wrong = fmt.Sprintf("it hasn't ended, and %d went back", back)
	}
	a.check("escrow", j.ID, nil, wrong)
	return nil
}

// settlement compares what a job settled with what its verdicts paid.
func (a *auditor) settlement(ctx context.Context, v *store.Snapshot, j *jobAudit) error {
	legs, err := v.Txn(ctx, "settle:"+j.ID.String())
	if err != nil {
		return err
	}
	settled, got := map[crowd.Book]crowd.UCR{}, map[crowd.Book]crowd.UCR{}
	for _, p := range legs {
		if owner, ok := strings.CutPrefix(string(p.Book), "balance:"); ok {
			got[crowd.Book("pending:"+owner)] += p.Amount
		} else {
			settled[p.Book] -= p.Amount
		}
	}
	wrong := ""
	if b, bad := differ(settled, got); bad {
		wrong = fmt.Sprintf("%d of %s became %d of its owner's", settled[b], b, got[b])
	} else if !j.State.Ended() && len(legs) > 0 {
		wrong = "it has settled and hasn't ended"
	} else if b, bad := differ(settled, j.earned); bad && j.State.Ended() {
		wrong = fmt.Sprintf("%d of %s settled; its verdicts paid %d", settled[b], b, j.earned[b])
	}
	a.check("settlement", j.ID, nil, wrong)
	return nil
}

// AuditDir audits the store in a folder, beside its broker or without.
func AuditDir(ctx context.Context, dir string, bodies AuditBodies, now time.Time) (*AuditReport, error) {
	st, err := store.View(ctx, dir)
	if err != nil {
		return nil, err
	}
	r, err := Audit(ctx, st, bodies, now)
	return r, errors.Join(err, st.Close())
}

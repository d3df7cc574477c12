package sim

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/quorum"
)

// judge holds a world against the invariants. It knows what happened from its own notes and the store, never from what the broker
// remembers, and does its own sums.
type judge struct {
	w       *world
	last    *store
	seq     int64
	logged  int
	chunks  map[chunkKey]*tally
	jobs    map[crowd.JobID]*account
	notes   []note // by lease
	begun   time.Duration
	forked  map[crowd.SessionID]int64 // and in which transaction
	facts   []fact
	known   map[fact]bool
	owed    map[int]string // reports that nobody answered, by lease
	earlier struct {
		store *store
		seq   int64
		log   int
		state crowd.AttemptState
		open  bool
		voted bool
		same  crowd.Digest
	}
}

// note is what the judge saw of a lease.
type note struct {
	state   crowd.AttemptState
	heard   time.Duration
	broke   time.Duration // when its host's connection broke, not heard since; 0: it didn't
	session crowd.SessionID
	gone    bool
}

type chunkKey struct {
	job   crowd.JobID
	first uint64
}

// tally is what the ledger says of a chunk.
type tally struct {
	live  int // verdicts that weren't reversed
	paid  map[crowd.Book]crowd.UCR
	net   crowd.UCR // sum of paid
	gross crowd.UCR
}

// account is what the ledger says of a job.
type account struct {
	escrow                         crowd.Book
	held, paid, fee, settled, back crowd.UCR
}

type factKind int

const (
	factTxn     factKind = iota // a deposit was taken
	factOrder                   // an order was taken
	factVerdict                 // a chunk is decided
	factResult                  // a job ended
	factReport                  // a report was accepted, or kept
)

// fact is something that somebody was told.
type fact struct {
	kind       factKind
	txn        string
	job        crowd.JobID
	first      uint64
	version    int // of a verdict, number of an attempt
	id         int
	digest     crowd.Digest
	state      crowd.JobState
	paid, back crowd.UCR
	seq        int64 // the store's when it was told
	inc        int64
}

func newJudge(w *world) *judge {
	return &judge{w: w, forked: map[crowd.SessionID]int64{}, known: map[fact]bool{}, owed: map[int]string{}}
}

func (u *judge) note(id int) *note {
	for len(u.notes) <= id {
		u.notes = append(u.notes, note{})
	}
	return &u.notes[id]
}

// started: a broker's life begins; it can't know of earlier breaks.
func (u *judge) started() {
	u.begun = u.w.now
	for i := range u.notes {
		u.notes[i].broke = 0
	}
}

// restored: what was told in a lower incarnation and after the backup is gone.
func (u *judge) restored() {
	s := u.w.store
	n := len(u.facts)
	u.facts = slices.DeleteFunc(u.facts, func(f fact) bool { return f.inc < s.incarnation && f.seq > s.seq })
	u.w.res.Lost += n - len(u.facts)
	clear(u.known)
	for id, seq := range u.forked {
		if seq > s.seq {
			delete(u.forked, id)
		}
	}
}

// know notes what is told.
func (u *judge) know(f fact) {
	if u.known[f] {
		return
	}
	u.known[f] = true
	f.seq, f.inc = u.w.store.seq, u.w.store.incarnation
	u.facts = append(u.facts, f)
}

func (u *judge) told(id int, s crowd.SessionID) { u.note(id).session = s }

func (u *judge) heard(id int) {
	n := u.note(id)
	n.heard, n.broke = u.w.now, 0
}

// brokeOff: a host's connection broke.
func (u *judge) brokeOff(host int) {
	for _, j := range u.w.store.jobs {
		for _, c := range j.chunks {
			for _, a := range c.attempts {
				if n := u.note(a.id); a.index == host && a.leased() && n.broke == 0 {
					n.broke = u.w.now
				}
			}
		}
	}
}

// gone: the process that had a lease is said to be no more.
func (u *judge) gone(id int, s crowd.SessionID) {
	n := u.note(id)
	if n.session == s {
		u.w.fail("a lease is taken from the very session that has it")
	}
	n.gone = true
}

// dials: a greeting is taken, before anything of it is durable.
func (u *judge) dials(row *hostRow, h crowd.Hello) {
	if h.Session == row.session && h.Dial <= row.dial && u.forked[h.Session] == 0 {
		u.forked[h.Session] = u.w.store.seq + 1
	}
}

// greeted: a process goes on with a broker.
func (u *judge) greeted(p *proc, b *broker, inc int64) {
	if inc < p.pinned {
		u.w.fail("%s speaks with a broker of incarnation %d, and has seen %d", p.name, inc, p.pinned)
	}
}

// leases: an attempt is about to be given out.
func (u *judge) leases(c *chunkRow, a *attemptRow, conn *conn) {
	w := u.w
	row := w.store.hosts[a.index]
	s := conn.hello.Session
	switch {
	case s != row.session || row.voided[s]:
		w.fail("%s is leased %s in a session that isn't its newest", row.Name, title{w.store, a.ref()})
	case u.forked[s] != 0:
		w.fail("%s is leased %s in the session of a clone", row.Name, title{w.store, a.ref()})
	case row.State != crowd.HostActive:
		w.fail("%s is leased %s and is %s", row.Name, title{w.store, a.ref()}, row.State)
	}
	held := 0
	var votes []quorum.Vote
	for _, x := range c.attempts {
		n := u.note(x.id)
		switch {
		case x.State == crowd.AttemptReported && x.counts:
			votes = append(votes, quorum.Vote{Digest: x.Digest, Group: w.group(x), Host: x.Host})
		case x.leased() && !(n.broke > 0 && w.now-n.broke >= crowd.SuspectFor):
			held++
		}
	}
	if want := quorum.Decide(votes, c.Need).Want; held >= want {
		w.fail("%s is leased beside %d that are held, and %d are wanted", title{w.store, a.ref()}, held, want)
	}
	*u.note(a.id) = note{state: crowd.AttemptLeased, heard: w.now}
}

// group is a host's owner's group by the plan.
func (w *world) group(a *attemptRow) string {
	h := w.o.Hosts[a.index]
	if h.Group != "" {
		return h.Group
	}
	return h.Owner
}

// acts: a process does what it needs the lease for.
func (u *judge) acts(p *proc, t *task) {
	w := u.w
	if t.by != w.store || u.note(t.id).gone {
		return
	}
	_, _, a := w.store.find(t.AttemptRef)
	if a != nil && a.id == t.id && a.State == crowd.AttemptExpired && a.Reason == crowd.HostLost {
		w.fail("%s acts on its lease of %s, which expired", p.name, title{w.store, t.AttemptRef})
	}
}

// finished, answered: a report is owed an answer.
func (u *judge) finished(p *proc, t *task) {
	if !p.clone {
		u.owed[t.id] = p.name
	}
}

func (u *judge) answered(p *proc, t *task) {
	if !p.clone {
		delete(u.owed, t.id)
	}
}

// before: a host's word on an attempt is about to be heard.
func (u *judge) before(j *jobRow, c *chunkRow, a *attemptRow) {
	e, s := &u.earlier, u.w.store
	e.store, e.seq, e.log, e.state, e.open, e.voted = s, s.seq, len(s.log), "", false, false
	if a == nil {
		return
	}
	e.state, e.open, e.same = a.State, j.open(c), a.Digest
	for _, x := range c.attempts {
		e.voted = e.voted || x != a && x.counts && u.w.group(x) == u.w.group(a)
	}
}

func (u *judge) moved() bool { return u.w.store != u.earlier.store || u.w.store.seq != u.earlier.seq }
func (u *judge) posted() bool {
	return u.w.store != u.earlier.store || len(u.w.store.log) != u.earlier.log
}

// reported: a report was heard.
func (u *judge) reported(h *hostRow, c *chunkRow, a *attemptRow, r *report, ans crowd.ReportAnswer) {
	w, e := u.w, &u.earlier
	t := title{w.store, r.AttemptRef}
	if a == nil || a.Host != h.ID {
		if u.moved() {
			w.fail("%s reports on %s, which isn't its own, and the store changes", h.Name, t)
		}
		return
	}
	live := e.state == crowd.AttemptLeased || e.state == crowd.AttemptExpired
	switch {
	case !e.open && u.posted():
		w.fail("a report of %s, decided before, posts something", t)
	case e.state == crowd.AttemptReported && u.posted():
		w.fail("a report of %s again posts something", t)
	case live && e.open && !e.voted && r.count == c.Count && ans != crowd.ReportAccepted:
		w.fail("%s wants votes and the report is %s", t, ans)
	case e.state == crowd.AttemptVoid && ans != crowd.ReportVoid:
		w.fail("%s is void and its report %s", t, ans)
	}
}

// toldReport: the answer to a report is on its way.
func (u *judge) toldReport(a *attemptRow, r *report, ans crowd.ReportAnswer) {
	if ans == crowd.ReportAccepted || ans == crowd.ReportDecided {
		u.know(fact{kind: factReport, job: r.Job, first: r.First, version: r.N, id: a.id, digest: r.digest})
	}
}

// stated: a checkpoint was heard.
func (u *judge) stated(h *hostRow, a *attemptRow, ans crowd.StateAnswer) {
	w := u.w
	switch {
	case a == nil || a.Host != h.ID:
		if u.moved() || ans != crowd.StateConflict {
			w.fail("%s leaves a checkpoint of another's attempt", h.Name)
		}
	case ans == crowd.StateAccepted && u.earlier.state != crowd.AttemptLeased:
		w.fail("%s leaves a checkpoint of %s, which is %s", h.Name, title{w.store, a.ref()}, u.earlier.state)
	}
}

// after looks at the store, if it changed.
func (u *judge) after() {
	s := u.w.store
	if s == u.last && s.seq == u.seq || u.w.failed != nil {
		return
	}
	if s != u.last { // another store: everything anew
		u.logged, u.chunks, u.jobs = 0, map[chunkKey]*tally{}, map[crowd.JobID]*account{}
		for _, j := range s.jobs {
			for _, c := range j.chunks {
				for _, a := range c.attempts {
					u.note(a.id).state = a.State
				}
			}
		}
	}
	u.last, u.seq = s, s.seq
	u.read(s)
	u.books(s)
	for _, j := range s.jobs {
		u.job(s, j)
	}
	for i := range u.facts {
		u.fact(s, &u.facts[i])
	}
}

// read takes up new transactions.
func (u *judge) read(s *store) {
	for _, name := range s.log[u.logged:] {
		legs := s.txns[name]
		var sum crowd.UCR
		for _, l := range legs {
			sum += l.Amount
		}
		if sum != 0 {
			u.w.fail("%s sums to %d", name, sum)
		}
		rest, back := strings.CutPrefix(name, "reverse:")
		part := strings.Split(rest, ":")
		var id crowd.JobID
		if part[0] == "deposit" || id.UnmarshalText([]byte(part[1])) != nil {
			continue
		}
		a := u.jobs[id]
		if a == nil {
			a = &account{escrow: crowd.EscrowBook(id)}
			u.jobs[id] = a
		}
		switch part[0] {
		case "order":
			a.held += -legs[0].Amount
		case "refund":
			a.back += -legs[0].Amount
		case "settle":
			for _, l := range legs {
				a.settled += max(0, l.Amount)
			}
		case "chunk":
			first, _ := strconv.ParseUint(part[2], 10, 64)
			u.verdict(a, chunkKey{id, first}, legs, back)
		}
	}
	u.logged = len(s.log)
}

func (u *judge) verdict(a *account, k chunkKey, legs []crowd.Posting, back bool) {
	t := u.chunks[k]
	if t == nil {
		t = &tally{paid: map[crowd.Book]crowd.UCR{}}
		u.chunks[k] = t
	}
	if t.live++; back {
		t.live -= 2
	}
	for _, l := range legs {
		switch {
		case l.Book == crowd.BookFee:
			a.fee += l.Amount
		case strings.HasPrefix(string(l.Book), "pending:"):
			t.paid[l.Book] += l.Amount
			t.net += l.Amount
			a.paid += l.Amount
		default:
			t.gross -= l.Amount
		}
	}
}

func (u *judge) books(s *store) {
	var sum crowd.UCR
	for b, v := range s.books {
		sum += v
		if v < 0 && b != crowd.BookMint {
			u.w.fail("%s is %d", b, v)
		}
	}
	if sum != 0 {
		u.w.fail("the books sum to %d", sum)
	}
}

func (u *judge) job(s *store, j *jobRow) {
	var paid crowd.UCR
	next := uint64(0)
	for _, c := range j.chunks {
		if c.First != next || c.Count == 0 {
			u.w.fail("%s: a chunk of %d units from %d on follows unit %d", j.Name, c.Count, c.First, next)
		}
		next += c.Count
		paid += u.chunk(s, j, c)
	}
	held := j.Escrow - j.Paid
	if j.State.Ended() {
		held = 0
	}
	a := u.jobs[j.ID]
	if a == nil {
		u.w.fail("%s has nothing in the ledger", j.Name)
		return
	}
	switch escrow := s.books[a.escrow]; {
	case paid != j.Paid:
		u.w.fail("%s says that it paid %d, the ledger %d", j.Name, j.Paid, paid)
	case escrow != held:
		u.w.fail("%s has %d in escrow, of %d held and %d paid", j.Name, escrow, j.Escrow, j.Paid)
	}
}

// chunk looks at a chunk and returns what the ledger says that it cost.
func (u *judge) chunk(s *store, j *jobRow, c *chunkRow) crowd.UCR {
	w := u.w
	at := title{s, crowd.AttemptRef{Job: j.ID, First: c.First}}
	t := u.chunks[chunkKey{j.ID, c.First}]
	if t == nil {
		t = &tally{}
	}
	var groups [8]string
	seats := groups[:0]
	votes := 0
	var paid crowd.UCR
	liars, cheated, failures := false, false, 0
	for _, a := range c.attempts {
		u.attempt(s, j, c, a)
		paid += a.Paid
		cheated = cheated || a.Reason == crowd.HostCheated
		if a.Reason == crowd.HostFailed {
			failures++
		}
		if !a.counts {
			continue
		}
		g := w.group(a)
		if slices.Contains(seats, g) {
			w.fail("%s: the group of %s has two seats", at, g)
		}
		seats = append(seats, g)
		if a.State == crowd.AttemptReported && a.Digest == c.Digest {
			votes++
			liars = liars || w.o.Hosts[a.index].Lies > 0
		}
	}
	switch {
	case t.live > 1:
		w.fail("%s has %d verdicts in the ledger", at, t.live)
	case t.net != paid:
		w.fail("%s: its attempts are paid %d, the ledger says %d", at, paid, t.net)
	case (c.Version > 1 || c.Version > 0 && c.State == crowd.ChunkOpen) && !cheated:
		w.fail("%s was taken back, and nobody cheated", at)
	case c.State == crowd.ChunkFailed && failures < crowd.Limits.FailedAttempts:
		w.fail("%s is given up after %d failures", at, failures)
	case c.State != crowd.ChunkDecided:
		if t.live != 0 || t.gross != 0 {
			w.fail("%s is %s and has a verdict in the ledger", at, c.State)
		}
	case t.live == 0 && paid > 0:
		w.fail("%s is decided and not in the ledger", at)
	case votes < c.Need:
		w.fail("%s is decided by %d groups, it needs %d", at, votes, c.Need)
	case c.Digest != hash(j.ID, c.First, c.Count, 0) && (c.Need > 1 || !liars):
		w.fail("%s is decided, and wrong", at)
	}
	return t.gross
}

// attempt looks at a lease.
func (u *judge) attempt(s *store, j *jobRow, c *chunkRow, a *attemptRow) {
	w, n := u.w, u.note(a.id)
	was := n.state
	n.state = a.State
	at := title{s, a.ref()}
	if was != a.State && was != "" && !was.May(a.State) {
		w.fail("%s was %s and is %s", at, was, a.State)
	}
	switch {
	case was == crowd.AttemptLeased && a.State == crowd.AttemptExpired && a.Reason == crowd.HostLost && !n.gone:
		if since := w.now - max(n.heard, u.begun); since < crowd.Term+crowd.Skew {
			w.fail("%s expired %v after it was heard of", at, since)
		}
	case a.counts && a.State != crowd.AttemptLeased && a.State != crowd.AttemptReported:
		w.fail("%s is %s and has a seat", at, a.State)
	case a.counts && s.hosts[a.index].Reason == crowd.HostCheated && !j.State.Ended():
		w.fail("%s has a seat, and its host was proved wrong", at)
	case a.Paid > 0 && !(a.counts && a.State == crowd.AttemptReported && c.State == crowd.ChunkDecided && a.Digest == c.Digest):
		w.fail("%s is paid, and didn't count", at)
	case a.Paid > 0:
		if t := u.chunks[chunkKey{j.ID, c.First}]; t == nil || t.paid[w.hosts[a.index].pending] < a.Paid {
			w.fail("%s is paid, and not in the ledger", at)
		}
	}
}

// fact looks for what somebody was told.
func (u *judge) fact(s *store, f *fact) {
	w := u.w
	if f.kind == factTxn {
		if s.txns[f.txn] == nil {
			w.fail("lost: %s", f.txn)
		}
		return
	}
	j, c, a := s.find(crowd.AttemptRef{Job: f.job, First: f.first, N: f.version})
	switch {
	case j == nil:
		w.fail("lost: an order that was taken")
	case f.kind == factVerdict && (c == nil || c.Version < f.version || c.Version == f.version && c.State == crowd.ChunkDecided && c.Digest != f.digest):
		w.fail("lost: the verdict v%d of %s", f.version, title{s, crowd.AttemptRef{Job: f.job, First: f.first}})
	case f.kind == factResult && (j.State != f.state || j.Paid != f.paid || j.Returned != f.back):
		w.fail("lost: the end of %s, told to be %s", j.Name, f.state)
	case f.kind == factReport && (a == nil || a.id != f.id || a.Digest != f.digest || a.State != crowd.AttemptReported && a.State != crowd.AttemptVoid):
		w.fail("lost: the report of %s", title{s, crowd.AttemptRef{Job: f.job, First: f.first, N: f.version}})
	}
}

// end looks at everything once it is over.
func (u *judge) end() {
	w, s := u.w, u.w.store
	for _, m := range w.hosts {
		for _, t := range m.outbox {
			w.fail("%s has the report of %s yet", m.Name, title{s, t.AttemptRef})
		}
	}
	for id := range w.ids {
		if name, owes := u.owed[id+1]; owes {
			w.fail("%s was never answered a report", name)
		}
	}
	for b, v := range s.books {
		if v != 0 && (strings.HasPrefix(string(b), "pending:") || strings.HasPrefix(string(b), "escrow:")) {
			w.fail("it is over, and %s holds %d", b, v)
		}
	}
	deposits := map[string]bool{}
	for _, name := range s.log {
		if strings.HasPrefix(name, "deposit:") {
			part := strings.Split(name, ":")
			if deposits[part[1]] {
				w.fail("%s was granted twice", part[1])
			}
			deposits[part[1]] = true
		}
	}
	for _, j := range s.jobs {
		a := u.jobs[j.ID]
		if a == nil || a.held != j.Escrow || a.held != a.settled+a.fee+a.back || a.settled != a.paid {
			w.fail("%s: held %d, but %+v", j.Name, j.Escrow, a)
		}
		if j.State != crowd.JobDone {
			continue
		}
		next := uint64(0)
		for _, c := range j.chunks {
			next += c.Count
			if c.State == crowd.ChunkOpen {
				w.fail("%s is done with a chunk open", j.Name)
			}
		}
		if next != j.Units {
			w.fail("%s: %d of %d units are decided", j.Name, next, j.Units)
		}
	}
}

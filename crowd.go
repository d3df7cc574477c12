// Package crowd is the page: every noun and contract of the crowd-sourced cloud on one sheet.
//
// A broker rents out the idle cycles of ordinary people's machines. A hoster lends a [Host]; a customer orders a [Job];
// the broker cuts the job's units into chunks, leases each chunk to hosts as attempts, compares what comes back and pays
// for what a quorum agreed on.
//
//	Job      a spec and a space of units [0, N). Units are never rows.
//	Chunk    a run of units [First, First+Count), cut once, when first leased.
//	Attempt  the lease of a chunk to a host. Never renumbered; the only record of who tried.
//	Outcome  what an attempt returned: per unit exit, fuel, digests of stdout and files. Its digest is what votes.
//	Verdict  the digest that enough hosts of unrelated owners agree on.
//	Posting  one leg of a double entry. Every movement of credit is one transaction whose legs sum to zero.
//	Reason   the typed why of every refusal, close and quarantine, with the party that caused it.
//
// The page imports the standard library only, does no I/O, reads no clock and draws no random numbers: time and
// randomness come in as arguments. One struct serves a noun from the database to the wire and the API.
package crowd

import "time"

// UCR is money: integer micro-credits. One credit is 1/100 of the broker's currency. Arithmetic on it is checked
// where it is multiplied (package price); sums of postings can't overflow below 9.2 trillion credits.
type UCR int64

// Credit is one credit.
const Credit UCR = 1_000_000

// Book names one side of a posting: an account's balance or pending pay, a job's escrow, or one of the broker's own.
type Book string

// The broker's own books. BookMint is the counterpart of deposits (its balance is minus all credit ever granted).
const (
	BookMint Book = "mint"
	BookFee  Book = "fee"
)

// BalanceBook, PendingBook and EscrowBook name an account's free credit, its earned but unsettled pay, and a job's held credit.
func BalanceBook(a AccountID) Book { return Book("balance:" + a.String()) }
func PendingBook(a AccountID) Book { return Book("pending:" + a.String()) }
func EscrowBook(j JobID) Book      { return Book("escrow:" + j.String()) }

// Posting is one leg of a double entry. Txn is derived from the event that caused it ("chunk:J:F:V", "deposit:X",
// "order:J", "settle:J", "refund:J", "reverse:TXN"), so that posting an event twice is a no-op.
type Posting struct {
	Txn    string    `json:"txn"`
	Leg    int       `json:"leg"`
	Book   Book      `json:"book"`
	Amount UCR       `json:"amount_ucr"`
	At     time.Time `json:"at"`
}

// Account owns things, pays or is paid. Group names accounts suspected to be one person: votes and trust count once per group.
type Account struct {
	ID      AccountID `json:"id"`
	Name    string    `json:"name"` // unique, cleanable: a-z 0-9 -
	Group   string    `json:"group,omitempty"`
	Created time.Time `json:"created"`
	Banned  Reason    `json:"banned,omitempty"` // empty: not banned
}

// Scope is what an API key may do.
type Scope string

// Scopes. Operate works from loopback only unless the operator names networks; it includes no other scope.
const (
	ScopeRead    Scope = "read"
	ScopeOrder   Scope = "order"
	ScopeLend    Scope = "lend"
	ScopeS3      Scope = "s3"
	ScopeOperate Scope = "operate"
)

// Scopes lists every scope a key can have.
var Scopes = []Scope{ScopeRead, ScopeOrder, ScopeLend, ScopeS3, ScopeOperate}

// Key is an API key. Only the SHA-256 of the secret ("ck_" and 52 letters, 256 bits) is stored.
type Key struct {
	ID      KeyID     `json:"id"`
	Account AccountID `json:"account"`
	Hash    [32]byte  `json:"-"`
	Hint    string    `json:"hint"` // "ck_…d41x": the last four letters
	Scopes  []Scope   `json:"scopes"`
	Cap     UCR       `json:"cap_ucr,omitempty"` // what orders under this key may hold in all; 0: no cap
	Spent   UCR       `json:"spent_ucr"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// Has reports whether the key carries scope s.
func (k Key) Has(s Scope) bool {
	for _, x := range k.Scopes {
		if x == s {
			return true
		}
	}
	return false
}

// JoinToken lets one machine join an account, once, within an hour. Stored hashed.
type JoinToken struct {
	Hash    [32]byte
	Account AccountID
	Expires time.Time
	UsedAt  time.Time // zero: unused
}

// Platform is what a host's system is, as it says itself.
type Platform struct {
	OS     string `json:"os"`     // GOOS
	Arch   string `json:"arch"`   // GOARCH
	Kernel string `json:"kernel"` // free text, at most 64 bytes
	Agent  string `json:"agent"`  // version of the agent
	Device string `json:"device"` // desktop | laptop | server | phone | browser
}

// Capacity is what a host measured and its terms lend. Claims: nothing is paid on them.
type Capacity struct {
	Slots       int     `json:"slots"` // chunks at once
	MemoryBytes int64   `json:"memory_bytes"`
	DiskBytes   int64   `json:"disk_bytes"`
	Speed       float64 `json:"gfuel_per_second"` // per slot, by the small benchmark
}

// Evidence says how well a place is proven, weakest first.
type Evidence int

// Evidence levels. Declared is what the owner says; the others need proof.
const (
	Declared Evidence = iota
	NotRefuted
	Contracted
	HardwareBound
	Audited
)

// Place is where a host is: an ISO 3166-1 country ("DE") or, for some, a subdivision ("US-CA"), with its evidence.
type Place struct {
	Jurisdiction string   `json:"jurisdiction"`
	Evidence     Evidence `json:"evidence"`
}

// Host is a machine lent by an account.
type Host struct {
	ID       HostID    `json:"id"`
	Account  AccountID `json:"account"`
	Name     string    `json:"name"`
	Key      []byte    `json:"key"` // Ed25519 public key, 32 bytes
	Platform Platform  `json:"platform"`
	Capacity Capacity  `json:"capacity"`
	Place    Place     `json:"place"`
	Network  string    `json:"network"` // /24 (v4) or /48 (v6) it last dialled from
	State    HostState `json:"state"`
	Reason   Reason    `json:"reason,omitempty"` // why it is quarantined or left
	Record   Record    `json:"record"`
	Unbound  bool      `json:"unbound,omitempty"` // its proof isn't bound to the TLS channel: tier is capped
	Created  time.Time `json:"created"`
}

// Record is a host's history, counted by verdicts only.
type Record struct {
	Counted  int64   `json:"counted"` // attempts that were on the winning side
	Differed int64   `json:"differed"`
	Lost     int64   `json:"lost"`
	Failed   int64   `json:"failed"`
	Fuel     uint64  `json:"fuel"`             // voted fuel
	Seconds  float64 `json:"seconds"`          // witnessed seconds over which that fuel was burnt
	Earned   UCR     `json:"earned_ucr"`       // pending and settled
	Speed    float64 `json:"gfuel_per_second"` // what voted chunks show, 0 until the first
}

// Program is a wasm module, named by the digest of its bytes as uploaded.
type Program struct {
	Digest  Digest    `json:"digest"`
	Account AccountID `json:"account"`
	Size    int64     `json:"size_bytes"`
	Needs   []string  `json:"needs"` // WASI functions it imports
	Memory  int64     `json:"memory_bytes"`
	Created time.Time `json:"created"`
}

// Job is a spec and what became of it.
type Job struct {
	ID       JobID     `json:"id"`
	Account  AccountID `json:"account"`
	Key      KeyID     `json:"key"`
	Name     string    `json:"name"`
	Spec     JobSpec   `json:"spec"`
	Units    uint64    `json:"units"`
	State    JobState  `json:"state"`
	Reason   Reason    `json:"reason,omitempty"`
	Escrow   UCR       `json:"held_ucr"` // what the order put into escrow
	Paid     UCR       `json:"paid_ucr"`
	Returned UCR       `json:"returned_ucr"`
	PerGfuel UCR       `json:"ucr_per_gfuel"` // its price, fixed when it was ordered
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Deadline time.Time `json:"deadline,omitzero"`
	Version  int64     `json:"version"` // the ETag: raised by every change that a reader can see
	Progress Progress  `json:"progress"`
}

// Progress is the live part of a job.
type Progress struct {
	UnitsDone   uint64 `json:"units_done"`
	UnitsFailed uint64 `json:"units_failed"` // decided, with an exit other than 0 or a reason
	Chunks      int64  `json:"chunks"`       // cut so far
	ChunksDone  int64  `json:"chunks_done"`
	Attempts    int64  `json:"attempts"`
	Differed    int64  `json:"differed"`
	AtWork      int    `json:"hosts_at_work"`
	Lost        int64  `json:"lost"`
}

// Chunk is a run of units of a job. It exists once touched.
type Chunk struct {
	Job     JobID      `json:"job"`
	First   uint64     `json:"first"`
	Count   uint64     `json:"count"`
	Need    int        `json:"need"` // agreeing votes wanted; hidden from hosts; never lowered
	State   ChunkState `json:"state"`
	Version int        `json:"version"` // of the verdict
	Digest  Digest     `json:"digest"`  // of the agreed outcome
	Failed  uint64     `json:"failed"`  // units of it that failed
	Decided time.Time  `json:"decided,omitzero"`
}

// Attempt is the lease of a chunk to a host. (Job, First, N) names it for ever.
type Attempt struct {
	Job      JobID        `json:"job"`
	First    uint64       `json:"first"`
	N        int          `json:"n"`
	Host     HostID       `json:"host"`
	Owner    AccountID    `json:"owner"`
	Group    string       `json:"-"` // the owner's group: at most one live or counted attempt of a chunk per group
	State    AttemptState `json:"state"`
	Reason   Reason       `json:"reason,omitempty"`
	LeasedAt time.Time    `json:"leased_at"`
	EndedAt  time.Time    `json:"ended_at,omitzero"`
	Digest   Digest       `json:"digest,omitzero"` // of its outcome
	Fuel     uint64       `json:"fuel,omitempty"`
	Paid     UCR          `json:"paid_ucr,omitempty"`
	Counts   bool         `json:"-"`                 // it holds its group's seat: it is live, or its answer counts
	Lineage  int          `json:"lineage,omitempty"` // the attempt from whose start on it went on, checkpoint by checkpoint; 0: its own
}

// Ref names it.
func (a *Attempt) Ref() AttemptRef { return AttemptRef{Job: a.Job, First: a.First, N: a.N} }

// Line is the number of the attempt that its lineage began with.
func (a *Attempt) Line() int {
	if a.Lineage == 0 {
		return a.N
	}
	return a.Lineage
}

// UnitState is the newest accepted checkpoint of a lineage of attempts at a unit (see Checkpoint).
type UnitState struct {
	AttemptRef           // who left it
	Lineage    int       `json:"lineage"`
	Seq        int64     `json:"seq"` // of its lineage, from 1
	Root       Digest    `json:"root"`
	Size       int64     `json:"size_bytes"`
	Fuel       uint64    `json:"fuel"` // burnt by then, over the whole lineage
	At         time.Time `json:"at"`
}

// AttemptRef names an attempt.
type AttemptRef struct {
	Job   JobID  `json:"job"`
	First uint64 `json:"first"`
	N     int    `json:"n"`
}

// Event is who did what to which id. Events are the outbox and what `crowd why` prints.
type Event struct {
	Seq     int64     `json:"seq"`
	At      time.Time `json:"at"`
	Subject string    `json:"subject"` // full id of the thing it happened to
	Account AccountID `json:"account"` // who may read it besides operators; zero: operators only
	Actor   string    `json:"actor"`   // full id, or "broker"
	What    string    `json:"event"`   // noun.verb: job.queued, lease.ended, host.quarantined
	Reason  Reason    `json:"reason,omitempty"`
	Text    string    `json:"text,omitempty"` // one plain sentence
	Data    EventData `json:"data,omitzero"`
}

// EventData are an event's facts, each optional.
type EventData struct {
	Job   JobID   `json:"job,omitzero"`
	Host  HostID  `json:"host,omitzero"`
	First *uint64 `json:"chunk,omitempty"` // first unit of the chunk
	N     *int    `json:"attempt,omitempty"`
	UCR   UCR     `json:"ucr,omitempty"`
}

// Quote is a price held for a while.
type Quote struct {
	ID       QuoteID   `json:"id"`
	Account  AccountID `json:"account"`
	Spec     Digest    `json:"spec"` // of the canonical JSON of the spec it was made for
	Until    time.Time `json:"until"`
	PerGfuel UCR       `json:"ucr_per_gfuel"`
	Low      UCR       `json:"low_ucr"`
	Likely   UCR       `json:"likely_ucr"`
	High     UCR       `json:"high_ucr"`
	Fits     int       `json:"fits"`
	Hosts    int       `json:"hosts"`
	Excluded []Exclude `json:"excluded"`
	Seconds  float64   `json:"likely_seconds"` // 0: nothing to judge by yet
}

// Exclude counts hosts that one constraint shuts out, for `quote` and `why`.
type Exclude struct {
	Hosts  int    `json:"hosts"`
	Reason Reason `json:"reason"`
	What   string `json:"what"`  // "not in DE"
	Asked  string `json:"asked"` // "place DE"
}

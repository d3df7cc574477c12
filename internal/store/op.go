package store

import (
	"time"

	"github.com/crowdcloud/crowd"
)

// Op is one change. Apply takes a list of them and makes all or none, durably. An op whose condition fails refuses the whole list with a
// crowd.Error of the kind its comment names; other lists in the same group commit are not touched.
type Op interface{ op() }

// PutAccount inserts or replaces an account. Names are unique: Conflict.
type PutAccount struct{ Account crowd.Account }

// PutKey inserts or replaces an API key; DeleteKey removes one (no such key: no change).
type PutKey struct{ Key crowd.Key }
type DeleteKey struct{ Key crowd.KeyID }

// Spend adds to what a key's orders hold in all (negative when escrow returns). Above the key's cap: Exhausted, customer.cap.
type Spend struct {
	Key    crowd.KeyID
	Amount crowd.UCR
}

// PutToken stores a join token; UseToken marks it used. Unknown, used or expired at Now: Denied, broker.token.
type PutToken struct{ Token crowd.JoinToken }
type UseToken struct {
	Hash [32]byte
	Now  time.Time
}

// PutHost inserts or replaces a host. A move that HostMoves doesn't allow, or back to active, leaves State and Reason as they are stored: the
// host was copied before it left or was quarantined.
type PutHost struct{ Host crowd.Host }

// PutSession records a host's session and its newest dial, or that it is void.
type PutSession struct {
	Host    crowd.HostID
	Session crowd.SessionID
	Dial    int64
	Void    bool
}

// PutProgram and PutBlob record what an account uploaded; repeating is fine. Blobs are owned per account: the same digest may have several.
// More than Limits.AccountBlobBytes: Exhausted, customer.quota.
type PutProgram struct{ Program crowd.Program }
type PutBlob struct {
	Digest  crowd.Digest
	Account crowd.AccountID
	Size    int64
	At      time.Time
}

// AddJob inserts a job. Its name must be unique among the account's living jobs: Conflict.
type AddJob struct{ Job crowd.Job }

// SetJob replaces the mutable part of a job (everything but id, account, key, name, spec, units, created). A state move that JobMoves
// doesn't allow: Conflict.
type SetJob struct{ Job crowd.Job }

// Lease inserts an attempt and, if it is the chunk's first, the chunk; else it may raise the chunk's Need, and its Count must be the same. A live or counted attempt of the same group on that chunk, or the
// same number twice: Conflict.
type Lease struct {
	Chunk   crowd.Chunk
	Attempt crowd.Attempt
}

// End moves an attempt to the state in Attempt with its reason, end, digest, fuel and pay. Not a move that AttemptMoves allows from the
// stored state: Conflict. Counts says whether it keeps its group's seat on the chunk (leased, expired-with-a-seat and counted ones do).
type End struct {
	Attempt crowd.Attempt
	Counts  bool
	Body    crowd.Digest // of its stored body; zero: none
}

// SetPaid changes what an attempt whose answer is in is paid, and nothing else. No such attempt, or in another state: Conflict.
type SetPaid struct{ Attempt crowd.Attempt }

// Decide gives a chunk its verdict: state, version, digest, failed units, time. Version must be the stored one plus 1: Conflict.
type Decide struct {
	Chunk crowd.Chunk
	Body  crowd.Digest // the agreed outcome's stored body
}

// Reopen takes a chunk's verdict back: it is open again, its version stays, so that the next verdict is a higher one. Not decided, or with another
// version than the chunk's: Conflict.
type Reopen struct{ Chunk crowd.Chunk }

// PutState records a checkpoint in place of its lineage's last. Its attempt must be leased (a leased one of that lineage): Conflict; so must Seq be
// higher: Conflict. The same Seq and Root again: no change.
type PutState struct{ State crowd.UnitState }

// PutRevisit notes that the verdicts of a job that rest on a host's word are to be taken back; DropRevisit that it is done.
type PutRevisit struct {
	Job  crowd.JobID
	Host crowd.HostID
}
type DropRevisit PutRevisit

// DropStates forgets a chunk's checkpoints, or those of one lineage (not 0).
type DropStates struct {
	Job     crowd.JobID
	First   uint64
	Lineage int
}

// Done saves a job's run-length map of decided units; see the package comment. Runs may hold only units whose Decide was applied. The stored map
// becomes the union of itself and Runs, so that saving an old map after a newer one does no harm. Runs out of order: Internal.
type Done struct {
	Job  crowd.JobID
	Next uint64 // the first unit that was never cut into a chunk
	Runs []Run  // decided runs of units, ascending, not touching
}

// Run is units [First, First+Count).
type Run struct{ First, Count uint64 }

// Post adds postings whose amounts sum to zero per Txn (else Internal) and moves the books' balances. A Txn that exists already is skipped. A
// balance: book below zero: Exhausted, customer.no_credit. A pending: or escrow: book below zero: Internal.
type Post struct{ Postings []crowd.Posting }

// AddEvent appends an event; its Seq is set by the store.
type AddEvent struct{ Event crowd.Event }

// PutIdem keeps the answer to a POST for 24 h. The same key with another body hash: Conflict.
type PutIdem struct {
	Account  crowd.AccountID
	Key      string
	BodyHash [32]byte
	Status   int
	Answer   []byte
	At       time.Time
}

// PutQuote stores a quote.
type PutQuote struct{ Quote crowd.Quote }

// PutBody stores an outcome's body under its digest in the job's body log (inline if small); a body that is there already is not stored
// again. It is on disk before the transaction commits.
type PutBody struct {
	Job    crowd.JobID
	Digest crowd.Digest
	Body   []byte
}

func (PutAccount) op()  {}
func (PutKey) op()      {}
func (DeleteKey) op()   {}
func (Spend) op()       {}
func (PutToken) op()    {}
func (UseToken) op()    {}
func (PutHost) op()     {}
func (PutSession) op()  {}
func (PutProgram) op()  {}
func (PutBlob) op()     {}
func (AddJob) op()      {}
func (SetJob) op()      {}
func (Lease) op()       {}
func (End) op()         {}
func (SetPaid) op()     {}
func (Decide) op()      {}
func (Reopen) op()      {}
func (PutState) op()    {}
func (DropStates) op()  {}
func (PutRevisit) op()  {}
func (DropRevisit) op() {}
func (Done) op()        {}
func (Post) op()        {}
func (AddEvent) op()    {}
func (PutIdem) op()     {}
func (PutQuote) op()    {}
func (PutBody) op()     {}

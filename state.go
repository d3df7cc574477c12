package crowd

// The lives of the nouns. Each noun's states and allowed moves are one table; storage, broker and faces read these.

// JobState is where a job is in its life.
type JobState string

// Job states.
const (
	JobQueued    JobState = "queued"    // accepted and paid into escrow; nothing of it runs
	JobRunning   JobState = "running"   // at least one chunk was leased
	JobWaiting   JobState = "waiting"   // too many losses in a row: a breather, with a reason
	JobDone      JobState = "done"      // every unit decided (single units may have failed)
	JobFailed    JobState = "failed"    // it can't go on
	JobCancelled JobState = "cancelled" // by the customer or its deadline
)

// JobMoves says which state may follow which.
var JobMoves = map[JobState][]JobState{
	JobQueued:  {JobRunning, JobFailed, JobCancelled, JobDone},
	JobRunning: {JobWaiting, JobDone, JobFailed, JobCancelled},
	JobWaiting: {JobRunning, JobDone, JobFailed, JobCancelled},
}

// Ended reports whether nothing follows.
func (s JobState) Ended() bool { return len(JobMoves[s]) == 0 }

// May reports whether to may follow s.
func (s JobState) May(to JobState) bool { return may(JobMoves, s, to) }

// ChunkState is where a chunk is in its life.
type ChunkState string

// Chunk states.
const (
	ChunkOpen    ChunkState = "open"    // wants votes
	ChunkDecided ChunkState = "decided" // has a verdict
	ChunkFailed  ChunkState = "failed"  // eight attempts failed by themselves: its units count as failed
)

// ChunkMoves says which state may follow which. A verdict may be taken back before settlement, and be given again in a higher version.
var ChunkMoves = map[ChunkState][]ChunkState{
	ChunkOpen:    {ChunkDecided, ChunkFailed},
	ChunkDecided: {ChunkOpen},
}

// May reports whether to may follow s.
func (s ChunkState) May(to ChunkState) bool { return may(ChunkMoves, s, to) }

// AttemptState is where an attempt is in its life. package lease holds the table of events.
type AttemptState string

// Attempt states.
const (
	AttemptLeased   AttemptState = "leased"
	AttemptExpired  AttemptState = "expired"  // silent for TERM+SKEW; a late report may still count
	AttemptReported AttemptState = "reported" // its outcome is in
	AttemptFailed   AttemptState = "failed"   // returned, or failed by the host's own fault
	AttemptVoid     AttemptState = "void"     // counts for nothing: cheated, revoked
)

// AttemptMoves says which state may follow which.
var AttemptMoves = map[AttemptState][]AttemptState{
	AttemptLeased:   {AttemptExpired, AttemptReported, AttemptFailed, AttemptVoid},
	AttemptExpired:  {AttemptReported, AttemptFailed, AttemptVoid},
	AttemptReported: {AttemptVoid},
	AttemptFailed:   {AttemptVoid},
}

// May reports whether to may follow s.
func (s AttemptState) May(to AttemptState) bool { return may(AttemptMoves, s, to) }

// HostState is where a host is in its life.
type HostState string

// Host states. Whether a host is connected is not a state: it is a fact of the moment.
const (
	HostActive      HostState = "active"
	HostQuarantined HostState = "quarantined"
	HostLeft        HostState = "left"
)

// HostMoves says which state may follow which.
var HostMoves = map[HostState][]HostState{
	HostActive:      {HostQuarantined, HostLeft},
	HostQuarantined: {HostActive, HostLeft},
}

// May reports whether to may follow s.
func (s HostState) May(to HostState) bool { return may(HostMoves, s, to) }

func may[S comparable](moves map[S][]S, from, to S) bool {
	for _, s := range moves[from] {
		if s == to {
			return true
		}
	}
	return false
}

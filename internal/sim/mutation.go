package sim

// Mutation is a rule that is broken on purpose, so that a test can see that the invariants find it.
type Mutation int

// The mutations. Sound breaks nothing.
const (
	Sound           Mutation = iota
	EarlyExpiry              // an attempt expires Skew too early
	EarlySuspect             // others begin beside a suspect at once
	NoAfterStart             // a broker that starts takes what it found as silent since it was leased
	PayDecided               // a report of a decided chunk is paid
	PayRepeat                // a report said again counts again
	DropLate                 // a late report is refused though its chunk is open
	GroupTwice               // two owners of a group vote for two
	NoFork                   // a dial that isn't above the last is let in
	VoidKept                 // a clone's dial is refused, but its session lives on
	RandomTxn                // a transaction's name isn't made of its event only
	NoReversal               // a verdict is taken back and its pay isn't
	SameVersion              // a chunk that was open again is decided in the same version
	KeepVotes                // a convicted host's votes go on counting
	KeepRest                 // what a job didn't use isn't given back
	NoOutbox                 // a crash loses what wasn't answered
	SameIncarnation          // a restore doesn't raise the incarnation
	NoPin                    // hosts speak with a broker of the past
	WordFirst                // what is told isn't durable yet
	AnyHolder                // a report counts, whoever says it
	StaleState               // a checkpoint of an expired attempt is accepted
	SleepyClock              // a host's clock stands still while it sleeps
	LowQuorum                // one vote fewer than wanted decides
	DoubleCut                // units are cut twice
	EagerGone                // an attempt that a Renew doesn't list is taken away, though its lease may be on its way
	SoonFailed               // a chunk is given up after the first failure
	HalfConvicted            // a conviction is two transactions, and a broker that dies between them never makes the second
	NextOfBackup             // a restore raises the backup's incarnation, whatever that of the store in its place is
	numMutations
)

func (m Mutation) String() string {
	return [...]string{"sound", "early expiry", "early suspect", "no after-start", "pay decided", "pay repeat", "drop late", "group twice", "no fork", "void kept",
		"random txn", "no reversal", "same version", "keep votes", "keep rest", "no outbox", "same incarnation", "no pin", "word first", "any holder",
		"stale state", "sleepy clock", "low quorum", "double cut", "eager gone", "soon failed", "half convicted", "next of backup"}[m]
}

// Mutations are all that break something.
func Mutations() (all []Mutation) {
	for m := Sound + 1; m < numMutations; m++ {
		all = append(all, m)
	}
	return all
}

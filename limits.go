package crowd

import "time"

// The clocks of the lease protocol. Safety rests on Term and Skew only.
const (
	Term       = 12 * time.Second // a host may act this long after it sent the renewal that was answered
	Skew       = 2 * time.Second  // what clocks may differ by
	RenewEvery = 4 * time.Second  // two renewals may be lost
	IdlePing   = 60 * time.Second // an idle host's renewal
	SuspectFor = 2 * time.Second  // after a socket broke, the next attempt may start beside the silent one
	Adopt      = 5 * time.Minute  // after a restore: what hosts still hold counts as held so long
	Grace      = 24 * time.Hour   // how long a host computes without a broker, by default
)

// Limits is every cap of the system in one table. What a stranger sends is measured against it before it is parsed.
var Limits = struct {
	// the link
	HelloBytes, MessageBytes, SendQueue int
	HelloWait                           time.Duration
	UnprovenPerNet                      int     // links per /24 or /48 that haven't proven themselves yet
	ConnsPerNet                         int     // connections per /24 or /48, but for proven links
	MessagesPerSecond, MessageBurst     float64 // token bucket per host
	InlineBody                          int     // outcome bodies up to this travel in the report
	// orders
	Units, UnitsPerChunk                uint64
	SpecBytes, Args, ArgBytes, Env      int
	Inputs                              int
	Labels                              int
	BlobBytes, OutcomeBytes, StdioBytes int64
	StateBytes                          int64 // of a unit's checkpoint
	AccountStateBytes                   int64 // of the checkpoints of all units of a customer
	AccountBlobBytes                    int64 // of all blobs of an account; small ones count as 4 KiB
	ProgramBytes                        int64
	MemoryBytes                         int64
	OpenJobs, Hosts, Keys               int // per account
	Quorum                              int
	RequestBody                         int64 // of an API request that isn't a blob
	RequestsPerSecond, RequestBurst     float64
	RequestsAtOnce, BodiesAtOnce        int   // of an account, a host, or a network that nobody knows; those that send a body
	StreamsAtOnce, HeavyAtOnce          int   // those that wait for news; those that read results
	HeavyInAll                          int   // results being read from disk, of all accounts
	BytesPerSecond                      int64 // a body or an answer slower than that on average is cut off
	// attempts
	FailedAttempts, LossesInARow int
	// names
	NameBytes, PathBytes, PathDepth int
}{
	HelloBytes: 1 << 10, MessageBytes: 256 << 10, SendQueue: 256,
	HelloWait:      5 * time.Second,
	UnprovenPerNet: 32, ConnsPerNet: 1024, MessagesPerSecond: 200, MessageBurst: 400, InlineBody: 4 << 10,
	Units: 1 << 40, UnitsPerChunk: 4096,
	SpecBytes: 128 << 10, Args: 256, ArgBytes: 64 << 10, Env: 256,
	Inputs: 1024, Labels: 32,
	BlobBytes: 8 << 30, AccountBlobBytes: 100 << 30, OutcomeBytes: 64 << 20, StdioBytes: 16 << 20, StateBytes: 64 << 20, AccountStateBytes: 32 << 30,
	ProgramBytes: 64 << 20, MemoryBytes: 4 << 30,
	OpenJobs: 1000, Hosts: 1000, Keys: 100, Quorum: 9,
	RequestBody: 1 << 20, RequestsPerSecond: 100, RequestBurst: 500,
	RequestsAtOnce: 512, BodiesAtOnce: 64, StreamsAtOnce: 256, HeavyAtOnce: 4, HeavyInAll: 16, BytesPerSecond: 4 << 10,
	FailedAttempts: 8, LossesInARow: 32,
	NameBytes: 63, PathBytes: 512, PathDepth: 16,
}

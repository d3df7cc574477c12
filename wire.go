package crowd

import (
	"encoding/binary"
	"time"
)

// The words of the link between a host and the broker: one WebSocket of JSON text frames, each a Message with exactly one
// word set. The speaker is the connection's host and session, never a field. The protocol is level-triggered: a host says
// what is (Renew), the broker what should be (Answer, Lease); either may repeat anything, any word may be lost with its
// connection. A malformed word closes the connection. Bulk bytes go by digest over HTTP with the session's bearer token.
type Message struct {
	Challenge *Challenge `json:"challenge,omitempty"` // broker, first
	Hello     *Hello     `json:"hello,omitempty"`     // host, second
	Welcome   *Welcome   `json:"welcome,omitempty"`   // broker, third
	Renew     *Renew     `json:"renew,omitempty"`     // host
	Answer    *Answer    `json:"answer,omitempty"`    // broker
	Lease     *Lease     `json:"lease,omitempty"`     // broker
	Cancel    *Cancel    `json:"cancel,omitempty"`    // broker
	Return    *Return    `json:"return,omitempty"`    // host
	Report    *Report    `json:"report,omitempty"`    // host
	Reported  *Reported  `json:"reported,omitempty"`  // broker
	Leave     *Leave     `json:"leave,omitempty"`     // host
	Problem   *Problem   `json:"problem,omitempty"`   // broker, before it closes
}

// ProtocolVersion is the link's newest; a Hello lists those that the agent speaks, the broker takes the highest that both do.
//
//	1  the first
//	2  Lease.State: an attempt may go on from another's checkpoint
const ProtocolVersion = 2

// ProtocolVersions are all that this release speaks: its own and that of the release before.
var ProtocolVersions = []int{ProtocolVersion, 1}

// Challenge opens a connection.
type Challenge struct {
	Nonce       []byte `json:"nonce"` // 32 bytes
	Incarnation int64  `json:"incarnation"`
	BrokerKey   []byte `json:"broker_key"` // Ed25519
}

// Hello proves who dials: Proof is the host key's signature over ProofBytes("crowd host 1", …). Dial is +1 for each connection of
// a session and never reused; one not above the last is a fork (cloned machine) and voids the session.
type Hello struct {
	Host     HostID    `json:"host"`
	Session  SessionID `json:"session"`
	Dial     int64     `json:"dial"`
	Nonce    []byte    `json:"nonce"` // 32 bytes, the host's
	Versions []int     `json:"versions"`
	Proof    []byte    `json:"proof"`
	Unbound  bool      `json:"unbound,omitempty"` // the proof covers no TLS exporter value (plain loopback, proxy, tab)
}

// Welcome is the broker's answer: Proof is its key's signature over ProofBytes("crowd broker 1", …). Bearer authorises HTTP
// requests (Authorization: Bearer) for as long as the connection lives.
type Welcome struct {
	Version int           `json:"version"`
	Term    time.Duration `json:"term_ns"`
	Bearer  string        `json:"bearer"`
	Proof   []byte        `json:"proof"`
}

// ProofBytes is what both sides sign: a label, the host, session and dial, both nonces, the broker's key and the TLS exporter value (32
// bytes, or none if unbound). Fixed widths, so that no two inputs give the same bytes.
func ProofBytes(label string, h *Hello, c *Challenge, exporter []byte) []byte {
	b := append([]byte(label), 0)
	b = append(b, h.Host[:]...)
	b = append(b, h.Session[:]...)
	for i := 7; i >= 0; i-- {
		b = append(b, byte(h.Dial>>(8*i)))
	}
	for _, part := range [][]byte{c.Nonce, h.Nonce, c.BrokerKey, exporter} {
		b = append(b, byte(len(part)>>8), byte(len(part)))
		b = append(b, part...)
	}
	return b
}

// Renew says what is. N numbers it within the session; an Answer quotes it. A host renews every RenewEvery while it holds attempts or when something
// changed, else every IdlePing.
type Renew struct {
	N        int64     `json:"n"`
	State    Readiness `json:"state"`
	Why      Reason    `json:"why,omitempty"` // when State isn't ready
	Capacity Capacity  `json:"capacity"`
	Platform *Platform `json:"platform,omitempty"` // in the first Renew of a connection and when it changed
	Room     int       `json:"room"`               // attempts that it would take now, beyond those it holds
	Memory   int64     `json:"memory_bytes"`       // free for guests now
	Attempts []Holding `json:"attempts,omitempty"` // all that it holds: running, frozen, or reported but unacknowledged
}

// Readiness is what the owner allows now.
type Readiness string

// A ready host takes work; a paused one keeps its guests frozen; a leaving one takes nothing more.
const (
	Ready   Readiness = "ready"
	Paused  Readiness = "paused"
	Leaving Readiness = "leaving"
)

// Holding is how far one attempt is.
type Holding struct {
	AttemptRef
	Done   uint64 `json:"done"` // units finished
	Fuel   uint64 `json:"fuel"`
	Frozen bool   `json:"frozen,omitempty"`
}

// Answer says what should be, for Renew N: the host holds those of its attempts that weren't let expire before until (its own send time of Renew N) +
// Term; what it computes counts in any case while its chunk is open. Drop
// names attempts that aren't the host's any more.
type Answer struct {
	N    int64        `json:"n"`
	Drop []AttemptRef `json:"drop,omitempty"`
}

// Lease gives an attempt to a host. Spec is present in the first lease of a job in a session; the host keeps it. Account is whose job it is: an
// owner may refuse some, and its log says for whom the machine worked.
type Lease struct {
	AttemptRef
	Account AccountID `json:"account"`
	Count   uint64    `json:"count"`
	Spec    *JobSpec  `json:"spec,omitempty"`
	Items   []Input   `json:"items,omitempty"` // the units' own files, when Units.Items
	State   *Resume   `json:"state,omitempty"` // the unit goes on from here; nil: from the start
	// Deadline is how long the host may take in all, as a bound against leaks; the lease itself lives by renewals.
	Deadline time.Duration `json:"deadline_ns"`
}

// Resume names the checkpoint of a unit's /state that an attempt begins with: what GET /v1/link/blobs/{root} gives to the attempt's host. Seq
// counts the accepted checkpoints of its lineage; the attempt's own first one is Seq+1. Fuel is what the unit had burnt by then.
type Resume struct {
	Seq  int64  `json:"seq"`
	Root Digest `json:"root"`
	Size int64  `json:"size_bytes"`
	Fuel uint64 `json:"fuel"`
}

// A host keeps a unit's /state at the broker by PUT /v1/link/states/{job}/{first}/{n}/{seq}/{root}?fuel=F with the bytes (a Checkpoint, at most
// Limits.StateBytes) as the body, the session's bearer and its signature over StateBytes in the header Crowd-Signature (base64).
// The answer is durable: 200 with {"answer": accepted | repeat}, or 409: the attempt isn't (any more) that host's to go on with, or seq isn't
// higher than the last.

// StateBytes is what a host signs for a checkpoint.
func StateBytes(host HostID, r AttemptRef, seq int64, root Digest, fuel uint64) []byte {
	return signed("crowd state 1", host, r.Job, root, r.First, uint64(r.N), uint64(seq), fuel)
}

// signed is a label, numbers and a digest in fixed widths, so that no two inputs give the same bytes.
func signed(label string, host HostID, job JobID, d Digest, numbers ...uint64) []byte {
	b := append([]byte(label), 0)
	b = append(b, host[:]...)
	b = append(b, job[:]...)
	for _, v := range numbers {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(b, d[:]...)
}

// StateAnswer is what became of a checkpoint.
type StateAnswer string

// Answers to a checkpoint. Repeat: this very one was accepted before.
const (
	StateAccepted StateAnswer = "accepted"
	StateRepeat   StateAnswer = "repeat"
	StateConflict StateAnswer = "conflict"
)

// Cancel ends an attempt; the host stops it and forgets it.
type Cancel struct {
	AttemptRef
	Reason Reason `json:"reason"`
}

// Return gives an attempt back undone. Owner's reasons carry no blame.
type Return struct {
	AttemptRef
	Reason Reason `json:"reason"`
	Text   string `json:"text,omitempty"` // one line, for the log
}

// Report says that an attempt is done. Digest names the canonical manifest; Body holds it and the small contents (see Outcome) if it is at most
// Limits.InlineBody bytes, else the host has PUT it to /v1/outcomes/{digest of the body} before and Ref names it. Sig is the host
// key's signature over ReportBytes.
type Report struct {
	AttemptRef
	Digest  Digest  `json:"digest"`
	Fuel    uint64  `json:"fuel"`
	Seconds float64 `json:"seconds"` // the host's own word, for its own log
	Body    []byte  `json:"body,omitempty"`
	Ref     Digest  `json:"ref,omitzero"`
	Sig     []byte  `json:"sig"`
}

// ReportBytes is what a host signs for a report.
func ReportBytes(host HostID, r AttemptRef, digest Digest, fuel uint64) []byte {
	return signed("crowd report 1", host, r.Job, digest, r.First, uint64(r.N), fuel)
}

// ReportAnswer is what became of a report.
type ReportAnswer string

// Answers to a Report. Only accepted counts; repeat means that this very report was accepted before; spare: the owner's vote is in
// already; decided: the chunk has its verdict, kept unpaid without blame; conflict and void: not the host's, or worthless.
const (
	ReportAccepted ReportAnswer = "accepted"
	ReportRepeat   ReportAnswer = "repeat"
	ReportSpare    ReportAnswer = "spare"
	ReportDecided  ReportAnswer = "decided"
	ReportConflict ReportAnswer = "conflict"
	ReportVoid     ReportAnswer = "void"
)

// Reported answers a Report, durably: the host may forget the attempt.
type Reported struct {
	AttemptRef
	Answer ReportAnswer `json:"answer"`
}

// Leave ends the host's membership; all its attempts count as returned by the owner.
type Leave struct{}

// JoinRequest is the body of POST /v1/hosts/join: it enrols a machine with a join token, once. The same token with the same key again is the
// same host.
type JoinRequest struct {
	Token    string   `json:"token"`
	Key      []byte   `json:"key"` // Ed25519 public key, the host's
	Name     string   `json:"name"`
	Platform Platform `json:"platform"`
	Capacity Capacity `json:"capacity"`
	Place    Place    `json:"place"` // evidence is always Declared here
}

// Problem says why the broker closes the connection. Final means: dialling again won't help.
type Problem struct {
	Kind   string `json:"code"` // ErrKind's name
	Reason Reason `json:"reason,omitempty"`
	Text   string `json:"text"`
	Hint   string `json:"hint,omitempty"`
	Final  bool   `json:"final,omitempty"`
}

package broker

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/crowdcloud/crowd"
)

// Caller is who asks: an account by one of its keys. Loopback is set when the request came from this machine.
type Caller struct {
	Account  crowd.Account
	Key      crowd.Key
	Loopback bool
}

// face is what the API, `crowd dev` and tests call. Every method is safe for concurrent use and returns crowd.Errors. What isn't the
// caller's is NotFound, like what doesn't exist; a missing scope is Denied, customer.scope. A ref is a full id, a short id or a name;
// an ambiguous one is Invalid and lists the candidates. Pages: next is "" at the end.
type face interface {
	// Run owns the broker's loops; it returns when ctx ends and all has been saved.
	Run(ctx context.Context) error

	Authenticate(ctx context.Context, secret string, loopback bool) (Caller, error)
	CreateAccount(ctx context.Context, c Caller, name string) (crowd.Account, string, error) // operate; the string is a first key's secret (read, order, lend)
	CreateKey(ctx context.Context, c Caller, scopes []crowd.Scope, spendCap crowd.UCR, ttl time.Duration) (crowd.Key, string, error)
	Keys(ctx context.Context, c Caller) ([]crowd.Key, error)
	DeleteKey(ctx context.Context, c Caller, ref string) error
	Grant(ctx context.Context, c Caller, account string, amount crowd.UCR, id string) error // operate; same id twice is one grant
	Balances(ctx context.Context, c Caller) (crowd.Balances, error)
	Statement(ctx context.Context, c Caller, after string, limit int) (p []crowd.Posting, next string, err error)

	// PutBlob appends body at offset to the upload of the content named d of total bytes and returns how many bytes are there; when all
	// are and the digest is right, the caller owns it. An offset beyond what is there is Conflict with what is there in the message.
	PutBlob(ctx context.Context, c Caller, d crowd.Digest, offset, total int64, body io.Reader) (have int64, err error)
	// HasBlob says how many bytes of d the broker has for this caller: all (owned), some (an upload to go on with) or 0.
	HasBlob(ctx context.Context, c Caller, d crowd.Digest) (have int64, whole bool, err error)
	OpenBlob(ctx context.Context, c Caller, d crowd.Digest) (io.ReadSeekCloser, error)

	// For hosts, by the Welcome's bearer: only what a live attempt of that host refers to.
	HostOpenBlob(ctx context.Context, bearer string, d crowd.Digest) (io.ReadSeekCloser, error)
	HostPutOutcome(ctx context.Context, bearer string, ref crowd.AttemptRef, d crowd.Digest, body io.Reader) error
	// HostPutState keeps a checkpoint of a unit's /state; u says which attempt, Seq, Root and Fuel, signed. Not the attempt's holder's, or not the next: Conflict.
	HostPutState(ctx context.Context, bearer string, u crowd.UnitState, sig []byte, body io.Reader) (crowd.StateAnswer, error)

	Submit(ctx context.Context, c Caller, spec crowd.JobSpec) (crowd.Job, error)
	// SubmitQuoted orders at the price of a quote (full id; "": the broker's price of now). Not the caller's quote: NotFound; not held any more, or made
	// for another spec: Conflict.
	SubmitQuoted(ctx context.Context, c Caller, spec crowd.JobSpec, quote string) (crowd.Job, error)
	Quote(ctx context.Context, c Caller, spec crowd.JobSpec) (crowd.Quote, error)
	Job(ctx context.Context, c Caller, ref string) (crowd.JobDetail, error)
	Jobs(ctx context.Context, c Caller, f JobsFilter) (jobs []crowd.Job, next string, err error)
	CancelJob(ctx context.Context, c Caller, ref string) (crowd.Job, error) // of an ended one: no change
	// WatchJob returns the job when its Version differs from version, or as it is when ctx ends.
	WatchJob(ctx context.Context, c Caller, ref string, version int64) (crowd.Job, error)
	Units(ctx context.Context, c Caller, ref string, from uint64, limit int) ([]crowd.UnitRow, error)
	// EachUnit walks along units from one on, at most so many (0: 50), until each returns false. What a decided unit wrote aliases its whole
	// chunk's body: keep copies.
	EachUnit(ctx context.Context, c Caller, ref string, from uint64, limit int, each func(crowd.UnitRow, *crowd.UnitContent) bool) error
	// UnitContent is a decided unit's result with its bytes; not decided yet: Conflict.
	UnitContent(ctx context.Context, c Caller, ref string, unit uint64) (crowd.UnitResult, crowd.UnitContent, error)
	JobChunks(ctx context.Context, c Caller, ref string, from uint64, limit int) ([]crowd.Chunk, error)
	JobAttempts(ctx context.Context, c Caller, ref string, after crowd.AttemptRef, limit int) ([]crowd.Attempt, error)

	Why(ctx context.Context, c Caller, ref string) (crowd.Why, error)
	// Events returns events after a sequence number that the caller may see, of one thing (subject "" is all). With wait it blocks until there is one
	// or ctx ends.
	Events(ctx context.Context, c Caller, subject string, after int64, limit int, wait bool) ([]crowd.Event, error)

	MakeToken(ctx context.Context, c Caller, ttl time.Duration) (link string, expires time.Time, err error) // lend
	Join(ctx context.Context, remote string, r crowd.JoinRequest) (crowd.Host, error)
	Hosts(ctx context.Context, c Caller, all bool) ([]crowd.HostRow, error) // all: operate
	Host(ctx context.Context, c Caller, ref string) (crowd.HostRow, error)
	RemoveHost(ctx context.Context, c Caller, ref string) error

	Status(ctx context.Context, c Caller) (crowd.Status, error) // operate
	// IdemBegin starts a POST under an idempotency key: a kept answer (status other than 0; see store.PutIdem), or done, which keeps one. While
	// the same key's first request runs it is Conflict.
	IdemBegin(ctx context.Context, c Caller, key string, bodyHash [32]byte) (status int, answer []byte, done func(status int, answer []byte) error, err error)

	// LinkHandler serves hosts' WebSockets, MetricsHandler Prometheus text.
	LinkHandler() http.Handler
	MetricsHandler() http.Handler
}

// JobsFilter selects jobs of the caller.
type JobsFilter struct {
	State  crowd.JobState
	Label  string
	Living bool
	Since  time.Time
	After  string // cursor
	Limit  int
}

var _ face = (*Broker)(nil)

package client

import (
	"time"

	"github.com/crowdcloud/crowd"
)

// What the API answers and the page has no noun for. Unknown fields of an answer are ignored, as the API may grow.

// Balances is an account's money.
type Balances struct {
	Free    crowd.UCR `json:"free_ucr"`
	Held    crowd.UCR `json:"held_ucr"`    // in escrow of its living jobs
	Pending crowd.UCR `json:"pending_ucr"` // earned, not settled
}

// Me is who asks. Without scope read Balances is nil.
type Me struct {
	crowd.Account
	Balances *Balances `json:"balances,omitempty"`
	Key      crowd.Key `json:"key"`
}

// NewAccount and NewKey carry a secret, told only once.
type NewAccount struct {
	crowd.Account
	Secret string `json:"secret"`
}

// NewKey is an API key with its secret.
type NewKey struct {
	crowd.Key
	Secret string `json:"secret"`
}

// Grant is credit given by an operator.
type Grant struct {
	ID     string    `json:"id,omitempty"`
	Amount crowd.UCR `json:"amount_ucr"`
}

// HostShare is what one host did in a job.
type HostShare struct {
	Host    crowd.HostID    `json:"host"`
	Name    string          `json:"name"`
	Owner   crowd.AccountID `json:"owner"`
	Place   crowd.Place     `json:"place"`
	Counted int64           `json:"counted"`
	Failed  int64           `json:"failed"`
	Lost    int64           `json:"lost"`
	Differ  int64           `json:"differed"`
	Earned  crowd.UCR       `json:"earned_ucr"`
}

// JobDetail is a job, its hosts and how often each reason ended an attempt.
type JobDetail struct {
	crowd.Job
	Hosts   []HostShare          `json:"hosts"`
	Reasons map[crowd.Reason]int `json:"reasons"`
	// Counting says that hosts and reasons aren't whole yet: ask again.
	Counting bool `json:"counting,omitempty"`
}

// HostRow is a host with the facts of the moment.
type HostRow struct {
	crowd.Host
	Owner    string          `json:"owner"` // account name
	Online   bool            `json:"online"`
	Ready    crowd.Readiness `json:"ready,omitempty"`
	Why      crowd.Reason    `json:"why,omitempty"`
	Attempts []crowd.Holding `json:"attempts"`
}

// UnitRow is one unit of a job: where it stands and, once decided, how it ended and what it wrote, if asked for.
type UnitRow struct {
	Unit    uint64            `json:"unit"`
	State   crowd.ChunkState  `json:"state"`
	Result  *crowd.UnitResult `json:"result,omitempty"`
	Seconds float64           `json:"seconds,omitempty"`
	Stdout  []byte            `json:"stdout,omitempty"`
	Stderr  []byte            `json:"stderr,omitempty"`
}

// LogRow is what a unit said on stderr.
type LogRow struct {
	Unit   uint64       `json:"unit"`
	Exit   uint32       `json:"exit"`
	Reason crowd.Reason `json:"reason,omitempty"`
	Stderr []byte       `json:"stderr"`
}

// Why explains a thing.
type Why struct {
	Subject  string          `json:"subject"`
	State    string          `json:"state"`
	Since    time.Time       `json:"since,omitzero"`
	Reason   crowd.Reason    `json:"reason,omitempty"`
	Text     string          `json:"text"`
	Hosts    int             `json:"hosts"`
	Excluded []crowd.Exclude `json:"excluded,omitempty"`
	WayOut   string          `json:"way_out,omitempty"`
	Events   []crowd.Event   `json:"events,omitempty"`
}

// Status is the operator's view.
type Status struct {
	Version    string    `json:"version"`
	Started    time.Time `json:"started"`
	HostsTotal int       `json:"hosts_total"`
	HostsOn    int       `json:"hosts_online"`
	JobsOpen   int       `json:"jobs_open"`
	Attempts   int       `json:"attempts_live"`
	LedgerSum  crowd.UCR `json:"ledger_sum_ucr"`
}

// Token is a join link and until when it works.
type Token struct {
	Link    string    `json:"link"`
	Expires time.Time `json:"expires"`
}

// List is a page of things; Next is the cursor of the page after it, nil at the end.
type List[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next"`
}

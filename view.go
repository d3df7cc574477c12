package crowd

import "time"

// What the broker tells of its nouns beyond what it stores: the same structs from the broker over the API to the client.

// Balances is an account's money.
type Balances struct {
	Free    UCR `json:"free_ucr"`
	Held    UCR `json:"held_ucr"`    // in escrow of its living jobs
	Pending UCR `json:"pending_ucr"` // earned, not settled
}

// UnitRow is one unit of a job for people: where it stands and, once decided, how it ended.
type UnitRow struct {
	Unit    uint64      `json:"unit"`
	State   ChunkState  `json:"state"` // open also for units not yet leased
	Result  *UnitResult `json:"result,omitempty"`
	Seconds float64     `json:"seconds,omitempty"`
	Stdout  []byte      `json:"stdout,omitempty"` // if asked for
	Stderr  []byte      `json:"stderr,omitempty"`
}

// LogRow is what a unit said on stderr.
type LogRow struct {
	Unit   uint64 `json:"unit"`
	Exit   uint32 `json:"exit"`
	Reason Reason `json:"reason,omitempty"`
	Stderr []byte `json:"stderr"`
}

// HostShare is what one host did in a job.
type HostShare struct {
	Host    HostID    `json:"host"`
	Name    string    `json:"name"`
	Owner   AccountID `json:"owner"`
	Place   Place     `json:"place"`
	Counted int64     `json:"counted"`
	Failed  int64     `json:"failed"`
	Lost    int64     `json:"lost"`
	Differ  int64     `json:"differed"`
	Earned  UCR       `json:"earned_ucr"`
}

// JobDetail is `crowd job show`: the job, its hosts and how often each reason ended an attempt.
type JobDetail struct {
	Job
	Hosts   []HostShare    `json:"hosts"`
	Reasons map[Reason]int `json:"reasons"`
	// Counting: the broker was restarted a moment ago; hosts and reasons say only what happened since, the rest is being added up.
	Counting bool `json:"counting,omitempty"`
}

// HostRow is a host with the facts of the moment.
type HostRow struct {
	Host
	Owner    string    `json:"owner"` // account name
	Online   bool      `json:"online"`
	Ready    Readiness `json:"ready,omitempty"`
	Why      Reason    `json:"why,omitempty"`
	Attempts []Holding `json:"attempts"`
}

// Why explains a thing: for a job, what keeps each host from it now; for a host or attempt, its last events.
type Why struct {
	Subject  string    `json:"subject"`
	State    string    `json:"state"`
	Since    time.Time `json:"since,omitzero"`
	Reason   Reason    `json:"reason,omitempty"`
	Text     string    `json:"text"` // "none of 61 hosts fits"
	Hosts    int       `json:"hosts"`
	Excluded []Exclude `json:"excluded,omitempty"`
	WayOut   string    `json:"way_out,omitempty"`
	Events   []Event   `json:"events,omitempty"`
}

// Status is the operator's view.
type Status struct {
	Version    string    `json:"version"`
	Started    time.Time `json:"started"`
	HostsTotal int       `json:"hosts_total"`
	HostsOn    int       `json:"hosts_online"`
	JobsOpen   int       `json:"jobs_open"`
	Attempts   int       `json:"attempts_live"`
	LedgerSum  UCR       `json:"ledger_sum_ucr"`
}

package broker

import (
	"container/heap"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/quorum"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// What the broker remembers of living things. All of it belongs to Broker.mu.

// job is a living job. Its decided units are runs; only open chunks are kept one by one.
type job struct {
	crowd.Job
	spec       *crowd.JobSpec // never written to, so that it can be told without the lock
	order      sched.Order
	next       uint64 // first unit never cut
	runs       []store.Run
	open       map[uint64]*chunk
	wanting    []uint64 // chunks that may want attempts, oldest first; checked when looked at
	left       crowd.UCR
	reserved   crowd.UCR // what live attempts are expected to cost
	fuelSeen   float64   // over unitsSeen units of verdicts
	units      uint64
	chunks     int64 // decided in this life, for the size of chunks
	losses     int   // in a row
	resume     time.Time
	slots      int // over hosts that fit, as counted at slotsAt
	slotsAt    time.Time
	items      *items
	shares     map[crowd.HostID]*crowd.HostShare
	earned     map[crowd.AccountID]crowd.UCR
	reasons    map[crowd.Reason]int
	atWork     map[crowd.HostID]int
	leasedTo   map[crowd.HostID]bool // in this life of the broker
	deadline   time.Time
	recount    *recount // what was decided before this start isn't in the sums yet; nil: it is
	busy       int      // chunks that are
	ending     bool     // it ends as soon as none is
	finishing  bool
	end        func() (crowd.JobState, crowd.Reason, string)
	line       []*answer                    // reports that wait for its end, or for the store to work again
	retry      time.Time                    // when those are looked at again
	stateBytes int64                        // of its checkpoints
	revisits   map[crowd.HostID]*revisiting // hosts on whose word no verdict may rest: it doesn't settle until that is seen to
	gone       chan struct{}                // closed when the end is durable
	starter    *attempt                     // whose lease makes it run
	dirty      bool                         // changed since it was saved
	pending    bool                         // Version is to be raised
	bumped     time.Time
	changed    bell
}

// chunk is an open chunk.
type chunk struct {
	crowd.Chunk
	job      *job
	attempts []*attempt               // attempts[n-1] is number n
	busy     bool                     // a change of it is being committed
	line     []func()                 // what waits until it is not; called with b.mu held
	listed   bool                     // in job.wanting
	missed   bool                     // a host looked at it while it was busy
	states   map[int]*crowd.UnitState // the newest checkpoints, by lineage
}

// attempt is a leased or ended attempt of an open chunk.
type attempt struct {
	crowd.Attempt
	chunk    *chunk
	host     *host
	counts   bool // holds its group's seat
	pending  bool // being leased: not told yet
	suspect  bool
	session  crowd.SessionID // it was told to; zero: before this life of the broker
	until    time.Time
	stop     time.Time // the lease's bound against leaks
	expect   crowd.UCR
	network  string
	body     crowd.Digest
	uploaded bool // its outcome is on disk, apart from a report
	late     bool // silent, but may be at it still
}

func (a *attempt) leased() bool { return a.State == crowd.AttemptLeased }

// votes are the counted answers of a chunk.
func (c *chunk) votes() (vs []quorum.Vote, by []*attempt) {
	for _, a := range c.attempts {
		if a.State == crowd.AttemptReported && a.counts {
			vs = append(vs, quorum.Vote{Digest: a.Digest, Group: a.Group, Host: a.Attempt.Host})
			by = append(by, a)
		}
	}
	return vs, by
}

// wants is how many more attempts the chunk should have now.
func (c *chunk) wants() int {
	if c.State != crowd.ChunkOpen {
		return 0
	}
	vs, _ := c.votes()
	v := quorum.Decide(vs, c.Need)
	n := v.Want
	if v.Decided { // a vote against it was taken away: the next one settles it
		n = 1
	}
	for _, a := range c.attempts {
		if a.leased() && (!a.suspect || c.job.spec.CheckpointEvery() > 0) && !c.spoken(a) { // two at one lineage would be in each other's way
			n--
		}
	}
	return n
}

// spoken reports whether another attempt's answer speaks for a's lineage already.
func (c *chunk) spoken(a *attempt) bool {
	return slices.ContainsFunc(c.attempts, func(x *attempt) bool { return x != a && x.counts && !x.leased() && x.Line() == a.Line() })
}

// seat reports whether another attempt of the group holds its seat, or one of its lineage has answered.
func (c *chunk) seat(a *attempt) bool {
	return c.spoken(a) || slices.ContainsFunc(c.attempts, func(x *attempt) bool { return x != a && x.counts && x.Group == a.Group })
}

// blamed counts attempts that failed by a fault of the host or guest.
func (c *chunk) blamed() (n int) {
	for _, a := range c.attempts {
		if a.State == crowd.AttemptFailed && blames(a.Reason) {
			n++
		}
	}
	return n
}

// blames reports whether an attempt that ended for this reason counts against the chunk.
func blames(r crowd.Reason) bool { return lease.Weigh(r) == lease.Failure }

// want puts the chunk among those that hosts are offered.
func (b *Broker) want(c *chunk) {
	if (!c.listed || c.missed) && c.wants() > 0 {
		if !c.listed {
			c.job.wanting = append(c.job.wanting, c.First)
		}
		c.listed = true
		b.rouse = true
	}
	c.missed = false
}

// when runs f, now or once the chunk is no longer busy.
func (c *chunk) when(f func()) {
	if c.busy {
		c.line = append(c.line, f)
		return
	}
	f()
}

// hold makes the chunk busy.
func (c *chunk) hold() {
	c.busy = true
	c.job.busy++
}

// free ends the chunk's being busy and runs what waits, until it is busy again.
func (b *Broker) free(c *chunk) {
	c.busy = false
	c.job.busy--
	for !c.busy && len(c.line) > 0 {
		f := c.line[0]
		c.line = c.line[1:]
		f()
	}
	if c.job.ending && c.job.busy == 0 {
		b.finish(c.job)
	}
}

// host is an enrolled machine.
type host struct {
	crowd.Host
	group     string
	session   crowd.SessionID // the newest
	dial      int64
	void      bool
	voided    map[crowd.SessionID]bool // older sessions, in this life of the broker
	told      map[crowd.SessionID]bool // void sessions whose coming back was told
	conn      *session                 // nil: not connected
	broke     time.Time                // when the connection broke; zero: it didn't or all is told
	due       time.Time                // its next Renew, while it holds attempts
	link      int                      // version of the link
	ready     crowd.Readiness
	why       crowd.Reason
	room      int
	memory    int64
	live      map[crowd.AttemptRef]*attempt
	holding   []crowd.Holding           // as the last Renew listed
	avoid     map[crowd.JobID]time.Time // jobs it gave back a moment ago
	reporting map[crowd.AttemptRef]bool // its reports in progress
	late      int                       // expired attempts at open chunks that it may be at still
	bank      float64                   // seconds over its slots that it held attempts and wasn't paid for, as of banked
	banked    time.Time
	longest   float64 // at load: seconds that it held the oldest of its attempts
	queued    bool    // in line for dispatch
	dirty     bool    // record or claims changed since it was saved
}

func (h *host) candidate() sched.Candidate {
	return sched.Candidate{Host: &h.Host, Group: h.group, Online: h.conn != nil, Ready: h.ready, Why: h.why, Room: h.room, Memory: h.memory, Link: h.link}
}

// accrue adds what the host's slots may have worked since the last call. To be called before what it holds, or its slots, change.
func (h *host) accrue(now time.Time) {
	if !h.banked.IsZero() && now.After(h.banked) {
		h.bank += now.Sub(h.banked).Seconds() * float64(min(len(h.live)+h.late, max(1, h.Capacity.Slots)))
	}
	if now.After(h.banked) {
		h.banked = now
	}
}

// overdue reports whether a host that holds attempts doesn't renew them: it may be gone, whatever its connection says, and gets nothing more until
// it speaks.
func (h *host) overdue(now time.Time) bool { return now.After(h.due.Add(crowd.Skew)) }

// lists reports whether the host named an attempt in its last Renew.
func (h *host) lists(a *attempt) bool {
	return slices.ContainsFunc(h.holding, func(x crowd.Holding) bool { return x.AttemptRef == a.Ref() })
}

func (b *Broker) candidates() []sched.Candidate {
	out := make([]sched.Candidate, 0, len(b.hosts))
	for _, h := range b.hosts {
		if h.State != crowd.HostLeft {
			out = append(out, h.candidate())
		}
	}
	return out
}

// groupOf is the group that an account's votes count for: its own id, unless it is suspected to be one person with others.
func (b *Broker) groupOf(id crowd.AccountID) string {
	if a := b.accounts[id]; a != nil && a.Group != "" {
		return a.Group
	}
	return id.String()
}

// expiry is a heap of live attempts by the time they were to expire when pushed; a renewed one is pushed again when its time comes.
type expiry []expiring

type expiring struct {
	at time.Time
	a  *attempt
}

func (e expiry) Len() int           { return len(e) }
func (e expiry) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e expiry) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *expiry) Push(x any)        { *e = append(*e, x.(expiring)) }
func (e *expiry) Pop() any {
	x := (*e)[len(*e)-1]
	(*e)[len(*e)-1] = expiring{}
	*e = (*e)[:len(*e)-1]
	return x
}

func (b *Broker) watchExpiry(a *attempt) { heap.Push(&b.expiry, expiring{a.until, a}) }

// addRun merges units [first, first+count) into ascending runs that don't touch.
func addRun(runs []store.Run, first, count uint64) []store.Run {
	i, _ := slices.BinarySearchFunc(runs, first, func(r store.Run, f uint64) int {
		switch {
		case r.First < f:
			return -1
		case r.First > f:
			return 1
		}
		return 0
	})
	left := i > 0 && runs[i-1].First+runs[i-1].Count == first
	right := i < len(runs) && first+count == runs[i].First
	switch {
	case left && right:
		runs[i-1].Count += count + runs[i].Count
		return slices.Delete(runs, i, i+1)
	case left:
		runs[i-1].Count += count
	case right:
		runs[i].First, runs[i].Count = first, runs[i].Count+count
	default:
		runs = slices.Insert(runs, i, store.Run{First: first, Count: count})
	}
	return runs
}

// hostEnds takes an attempt out of its host's hands; false: it wasn't in them.
func (b *Broker) hostEnds(a *attempt) bool {
	if a.host == nil || a.host.live[a.Ref()] != a {
		return false
	}
	a.host.accrue(b.now())
	delete(a.host.live, a.Ref())
	b.live--
	j := a.chunk.job
	a.host.memory += j.order.Memory // until the next Renew tells
	if j.atWork[a.host.ID]--; j.atWork[a.host.ID] <= 0 {
		delete(j.atWork, a.host.ID)
	}
	j.reserved -= a.expect
	a.expect = 0
	j.Progress.AtWork = len(j.atWork)
	b.touch(j)
	return true
}

func (b *Broker) share(j *job, h *host) *crowd.HostShare {
	s := j.shares[h.ID]
	if s == nil {
		s = &crowd.HostShare{Host: h.ID, Name: h.Name, Owner: h.Account, Place: h.Place}
		j.shares[h.ID] = s
	}
	return s
}

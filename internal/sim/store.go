package sim

import (
	"cmp"
	"maps"
	"slices"

	"github.com/crowdcloud/crowd"
)

// store is what survives the broker. A change of it is one transaction: an event's handler runs to its end or not at all.
type store struct {
	seq         int64 // transactions so far
	incarnation int64
	hosts       []*hostRow
	jobs        []*jobRow // in the order in which they were ordered
	books       map[crowd.Book]crowd.UCR
	txns        map[string][]crowd.Posting
	log         []string // the names of txns, in order
}

// hostRow is an enrolled host.
type hostRow struct {
	crowd.Host
	index   int
	group   string
	session crowd.SessionID // the newest
	dial    int64
	voided  map[crowd.SessionID]bool
}

// jobRow is an order and its chunks in the order in which they were cut.
type jobRow struct {
	crowd.Job
	key    int // the customer's own number of the order: the same again is the same order
	owner  int // the customer
	plan   Job
	next   uint64 // first unit that was never cut
	chunks []*chunkRow
}

// chunkRow is a chunk; attempts[n-1] is number n.
type chunkRow struct {
	crowd.Chunk
	attempts []*attemptRow
}

// attemptRow is an attempt. id is the simulation's own name for this very lease: a restore may give (job, first, n) to another.
type attemptRow struct {
	crowd.Attempt
	id     int
	index  int  // of its host
	counts bool // holds its group's seat
	seq    int64
}

func newStore() *store {
	return &store{incarnation: 1, books: map[crowd.Book]crowd.UCR{}, txns: map[string][]crowd.Posting{}}
}

// clone is a copy that shares nothing that changes.
func (s *store) clone() *store {
	c := &store{seq: s.seq, incarnation: s.incarnation, books: maps.Clone(s.books), txns: maps.Clone(s.txns)}
	c.log = append(c.log, s.log...)
	for _, h := range s.hosts {
		x := *h
		x.voided = maps.Clone(h.voided)
		c.hosts = append(c.hosts, &x)
	}
	for _, j := range s.jobs {
		x := *j
		x.chunks = nil
		for _, k := range j.chunks {
			y := *k
			y.attempts = nil
			for _, a := range k.attempts {
				z := *a
				y.attempts = append(y.attempts, &z)
			}
			x.chunks = append(x.chunks, &y)
		}
		c.jobs = append(c.jobs, &x)
	}
	return c
}

// post adds postings of one transaction; one that is there already is skipped.
func (s *store) post(legs []crowd.Posting) {
	if len(legs) == 0 || s.txns[legs[0].Txn] != nil {
		return
	}
	s.txns[legs[0].Txn] = legs
	s.log = append(s.log, legs[0].Txn)
	for _, l := range legs {
		s.books[l.Book] += l.Amount
	}
}

func (s *store) job(id crowd.JobID) *jobRow {
	for _, j := range s.jobs {
		if j.ID == id {
			return j
		}
	}
	return nil
}

// find is an attempt with its chunk and job; nil, as far as they don't exist.
func (s *store) find(r crowd.AttemptRef) (*jobRow, *chunkRow, *attemptRow) {
	j := s.job(r.Job)
	if j == nil {
		return nil, nil, nil
	}
	c := j.chunk(r.First)
	if c == nil || r.N < 1 || r.N > len(c.attempts) {
		return j, c, nil
	}
	return j, c, c.attempts[r.N-1]
}

func (j *jobRow) chunk(first uint64) *chunkRow {
	i, ok := slices.BinarySearchFunc(j.chunks, first, func(c *chunkRow, f uint64) int { return cmp.Compare(c.First, f) })
	if !ok {
		return nil
	}
	return j.chunks[i]
}

// done reports whether every unit is decided or given up.
func (j *jobRow) done() bool {
	if j.next < j.Units {
		return false
	}
	for _, c := range j.chunks {
		if c.State == crowd.ChunkOpen {
			return false
		}
	}
	return true
}

func (j *jobRow) open(c *chunkRow) bool { return c.State == crowd.ChunkOpen && !j.State.Ended() }

func (a *attemptRow) ref() crowd.AttemptRef {
	return crowd.AttemptRef{Job: a.Job, First: a.First, N: a.N}
}

func (a *attemptRow) leased() bool { return a.State == crowd.AttemptLeased }

// seat reports whether another attempt of the group holds its seat.
func (c *chunkRow) seat(a *attemptRow) bool {
	for _, x := range c.attempts {
		if x != a && x.counts && x.Group == a.Group {
			return true
		}
	}
	return false
}

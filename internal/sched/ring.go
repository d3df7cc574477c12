package sched

import (
	"slices"

	"github.com/crowdcloud/crowd"
)

// Ring is whose turn it is: weighted round robin by account, then by job, so that a job of a billion units starves nobody. The zero Ring is
// empty. It isn't safe for concurrent use.
type Ring struct {
	accounts []*turn
	at       int
}

type turn struct {
	account crowd.AccountID
	weight  int
	left    int // turns left in this round
	jobs    []crowd.JobID
	at      int
}

// Add puts a job at the end of its account's row. A weight below 1 counts as 1; the account's newest weight holds.
func (r *Ring) Add(a crowd.AccountID, j crowd.JobID, weight int) {
	weight = max(weight, 1)
	for _, t := range r.accounts {
		if t.account == a {
			t.weight = weight
			if !slices.Contains(t.jobs, j) {
				t.jobs = slices.Insert(t.jobs, t.at, j) // next in its account's turn
			}
			return
		}
	}
	r.accounts = slices.Insert(r.accounts, r.at, &turn{account: a, weight: weight, left: weight, jobs: []crowd.JobID{j}})
}

// Remove takes a job out.
func (r *Ring) Remove(a crowd.AccountID, j crowd.JobID) {
	for i, t := range r.accounts {
		if t.account != a {
			continue
		}
		if k := slices.Index(t.jobs, j); k >= 0 {
			t.jobs = slices.Delete(t.jobs, k, k+1)
			if k < t.at {
				t.at--
			}
		}
		if len(t.jobs) == 0 {
			r.accounts = slices.Delete(r.accounts, i, i+1)
			if i < r.at {
				r.at--
			}
		}
		return
	}
}

// Len counts the jobs.
func (r *Ring) Len() (n int) {
	for _, t := range r.accounts {
		n += len(t.jobs)
	}
	return n
}

// Next offers each job once, in order of turn, until take accepts one; that one's turn is used up. It reports whether any was taken.
func (r *Ring) Next(take func(crowd.JobID) bool) bool {
	for i := range len(r.accounts) {
		k := (r.at + i) % len(r.accounts)
		t := r.accounts[k]
		for j := range len(t.jobs) {
			n := (t.at + j) % len(t.jobs)
			if !take(t.jobs[n]) {
				continue
			}
			t.at = (n + 1) % len(t.jobs)
			r.at = k
			if t.left--; t.left <= 0 {
				t.left = t.weight
				r.at = (k + 1) % len(r.accounts)
			}
			return true
		}
	}
	return false
}

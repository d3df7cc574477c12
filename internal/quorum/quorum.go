// Package quorum decides what is true: from the votes on a chunk, whether enough hosts of unrelated owners agree, who was right and who
// is proved wrong. It is pure: the same votes give the same verdict in any order.
package quorum

import (
	"bytes"
	"slices"

	"github.com/crowdcloud/crowd"
)

// Vote is one answer to a chunk: the digest of the outcome, and who gave it. A group (accounts that may be one person) counts once.
type Vote struct {
	Digest crowd.Digest
	Group  string
	Host   crowd.HostID
}

// Verdict says where a chunk stands.
type Verdict struct {
	Decided bool
	Digest  crowd.Digest // agreed on, if decided
	Winners []int        // indices of the votes that agree with it, ascending; a group's second vote is among them but shares its seat
	Losers  []int        // votes that differ from it
	Convict bool         // the verdict proves the losers wrong: at least two unrelated owners agree
	Want    int          // how many more voters of other groups are wanted now; 0 if decided or hopeless
	Differ  bool         // there are at least two different answers
	Over    bool         // as many voted as may, and they don't agree: it is no use to ask more
}

// MaxVotes is how many groups vote at most on a chunk that wants need agreeing votes.
func MaxVotes(need int) int { return 2*need + 3 }

// Decide counts the votes of one chunk. need is the number of agreeing groups wanted. While answers differ one more unrelated voter is
// wanted for each vote that the strongest answer lacks, so that a difference draws further voters and never lowers the need. An answer
// with need groups behind it wins; two such answers (possible only when votes were counted together) are no verdict: the difference draws
// further voters until one answer is ahead.
func Decide(votes []Vote, need int) Verdict {
	need = max(need, 1)
	if len(votes) == 0 {
		return Verdict{Want: need}
	}
	if len(votes) == 1 && need > 1 {
		return Verdict{Want: need - 1}
	}
	return decide(votes, need)
}

// decide is Decide without its short cuts for the most frequent cases.
func decide(votes []Vote, need int) Verdict {
	groups := map[string]crowd.Digest{} // a group's seat goes to its smallest digest, so that order doesn't matter
	for _, v := range votes {
		if d, ok := groups[v.Group]; !ok || bytes.Compare(v.Digest[:], d[:]) < 0 {
			groups[v.Group] = v.Digest
		}
	}
	count := map[crowd.Digest]int{}
	for _, d := range groups {
		count[d]++
	}
	type tally struct {
		d crowd.Digest
		n int
	}
	var ranked []tally
	for d, n := range count {
		ranked = append(ranked, tally{d, n})
	}
	slices.SortFunc(ranked, func(a, b tally) int {
		if a.n != b.n {
			return b.n - a.n
		}
		return bytes.Compare(a.d[:], b.d[:])
	})
	ver := Verdict{Differ: len(ranked) > 1}
	best, second := 0, 0
	if len(ranked) > 0 {
		best = ranked[0].n
	}
	if len(ranked) > 1 {
		second = ranked[1].n
	}
	if best >= need && best > second {
		ver.Decided, ver.Digest = true, ranked[0].d
		for i, v := range votes {
			if v.Digest == ver.Digest && groups[v.Group] == ver.Digest {
				ver.Winners = append(ver.Winners, i)
			} else {
				ver.Losers = append(ver.Losers, i)
			}
		}
		ver.Convict = best >= 2 && len(ver.Losers) > 0
		return ver
	}
	ver.Want = max(need-best, 1)
	if left := MaxVotes(need) - len(groups); left <= 0 {
		ver.Want, ver.Over = 0, true
	} else {
		ver.Want = min(ver.Want, left)
	}
	return ver
}

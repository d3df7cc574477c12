package store

import (
	"encoding/binary"
	"slices"

	"github.com/crowdcloud/crowd"
)

func (r Run) end() uint64 { return r.First + r.Count }

// checkRuns refuses runs that aren't ascending and apart, or that reach beyond next.
func checkRuns(runs []Run, next uint64) error {
	var from uint64
	for i, r := range runs {
		if r.Count == 0 || r.end() < r.First || r.end() > next || i > 0 && r.First <= from {
			return crowd.Errorf(crowd.Internal, "", "store: run %d of a job's decided units is out of order (%d+%d, next %d)", i, r.First, r.Count, next)
		}
		from = r.end()
	}
	return nil
}

// packRuns and unpackRuns: per run the gap before it and its length.
func packRuns(runs []Run) []byte {
	b := make([]byte, 0, 4*len(runs))
	var at uint64
	for _, r := range runs {
		b = binary.AppendUvarint(b, r.First-at)
		b = binary.AppendUvarint(b, r.Count)
		at = r.end()
	}
	return b
}

var errRuns = crowd.Errorf(crowd.Internal, "", "store: a job's decided units are not as they were written")

func unpackRuns(b []byte) ([]Run, error) {
	var runs []Run
	var at uint64
	for len(b) > 0 {
		gap, n := binary.Uvarint(b)
		count, m := binary.Uvarint(b[max(n, 0):])
		if n <= 0 || m <= 0 {
			return nil, errRuns
		}
		b = b[n+m:]
		runs = append(runs, Run{at + gap, count})
		at += gap + count
	}
	return runs, nil
}

// union merges two ascending lists of runs; runs that touch become one.
func union(a, b []Run) []Run {
	if len(a) == 0 {
		a, b = b, nil
	}
	out := make([]Run, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		var r Run
		if len(b) == 0 || len(a) > 0 && a[0].First <= b[0].First {
			r, a = a[0], a[1:]
		} else {
			r, b = b[0], b[1:]
		}
		if k := len(out) - 1; k >= 0 && r.First <= out[k].end() {
			out[k].Count = max(out[k].end(), r.end()) - out[k].First
			continue
		}
		out = append(out, r)
	}
	return slices.Clip(out)
}

// subtract takes the units of b from those of a; both ascending, each apart.
func subtract(a, b []Run) []Run {
	if len(b) == 0 {
		return a
	}
	var out []Run
	for _, r := range a {
		for len(b) > 0 && b[0].end() <= r.First {
			b = b[1:]
		}
		for _, cut := range b {
			if cut.First >= r.end() {
				break
			}
			if cut.First > r.First {
				out = append(out, Run{r.First, cut.First - r.First})
			}
			if cut.end() >= r.end() {
				r.Count = 0
				break
			}
			r = Run{max(r.First, cut.end()), r.end() - max(r.First, cut.end())}
		}
		if r.Count > 0 {
			out = append(out, r)
		}
	}
	return out
}

// inside reports whether [first, first+count) lies in one of the ascending runs, and gives the runs from there on.
func inside(runs []Run, first, count uint64) (bool, []Run) {
	for len(runs) > 0 && runs[0].end() <= first {
		runs = runs[1:]
	}
	return len(runs) > 0 && runs[0].First <= first && first+count <= runs[0].end(), runs
}

// Holes are the units below Next that are neither decided nor in an open chunk: cut by a broker whose lease never came to be. They are to be
// cut again.
func (p Progress) Holes() []Run {
	open := make([]Run, len(p.Open))
	for i, o := range p.Open {
		open[i] = Run{o.Chunk.First, o.Chunk.Count}
	}
	if p.Next == 0 {
		return nil
	}
	return subtract(subtract([]Run{{0, p.Next}}, p.Runs), open)
}

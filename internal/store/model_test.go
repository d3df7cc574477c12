package store

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/crowdcloud/crowd"
)

// Random postings, some unbalanced, repeated or beyond what an account has, leave the books as a simple model of them, with sum zero.
func TestPostModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := tempDir(t)
		s := openRapid(t, dir)
		defer func() { _ = s.Close() }()
		books := []crowd.Book{crowd.BookMint, crowd.BookFee, "balance:a", "balance:b", "pending:a", "escrow:j"}
		model := map[crowd.Book]crowd.UCR{}
		posted := map[string]bool{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			var p Post
			want, either := crowd.OK, false // either: whichever book comes first
			next := map[crowd.Book]crowd.UCR{}
			for b, v := range model {
				next[b] = v
			}
			fresh := map[string]bool{}
			for range rapid.IntRange(1, 3).Draw(t, "txns") {
				txn := fmt.Sprint("t", rapid.IntRange(0, 40).Draw(t, "txn"))
				if fresh[txn] {
					continue
				}
				fresh[txn] = true
				var sum crowd.UCR
				n := rapid.IntRange(1, 4).Draw(t, "legs")
				for i := range n + 1 {
					amount := crowd.UCR(rapid.Int64Range(-50, 100).Draw(t, "amount"))
					if i == n {
						if amount = -sum; rapid.IntRange(0, 9).Draw(t, "bad") == 0 {
							amount++
							want = crowd.Internal
						}
					}
					sum += amount
					b := rapid.SampledFrom(books).Draw(t, "book")
					p.Postings = append(p.Postings, crowd.Posting{Txn: txn, Leg: i, Book: b, Amount: amount})
					if !posted[txn] {
						next[b] += amount
					}
				}
			}
			for _, b := range books {
				if over := next[b] < 0 && next[b] < model[b]; over && b[0] == 'b' && want == crowd.OK {
					want = crowd.Exhausted
				} else if over && (b[0] == 'p' || b[0] == 'e') && want != crowd.Internal {
					want, either = crowd.Internal, want == crowd.Exhausted
				}
			}
			err := s.Apply(ctx, p)
			if (want == crowd.OK) != (err == nil) || err != nil && !crowd.KindIs(err, want) && !(either && crowd.KindIs(err, crowd.Exhausted)) {
				t.Fatalf("%+v: %v, want %s", p, err, want)
			}
			if err == nil {
				model = next
				for txn := range fresh {
					posted[txn] = true
				}
			}
			for _, b := range books {
				if got, err := s.Balance(ctx, b); got != model[b] || err != nil {
					t.Fatalf("%s holds %d, want %d (%v)", b, got, model[b], err)
				}
			}
			if sum, err := s.LedgerSum(ctx); sum != 0 || err != nil {
				t.Fatal(sum, err)
			}
		}
	})
}

// JobProgress after random leases, verdicts, saved maps (also stale ones) and restarts is what a set of decided units says.
func TestProgressModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := tempDir(t)
		s := openRapid(t, dir)
		defer func() { _ = s.Close() }()
		job := crowd.Job{ID: newID[crowd.JobID](), Name: "j", State: crowd.JobRunning}
		if err := s.Apply(ctx, AddJob{job}); err != nil {
			t.Fatal(err)
		}
		var next uint64
		open, done := []crowd.Chunk{}, map[uint64]bool{}
		attempts := map[uint64]int{}
		var snapshots []Done
		apply := func(ops ...Op) {
			if err := s.Apply(ctx, ops...); err != nil {
				t.Fatal(err)
			}
		}
		runs := func() (r []Run) {
			for u := range next {
				if !done[u] {
					continue
				}
				if k := len(r) - 1; k >= 0 && r[k].end() == u {
					r[k].Count++
				} else {
					r = append(r, Run{u, 1})
				}
			}
			return r
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"cut", "cut", "decide", "decide", "again", "snap", "save", "restart"}).Draw(t, "step") {
			case "cut":
				c := chunk(job.ID, next, rapid.Uint64Range(1, 5).Draw(t, "count"))
				next += c.Count
				if rapid.IntRange(0, 9).Draw(t, "lost") == 0 {
					continue // its lease never came to be
				}
				apply(lease(job.ID, c.First, c.Count, 0))
				open = append(open, c)
				attempts[c.First] = 1
			case "again":
				if len(open) > 0 {
					c := rapid.SampledFrom(open).Draw(t, "chunk")
					apply(lease(job.ID, c.First, c.Count, attempts[c.First]))
					attempts[c.First]++
				}
			case "decide":
				if len(open) > 0 {
					i := rapid.IntRange(0, len(open)-1).Draw(t, "chunk")
					d := decided(open[i], 1)
					if rapid.Bool().Draw(t, "failed") {
						d.Chunk.State = crowd.ChunkFailed
					}
					apply(d)
					for u := range d.Chunk.Count {
						done[d.Chunk.First+u] = true
					}
					open = slices.Delete(open, i, i+1)
				}
			case "snap":
				snapshots = append(snapshots, Done{job.ID, next, runs()})
			case "save": // not always the newest
				if len(snapshots) > 0 {
					apply(rapid.SampledFrom(snapshots).Draw(t, "snapshot"))
				}
			case "restart":
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openRapid(t, dir)
			}
			p, err := s.JobProgress(ctx, job.ID)
			if err != nil || !reflect.DeepEqual(append([]Run{}, p.Runs...), append([]Run{}, runs()...)) || len(p.Open) != len(open) || p.Next > next {
				t.Fatalf("%+v, %v; want %v, open %v, next %d", p, err, runs(), open, next)
			}
			undecided := map[uint64]bool{}
			for i, o := range p.Open {
				if o.Chunk != open[i] || len(o.Attempts) != attempts[o.Chunk.First] {
					t.Fatalf("open %+v, want %+v with %d attempts", o, open[i], attempts[o.Chunk.First])
				}
				for u := range o.Chunk.Count {
					undecided[o.Chunk.First+u] = true
				}
			}
			for _, h := range p.Holes() {
				for u := range h.Count {
					undecided[h.First+u] = true
				}
			}
			for u := range p.Next {
				if undecided[u] == done[u] {
					t.Fatalf("unit %d: done %v, holes %v", u, done[u], p.Holes())
				}
			}
		}
	})
}

func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.Custom(func(t *rapid.T) (r []Run) {
			at := uint64(0)
			for range rapid.IntRange(0, 6).Draw(t, "n") {
				at += rapid.Uint64Range(1, 4).Draw(t, "gap")
				r = append(r, Run{at, rapid.Uint64Range(1, 4).Draw(t, "count")})
				at = r[len(r)-1].end()
			}
			return r
		})
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		in := func(runs []Run, u uint64) bool {
			return slices.ContainsFunc(runs, func(r Run) bool { return r.First <= u && u < r.end() })
		}
		back, err := unpackRuns(packRuns(a))
		if err != nil || !slices.Equal(a, back) {
			t.Fatal(back, err)
		}
		or, minus := union(a, b), subtract(a, b)
		if checkRuns(or, 1000) != nil || checkRuns(minus, 1000) != nil {
			t.Fatal(or, minus)
		}
		for u := range uint64(60) {
			if in(or, u) != (in(a, u) || in(b, u)) || in(minus, u) != (in(a, u) && !in(b, u)) {
				t.Fatal(u, or, minus)
			}
		}
	})
	if _, err := unpackRuns([]byte{1}); err == nil {
		t.Error("half a run")
	}
}

package sim

import (
	"errors"
	"flag"
	"os"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	seed   = flag.Uint64("seed", 0, "play this seed alone, with its trace")
	update = flag.Bool("update", false, "write the golden traces")
)

// sweep plays seeds from 1 on, on every core, until one fails or n are done; it returns the first failure found and how many were played.
func sweep(n uint64, m Mutation, each func(uint64, Result)) (*Failure, uint64) {
	var next, played atomic.Uint64
	var mu sync.Mutex
	var first *Failure
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				s := next.Add(1)
				mu.Lock()
				stop := first != nil || s > n
				mu.Unlock()
				if stop {
					return
				}
				r, err := Run(Options{Seed: s, Break: m})
				played.Add(1)
				mu.Lock()
				var f *Failure
				if errors.As(err, &f) && (first == nil || f.Seed < first.Seed) {
					first = f
				}
				if each != nil {
					each(s, r)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return first, played.Load()
}

// TestSeeds: whatever befalls the crowd, the invariants hold and the jobs end.
func TestSeeds(t *testing.T) {
	if *seed != 0 {
		r, err := Run(Options{Seed: *seed, Trace: true})
		for _, l := range r.Trace {
			t.Log(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	n := uint64(300)
	if os.Getenv("CROWD_SOAK") != "" {
		n = 10_000
	}
	var all Result
	all.Reports = map[string]int{}
	f, _ := sweep(n, Sound, func(_ uint64, r Result) { all.add(r) })
	if f != nil {
		t.Fatalf("go test ./internal/sim -run TestSeeds -seed %d\n%v", f.Seed, f)
	}
	t.Logf("%d seeds: %+v", n, all)
	if n >= 300 { // what never happens isn't tested
		for what, times := range map[string]int{
			"kills": all.Kills, "late reports paid": all.Late, "decided reports": all.Unpaid, "forks": all.Forks, "convictions": all.Convict, "verdicts taken back": all.Reopen,
			"brokers of the past": all.Refused, "lost by a restore": all.Lost, "checkpoints": all.States, "spare": all.Reports["spare"],
			"repeat": all.Reports["repeat"], "conflict": all.Reports["conflict"], "void": all.Reports["void"],
		} {
			if times == 0 {
				t.Errorf("%s: never", what)
			}
		}
	}
}

func (r *Result) add(x Result) {
	for k, n := range x.Reports {
		r.Reports[k] += n
	}
	to, from := reflect.ValueOf(r).Elem(), reflect.ValueOf(x)
	for i := range to.NumField() {
		if f := to.Field(i); f.CanInt() {
			f.SetInt(f.Int() + from.Field(i).Int())
		}
	}
}

// TestDeterministic: the same seed is the same story, and telling it changes nothing.
func TestDeterministic(t *testing.T) {
	for s := uint64(1); s <= 10; s++ {
		a, errA := Run(Options{Seed: s, Trace: true})
		b, errB := Run(Options{Seed: s, Trace: true})
		c, errC := Run(Options{Seed: s})
		if errA != nil || errB != nil || errC != nil {
			t.Fatal(errA, errB, errC)
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("seed %d: two stories", s)
		}
		if a.Trace = nil; !reflect.DeepEqual(a, c) {
			t.Errorf("seed %d: told %+v, untold %+v", s, a, c)
		}
	}
}

// TestMutations: each rule that is broken on purpose is found out.
func TestMutations(t *testing.T) {
	most := uint64(600)
	for _, m := range Mutations() {
		t.Run(m.String(), func(t *testing.T) {
			f, n := sweep(most, m, nil)
			if f == nil {
				t.Fatalf("not found in %d seeds", n)
			}
			t.Logf("%d seeds: seed %d, step %d: %s", n, f.Seed, f.Step, f.What)
		})
	}
}

func BenchmarkRun(b *testing.B) {
	steps := 0
	for i := range b.N {
		r, err := Run(Options{Seed: uint64(i%100 + 1)})
		if err != nil {
			b.Fatal(err)
		}
		steps += r.Steps
	}
	b.ReportMetric(float64(steps)/b.Elapsed().Seconds(), "events/s")
}

package main

import (
	"container/heap"
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd/internal/sim"
)

const (
	simRounds = 6
	simSeeds  = 100 // of a round
	simQueue  = 128 // events that wait in a world, about
	simFloor  = 100_000
)

// simulator: events a second of the crowd in a box, invariants and all, by one goroutine and by as many as there are processors; against a bare
// queue of as many events. Of several rounds the best counts: others may be at work on the machine.
func simulator(ctx context.Context) ([]Row, error) {
	n := runtime.GOMAXPROCS(0)
	var rows []Row
	for _, x := range []struct {
		name    string
		workers int
	}{{"simulated events, one goroutine", 1}, {fmt.Sprintf("simulated events, %d goroutines", n), n}} {
		var best, bare float64
		for round := range simRounds {
			events, took, err := simulate(ctx, x.workers, round*simSeeds)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(os.Stderr, "bench: %d seeds by %d goroutines: %d events in %s\n", simSeeds, x.workers, events, took.Round(time.Millisecond))
			best = max(best, float64(events)/took.Seconds())
			bare = max(bare, bareQueue(x.workers, int(events)))
		}
		rows = append(rows, row(x.name, best, "events/s", "a bare queue of as many events", bare, simFloor, false, "higher"))
	}
	return rows, nil
}

// simulate plays simSeeds seeds, those after one, and returns how many events they were.
func simulate(ctx context.Context, workers, after int) (events int64, took time.Duration, err error) {
	var next, steps atomic.Int64
	errs := make(chan error, workers)
	began := time.Now()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for s := next.Add(1); s <= simSeeds && ctx.Err() == nil; s = next.Add(1) {
				r, err := sim.Run(sim.Options{Seed: uint64(after) + uint64(s)})
				if err != nil {
					errs <- err
					return
				}
				steps.Add(int64(r.Steps))
			}
		})
	}
	wg.Wait()
	took = time.Since(began)
	select {
	case err = <-errs:
	default:
		err = ctx.Err()
	}
	return steps.Load(), took, err
}

// bareQueue takes events from queues and puts each back for later, as many in all as it is told, and returns how many a second.
func bareQueue(workers, events int) float64 {
	began := time.Now()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			q := make(timers, 0, simQueue)
			seed := uint64(1)
			later := func(now time.Duration) timer {
				seed = seed*6364136223846793005 + 1442695040888963407
				return timer{now + time.Duration(seed>>34), func() {}}
			}
			for range simQueue {
				heap.Push(&q, later(0))
			}
			for range events / workers {
				t := heap.Pop(&q).(timer)
				t.run()
				heap.Push(&q, later(t.at))
			}
		})
	}
	wg.Wait()
	return float64(events) / time.Since(began).Seconds()
}

type timer struct {
	at  time.Duration
	run func()
}

type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at < t[j].at }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}

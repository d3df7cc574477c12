package wasm

import (
	"context"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/wasmprep"
)

// BenchmarkStart measures a slot from the call for it to the outcome of one unit that does nothing.
func BenchmarkStart(b *testing.B) {
	for _, c := range []struct {
		name   string
		module func(testing.TB) []byte
	}{
		{"noop", func(t testing.TB) []byte { return fixture(t, "noop") }},
		{"go", goModule},
	} {
		w := newWorld(c.module(b))
		b.Run(c.name+"/cold", func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				e := testEngine(b, nil)
				b.StartTimer()
				w.run(b, e)
			}
		})
		b.Run(c.name+"/no pool", func(b *testing.B) {
			e := testEngine(b, nil)
			w.run(b, e)
			for b.Loop() {
				w.run(b, e)
			}
		})
		b.Run(c.name+"/warm", func(b *testing.B) {
			e := testEngine(b, nil)
			w.run(b, e)
			for b.Loop() {
				b.StopTimer()
				s, err := e.slot(context.Background(), crowd.JobID{})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, _, err := s.Run(context.Background(), w.task(), w.blobs, nil); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				s.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkUnit is the cost of a unit that does nothing, in a task of a thousand.
func BenchmarkUnit(b *testing.B) {
	e := testEngine(b, nil)
	w := newWorld(fixture(b, "noop"))
	for len(w.plans) < 1000 {
		w.plans = append(w.plans, w.plans[0])
	}
	w.run(b, e)
	for b.Loop() {
		w.run(b, e)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "µs/unit")
}

// BenchmarkPool says what a waiting child costs.
func BenchmarkPool(b *testing.B) {
	e := testEngine(b, nil)
	for b.Loop() {
		p, err := e.startRun()
		if err != nil {
			b.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // at rest
		u, err := p.child.Usage()
		if err != nil {
			b.Skip(err)
		}
		b.ReportMetric(float64(u.RSS)/1e6, "MB")
		p.kill()
	}
}

// BenchmarkSpeed is Bench.
func BenchmarkSpeed(b *testing.B) {
	e := testEngine(b, nil)
	for b.Loop() {
		g, err := e.Bench(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(g, "Gfuel/s")
	}
}

// BenchmarkRun is the part of BenchmarkUnit that is neither pipes nor JSON.
func BenchmarkRun(b *testing.B) {
	p, err := wasmprep.Prepare(fixture(b, "noop"), prepLimits())
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	m, err := newMachine(ctx, p.Module, "", false)
	if err != nil {
		b.Fatal(err)
	}
	defer m.close(ctx)
	for b.Loop() {
		u, _ := newUnit(crowd.Plan{Args: []string{"noop"}}, wireTask{Memory: 1 << 28, Output: 1 << 20}, sliceCompiled)
		if err := m.run(ctx, u); err != nil {
			b.Fatal(err)
		}
	}
}

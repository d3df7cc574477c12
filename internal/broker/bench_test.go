package broker

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// BenchmarkUnits is the broker's whole path, durable: lease, report, signature, quorum of 2, verdict, pay; 64 units a chunk, hosts that take no
// time. The hosts' own work (a signature and a digest a chunk) runs on the same cores.
func BenchmarkUnits(b *testing.B) {
	w := newWorld(b, b.TempDir())
	defer w.close()
	for i := range 40 {
		f := w.host(w.account(fmt.Sprintf("owner-%d", i), 0), fmt.Sprintf("host-%d", i), "DE")
		f.slots, f.takes = 32, 0
		f.result = func(_, _ uint64, _ *crowd.UnitResult, c *crowd.UnitContent) { c.Stdout = nil }
		f.run()
	}
	s := w.spec(uint64(64 * max(b.N, 64)))
	s.Chunk = 64
	s.Price.Max = 900 * crowd.Credit
	b.ResetTimer()
	start := time.Now()
	j, err := w.b.Submit(context.Background(), w.ada, s)
	must(b, err)
	w.done(j, 10*time.Minute)
	b.StopTimer()
	b.ReportMetric(float64(j.Units)/time.Since(start).Seconds(), "units/s")
	w.sumIsZero()
}

// BenchmarkOneUnit is a customer's wait for a job of one unit, from the order to its end: three commits, and hosts that take no time.
func BenchmarkOneUnit(b *testing.B) {
	w := newWorld(b, b.TempDir())
	defer w.close()
	for _, f := range w.owners("alice", "bob", "carol") {
		f.takes = 0
		f.run()
	}
	s := w.spec(1)
	s.Price.Max = crowd.Credit
	for b.Loop() {
		j, err := w.b.Submit(context.Background(), w.ada, s)
		must(b, err)
		if j = w.done(j, time.Minute); j.Paid != 2000 {
			b.Fatal(j.Paid)
		}
	}
	w.sumIsZero()
}

package link

import (
	"io"
	"log"
	"runtime"
	"testing"

	"github.com/crowdcloud/crowd"
)

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

// BenchmarkHeartbeat is one Renew and its Answer over TLS, both ends in one process.
func BenchmarkHeartbeat(b *testing.B) {
	br := newBroker(b, true)
	host, far := connect(b, br, br.options(b))
	go func() {
		for {
			far.rate.used = 0 // no rate limit here
			m, err := far.Receive(b.Context())
			if err != nil {
				return
			}
			_ = far.Send(&crowd.Message{Answer: &crowd.Answer{N: m.Renew.N}})
		}
	}()
	r := &crowd.Renew{State: crowd.Ready, Room: 1, Attempts: make([]crowd.Holding, 2)}
	b.ReportAllocs()
	for b.Loop() {
		r.N++
		_ = host.Send(&crowd.Message{Renew: r})
		if _, err := host.Receive(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdle measures the bytes of a connection, both ends together.
func BenchmarkIdle(b *testing.B) {
	br := newBroker(b, true)
	const n = 500
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range n {
		host, far := connect(b, br, br.options(b))
		for _, c := range []*Conn{host, far} {
			go func() {
				for {
					if _, err := c.Receive(b.Context()); err != nil {
						return
					}
				}
			}()
		}
		_ = host.Send(&crowd.Message{Renew: &crowd.Renew{}})
		_ = far.Send(&crowd.Message{Answer: &crowd.Answer{}})
	}
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	for b.Loop() {
		_ = after
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "heapB/conn")
	b.ReportMetric(float64(after.StackInuse-before.StackInuse)/n, "stackB/conn")
}

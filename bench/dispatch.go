package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

const noopWasm = "internal/guest/wasm/testdata/noop.wasm"

// dispatch: durable lease and report through a real broker process over TLS WebSockets, against the bare store path on the same schema.
func dispatch(ctx context.Context) ([]Row, error) {
	var rows []Row
	for _, per := range []uint64{1, 16, 64} {
		const hosts = 32
		chunks := uint64(60_000)
		if per > 1 {
			chunks = 40_000
		}
		direct, err := storePath(ctx, hosts*8, per, chunks)
		if err != nil {
			return nil, err
		}
		through, err := dispatchRate(ctx, hosts, per, chunks)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("dispatch and report, %d units a chunk", per)
		rows = append(rows, row(name, through, "units/s", "the bare store path", direct, 0.5, true, "higher"))
		if per == 64 {
			rows = append(rows, row(name+", absolute", through, "units/s", "the bare store path", direct, 100_000, false, "higher"))
		}
	}
	return rows, nil
}

// dispatchRate has simulated hosts work through a job and returns the units a second from the first tenth to the end.
func dispatchRate(ctx context.Context, n int, per, chunks uint64) (float64, error) {
	c, end, err := newCluster(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	hosts, err := c.join(ctx, n, 1)
	if err != nil {
		return 0, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var done atomic.Uint64
	total := per * chunks
	var began, ended atomic.Int64
	finished := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	errs := make(chan error, n)
	for _, h := range hosts {
		if err := h.dial(ctx, c); err != nil {
			return 0, err
		}
		wg.Go(func() {
			errs <- h.work(ctx, 48, func(units uint64) {
				d := done.Add(units)
				switch {
				case d >= total/10 && began.Load() == 0:
					began.CompareAndSwap(0, time.Now().UnixNano())
				case d >= total:
					ended.Store(time.Now().UnixNano())
					close(finished)
				}
			})
		})
	}
	if err := c.submitNoop(ctx, total, per); err != nil {
		return 0, err
	}
	select {
	case <-finished:
	case err := <-errs:
		return 0, fmt.Errorf("a host's link ended: %w", err)
	case <-time.After(5 * time.Minute):
		return 0, fmt.Errorf("only %d of %d units in 5 minutes", done.Load(), total)
	}
	span := time.Duration(ended.Load() - began.Load())
	return float64(total-total/10) / span.Seconds(), nil
}

func (c *cluster) submitNoop(ctx context.Context, units, chunk uint64) error {
	d, err := c.upload(ctx, noopWasm)
	if err != nil {
		return err
	}
	_, err = c.ada.Submit(ctx, &crowd.JobSpec{Kind: "job", Name: "noop", Program: d.String(), Units: crowd.Units{Count: units}, Chunk: chunk,
		Verify: crowd.Verify{None: true}, Price: crowd.PriceRule{Max: 1000 * crowd.Credit}, Resources: crowd.Resources{Memory: 16 << 20}}, "")
	return err
}

func (c *cluster) upload(ctx context.Context, path string) (crowd.Digest, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return crowd.Digest{}, err
	}
	defer f.Close()
	d, size, err := digest.Reader(f)
	if err != nil {
		return d, err
	}
	return d, c.ada.Upload(ctx, d, size, f, nil)
}

package main

import (
	"context"
	"sync"
	"time"
)

// connections: what 10,000 connected idle hosts cost the broker's process, and what a renewal costs; against a bare TLS connection each.
func connections(ctx context.Context) ([]Row, error) {
	const n = 10_000
	c, end, err := newCluster(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	hosts, err := c.join(ctx, n, 500)
	if err != nil {
		return nil, err
	}
	before, err := rssOf(c.pid)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	answered := make(chan struct{}, 2*n)
	sem := make(chan struct{}, 16)
	errs := make(chan error, n)
	for _, h := range hosts {
		sem <- struct{}{}
		wg.Go(func() {
			err := h.dial(ctx, c)
			<-sem
			if err == nil {
				err = h.renew(1, 0)
			}
			for err == nil {
				m, e := h.conn.Receive(ctx)
				if err = e; e == nil && m.Answer != nil {
					answered <- struct{}{}
				}
			}
			if ctx.Err() == nil {
				errs <- err
			}
		})
	}
	wait := func() error {
		for range n {
			select {
			case <-answered:
			case err := <-errs:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	if err := wait(); err != nil {
		return nil, err
	}
	pause(ctx, 2*time.Second) // the broker's collector has its say
	after, err := rssOf(c.pid)
	if err != nil {
		return nil, err
	}
	cpu0, err := cpuOf(c.pid)
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		if err := h.renew(2, 0); err != nil {
			return nil, err
		}
	}
	if err := wait(); err != nil {
		return nil, err
	}
	cpu1, err := cpuOf(c.pid)
	if err != nil {
		return nil, err
	}
	bare, trip, err := bareTLS(ctx, 1000)
	if err != nil {
		return nil, err
	}
	return []Row{
		row("connected host, broker's memory", float64(after-before)/n, "bytes", "a bare TLS connection with one goroutine", bare, 45_000, false, "lower"),
		row("a renewal and its answer, broker's CPU", float64((cpu1-cpu0).Nanoseconds())/n/1000, "µs", "a round trip of 400 bytes over bare TLS, one end", trip, 100, false, "lower"),
	}, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

package wasm

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// TestPoolRests: waiting children end when no slot is taken for a while, and come back with the next one.
func TestPoolRests(t *testing.T) {
	e := testEngine(t, func(e *Engine) { e.o.Pool, e.idle = 2, 300*time.Millisecond })
	take := func(why string) *process {
		t.Helper()
		for range 2000 {
			if p := e.waiting(); p != nil {
				return p
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatal(why)
		return nil
	}
	first := take("the pool never fills")
	first.kill()
	time.Sleep(3 * e.idle)
	for range 100 { // a child that was just starting when the time was up ends a little later
		if e.waiting() == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(e.idle)
	if p := e.waiting(); p != nil {
		p.kill()
		t.Error("a child still waits though nobody takes slots")
	}
	s, err := e.slot(t.Context(), crowd.JobID{1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	take("the pool isn't filled again").kill()
}

// TestChecksTakeTurns: no more than mostCheck children prepare programs at once, and who waits can give up.
func TestChecksTakeTurns(t *testing.T) {
	e := testEngine(t, nil)
	for range mostCheck {
		e.checking <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := e.Check(ctx, fixture(t, "noop")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third check: %v", err)
	}
	for range mostCheck {
		<-e.checking
	}
	var wg sync.WaitGroup
	for range 2 * mostCheck {
		wg.Go(func() {
			if _, err := e.Check(t.Context(), fixture(t, "noop")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/host"
)

const (
	releaseJobs  = 5 // of releaseUnits chunks each, which hosts hold when they are lost
	releaseUnits = 5 // fewer than Limits.LossesInARow
	releaseSlots = 8
)

// release: from the last that was heard of a host until another one has the lease of what it held, with few and with many hosts connected, who are
// idle but for those. A host falls silent, its socket stays open; or its socket breaks, as when its process is killed.
func release(ctx context.Context) ([]Row, error) {
	var rows []Row
	var most [2]float64
	for i, n := range []int{10, 10_000} {
		silent, broken, err := releaseAmong(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("%d hosts: %w", n, err)
		}
		most[i] = silent.fromHeard.max()
		among := fmt.Sprintf(", %s hosts", thousands(int64(n)))
		rows = append(rows,
			row("loss → re-lease"+among, most[i], "s", "the term and the clocks' skew", (crowd.Term+crowd.Skew).Seconds(), 20, false, "lower"),
			row("socket breaks → re-lease"+among, broken.fromLoss.max(), "s", "the time to dial again", crowd.SuspectFor.Seconds(), 5, false, "lower"))
	}
	return append(rows, row("loss → re-lease, 10,000 hosts against 10", most[1], "s", "10 hosts", most[0], 1.2, true, "lower")), nil
}

// spans are how long it took, chunk by chunk.
type spans []time.Duration

func (s spans) max() float64 { return slices.Max(s).Seconds() }
func (s spans) p50() float64 { slices.Sort(s); return s[len(s)/2].Seconds() }

// losses are what came of the hosts that were lost.
type losses struct {
	fromHeard spans // since its last renewal was sent
	fromLoss  spans // since it fell silent, or its socket broke
	wasted    int   // leases given to hosts that were silent already
}

func (l *losses) tell(n int, what string) {
	fmt.Fprintf(os.Stderr, "bench: %d hosts, %s: %d chunks leased again; since the last renewal p50 %.2f s, max %.2f s; since the loss p50 %.2f s, max %.2f s; %d leases went to silent hosts\n",
		n, what, len(l.fromLoss), l.fromHeard.p50(), l.fromHeard.max(), l.fromLoss.p50(), l.fromLoss.max(), l.wasted)
}

func releaseAmong(ctx context.Context, n int) (silent, broken *losses, err error) {
	c, end, err := newCluster(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer end()
	hosts, err := c.join(ctx, n, max(1, n/20))
	if err != nil {
		return nil, nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	cr := &crew{cluster: c, chunks: map[crowd.AttemptRef]*lent{}, errs: make(chan error, n)}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	sem := make(chan struct{}, 16)
	ready := make(chan struct{}, n)
	for _, h := range hosts {
		m := &member{simHost: h, crew: cr, wake: make(chan struct{}, 1)}
		cr.members = append(cr.members, m)
		sem <- struct{}{}
		wg.Go(func() {
			err := m.dial(ctx, c)
			<-sem
			ready <- struct{}{}
			if err == nil {
				err = m.live(ctx)
			}
			if err != nil && ctx.Err() == nil {
				select {
				case cr.errs <- err:
				default:
				}
			}
		})
	}
	for range n {
		<-ready
	}
	fmt.Fprintf(os.Stderr, "bench: %d hosts are connected\n", n)
	pause(ctx, 3*time.Second) // all have said that they have room
	if silent, err = cr.lose(ctx, (*member).fallSilent); err != nil {
		return nil, nil, fmt.Errorf("silent: %w", err)
	}
	silent.tell(n, "silent")
	if err := cr.revive(); err != nil {
		return nil, nil, err
	}
	if broken, err = cr.lose(ctx, (*member).breakOff); err != nil {
		return nil, nil, fmt.Errorf("broken socket: %w", err)
	}
	broken.tell(n, "broken socket")
	return silent, broken, nil
}

// crew are hosts who hold what they get until they are lost; what another held before, they report at once.
type crew struct {
	*cluster
	members []*member
	errs    chan error

	mu     sync.Mutex
	chunks map[crowd.AttemptRef]*lent // by chunk: N is 0
	left   int                        // chunks that aren't leased again
	done   chan struct{}              // closed when there are none
	wasted int
}

// lent is a chunk that was leased once, and perhaps again.
type lent struct {
	by    *member
	again time.Time
}

// member is one of them.
type member struct {
	*simHost
	crew *crew
	wake chan struct{} // to renew for what it holds

	// of crew.mu
	holds  []crowd.Holding
	sent   time.Time // its last renewal
	lost   time.Time // from then on it is silent
	number int64
	cut    context.CancelFunc // of its connection, without goodbye
}

// live renews and takes leases until the connection ends; what it is told once it is lost, it doesn't hear.
func (m *member) live(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	m.crew.mu.Lock()
	m.cut = stop
	m.crew.mu.Unlock()
	if err := m.say(); err != nil {
		return err
	}
	wg.Go(func() { m.renewals(ctx) })
	for {
		msg, err := m.conn.Receive(ctx)
		if m.isLost() {
			if err != nil {
				return nil
			}
			if msg.Lease != nil {
				m.crew.mu.Lock()
				m.crew.wasted++
				m.crew.mu.Unlock()
			}
			continue
		}
		switch {
		case err != nil:
			return err
		case msg.Lease != nil:
			if m.crew.took(m, msg.Lease) {
				if err := m.report(msg.Lease); err != nil {
					return err
				}
			}
		case msg.Problem != nil:
			return fmt.Errorf("closed: %s", msg.Problem.Text)
		}
	}
}

// renewals says what is: every RenewEvery while it holds something, at a random phase, else every IdlePing.
func (m *member) renewals(ctx context.Context) {
	t := time.NewTimer(rand.N(crowd.IdlePing))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
			t.Reset(rand.N(crowd.RenewEvery))
			continue
		case <-t.C:
		}
		every := crowd.IdlePing
		m.crew.mu.Lock()
		if len(m.holds) > 0 {
			every = crowd.RenewEvery
		}
		m.crew.mu.Unlock()
		if m.say() != nil {
			return
		}
		t.Reset(every)
	}
}

// say sends a renewal, unless the host is lost.
func (m *member) say() error {
	c := m.crew
	c.mu.Lock()
	defer c.mu.Unlock()
	if !m.lost.IsZero() {
		return nil
	}
	m.number++
	r := &crowd.Renew{N: m.number, State: crowd.Ready, Room: max(0, releaseSlots-len(m.holds)), Memory: 8 << 30, Attempts: slices.Clone(m.holds),
		Capacity: crowd.Capacity{Slots: releaseSlots, MemoryBytes: 8 << 30, DiskBytes: 1 << 30, Speed: 1}}
	if m.number == 1 {
		platform := host.ThisPlatform("bench", "server")
		r.Platform = &platform
	}
	m.sent = time.Now()
	return m.conn.Send(&crowd.Message{Renew: r})
}

func (m *member) isLost() bool {
	m.crew.mu.Lock()
	defer m.crew.mu.Unlock()
	return !m.lost.IsZero()
}

func (m *member) report(l *crowd.Lease) error {
	o, body := noopOutcome(l.First, l.Count)
	r := &crowd.Report{AttemptRef: l.AttemptRef, Digest: digest.Of(o.Manifest()), Fuel: o.Fuel(), Seconds: 0.001, Body: body}
	r.Sig = ed25519.Sign(m.key, crowd.ReportBytes(m.id, r.AttemptRef, r.Digest, r.Fuel))
	return m.conn.Send(&crowd.Message{Report: r})
}

// fallSilent and breakOff lose a host; called with crew.mu held.
func (m *member) fallSilent() { m.lost = time.Now() }

func (m *member) breakOff() {
	m.lost = time.Now()
	m.cut()
}

// took notes a lease; again says that another host held that chunk before and was lost.
func (c *crew) took(m *member, l *crowd.Lease) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := l.AttemptRef
	ref.N = 0
	x := c.chunks[ref]
	if x == nil {
		c.chunks[ref] = &lent{by: m}
		m.holds = append(m.holds, crowd.Holding{AttemptRef: l.AttemptRef})
		select {
		case m.wake <- struct{}{}:
		default:
		}
		return false
	}
	if x.again.IsZero() {
		x.again = time.Now()
		if c.left--; c.left == 0 {
			close(c.done)
		}
	}
	return true
}

// lose has jobs leased, loses every host that holds something of them, at a random moment of its own between two renewals, and waits until others have it.
func (c *crew) lose(ctx context.Context, how func(*member)) (*losses, error) {
	const chunks = releaseJobs * releaseUnits
	c.mu.Lock()
	clear(c.chunks)
	c.left, c.wasted, c.done = chunks, 0, make(chan struct{})
	c.mu.Unlock()
	for range releaseJobs {
		if err := c.submitNoop(ctx, releaseUnits, 1); err != nil {
			return nil, err
		}
	}
	leased := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.chunks)
	}
	for began := time.Now(); leased() < chunks; pause(ctx, 10*time.Millisecond) {
		if ctx.Err() != nil || time.Since(began) > time.Minute {
			return nil, errors.Join(fmt.Errorf("only %d of %d chunks were leased", leased(), chunks), ctx.Err())
		}
	}
	pause(ctx, 3*crowd.RenewEvery/2) // all have renewed
	var victims []*member
	c.mu.Lock()
	for _, m := range c.members {
		if len(m.holds) > 0 && m.lost.IsZero() {
			victims = append(victims, m)
		}
	}
	c.mu.Unlock()
	for _, m := range victims {
		time.AfterFunc(rand.N(crowd.RenewEvery), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			how(m)
		})
	}
	select {
	case <-c.done:
	case err := <-c.errs:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(2 * time.Minute):
		return nil, fmt.Errorf("of %d chunks, some were not leased again in two minutes", chunks)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &losses{wasted: c.wasted}
	for _, x := range c.chunks {
		l.fromHeard = append(l.fromHeard, x.again.Sub(x.by.sent))
		l.fromLoss = append(l.fromLoss, x.again.Sub(x.by.lost))
	}
	return l, nil
}

// revive lets the silent speak again, of nothing that they held.
func (c *crew) revive() error {
	for _, m := range c.members {
		if m.isLost() {
			c.mu.Lock()
			m.lost, m.holds = time.Time{}, nil
			c.mu.Unlock()
			if err := m.say(); err != nil {
				return err
			}
		}
	}
	return nil
}

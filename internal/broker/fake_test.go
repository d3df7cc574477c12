package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/seal"
)

// fake is a host that speaks the words of the link.
type fake struct {
	w       *world
	host    crowd.Host
	owner   Caller
	key     ed25519.PrivateKey
	session crowd.SessionID
	dials   int64
	slots   int
	place   string
	takes   time.Duration // a chunk
	silent  bool          // computes, but reports nothing
	result  func(first, unit uint64, u *crowd.UnitResult, c *crowd.UnitContent)
	refuse  crowd.Reason // gives every lease back for this reason

	mu      sync.Mutex
	conn    *pipe
	held    map[crowd.AttemptRef]*crowd.Lease
	leases  []crowd.AttemptRef
	answers []crowd.Reported
	problem *crowd.Problem
	reports map[crowd.AttemptRef]*crowd.Report
	state   crowd.Readiness
}

// pipe is a connection: wire for the broker, channels for the host.
type pipe struct {
	up, down chan *crowd.Message
	gone     chan struct{}
	once     sync.Once
}

func (p *pipe) Send(m *crowd.Message) error {
	select {
	case p.down <- m:
		return nil
	case <-p.gone:
		return os.ErrClosed
	}
}

func (p *pipe) Receive(ctx context.Context) (*crowd.Message, error) {
	select {
	case m := <-p.up:
		return m, nil
	case <-p.gone:
		return nil, os.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipe) Close(x *crowd.Problem) {
	if x != nil {
		select {
		case p.down <- &crowd.Message{Problem: x}:
		default:
		}
	}
	p.once.Do(func() { close(p.gone) })
}

// owners makes one account for each name and a host of that name for it.
func (w *world) owners(names ...string) (all []*fake) {
	for _, n := range names {
		all = append(all, w.host(w.account(n, 0), n, "DE"))
	}
	return all
}

// host enrols a machine through a join link.
func (w *world) host(owner Caller, name, place string) *fake {
	w.t.Helper()
	ctx := context.Background()
	s, _, err := w.b.MakeToken(ctx, owner, 0)
	must(w.t, err)
	l, err := seal.ParseJoinLink(s)
	must(w.t, err)
	seed := sha256.Sum256([]byte(name))
	f := &fake{w: w, owner: owner, key: ed25519.NewKeyFromSeed(seed[:]), slots: 2, takes: time.Second, place: place, state: crowd.Ready}
	f.host, err = w.b.Join(ctx, "192.0.2.0", crowd.JoinRequest{
		Token: l.Token, Key: f.key.Public().(ed25519.PublicKey), Name: name, Place: crowd.Place{Jurisdiction: place},
		Platform: crowd.Platform{OS: "linux", Arch: "amd64", Device: "desktop"}, Capacity: f.capacity(),
	})
	must(w.t, err)
	w.fakes = append(w.fakes, f)
	f.newSession()
	return f
}

func (f *fake) capacity() crowd.Capacity {
	return crowd.Capacity{Slots: f.slots, MemoryBytes: 8 << 30, DiskBytes: 1 << 30, Speed: 1}
}

// newSession is a start of the agent: what it held is gone.
func (f *fake) newSession() {
	f.mu.Lock()
	defer f.mu.Unlock()
	mint(f.w.b, &f.session)
	f.dials, f.held, f.reports = 0, map[crowd.AttemptRef]*crowd.Lease{}, map[crowd.AttemptRef]*crowd.Report{}
}

// dial connects; run does so and works.
func (f *fake) dial(number int64) (*pipe, error) {
	hello := crowd.Hello{Host: f.host.ID, Session: f.session, Dial: number, Versions: crowd.ProtocolVersions}
	if err := f.w.b.admit(context.Background(), &hello); err != nil {
		return nil, err
	}
	p := &pipe{up: make(chan *crowd.Message), down: make(chan *crowd.Message, 4096), gone: make(chan struct{})}
	b := f.w.b
	b.conns.Add(1)
	go func() {
		defer b.conns.Done()
		b.serve(context.Background(), p, hello, "bearer-"+f.host.ID.String(), fmt.Sprintf("10.0.%d.0/24", f.host.ID[15]))
	}()
	return p, nil
}

func (f *fake) run() *fake {
	f.w.t.Helper()
	f.dials++
	p, err := f.dial(f.dials)
	must(f.w.t, err)
	f.mu.Lock()
	f.conn = p
	f.mu.Unlock()
	go f.listen(p)
	go func() {
		f.mu.Lock()
		var again []*crowd.Report // of what it holds still: no answer came
		for ref := range f.held {
			if r := f.reports[ref]; r != nil && !f.silent {
				again = append(again, r)
			}
		}
		f.mu.Unlock()
		f.renewals(p, again)
	}()
	return f
}

// kill ends the process: connection and memory.
func (f *fake) kill() {
	f.cut()
	f.mu.Lock()
	f.held = map[crowd.AttemptRef]*crowd.Lease{}
	f.mu.Unlock()
}

// cut breaks the connection only.
func (f *fake) cut() {
	f.mu.Lock()
	p := f.conn
	f.conn = nil
	f.mu.Unlock()
	if p != nil {
		p.Close(nil)
	}
}

func (f *fake) say(m *crowd.Message) {
	f.mu.Lock()
	p := f.conn
	f.mu.Unlock()
	if p == nil {
		return
	}
	select {
	case p.up <- m:
	case <-p.gone:
	}
}

func (f *fake) renewals(p *pipe, again []*crowd.Report) {
	for n := int64(1); ; n++ {
		f.renew(n)
		for _, r := range again {
			f.say(&crowd.Message{Report: r})
		}
		again = nil
		select {
		case <-p.gone:
			return
		case <-time.After(crowd.RenewEvery):
		}
	}
}

func (f *fake) renew(n int64) {
	f.mu.Lock()
	r := &crowd.Renew{N: n, State: f.state, Capacity: f.capacity(), Memory: 8 << 30}
	for ref := range f.held {
		r.Attempts = append(r.Attempts, crowd.Holding{AttemptRef: ref})
	}
	r.Room = f.slots - len(f.held)
	f.mu.Unlock()
	f.say(&crowd.Message{Renew: r})
}

func (f *fake) listen(p *pipe) {
	for {
		select {
		case <-p.gone:
			for {
				select {
				case m := <-p.down:
					f.hear(m)
				default:
					return
				}
			}
		case m := <-p.down:
			f.hear(m)
		}
	}
}

func (f *fake) hear(m *crowd.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case m.Lease != nil:
		if f.held[m.Lease.AttemptRef] != nil {
			return
		}
		f.held[m.Lease.AttemptRef] = m.Lease
		f.leases = append(f.leases, m.Lease.AttemptRef)
		if f.refuse != "" {
			delete(f.held, m.Lease.AttemptRef)
			go f.say(&crowd.Message{Return: &crowd.Return{AttemptRef: m.Lease.AttemptRef, Reason: f.refuse}})
			return
		}
		go f.work(m.Lease)
	case m.Cancel != nil:
		delete(f.held, m.Cancel.AttemptRef)
	case m.Answer != nil:
		for _, d := range m.Answer.Drop {
			delete(f.held, d)
		}
	case m.Reported != nil:
		delete(f.held, m.Reported.AttemptRef)
		f.answers = append(f.answers, *m.Reported)
	case m.Problem != nil:
		f.problem = m.Problem
	}
}

func (f *fake) work(l *crowd.Lease) {
	f.mu.Lock()
	takes := f.takes
	f.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-f.w.over:
		return
	}
	r := f.outcome(l)
	f.mu.Lock()
	held := f.held[l.AttemptRef] != nil
	f.reports[l.AttemptRef] = r
	silent := f.silent
	f.mu.Unlock()
	if held && !silent {
		f.say(&crowd.Message{Report: r})
	}
}

// outcome computes a chunk: a Gfuel and a line for each unit.
func (f *fake) outcome(l *crowd.Lease) *crowd.Report {
	f.mu.Lock()
	result := f.result
	f.mu.Unlock()
	o := &crowd.Outcome{First: l.First}
	var contents []crowd.UnitContent
	for u := l.First; u < l.First+l.Count; u++ {
		c := crowd.UnitContent{Stdout: []byte(fmt.Sprintf("unit %d\n", u))}
		r := crowd.UnitResult{Fuel: 1e9}
		if result != nil {
			result(l.First, u, &r, &c)
		}
		r.Stdout = crowd.ContentRef{Size: int64(len(c.Stdout)), Digest: digest.Of(c.Stdout)}
		o.Units = append(o.Units, r)
		contents = append(contents, c)
	}
	rep := &crowd.Report{AttemptRef: l.AttemptRef, Digest: digest.Of(o.Manifest()), Fuel: o.Fuel(), Body: o.Body(contents)}
	rep.Sig = ed25519.Sign(f.key, crowd.ReportBytes(f.host.ID, l.AttemptRef, rep.Digest, rep.Fuel))
	if len(rep.Body) > crowd.Limits.InlineBody {
		rep.Ref = digest.Of(rep.Body)
		err := f.w.b.HostPutOutcome(context.Background(), "bearer-"+f.host.ID.String(), l.AttemptRef, rep.Ref, bytes.NewReader(rep.Body))
		if err != nil && !crowd.KindIs(err, crowd.NotFound) && !crowd.KindIs(err, crowd.Denied) { // cancelled meanwhile, or cut off
			f.w.t.Error(err)
		}
		rep.Body = nil
	}
	return rep
}

// liar answers otherwise.
func liar(_, _ uint64, _ *crowd.UnitResult, c *crowd.UnitContent) { c.Stdout = []byte("a lie\n") }

func (f *fake) count(a crowd.ReportAnswer) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.answers {
		if x.Answer == a {
			n++
		}
	}
	return n
}

// set changes how a running host behaves.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) leased() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.leases)
}

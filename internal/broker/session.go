package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// wire is what a session needs of a connection; link.Conn is one. Send never blocks: a full queue closes the connection.
type wire interface {
	Send(*crowd.Message) error
	Receive(context.Context) (*crowd.Message, error)
	Close(*crowd.Problem)
}

// session is a host's connection. Broker.mu guards specs.
type session struct {
	host   *host
	hello  crowd.Hello
	bearer string
	wire   wire
	specs  map[crowd.JobID]bool // whose spec the host has
	fresh  bool                 // no Renew yet
	over   atomic.Bool          // nothing that it says counts any more
}

func (s *session) send(m *crowd.Message) { _ = s.wire.Send(m) } // what is lost with its connection is said again

// end closes the connection, with a word about why; serve ends once that is said, or can't be.
func (s *session) end(p *crowd.Problem) {
	s.over.Store(true)
	s.wire.Close(p)
}

// lookup is a host's public key, or a refusal for good.
func (b *Broker) lookup(id crowd.HostID) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hosts[id]
	switch {
	case h == nil:
		return nil, crowd.Errorf(crowd.Denied, crowd.BrokerToken, "the broker knows no %s", id).WithHint("join again: crowd host join LINK")
	case h.State == crowd.HostLeft:
		return nil, crowd.Errorf(crowd.Denied, crowd.OwnerLeft, "%s has left the crowd", h.Name).WithHint("join again: crowd host join LINK")
	}
	return h.Key, nil
}

// admit decides, after the proof, whether a dial goes on, by the rules for forks and second sessions. Its answer is durable before it is given.
func (b *Broker) admit(ctx context.Context, hello *crowd.Hello) error {
	void, err := b.st.Void(ctx, hello.Host, hello.Session) // in an earlier life of the broker
	if err != nil {
		return err
	}
	b.mu.Lock()
	h := b.hosts[hello.Host]
	if h == nil {
		b.mu.Unlock()
		return crowd.Errorf(crowd.Denied, crowd.BrokerToken, "the broker knows no such host")
	}
	ops := []store.Op{store.PutSession{Host: h.ID, Session: hello.Session, Dial: hello.Dial}}
	cloned := crowd.Errorf(crowd.Denied, crowd.HostCloned, "two machines use the key of %s: this session is void", h.Name).WithHint("%s", crowd.Reasons[crowd.HostCloned].WayOut)
	var old *session
	var fork bool
	switch {
	case void, h.voided[hello.Session], hello.Session == h.session && h.void:
		known := h.told[hello.Session]
		h.told[hello.Session] = true
		b.mu.Unlock()
		if known {
			return cloned
		}
		return errors.Join(cloned, b.commit(ctx, b.event(h.ID.String(), h.Account, "host.cloned", crowd.HostCloned,
			fmt.Sprintf("an earlier session of %s dialled again: two machines use its key; the newer one stays", h.Name), crowd.EventData{Host: h.ID})))
	case hello.Session == h.session && hello.Dial <= h.dial:
		fork = true
		h.void, h.voided[h.session] = true, true
		old = h.conn
		ops = []store.Op{
			store.PutSession{Host: h.ID, Session: h.session, Dial: h.dial, Void: true},
			b.event(h.ID.String(), h.Account, "host.cloned", crowd.HostCloned, fmt.Sprintf("%s dialled twice with one number: two machines use its key; the session is void", h.Name), crowd.EventData{Host: h.ID}),
		}
		b.voidLive(h, crowd.HostCloned)
	case hello.Session == h.session:
		h.dial = hello.Dial
		old = h.conn
	default:
		if !h.session.IsZero() {
			h.voided[h.session] = true
			ops = append([]store.Op{store.PutSession{Host: h.ID, Session: h.session, Dial: h.dial, Void: true}}, ops...)
		}
		h.session, h.dial, h.void = hello.Session, hello.Dial, false
		old = h.conn
	}
	b.mu.Unlock()
	if old != nil {
		p := &crowd.Problem{Kind: crowd.Conflict.String(), Text: "a newer connection of this host took over"}
		if fork {
			p = &crowd.Problem{Kind: crowd.Denied.String(), Reason: crowd.HostCloned, Text: cloned.Message, Hint: cloned.Hint, Final: true}
		} else if old.hello.Session != hello.Session {
			p.Final, p.Reason, p.Hint = true, crowd.HostCloned, cloned.Hint
			p.Text = "a newer session of this host took over"
		}
		old.end(p)
	}
	if err := b.commit(ctx, ops...); err != nil {
		return err
	}
	if fork {
		return cloned
	}
	return nil
}

// serve speaks with an admitted host until its connection ends.
func (b *Broker) serve(ctx context.Context, w wire, hello crowd.Hello, bearer, network string) {
	b.mu.Lock()
	h := b.hosts[hello.Host]
	if h == nil || b.closing || h.session != hello.Session || h.dial != hello.Dial || h.void {
		p := &crowd.Problem{Kind: crowd.Unavailable.String(), Reason: crowd.BrokerRestarted, Text: "dial again"}
		if h != nil && (h.void || h.voided[hello.Session]) {
			p = &crowd.Problem{Kind: crowd.Denied.String(), Reason: crowd.HostCloned, Text: "this session is void", Hint: crowd.Reasons[crowd.HostCloned].WayOut, Final: true}
		}
		b.mu.Unlock()
		w.Close(p)
		return
	}
	s := &session{host: h, hello: hello, bearer: bearer, wire: w, specs: map[crowd.JobID]bool{}, fresh: true}
	h.conn, h.broke, h.room, h.holding = s, time.Time{}, 0, nil
	h.ready = crowd.Paused // until its first Renew
	h.link = link.Version(&hello)
	if h.Network != network || h.Unbound != hello.Unbound {
		h.Network, h.Unbound, h.dirty = network, hello.Unbound, true
	}
	b.bearers[bearer] = s
	b.mu.Unlock()
	b.log.Info("host connected", "host", h.ID.Short(), "name", h.Name)
	for {
		m, err := w.Receive(ctx)
		if err != nil || s.over.Load() {
			break
		}
		if !b.hear(s, m) {
			break
		}
	}
	b.mu.Lock()
	delete(b.bearers, bearer)
	if h.conn == s {
		h.conn, h.room = nil, 0
		h.broke = b.now()
	}
	b.mu.Unlock()
	w.Close(nil)
	b.log.Info("host disconnected", "host", h.ID.Short(), "name", h.Name)
}

// hear acts on one message; false ends the connection.
func (b *Broker) hear(s *session, m *crowd.Message) bool {
	switch {
	case m.Renew != nil:
		b.renew(s, m.Renew)
	case m.Report != nil:
		return b.hearReport(s, m.Report)
	case m.Return != nil:
		b.giveBack(s, m.Return)
	case m.Leave != nil:
		b.leave(s)
		return false
	default:
		s.end(&crowd.Problem{Kind: crowd.Invalid.String(), Text: "that word isn't a host's to say"})
		return false
	}
	return true
}

// renew takes what a host says is, and answers what should be.
func (b *Broker) renew(s *session, r *crowd.Renew) {
	now := b.now()
	b.mu.Lock()
	h := s.host
	if h.conn != s {
		b.mu.Unlock()
		return
	}
	h.ready, h.why, h.memory, h.due = r.State, r.Why, r.Memory, now.Add(crowd.RenewEvery)
	if clean := sane(r.Capacity); clean != h.Capacity {
		h.accrue(now)
		h.Capacity, h.dirty = clean, true
	}
	if r.Platform != nil && *r.Platform != h.Platform {
		h.Platform, h.dirty = cleanPlatform(*r.Platform), true
	}
	answer := &crowd.Answer{N: r.N}
	listed := make(map[crowd.AttemptRef]bool, len(r.Attempts))
	for _, x := range r.Attempts {
		listed[x.AttemptRef] = true
		a := h.live[x.AttemptRef]
		switch {
		case a != nil:
			a.until, a.suspect = lease.ExpiresAt(now), false
		case b.useless(h, x.AttemptRef):
			answer.Drop = append(answer.Drop, x.AttemptRef)
		}
	}
	h.holding = r.Attempts
	flight := 0
	var again []*crowd.Lease
	for ref, a := range h.live {
		switch {
		case listed[ref] || a.pending:
			if a.pending {
				flight++
			}
		case !s.fresh:
			flight++
		case a.session == s.hello.Session || a.session.IsZero(): // the lease was lost with an earlier connection
			flight++
			again = append(again, b.leaseWords(a, s))
		default: // the process that had it is gone
			b.lose(a, now)
		}
	}
	s.fresh = false
	h.room = max(0, min(r.Room, 4096)-flight)
	if r.State != crowd.Ready {
		h.room = 0
	}
	b.queueHost(h)
	b.mu.Unlock()
	for _, l := range again {
		b.tell(s, l)
	}
	s.send(&crowd.Message{Answer: answer})
	b.rouseIf()
}

// useless reports whether an attempt that a host lists is worth nothing any more. Called with b.mu held.
func (b *Broker) useless(h *host, ref crowd.AttemptRef) bool {
	j := b.jobs[ref.Job]
	if j == nil {
		return true
	}
	c := j.open[ref.First]
	if c == nil || ref.N < 1 || ref.N > len(c.attempts) {
		return true
	}
	a := c.attempts[ref.N-1]
	if a.Attempt.Host != h.ID {
		return true
	}
	return lease.Step(lease.Facts{State: a.State, Open: c.State == crowd.ChunkOpen, Voted: c.seat(a)}, lease.Renew).Drop
}

// giveBack ends an attempt undone. The owner's reasons carry no blame.
func (b *Broker) giveBack(s *session, r *crowd.Return) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := s.host.live[r.AttemptRef]
	if a == nil {
		return
	}
	reason := r.Reason
	if !lease.MayReturn(reason) {
		reason = crowd.HostFailed
	}
	if reason.Party() != "owner" || reason == crowd.OwnerPolicy { // others may; it gets something else for now
		s.host.avoid[r.Job] = b.now().Add(sched.RetryAfter)
		if s.host.conn == s && s.host.ready == crowd.Ready {
			s.host.room++
		}
	}
	a.chunk.when(func() {
		if a.leased() && s.host.live[r.AttemptRef] == a {
			b.endAttempt(a, crowd.AttemptFailed, reason, clipText(r.Text))
		}
	})
}

// leave ends a host's membership by its own word.
func (b *Broker) leave(s *session) {
	b.mu.Lock()
	h := s.host
	ops := b.removeHost(h, h.ID.String(), crowd.OwnerLeft)
	b.mu.Unlock()
	if err := b.commit(context.Background(), ops...); err != nil {
		b.log.Error("can't record that a host left", "host", h.ID.Short(), "err", err)
	}
	s.end(nil)
}

// closeSessions ends every connection at shutdown; hosts go on with what they hold.
func (b *Broker) closeSessions() {
	b.mu.Lock()
	b.closing = true
	var all []*session
	for _, h := range b.hosts {
		if h.conn != nil {
			all = append(all, h.conn)
		}
	}
	b.mu.Unlock()
	for _, s := range all {
		s.end(&crowd.Problem{Kind: crowd.Unavailable.String(), Reason: crowd.BrokerRestarted, Text: "the broker stops; dial again"})
	}
}

// sane bounds a host's claims.
func sane(c crowd.Capacity) crowd.Capacity {
	c.Slots = max(0, min(c.Slots, 4096))
	c.MemoryBytes, c.DiskBytes = max(0, c.MemoryBytes), max(0, c.DiskBytes)
	if !(c.Speed >= 0 && c.Speed < 1e4) {
		c.Speed = 0
	}
	return c
}

func cleanPlatform(p crowd.Platform) crowd.Platform {
	for _, s := range []*string{&p.OS, &p.Arch, &p.Kernel, &p.Agent, &p.Device} {
		*s = clipTo(*s, 64)
	}
	if !slices.Contains([]string{"desktop", "laptop", "server", "phone", "browser"}, p.Device) {
		p.Device = "desktop"
	}
	return p
}

func clipText(s string) string { return clipTo(s, 200) }

// clipTo keeps what can be printed of a stranger's text.
func clipTo(s string, n int) string {
	out := make([]rune, 0, min(len(s), n))
	for _, r := range s {
		if len(out) == n {
			break
		}
		if r >= ' ' && r != 0x7f && !(r >= 0x80 && r < 0xa0) && r != '\uFFFD' {
			out = append(out, r)
		}
	}
	return string(out)
}

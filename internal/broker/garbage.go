package broker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/link"
)

// A host that says what no agent of ours would, again and again, costs work that nobody pays for. Each such thing has a weight; with too many of them
// the host is paused for a while, longer each time: its link is closed, its dials are refused before anything is written, its owner can see why.
// Only what the host itself said on its own proven link counts. It is forgotten by a restart.

// The weights.
const (
	garbageForged  = 8  // a signature that isn't its own
	garbageOther   = 2  // a report of another's attempt: after a restored backup there may be some, see garbage
	garbageUnknown = .5 // a report of what it was never given: likewise
	garbageContent = 4  // a body that isn't what its report says
	garbageWord    = 32 // its link had to be closed: a malformed word, or too many

	garbageMost  = 64
	garbageFade  = 0.2 // a second
	pausedAtOnce = time.Minute
	pausedAtMost = time.Hour
	pauseForgot  = 24 * time.Hour // since the last pause: the next one is a first one
)

type offender struct {
	points float64
	at     time.Time
	until  time.Time // paused
	pause  time.Duration
	what   string
}

// offenders are the hosts that said garbage of late. The zero value is ready.
type offenders struct {
	mu sync.Mutex
	m  map[crowd.HostID]*offender
}

// add counts garbage; true: the host is paused from now on.
func (o *offenders) add(id crowd.HostID, weight float64, what string, now time.Time) (*offender, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = map[crowd.HostID]*offender{}
	}
	x := o.m[id]
	if x == nil {
		x = &offender{at: now}
		o.m[id] = x
	}
	if now.Before(x.until) {
		return x, false
	}
	x.points = max(0, x.points-now.Sub(x.at).Seconds()*garbageFade) + weight
	x.at, x.what = now, what
	if x.points < garbageMost {
		return x, false
	}
	if x.pause *= 2; x.pause == 0 || now.Sub(x.until) > pauseForgot {
		x.pause = pausedAtOnce
	}
	x.pause = min(x.pause, pausedAtMost)
	x.points, x.until = 0, now.Add(x.pause)
	return &offender{until: x.until, what: what, pause: x.pause}, true
}

// paused says until when and for what a host is; zero: it isn't.
func (o *offenders) paused(id crowd.HostID, now time.Time) (until time.Time, what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if x := o.m[id]; x != nil && now.Before(x.until) {
		return x.until, x.what
	}
	return time.Time{}, ""
}

// garbage counts what a host said; if that was too much it is paused. May be called with b.mu held or without.
func (b *Broker) garbage(s *session, weight float64, what string) {
	x, now := s.host, b.now()
	if (weight == garbageOther || weight == garbageUnknown) && now.Sub(b.started) < crowd.Adopt {
		return // it may have been told so by a broker that was restored since
	}
	p, begins := b.offenders.add(x.ID, weight, what, now)
	if !begins {
		return
	}
	b.log.Warn("a host is paused for garbage", "host", x.ID.Short(), "last", what, "until", p.until)
	text := fmt.Sprintf("%s is paused for %v: %s, again and again", x.Name, p.pause, what)
	b.applySoon(b.event(x.ID.String(), x.Account, "host.paused", crowd.HostGarbage, text, crowd.EventData{Host: x.ID}))
	s.end(&crowd.Problem{Kind: crowd.Exhausted.String(), Reason: crowd.HostGarbage, Text: text, Hint: crowd.Reasons[crowd.HostGarbage].WayOut})
}

// letIn refuses a dial of a paused host.
func (b *Broker) letIn(id crowd.HostID) error {
	until, what := b.offenders.paused(id, b.now())
	if until.IsZero() {
		return nil
	}
	return crowd.Errorf(crowd.Exhausted, crowd.HostGarbage, "%s is paused until %s: %s, again and again", id.Short(), until.UTC().Format(time.RFC3339), what).
		WithHint("%s", crowd.Reasons[crowd.HostGarbage].WayOut)
}

// HostOf is the host that an HTTP request's bearer belongs to.
func (b *Broker) HostOf(bearer string) (crowd.HostID, error) {
	s, err := b.bearer(bearer)
	if err != nil {
		return crowd.HostID{}, err
	}
	return s.host.ID, nil
}

// HostSentGarbage counts an upload that isn't what its name says.
func (b *Broker) HostSentGarbage(bearer string) {
	if s, err := b.bearer(bearer); err == nil {
		b.garbage(s, garbageContent, "an upload wasn't what its name says")
	}
}

// judged is a host's connection; why the link had to close it is counted.
type judged struct {
	*link.Conn
	b      *Broker
	bearer string
}

// Receive implements wire.
func (j *judged) Receive(ctx context.Context) (*crowd.Message, error) {
	m, err := j.Conn.Receive(ctx)
	if err == nil {
		return m, nil
	}
	s, gone := j.b.bearer(j.bearer)
	if gone != nil {
		return m, err
	}
	switch e := crowd.AsError(err); {
	case e.Kind == crowd.Invalid:
		j.b.garbage(s, garbageWord, "it said what isn't a word of the link")
	case e.Reason == crowd.BrokerRate:
		j.b.garbage(s, garbageWord, "it said too much at once")
	}
	return m, err
}

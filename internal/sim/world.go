package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/crowdcloud/crowd"
)

// world is everything there is.
type world struct {
	o       Options
	net     Net
	rng     *rand.Rand
	now     time.Duration
	queue   queue
	store   *store  // the one that counts
	broker  *broker // over it; nil while it is down
	ghost   *broker // of a store before a restore
	backup  *store
	hosts   []*machine
	clients []*client
	names   map[crowd.AccountID]string
	judge   *judge
	ids     int // leases so far
	until   time.Duration
	failed  *Failure
	over    bool
	res     Result
}

const (
	feeBP    = 1000
	perGfuel = crowd.UCR(2000)
	gauge    = 5 * time.Second // between looks at whether it is over
	patience = time.Hour       // for the end once the faults are over
)

// epoch is moment 0.
var epoch = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func newWorld(o Options) *world {
	w := &world{o: o, rng: rand.New(rand.NewPCG(o.Seed, 0x51)), store: newStore(), names: map[crowd.AccountID]string{}, res: Result{Reports: map[string]int{}}}
	w.draw()
	w.net = *w.o.Net
	w.judge = newJudge(w)
	owners := map[string]crowd.AccountID{}
	for i, h := range w.o.Hosts {
		id, known := owners[h.Owner]
		if !known {
			id = w.account(h.Owner)
			owners[h.Owner] = id
		}
		row := &hostRow{index: i, group: h.Group, voided: map[crowd.SessionID]bool{}}
		if row.group == "" {
			row.group = h.Owner
		}
		row.ID, row.Account, row.Name, row.State = crowd.HostID(w.random()), id, h.Name, crowd.HostActive
		row.Capacity = crowd.Capacity{Slots: h.Slots, MemoryBytes: 8 << 30, Speed: h.Speed}
		row.Network = fmt.Sprintf("net%d", i%5)
		w.store.hosts = append(w.store.hosts, row)
		m := &machine{w: w, index: i, Host: h, pending: crowd.PendingBook(id)}
		w.hosts = append(w.hosts, m)
	}
	for i, j := range w.o.Jobs {
		c := &client{w: w, index: i, plan: j, account: w.account("customer " + j.Name)}
		w.clients = append(w.clients, c)
		w.at(j.At, c.begin)
	}
	w.until = w.net.Calm
	for _, a := range w.o.Acts {
		w.until = max(w.until, a.At+a.For)
		w.at(a.At, func() { w.act(a) })
	}
	w.start(w.store)
	for _, m := range w.hosts {
		w.at(time.Duration(m.index)*100*time.Millisecond, m.start)
	}
	w.at(gauge, w.look)
	return w
}

func (w *world) account(name string) crowd.AccountID {
	id := crowd.AccountID(w.random())
	w.names[id] = name
	return id
}

// random are the bytes of an id.
func (w *world) random() (id [16]byte) {
	for i := range id {
		id[i] = byte(w.rng.Uint32())
	}
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

// chance is true in that part of cases; never for 0, without a draw.
func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// between is a random duration from least up to most.
func (w *world) between(least, most time.Duration) time.Duration {
	if most <= least {
		return least
	}
	return least + time.Duration(w.rng.Int64N(int64(most-least)))
}

func (w *world) at(at time.Duration, f func())   { w.queue.push(max(at, w.now), f) }
func (w *world) after(d time.Duration, f func()) { w.queue.push(w.now+max(d, 0), f) }

// clock is the broker's.
func (w *world) clock() time.Time { return epoch.Add(w.now) }

// calm reports whether the faults are over.
func (w *world) calm() bool { return w.now >= w.net.Calm }

func (w *world) broke(m Mutation) bool { return w.o.Break == m }

// say adds a line to the trace.
func (w *world) say(who, format string, args ...any) {
	if w.o.Trace {
		w.res.Trace = append(w.res.Trace, fmt.Sprintf("%s %-9s %s", stamp(w.now), who, fmt.Sprintf(format, args...)))
	}
}

// stamp is a moment for people: "02:05.400", "7:02:05.400".
func stamp(d time.Duration) string {
	ms := d.Milliseconds()
	s := fmt.Sprintf("%02d:%02d.%03d", ms/60_000%60, ms/1000%60, ms%1000)
	if h := ms / 3_600_000; h > 0 {
		s = fmt.Sprintf("%d:%s", h, s)
	}
	return s
}

// fail notes the first broken invariant; the run ends with it.
func (w *world) fail(format string, args ...any) {
	if w.failed == nil {
		w.failed = &Failure{Seed: w.o.Seed, Step: w.res.Steps, At: w.now, What: fmt.Sprintf(format, args...)}
		w.say("judge", "%s", w.failed.What)
	}
}

// look ends the run when it is over, and finds that it takes too long.
func (w *world) look() {
	if w.now >= w.until && w.broker != nil {
		why := w.missing()
		if why == "" {
			w.over = true
			w.judge.end()
			return
		}
		if w.now > w.until+patience {
			w.fail("the faults are over since %v, and %s", w.now-w.until, why)
		}
	}
	w.after(gauge, w.look)
}

// missing says what is yet to happen.
func (w *world) missing() string {
	for _, c := range w.clients {
		if c.phase != told {
			return "the customer of " + c.plan.Name + " has no result"
		}
	}
	for _, j := range w.store.jobs {
		if !j.State.Ended() {
			return j.Name + " hasn't ended"
		}
	}
	for _, m := range w.hosts {
		if p := m.proc(); p == nil || p.asleep {
			return m.Name + " is down"
		}
		if len(m.outbox) > 0 {
			return m.Name + " has reports that nobody answered"
		}
	}
	return ""
}

// start runs a broker over a store.
func (w *world) start(s *store) {
	w.store = s
	w.broker = newBroker(w, s)
	w.judge.started()
	w.say("broker", "starts, incarnation %d", s.incarnation)
	w.broker.load()
}

// kill ends the broker; unless it is to stay down another starts over the same store.
func (w *world) kill(down time.Duration) {
	b := w.broker
	if b == nil {
		return
	}
	w.res.Kills++
	w.broker = nil
	b.stop()
	w.say("broker", "dies")
	w.after(down, func() {
		if w.broker == nil {
			w.start(w.store)
		}
	})
}

// restore puts the backup in the place of the store, under a higher incarnation.
func (w *world) restore(down time.Duration, haunt bool) {
	if w.backup == nil || w.broker == nil {
		return
	}
	old := w.broker
	w.broker = nil
	past := w.store
	s := w.backup.clone()
	switch { // it may have been restored before, from this very backup
	case w.broke(SameIncarnation):
		s.incarnation = past.incarnation
	case w.broke(NextOfBackup):
		s.incarnation++
	default:
		s.incarnation = past.incarnation + 1
	}
	w.store = s
	w.say("broker", "restored from the backup of transaction %d, %d are gone", s.seq, past.seq-s.seq)
	if haunt && w.ghost == nil {
		w.ghost = old
		w.after(time.Minute, func() {
			w.ghost.stop()
			w.ghost = nil
			w.say("ghost", "ends")
		})
	} else {
		old.stop()
	}
	w.judge.restored()
	w.after(down, func() {
		if w.broker == nil {
			w.start(s)
		}
	})
}

// act lets an act happen.
func (w *world) act(a Act) {
	if a.Deed == Cancel {
		w.clients[a.Host%len(w.clients)].cancel()
		return
	}
	m := w.hosts[a.Host%len(w.hosts)]
	p := m.proc()
	switch a.Deed {
	case Sleep:
		m.sleep(a.For)
	case Crash:
		m.crash(a.For)
	case Clone:
		if p != nil && !p.asleep {
			m.clone(p)
		}
	case Pause:
		if p != nil && !p.asleep {
			p.pause(a.For)
		}
	case Cut, Mute, Deaf:
		w.say(m.Name, "%s for %v", a.Deed, a.For)
		if a.Deed != Deaf {
			m.muteTill = max(m.muteTill, w.now+a.For)
		}
		if a.Deed != Mute {
			m.deafTill = max(m.deafTill, w.now+a.For)
		}
	case Break:
		if p != nil && p.conn != nil {
			w.say(m.Name, "its connection breaks")
			p.conn.snap()
		}
	case Forge:
		if p != nil && !p.asleep {
			p.forge()
		}
	case Turn:
		w.say(m.Name, "its wall clock jumps by %v", a.For)
		m.wall += a.For
	case Kill:
		w.kill(a.For)
	case Backup:
		if w.broker != nil {
			w.backup = w.store.clone()
			w.say("broker", "backup of transaction %d", w.store.seq)
		}
	case Restore, Haunt:
		w.restore(a.For, a.Deed == Haunt)
	}
}

// truth is what an honest machine answers for units of a job, and what it burns.
func truth(j *Job, id crowd.JobID, first, count uint64) (crowd.Digest, uint64) {
	return hash(id, first, count, 0), uint64(j.Gfuel*1e9) * count
}

// hash stands for the digest of an outcome; salt 0 is the true one.
func hash(id crowd.JobID, first, count, salt uint64) (d crowd.Digest) {
	x := first*0x9e3779b97f4a7c15 + count<<48 + salt*0xd1342543de82ef95
	for i := range id {
		x = mix(x ^ uint64(id[i])<<(i%8*8))
	}
	for i := 0; i < len(d); i += 8 {
		x = mix(x + 0x9e3779b97f4a7c15)
		for k := range 8 {
			d[i+k] = byte(x >> (8 * k))
		}
	}
	return d
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

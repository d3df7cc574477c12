package broker

import (
	"context"
	"slices"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// load takes up what the store holds: accounts, hosts and living jobs with their open chunks.
func (b *Broker) load(ctx context.Context) error {
	meta, err := b.st.Meta(ctx)
	if err != nil {
		return err
	}
	b.incarnation = meta.Incarnation
	accounts, err := b.st.Accounts(ctx)
	if err != nil {
		return err
	}
	for i := range accounts {
		b.accounts[accounts[i].ID] = &accounts[i]
	}
	hosts, err := b.st.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, row := range hosts {
		h := b.addHost(row)
		s, err := b.st.Session(ctx, row.ID)
		if err != nil && !crowd.KindIs(err, crowd.NotFound) {
			return err
		}
		h.session, h.dial, h.void = s.Session, s.Dial, s.Void
	}
	f := store.JobFilter{Living: true, Limit: 1000}
	for {
		jobs, err := b.st.Jobs(ctx, f)
		if err != nil {
			return err
		}
		for _, row := range jobs {
			if err := b.loadJob(ctx, row); err != nil {
				return err
			}
		}
		if len(jobs) < f.Limit {
			return nil
		}
		f.Before = jobs[len(jobs)-1].ID
	}
}

func (b *Broker) addHost(row crowd.Host) *host {
	h := &host{Host: row, group: b.groupOf(row.Account), voided: map[crowd.SessionID]bool{}, told: map[crowd.SessionID]bool{}, live: map[crowd.AttemptRef]*attempt{}, reporting: map[crowd.AttemptRef]bool{}, avoid: map[crowd.JobID]time.Time{}}
	b.hosts[row.ID] = h
	return h
}

// newJob is a job without any progress. Called with b.mu held, or before anybody else can.
func (b *Broker) newJob(row crowd.Job) *job {
	spec := row.Spec
	j := &job{
		Job: row, spec: &spec, order: sched.NewOrder(&row.Spec, b.groupOf(row.Account), row.PerGfuel), open: map[uint64]*chunk{},
		shares: map[crowd.HostID]*crowd.HostShare{}, earned: map[crowd.AccountID]crowd.UCR{}, reasons: map[crowd.Reason]int{},
		atWork: map[crowd.HostID]int{}, leasedTo: map[crowd.HostID]bool{}, deadline: row.Deadline, gone: make(chan struct{}),
	}
	j.left = row.Escrow
	return j
}

func (b *Broker) loadJob(ctx context.Context, row crowd.Job) error {
	j := b.newJob(row)
	p, err := b.st.JobProgress(ctx, j.ID)
	if err != nil {
		return err
	}
	if j.left, err = b.st.Balance(ctx, crowd.EscrowBook(j.ID)); err != nil {
		return err
	}
	j.Paid = j.Escrow - j.left
	j.next, j.runs = p.Next, slices.Clone(p.Runs)
	j.Version += 100 // above what was told since the last save
	if j.State == crowd.JobWaiting {
		j.resume = b.now()
	}
	if !j.Spec.Units.Items.IsZero() {
		if j.items, err = b.openItems(j.Spec.Units.Items); err != nil {
			return err
		}
	}
	for _, o := range p.Open {
		c := &chunk{Chunk: o.Chunk, job: j}
		j.open[c.First] = c
		for _, r := range o.Attempts {
			b.loadAttempt(c, r)
		}
		for _, u := range o.States {
			if c.states == nil {
				c.states = map[int]*crowd.UnitState{}
			}
			c.states[u.Lineage] = &u
			j.stateBytes += u.Size
		}
	}
	b.gaps(j, p.Holes())
	j.Progress.UnitsDone = 0
	for _, r := range j.runs {
		j.Progress.UnitsDone += r.Count
	}
	if j.units = j.Progress.UnitsDone; j.units > 0 && j.PerGfuel > 0 { // what was paid says how much a unit burns
		j.fuelSeen = float64(j.Paid) / float64(j.PerGfuel) * 1e9 / float64(j.order.Need)
	}
	if j.fuelSeen == 0 {
		j.units = 0
	}
	revisits, err := b.st.Revisits(ctx, j.ID)
	if err != nil {
		return err
	}
	for _, h := range revisits {
		b.revisit(j, h)
	}
	j.recountLater(p.Runs, p.Open)
	b.jobs[j.ID] = j
	b.ring.Add(j.Account, j.ID, 1)
	for _, c := range j.open {
		b.want(c)
	}
	j.Progress.AtWork = len(j.atWork)
	return nil
}

// loadAttempt takes up an attempt; a live one counts as held until Term+Skew from now.
func (b *Broker) loadAttempt(c *chunk, r crowd.Attempt) {
	h := b.hosts[r.Host]
	a := &attempt{Attempt: r, chunk: c, host: h}
	if r.Group == "" {
		a.Group = b.groupOf(r.Owner)
	}
	a.counts = r.Counts
	c.attempts = append(c.attempts, a)
	if h == nil {
		return
	}
	if now := b.now(); a.leased() || a.State == crowd.AttemptExpired { // what it held before this start counts, as far as its slots go
		held := now.Sub(a.LeasedAt).Seconds()
		h.longest = max(h.longest, held)
		h.bank = min(h.bank+held, h.longest*float64(max(1, h.Capacity.Slots)))
		h.banked = now
		if a.late = !a.leased(); a.late {
			h.late++
		}
	}
	if !a.leased() {
		return
	}
	a.network = h.Network
	a.until = lease.AfterStart(b.now())
	a.stop = a.LeasedAt.Add(7 * 24 * time.Hour)
	h.live[a.Ref()] = a
	b.live++
	c.job.atWork[h.ID]++
	b.watchExpiry(a)
}

// gaps opens chunks for units that were cut but never leased: a broker that died in between left no row.
func (b *Broker) gaps(j *job, holes []store.Run) {
	for _, r := range holes {
		for end := r.First + r.Count; r.First < end; {
			n := min(end-r.First, crowd.Limits.UnitsPerChunk)
			if j.items != nil {
				n = min(n, j.items.most(r.First, leaseBytes))
			}
			j.open[r.First] = &chunk{Chunk: crowd.Chunk{Job: j.ID, First: r.First, Count: n, Need: j.order.Need, State: crowd.ChunkOpen}, job: j}
			r.First += n
		}
	}
}

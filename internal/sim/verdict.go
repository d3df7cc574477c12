package sim

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/price"
	"github.com/crowdcloud/crowd/internal/quorum"
	"github.com/crowdcloud/crowd/internal/sched"
)

// accept counts a vote; with it the chunk may be decided and paid, hosts convicted, and jobs ended: one transaction.
func (b *broker) accept(j *jobRow, c *chunkRow, a *attemptRow, r *report, reply func()) {
	w := b.w
	late := a.State == crowd.AttemptExpired
	var rest []*hostRow
	b.act(func(t *tx) {
		b.drop(a)
		a.State, a.Reason, a.EndedAt, a.Digest, a.Fuel, a.counts = crowd.AttemptReported, "", w.clock(), r.digest, r.fuel, true
		b.say(b.name(a), "report chunk %s %s -> accepted", b.title(a.ref()), short(a.Digest))
		rest = b.weigh(t, j, c)
		if late && a.Paid > 0 && b.main() {
			w.res.Late++
		}
		if k := b.works[j.ID]; k != nil {
			k.losses = 0
		}
		t.tell(reply)
	})
	if len(rest) > 0 {
		b.act(func(t *tx) { b.consequences(t, rest) })
	}
}

// weigh takes the votes on an open chunk and draws the consequences. What it returns a mutation leaves for another transaction.
func (b *broker) weigh(t *tx, j *jobRow, c *chunkRow) (rest []*hostRow) {
	var cheats []*hostRow
	b.decide(t, j, c, &cheats)
	if b.w.broke(HalfConvicted) && len(cheats) > 0 {
		for _, h := range cheats {
			h.State, h.Reason = crowd.HostQuarantined, crowd.HostCheated
		}
		return cheats
	}
	b.consequences(t, cheats)
	return nil
}

// consequences convict hosts, and end the jobs that are done then.
func (b *broker) consequences(t *tx, cheats []*hostRow) {
	for len(cheats) > 0 {
		h := cheats[0]
		cheats = cheats[1:]
		b.convict(t, h, &cheats)
	}
	for _, j := range b.s.jobs {
		b.endIfDone(t, j)
	}
}

// decide gives a chunk its verdict, if its votes agree. Whom it proves wrong is added to cheats.
func (b *broker) decide(t *tx, j *jobRow, c *chunkRow, cheats *[]*hostRow) {
	if !j.open(c) {
		return
	}
	votes, by := b.votes(c)
	need := c.Need
	if b.w.broke(LowQuorum) {
		need--
	}
	v := quorum.Decide(votes, need)
	if v.Over {
		b.giveUp(t, j, c)
		return
	}
	if !v.Decided {
		return
	}
	gross := b.worth(j, c, by[v.Winners[0]])
	hoster, _, err := price.SplitFee(gross, feeBP)
	if err != nil {
		b.w.fail("the fee: %v", err)
		return
	}
	c.State, c.Digest, c.Decided = crowd.ChunkDecided, v.Digest, b.w.clock()
	if !b.w.broke(SameVersion) || c.Version == 0 {
		c.Version++
	}
	text := ""
	for _, i := range v.Winners {
		by[i].Paid = hoster
		if b.w.o.Trace {
			text += fmt.Sprintf(", %s +%s", b.w.names[by[i].Owner], price.FormatCredit(hoster))
		}
	}
	for _, i := range v.Losers {
		by[i].Paid, by[i].counts = 0, false
		if v.Convict {
			by[i].State, by[i].Reason = crowd.AttemptVoid, crowd.HostCheated
			*cheats = append(*cheats, b.s.hosts[by[i].index])
		}
	}
	for _, a := range c.attempts { // not wanted any more; what they say is kept, unpaid
		if a.leased() {
			b.end(a, crowd.AttemptExpired, "")
			b.drop(a)
			b.tellCancel(t, a, "")
		}
	}
	n := crowd.UCR(len(v.Winners))
	j.Paid += gross * n
	b.say("broker", "chunk %s v%d is %s%s", b.title(crowd.AttemptRef{Job: j.ID, First: c.First}), c.Version, short(c.Digest), text)
	b.post(b.verdictLegs(j, c))
	if k := b.works[j.ID]; k != nil {
		k.fuel += float64(by[v.Winners[0]].Fuel)
		k.units += c.Count
		k.known++
	}
}

// verdictLegs are the postings of a decided chunk, from its rows.
func (b *broker) verdictLegs(j *jobRow, c *chunkRow) ([]crowd.Posting, error) {
	var pays []ledger.Pay
	var fees crowd.UCR
	for _, a := range c.attempts {
		if a.Paid > 0 {
			pays = append(pays, ledger.Pay{Owner: a.Owner, Amount: a.Paid})
			fees += b.worth(j, c, a) - a.Paid
		}
	}
	legs, err := ledger.Verdict(j.ID, c.First, c.Version, pays, fees, c.Decided)
	if b.w.broke(RandomTxn) {
		for i := range legs {
			legs[i].Txn += fmt.Sprint(":", b.w.rng.Uint32())
		}
	}
	return legs, err
}

// worth is what an answer earns, before the fee.
func (b *broker) worth(j *jobRow, c *chunkRow, a *attemptRow) crowd.UCR {
	fuel := a.Fuel
	if c.Need <= 1 {
		fuel = price.WitnessedFuel(fuel, a.EndedAt.Sub(a.LeasedAt).Seconds(), sched.Speed(&b.s.hosts[a.index].Host))
	}
	pay, err := price.Pay(fuel, j.PerGfuel)
	if err != nil {
		b.w.fail("the pay: %v", err)
	}
	return pay
}

// post posts what the ledger says an event causes.
func (b *broker) post(legs []crowd.Posting, err error) {
	if err != nil {
		b.w.fail("the ledger: %v", err)
		return
	}
	b.s.post(legs)
}

// repost says the verdicts of a living job to the ledger again, as a broker may that doesn't know how far an earlier life came.
func (b *broker) repost(j *jobRow) {
	if j.State.Ended() {
		return
	}
	for _, c := range j.chunks {
		if c.State == crowd.ChunkDecided {
			b.post(b.verdictLegs(j, c))
		}
	}
}

// payLate is a mutation's: it pays what was decided without it.
func (b *broker) payLate(j *jobRow, c *chunkRow, a *attemptRow) {
	gross := b.worth(j, c, a)
	hoster, fee, err := price.SplitFee(gross, feeBP)
	if err != nil || j.State.Ended() || gross == 0 {
		return
	}
	legs, err := ledger.Verdict(j.ID, c.First, c.Version+1000*a.N, []ledger.Pay{{Owner: a.Owner, Amount: hoster}}, fee, b.w.clock())
	a.Paid = hoster
	j.Paid += gross
	b.post(legs, err)
}

// voidHeld takes every live attempt from a host.
func (b *broker) voidHeld(t *tx, p *peer, reason crowd.Reason) {
	for _, h := range slices.Clone(p.holds) {
		b.end(h.a, lease.Step(b.facts(h.j, h.c, h.a), lease.Void).State, reason)
		b.drop(h.a)
		b.say(p.row.Name, "chunk %s is void: %s", b.title(h.a.ref()), reason)
	}
	b.rouse = true
}

// convict quarantines a host and takes its word out of everything that isn't settled.
func (b *broker) convict(t *tx, h *hostRow, cheats *[]*hostRow) {
	if h.State == crowd.HostQuarantined && !b.w.broke(HalfConvicted) {
		return
	}
	h.State, h.Reason = crowd.HostQuarantined, crowd.HostCheated
	if b.main() {
		b.w.res.Convict++
	}
	b.say(h.Name, "is proved wrong: quarantined")
	for _, j := range b.s.jobs {
		if j.State.Ended() {
			continue
		}
		for _, c := range j.chunks {
			for _, a := range c.attempts {
				if a.index != h.index || b.w.broke(KeepVotes) && a.State == crowd.AttemptReported {
					continue
				}
				counted := a.counts && a.State == crowd.AttemptReported
				eff := lease.Step(b.facts(j, c, a), lease.Void)
				if a.State == eff.State {
					continue
				}
				a.State, a.Reason, a.counts = eff.State, crowd.HostCheated, false
				if eff.Drop {
					b.drop(a)
					b.tellCancel(t, a, crowd.HostCheated)
				}
				if eff.Revisit && counted {
					b.reopen(t, j, c, cheats)
				}
			}
		}
	}
	b.rouse = true
}

// reopen takes a verdict back; the votes that are left may decide it again at once.
func (b *broker) reopen(t *tx, j *jobRow, c *chunkRow, cheats *[]*hostRow) {
	txn := ledger.VerdictTxn(j.ID, c.First, c.Version)
	if b.w.broke(RandomTxn) {
		for name := range b.s.txns {
			if strings.HasPrefix(name, txn) {
				txn = name
			}
		}
	}
	legs := b.s.txns[txn]
	if !b.w.broke(NoReversal) {
		b.post(ledger.Reverse(legs, "", b.w.clock()))
	}
	if len(legs) > 0 {
		j.Paid += legs[0].Amount // the giver's leg is negative
	}
	if b.main() {
		b.w.res.Reopen++
	}
	c.State, c.Digest = crowd.ChunkOpen, crowd.Digest{}
	for _, a := range c.attempts {
		a.Paid = 0
	}
	b.say("broker", "chunk %s v%d is taken back", b.title(crowd.AttemptRef{Job: j.ID, First: c.First}), c.Version)
	b.decide(t, j, c, cheats)
}

// giveUp closes a chunk that can't be had.
func (b *broker) giveUp(t *tx, j *jobRow, c *chunkRow) {
	c.State, c.Version, c.Failed = crowd.ChunkFailed, c.Version+1, c.Count
	for _, a := range c.attempts {
		switch {
		case a.leased():
			b.end(a, crowd.AttemptExpired, "")
			b.drop(a)
			b.tellCancel(t, a, "")
		case a.State == crowd.AttemptReported:
			b.end(a, crowd.AttemptVoid, "")
		}
	}
	b.say("broker", "chunk %s is given up", b.title(crowd.AttemptRef{Job: j.ID, First: c.First}))
}

// endIfDone ends a job whose every unit is decided.
func (b *broker) endIfDone(t *tx, j *jobRow) {
	if !j.State.Ended() && j.done() {
		b.finish(t, j, crowd.JobDone, "")
	}
}

// finish ends a job: what was earned settles, the rest goes back.
func (b *broker) finish(t *tx, j *jobRow, state crowd.JobState, reason crowd.Reason) {
	earned := map[crowd.AccountID]crowd.UCR{}
	var owners []crowd.AccountID
	for _, c := range j.chunks {
		for _, a := range c.attempts {
			switch {
			case c.State == crowd.ChunkDecided && a.Paid > 0:
				if earned[a.Owner] == 0 {
					owners = append(owners, a.Owner)
				}
				earned[a.Owner] += a.Paid
			case a.leased():
				b.end(a, crowd.AttemptFailed, reason)
				b.drop(a)
				b.tellCancel(t, a, reason)
			case c.State == crowd.ChunkOpen && a.State == crowd.AttemptReported:
				b.end(a, crowd.AttemptVoid, reason)
			}
		}
	}
	slices.SortFunc(owners, func(x, y crowd.AccountID) int { return bytes.Compare(x[:], y[:]) })
	pays := make([]ledger.Pay, 0, len(owners))
	for _, id := range owners {
		pays = append(pays, ledger.Pay{Owner: id, Amount: earned[id]})
	}
	now := b.w.clock()
	b.post(ledger.Settle(j.ID, pays, now))
	rest := j.Escrow - j.Paid
	if !b.w.broke(KeepRest) {
		b.post(ledger.Refund(j.ID, j.Account, rest, now))
	}
	j.State, j.Reason, j.Ended, j.Returned = state, reason, now, rest
	b.ring.Remove(j.Account, j.ID)
	delete(b.works, j.ID)
	b.say("broker", "%s is %s: held %s, paid %s, returned %s", j.Name, state, price.FormatCredit(j.Escrow), price.FormatCredit(j.Paid), price.FormatCredit(rest))
}

// tellCancel ends an attempt at its host.
func (b *broker) tellCancel(t *tx, a *attemptRow, reason crowd.Reason) {
	p := b.peers[a.index]
	if c := p.conn; c != nil {
		word := crowd.Cancel{AttemptRef: a.ref(), Reason: reason}
		id := a.id
		t.tell(func() { c.toHost(func() { c.p.hearCancel(&word, id) }) })
		p.room++
		b.rouse = true
	}
}

// title is an attempt for people: "A:3.1" is the first at the chunk of A from unit 3 on.
type title struct {
	s *store
	r crowd.AttemptRef
}

func (t title) String() string {
	name := "?"
	if j := t.s.job(t.r.Job); j != nil {
		name = j.Name
	}
	if t.r.N == 0 {
		return fmt.Sprintf("%s:%d", name, t.r.First)
	}
	return fmt.Sprintf("%s:%d.%d", name, t.r.First, t.r.N)
}

// short is a digest for people.
type short crowd.Digest

func (s short) String() string { return crowd.Digest(s).Short() }

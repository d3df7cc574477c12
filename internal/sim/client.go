package sim

import (
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/price"
)

// client is a customer with one job: it asks until it is told, and orders again what a restore took.
type client struct {
	w       *world
	index   int
	plan    Job
	account crowd.AccountID
	phase   phase
	key     int // of its order, raised by each new one
	job     crowd.JobID
	asked   int
}

type phase int

const (
	idle phase = iota
	depositing
	ordering
	waiting
	told
)

const askEvery = 3 * time.Second

// cost is what the job may cost at most.
func (c *client) cost() crowd.UCR {
	_, _, high, err := price.Estimate(c.plan.Units, uint64(c.plan.Gfuel*1e9), c.plan.Quorum, perGfuel)
	if err != nil {
		c.w.fail("the estimate: %v", err)
	}
	return high
}

func (c *client) begin() {
	c.phase = depositing
	c.ask()
}

// ask says what is next, again and again until it has the result.
func (c *client) ask() {
	if c.phase == told {
		return
	}
	c.asked++
	n := c.asked
	c.w.after(askEvery, func() {
		if n == c.asked {
			c.ask()
		}
	})
	switch c.phase {
	case depositing:
		c.send(func(b *broker) { b.deposit(c) })
	case ordering:
		key := c.key
		c.send(func(b *broker) { b.order(c, key) })
	default:
		job := c.job
		c.send(func(b *broker) { b.look(c, job) })
	}
}

// cancel ends its job, if it is under way.
func (c *client) cancel() {
	if c.phase == waiting {
		job := c.job
		c.w.say("customer", "cancels %s", c.plan.Name)
		c.send(func(b *broker) { b.cancel(c, job) })
	}
}

// send carries a request; it may be lost or come twice.
func (c *client) send(f func(*broker)) {
	for range c.copies() {
		c.w.after(c.w.between(c.w.net.Least, c.w.net.Most), func() {
			if b := c.w.broker; b != nil {
				f(b)
				b.dispatch()
			}
		})
	}
}

// answer carries what the broker says.
func (c *client) answer(f func()) {
	for range c.copies() {
		c.w.after(c.w.between(c.w.net.Least, c.w.net.Most), f)
	}
}

func (c *client) copies() int {
	w := c.w
	switch {
	case w.calm():
	case w.chance(w.net.Drop):
		return 0
	case w.chance(w.net.Repeat):
		return 2
	}
	return 1
}

// next goes on to a phase.
func (c *client) next(from, to phase) {
	if c.phase == from {
		c.phase = to
		c.ask()
	}
}

// deposit grants a customer what its order may cost, once.
func (b *broker) deposit(c *client) {
	legs, err := ledger.Deposit("gift-"+c.plan.Name, c.account, c.cost(), b.w.clock())
	b.act(func(t *tx) {
		if len(legs) > 0 && b.w.broke(RandomTxn) {
			for i := range legs {
				legs[i].Txn += ":" + stamp(b.w.now)
			}
		}
		b.post(legs, err)
		t.tell(func() {
			b.judge(func(u *judge) { u.know(fact{kind: factTxn, txn: legs[0].Txn}) })
			c.answer(func() { c.next(depositing, ordering) })
		})
	})
}

// order takes an order, once for each key.
func (b *broker) order(c *client, key int) {
	var j *jobRow
	for _, x := range b.s.jobs {
		if x.owner == c.index && x.key == key {
			j = x
		}
	}
	ack := func() {
		id := j.ID
		b.judge(func(u *judge) { u.know(fact{kind: factOrder, job: id}) })
		c.answer(func() {
			if c.phase == ordering {
				c.job = id
			}
			c.next(ordering, waiting)
		})
	}
	if j != nil {
		ack()
		return
	}
	cost := c.cost()
	if b.s.books[crowd.BalanceBook(c.account)] < cost { // a restore took the deposit
		c.answer(func() { c.next(ordering, depositing) })
		return
	}
	j = &jobRow{key: key, owner: c.index, plan: c.plan}
	j.ID, j.Account, j.Name, j.Units = crowd.JobID(b.w.random()), c.account, c.plan.Name, c.plan.Units
	j.State, j.Escrow, j.PerGfuel, j.Created = crowd.JobQueued, cost, perGfuel, b.w.clock()
	b.act(func(t *tx) {
		b.post(ledger.Order(j.ID, c.account, cost, b.w.clock()))
		b.s.jobs = append(b.s.jobs, j)
		b.say("broker", "takes the order %s: %d units, quorum %d, held %s", j.Name, j.Units, c.plan.Quorum, price.FormatCredit(cost))
		t.tell(func() {
			b.take(j)
			ack()
		})
	})
}

// look tells a customer how its job is.
func (b *broker) look(c *client, id crowd.JobID) {
	j := b.s.job(id)
	if j == nil { // a restore took it: order again
		c.answer(func() {
			if c.phase == waiting && c.job == id {
				c.key++
				c.phase = depositing
				c.ask()
			}
		})
		return
	}
	b.judge(func(u *judge) {
		for _, k := range j.chunks {
			if k.State == crowd.ChunkDecided {
				u.know(fact{kind: factVerdict, job: id, first: k.First, version: k.Version, digest: k.Digest})
			}
		}
		if j.State.Ended() {
			u.know(fact{kind: factResult, job: id, state: j.State, paid: j.Paid, back: j.Returned})
		}
	})
	if j.State.Ended() {
		c.answer(func() {
			if c.job == id {
				c.next(waiting, told)
			}
		})
	}
}

// cancel ends a job by its customer's word.
func (b *broker) cancel(c *client, id crowd.JobID) {
	if j := b.s.job(id); j != nil && !j.State.Ended() && j.owner == c.index {
		b.act(func(t *tx) { b.finish(t, j, crowd.JobCancelled, crowd.CustomerCancel) })
	}
}

package sim

import (
	"time"

	"github.com/crowdcloud/crowd"
)

// conn is a connection of a process to a broker. Each end learns of its break by itself; what comes after is lost.
type conn struct {
	w      *world
	p      *proc
	b      *broker
	hello  crowd.Hello
	pair   *peer // the broker's side, once admitted
	up     bool  // the broker's end is open
	down   bool  // the host's end is closed
	broken bool  // nothing passes any more
}

// link is what a message's way is like now: how many copies arrive, and when.
func (c *conn) ways(out bool) []time.Duration {
	w, m := c.w, c.p.m
	if c.broken || out && w.now < m.muteTill || !out && w.now < m.deafTill {
		return nil
	}
	ways := []time.Duration{w.between(w.net.Least, w.net.Most)}
	if w.calm() {
		return ways
	}
	switch {
	case w.chance(w.net.Drop):
		return nil
	case w.chance(w.net.Delay):
		ways[0] += w.between(0, 3*time.Second)
	}
	if w.chance(w.net.Repeat) {
		ways = append(ways, ways[0]+w.between(0, 2*time.Second))
	}
	return ways
}

// toBroker carries a host's word. hear runs at the broker if the connection is still open there.
func (c *conn) toBroker(hear func()) {
	for _, d := range c.ways(true) {
		c.w.after(d, func() {
			if c.up && !c.b.dead {
				hear()
			}
		})
	}
}

// toHost carries a broker's word.
func (c *conn) toHost(hear func()) {
	for _, d := range c.ways(false) {
		c.w.after(d, func() {
			if !c.down && !c.p.dead {
				c.p.run(0, hear)
			}
		})
	}
}

// snap breaks the connection: nothing passes any more, and each end learns of it in its own time.
func (c *conn) snap() {
	if c.broken {
		return
	}
	c.broken = true
	n := &c.w.net
	first, second := n.HearBreak, c.w.between(n.HearBreak, n.HearLater)
	if c.w.chance(0.5) {
		first, second = second, first
	}
	c.w.after(first, c.endAtBroker)
	c.w.after(second, c.endAtHost)
}

// endAtBroker closes the broker's end.
func (c *conn) endAtBroker() {
	if !c.up {
		return
	}
	c.up = false
	if !c.b.dead && c.pair != nil {
		c.b.lost(c)
	}
	if !c.broken {
		c.snap()
	}
}

// endAtHost closes the host's end.
func (c *conn) endAtHost() {
	if c.down {
		return
	}
	c.down = true
	if !c.p.dead && c.p.conn == c {
		c.p.run(0, func() { c.p.unlinked(c) })
	}
	if !c.broken {
		c.snap()
	}
}

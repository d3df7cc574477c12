package lease

import "time"

// Clock is a host's own time, from samples of two clocks: one that also runs while the machine sleeps (boot) and the wall clock. It
// advances by the larger of both advances and never goes back, so that neither a boot clock that misses a sleep nor a wall clock
// that is set back makes a deadline seem farther than it is. The zero Clock stands at 0. Use it from one goroutine at a time.
type Clock struct {
	now  time.Duration
	boot time.Duration
	wall time.Time
	set  bool
}

// Advance takes a sample and returns the time since the first one. A wall clock's monotonic reading is ignored.
func (c *Clock) Advance(boot time.Duration, wall time.Time) time.Duration {
	wall = wall.Round(0)
	if c.set {
		c.now += max(0, boot-c.boot, wall.Sub(c.wall))
	}
	c.boot, c.wall, c.set = boot, wall, true
	return c.now
}

// Now is the time of the last sample.
func (c *Clock) Now() time.Duration { return c.now }

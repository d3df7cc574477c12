package sched

import (
	"math"

	"github.com/crowdcloud/crowd"
)

// Cut says how the next chunk of a job is cut.
type Cut struct {
	Fixed       uint64  // units per chunk as ordered; 0: auto
	Left        uint64  // units that were never cut
	Slots       int     // over all connected hosts that fit
	Replicas    int     // attempts per chunk
	FuelPerUnit float64 // learnt so far; 0: nothing known
	Speed       float64 // of the host, Gfuel/s
	Most        uint64  // what a lease can carry; 0: Limits.UnitsPerChunk
	Known       int64   // chunks decided so far
}

// Units is how many units the next chunk has: at least 1 (if any are left), as many as take ChunkSeconds at the host's speed, but few
// enough that the tail is short: at most what is left shared out twice over the slots.
func (c Cut) Units() uint64 {
	most := crowd.Limits.UnitsPerChunk
	if c.Most > 0 {
		most = min(most, c.Most)
	}
	most = min(most, c.Left)
	if c.Fixed > 0 {
		return min(c.Fixed, most)
	}
	n := uint64(1) // the first chunks only teach
	if c.Left > 64*uint64(max(c.Slots, 1)) {
		n = 4
	}
	if c.FuelPerUnit > 0 && c.Speed > 0 {
		want := math.Floor(crowd.ChunkSeconds * c.Speed * 1e9 / c.FuelPerUnit)
		n = uint64(max(1, min(want, float64(crowd.Limits.UnitsPerChunk))))
		if grow := uint64(4) << min(2*uint64(max(c.Known, 0)), 32); n > grow { // the first word of few units isn't trusted far
			n = grow
		}
	}
	slots := uint64(max(c.Slots, 1))
	if c.Replicas > 1 {
		slots = max(1, slots/uint64(c.Replicas))
	}
	tail := max(1, c.Left/(2*slots))
	return max(min(n, tail, most), min(1, c.Left))
}

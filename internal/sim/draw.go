package sim

import (
	"slices"
	"time"
)

var names = []string{"ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hal", "ivy", "jon"}

// steady is the network of a story: it does nothing by itself.
func steady() *Net {
	return &Net{Least: 20 * time.Millisecond, Most: 20 * time.Millisecond, Calm: time.Hour}
}

// draw fills in what the options leave to the seed.
func (w *world) draw() {
	o := &w.o
	if o.Hosts != nil {
		if o.Net == nil {
			o.Net = steady()
		}
		return
	}
	pick := func(n int) int { return w.rng.IntN(n) }
	o.Hosts = w.drawHosts()
	n := 1 + pick(3)
	if o.Jobs != nil {
		n = 0
	}
	for i := range n {
		o.Jobs = append(o.Jobs, Job{
			Name: string(rune('A' + i)), Units: uint64(3 + pick(20)), Chunk: []uint64{0, 0, 1, 2, 4}[pick(5)], Quorum: []int{1, 2, 2, 2, 3}[pick(5)],
			Gfuel: 1 + float64(pick(20)), At: w.between(0, 20*time.Second),
		})
	}
	calm := w.between(time.Minute, 4*time.Minute)
	if o.Net == nil {
		part := func(most float64) float64 { return w.rng.Float64() * most }
		o.Net = &Net{Least: 5 * time.Millisecond, Most: 80 * time.Millisecond, HearBreak: 50 * time.Millisecond, HearLater: 15 * time.Second,
			Drop: part(0.1), Repeat: part(0.15), Delay: part(0.15), Kill: part(0.03), Fails: part(0.03), Calm: calm}
	}
	if o.Acts == nil {
		o.Acts = w.drawActs(calm)
	}
}

// drawHosts: the first four are honest and of different groups, so that any quorum can be had; of the others anything may be.
func (w *world) drawHosts() (hosts []Host) {
	pick := func(n int) int { return w.rng.IntN(n) }
	n := 5 + pick(len(names)-4)
	for i := range n {
		h := Host{Name: names[i], Owner: "owner-" + names[i], Speed: 0.5 + 3*w.rng.Float64(), Slots: 1 + pick(3), Drift: (w.rng.Float64() - 0.5) / 100, Blind: w.chance(0.3)}
		if i >= 4 {
			switch pick(5) {
			case 0: // of an owner who is there already
				h.Owner = "owner-" + names[pick(i)]
			case 1: // of an owner who may be the same person
				h.Group = "owner-" + names[pick(4)]
			case 2, 3:
				h.Lies = 0.2 + 0.8*w.rng.Float64()
			}
		}
		if k := slices.IndexFunc(hosts, func(x Host) bool { return x.Owner == h.Owner }); k >= 0 {
			h.Group = hosts[k].Group
		}
		hosts = append(hosts, h)
	}
	if n >= 7 && w.chance(0.4) { // two of one group lie alike
		for i := n - 2; i < n; i++ {
			hosts[i] = Host{Name: names[i], Owner: "owner-" + names[i], Group: "liars", Speed: 3, Slots: 2, Lies: 0.7, Alike: true}
		}
	}
	return hosts
}

func (w *world) drawActs(calm time.Duration) (acts []Act) {
	for range 3 + w.rng.IntN(25) {
		a := Act{At: w.between(time.Second, calm), Deed: Deed(w.rng.IntN(int(numDeeds))), Host: w.rng.IntN(len(w.o.Hosts)), For: w.between(time.Second, 40*time.Second)}
		switch a.Deed {
		case Sleep:
			switch p := w.rng.Float64(); {
			case p < 0.04:
				a.For = w.between(time.Hour, 8*time.Hour)
			case p < 0.2:
				a.For = w.between(time.Minute, 20*time.Minute)
			}
		case Turn:
			if w.o.Hosts[a.Host].Blind { // a clock that sleeps and one that is set back can't be told from time that didn't pass
				continue
			}
			a.For = w.between(-time.Hour, time.Hour)
		case Cancel:
			if !w.chance(0.2) {
				continue
			}
		case Restore, Haunt:
			back := Act{At: w.between(time.Second, a.At), Deed: Backup}
			acts = append(acts, back)
			if !w.chance(0.6) {
				continue
			}
		}
		acts = append(acts, a)
	}
	slices.SortStableFunc(acts, func(a, b Act) int { return int(a.At - b.At) })
	return acts
}

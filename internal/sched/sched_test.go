package sched

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"pgregory.net/rapid"
)

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		host, rule string
		want       bool
	}{
		{"DE", "DE", true}, {"US-CA", "US", true}, {"US", "US-CA", false}, {"DE", "EU", true}, {"DE-BY", "EU", true}, {"CH", "EU", false},
		{"", "EU", false}, {"", "", false}, {"DE", "", false}, {"FR", "DE", false}, {"EU", "EU", false}, {"DEX", "DE", false},
	} {
		if got := Within(c.host, c.rule); got != c.want {
			t.Errorf("%q within %q: %v", c.host, c.rule, got)
		}
	}
}

func candidate(owner, place string) Candidate {
	return Candidate{
		Host: &crowd.Host{State: crowd.HostActive, Place: crowd.Place{Jurisdiction: place}, Platform: crowd.Platform{Device: "desktop"},
			Capacity: crowd.Capacity{Slots: 1, MemoryBytes: 1 << 30, Speed: 1}},
		Group: owner, Online: true, Ready: crowd.Ready, Room: 1, Memory: 1 << 30,
	}
}

func TestFits(t *testing.T) {
	order := func(change func(*crowd.JobSpec)) Order {
		s := &crowd.JobSpec{}
		change(s)
		return NewOrder(s, "ada", 1000)
	}
	any := func(*crowd.JobSpec) {}
	for _, c := range []struct {
		name  string
		order Order
		host  func(*Candidate)
		want  crowd.Reason
	}{
		{"fits", order(any), func(*Candidate) {}, ""},
		{"place", order(func(s *crowd.JobSpec) { s.Place.In = []string{"FR"} }), func(*Candidate) {}, crowd.CustomerPlace},
		{"evidence", order(func(s *crowd.JobSpec) { s.Place.Evidence = "contracted" }), func(*Candidate) {}, crowd.CustomerProof},
		{"unknown evidence", order(func(s *crowd.JobSpec) { s.Place.Evidence = "sworn" }), func(c *Candidate) { c.Host.Place.Evidence = crowd.Audited }, crowd.CustomerProof},
		{"device", order(func(s *crowd.JobSpec) { s.Devices = []string{"phone"} }), func(*Candidate) {}, crowd.HostDevice},
		{"memory", order(func(s *crowd.JobSpec) { s.Resources.Memory = 2 << 30 }), func(*Candidate) {}, crowd.HostSmall},
		{"memory now", order(any), func(c *Candidate) { c.Memory = 1 }, crowd.HostSmall},
		{"own", order(any), func(c *Candidate) { c.Group = "ada" }, crowd.CustomerSelf},
		{"own, unchecked", order(func(s *crowd.JobSpec) { s.Verify.None = true }), func(c *Candidate) { c.Group = "ada" }, ""},
		{"rate", order(func(s *crowd.JobSpec) { s.Price.Rate = 3_599_999 }), func(*Candidate) {}, crowd.CustomerPrice},
		{"rate is met", order(func(s *crowd.JobSpec) { s.Price.Rate = 3_600_000 }), func(*Candidate) {}, ""},
		{"cheat", order(any), func(c *Candidate) { c.Host.State = crowd.HostQuarantined }, crowd.HostCheated},
		{"left", order(any), func(c *Candidate) { c.Host.State = crowd.HostLeft }, crowd.OwnerLeft},
		{"offline", order(any), func(c *Candidate) { c.Online = false }, crowd.HostOffline},
		{"paused", order(any), func(c *Candidate) { c.Ready, c.Why = crowd.Paused, crowd.OwnerSchedule }, crowd.OwnerSchedule},
		{"busy", order(any), func(c *Candidate) { c.Room = 0 }, crowd.HostBusy},
	} {
		h := candidate("bob", "DE")
		c.host(&h)
		x := c.order.Now(&h)
		if x.Reason != c.want {
			t.Errorf("%s: %+v", c.name, x)
		}
		if _, known := crowd.Reasons[x.Reason]; x.Reason != "" && !known {
			t.Errorf("%s is in no registry", x.Reason)
		}
	}
}

func TestSatisfiable(t *testing.T) {
	hosts := []Candidate{candidate("a", "DE"), candidate("a", "DE"), candidate("b", "FR"), candidate("c", "FR")}
	for i := range hosts {
		hosts[i].Online = false // it may be asleep: queued, not refused
	}
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"FR", ""},
		{"DE", "quorum 2 wants hosts of 2 different owners; 1 is enrolled in DE: 1 more needed (customer.quorum)"},
		{"US", "none of 4 enrolled hosts fits: 4 not in US, and 2 different owners wanted (customer.place)"},
	} {
		s := &crowd.JobSpec{}
		if c.in != "" {
			s.Place.In = []string{c.in}
		}
		o := NewOrder(s, "ada", 1)
		got := ""
		if err := o.Satisfiable(hosts); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q", c.in, got)
		}
	}
	o := NewOrder(&crowd.JobSpec{}, "ada", 1)
	if err := o.Satisfiable(nil); err == nil || !strings.Contains(err.Error(), "0 are enrolled: 2 more needed") {
		t.Error(err)
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  Cut
		want uint64
	}{
		{"nothing left", Cut{}, 0},
		{"fixed", Cut{Fixed: 64, Left: 1000, Slots: 4}, 64},
		{"fixed, tail", Cut{Fixed: 64, Left: 10, Slots: 4}, 10},
		{"first", Cut{Left: 10, Slots: 4}, 1},
		{"first of many", Cut{Left: 1e9, Slots: 4}, 4},
		{"30 s", Cut{Left: 1e6, Slots: 4, FuelPerUnit: 1e9, Speed: 2, Known: 10}, 60},
		{"long unit", Cut{Left: 1e6, Slots: 4, FuelPerUnit: 1e13, Speed: 2, Known: 10}, 1},
		{"tiny unit", Cut{Left: 1e9, Slots: 4, FuelPerUnit: 1, Speed: 2, Known: 10}, 4096},
		{"few known", Cut{Left: 1e9, Slots: 4, FuelPerUnit: 1, Speed: 2, Known: 1}, 16},
		{"short tail", Cut{Left: 80, Slots: 10, FuelPerUnit: 1e9, Speed: 2, Known: 10}, 4},
		{"short tail, two votes each", Cut{Left: 80, Slots: 10, Replicas: 2, FuelPerUnit: 1e9, Speed: 2, Known: 10}, 8},
		{"what a lease carries", Cut{Left: 1e9, Slots: 4, FuelPerUnit: 1, Speed: 2, Known: 10, Most: 7}, 7},
	} {
		if got := c.cut.Units(); got != c.want {
			t.Errorf("%s: %d, wanted %d", c.name, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		c := Cut{
			Fixed: rapid.Uint64Range(0, 1<<40).Draw(t, "fixed"), Left: rapid.Uint64Range(0, 1<<40).Draw(t, "left"), Slots: rapid.IntRange(-1, 1e6).Draw(t, "slots"),
			Replicas: rapid.IntRange(0, 9).Draw(t, "replicas"), FuelPerUnit: rapid.Float64Range(0, 1e18).Draw(t, "fuel"), Speed: rapid.Float64Range(0, 1e4).Draw(t, "speed"),
			Known: rapid.Int64Range(0, 1<<40).Draw(t, "known"),
		}
		if n := c.Units(); n > c.Left || n > crowd.Limits.UnitsPerChunk || n == 0 && c.Left > 0 {
			t.Fatalf("%+v: %d", c, n)
		}
	})
}

func job(i int) crowd.JobID         { return crowd.JobID{byte(i), 1} }
func account(i int) crowd.AccountID { return crowd.AccountID{byte(i), 2} }

func TestRing(t *testing.T) {
	var r Ring
	r.Add(account(1), job(1), 1) // a thousand million units
	r.Add(account(1), job(2), 1)
	r.Add(account(2), job(3), 2)
	turn := func() (got int) {
		r.Next(func(j crowd.JobID) bool { got = int(j[0]); return true })
		return got
	}
	var turns []string
	for range 9 {
		turns = append(turns, fmt.Sprint(turn()))
	}
	counts := map[string]int{}
	for _, x := range turns {
		counts[x]++
	}
	if counts["3"] != 6 && counts["3"] != 5 || counts["1"]+counts["2"] < 3 || counts["1"]-counts["2"] > 1 || counts["2"]-counts["1"] > 1 {
		t.Errorf("turns: %v", turns)
	}
	r.Add(account(3), job(4), 1)
	seen := false
	for range 3 { // within its turn
		seen = seen || turn() == 4
	}
	if !seen {
		t.Error("a new job waits longer than a round")
	}
	for i, a := range []int{1, 1, 2, 3} {
		r.Remove(account(a), job(i+1))
	}
	if r.Len() != 0 || r.Next(func(crowd.JobID) bool { return true }) {
		t.Error("not empty")
	}
}

// Whatever comes and goes, a job that takes every offer gets its share: between two of its turns every other willing job had at most its weight.
func TestRingIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Ring
		in := map[int]int{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			j := rapid.IntRange(1, 12).Draw(t, "job")
			if a, ok := in[j]; ok {
				r.Remove(account(a), job(j))
				delete(in, j)
			} else {
				in[j] = j % 4
				r.Add(account(j%4), job(j), 1)
			}
			r.Next(func(crowd.JobID) bool { return true })
		}
		if len(in) == 0 {
			return
		}
		accounts := map[int]int{}
		for _, a := range in {
			accounts[a]++
		}
		most := 0
		for _, n := range accounts {
			most = max(most, n)
		}
		seen := map[int]bool{}
		for range 2 * len(accounts) * most {
			r.Next(func(j crowd.JobID) bool { seen[int(j[0])] = true; return true })
		}
		if len(seen) != len(in) {
			t.Fatalf("of %v only %v had a turn", in, seen)
		}
	})
}

func TestMayTake(t *testing.T) {
	me, other := crowd.HostID{1}, crowd.HostID{2}
	for _, c := range []struct {
		name  string
		tried []Tried
		ok    bool
		cost  int
	}{
		{"untouched", nil, true, 0},
		{"another owner", []Tried{{Group: "b", Host: other, Network: "m", Seat: true}}, true, 0},
		{"same network", []Tried{{Group: "b", Host: other, Network: "n", Seat: true}}, true, 1},
		{"own group votes", []Tried{{Group: "a", Host: other, Network: "m", Seat: true}}, false, 0},
		{"own group lost it", []Tried{{Group: "a", Host: other, Network: "m"}}, true, 1},
		{"it failed here just now", []Tried{{Group: "a", Host: me, Failed: true, Ago: time.Second}}, false, 0},
		{"it failed here once", []Tried{{Group: "a", Host: me, Failed: true, Ago: time.Minute}}, true, 1},
	} {
		if ok, cost := MayTake(Taker{Group: "a", Host: me, Network: "n"}, c.tried); ok != c.ok || cost != c.cost {
			t.Errorf("%s: %v, %d", c.name, ok, cost)
		}
	}
}

// Package sched plans: which job is next, which host fits it, how many units a chunk has, which open chunk a host takes. It is pure and
// knows no clock; what it is told is all that it knows.
package sched

import (
	"fmt"
	"slices"
	"strings"

	"github.com/crowdcloud/crowd"
)

// Order is what an order asks of hosts, taken from its spec once.
type Order struct {
	In       []string
	Evidence crowd.Evidence
	Devices  []string
	Memory   int64
	Group    string // of the account that orders
	Unvoted  bool   // verify: none
	Need     int
	Rate     crowd.UCR // most per core and hour; 0: any
	PerGfuel crowd.UCR
	Link     int // least version of the link
}

// NewOrder takes from a spec what hosts are measured against. group is the ordering account's.
func NewOrder(s *crowd.JobSpec, group string, perGfuel crowd.UCR) Order {
	o := Order{
		In: s.Place.In, Evidence: ParseEvidence(s.Place.Evidence), Devices: s.Devices, Memory: s.Resources.Memory,
		Group: group, Unvoted: s.Verify.None, Need: s.Verify.Need(), Rate: s.Price.Rate, PerGfuel: perGfuel,
	}
	if o.Memory == 0 {
		o.Memory = crowd.DefaultMemory
	}
	if s.CheckpointEvery() > 0 {
		o.Link = 2
	}
	return o
}

// Candidate is a host as the broker sees it now.
type Candidate struct {
	Host   *crowd.Host
	Group  string // its owner's
	Online bool
	Ready  crowd.Readiness
	Why    crowd.Reason // when it isn't ready
	Room   int          // attempts that it would take now
	Memory int64        // free for guests now
	Link   int          // version of the link that its agent speaks
}

// Speed is what a host is believed to do, in Gfuel/s per slot: shown by voted chunks, else claimed, else a modest guess.
func Speed(h *crowd.Host) float64 {
	switch {
	case h.Record.Speed > 0:
		return h.Record.Speed
	case h.Capacity.Speed > 0:
		return h.Capacity.Speed
	}
	return 0.5
}

var evidence = []string{"declared", "not-refuted", "contracted", "hardware-bound", "audited"}

// ParseEvidence reads a level's name; "" is declared. An unknown name is above all levels: it fails closed.
func ParseEvidence(s string) crowd.Evidence {
	if s == "" {
		return crowd.Declared
	}
	if i := slices.Index(evidence, s); i >= 0 {
		return crowd.Evidence(i)
	}
	return crowd.Audited + 1
}

// EvidenceName is the level's name.
func EvidenceName(e crowd.Evidence) string {
	if e < 0 || int(e) >= len(evidence) {
		return "unknown"
	}
	return evidence[e]
}

// The members of the European Union.
var union = strings.Fields("AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK")

// Within reports whether a host's jurisdiction lies in a rule's: "US-CA" in "US", "DE" in "EU"; never the other way round.
func Within(jurisdiction, rule string) bool {
	country, _, _ := strings.Cut(jurisdiction, "-")
	switch {
	case jurisdiction == "" || rule == "":
		return false
	case rule == "EU":
		return slices.Contains(union, country)
	}
	return jurisdiction == rule || country == rule
}

// Never says what keeps a host from an order for as long as both are what they are; Reason is empty if nothing does.
func (o *Order) Never(c *Candidate) crowd.Exclude {
	h := c.Host
	switch {
	case h.State == crowd.HostLeft:
		return exclude(crowd.OwnerLeft, "left the crowd", "")
	case h.State == crowd.HostQuarantined:
		reason := h.Reason
		if reason == "" {
			reason = crowd.HostCheated
		}
		return exclude(reason, "quarantined", "")
	case len(o.In) > 0 && !slices.ContainsFunc(o.In, func(in string) bool { return Within(h.Place.Jurisdiction, in) }):
		return exclude(crowd.CustomerPlace, "not in "+strings.Join(o.In, ", "), "place "+strings.Join(o.In, ", "))
	case h.Place.Evidence < o.Evidence:
		return exclude(crowd.CustomerProof, "place is only "+EvidenceName(h.Place.Evidence), "evidence "+EvidenceName(o.Evidence))
	case len(o.Devices) > 0 && !slices.Contains(o.Devices, h.Platform.Device):
		return exclude(crowd.HostDevice, "no "+strings.Join(o.Devices, ", "), "devices "+strings.Join(o.Devices, ", "))
	case h.Capacity.MemoryBytes < o.Memory:
		return exclude(crowd.HostSmall, "lends less memory", "memory "+bytesText(o.Memory))
	case !o.Unvoted && o.Group != "" && c.Group == o.Group:
		return exclude(crowd.CustomerSelf, "your own machine", fmt.Sprintf("quorum %d", o.Need))
	case o.Rate > 0 && Speed(h)*3600*float64(o.PerGfuel) > float64(o.Rate):
		return exclude(crowd.CustomerPrice, "costs more in an hour", "rate")
	}
	return crowd.Exclude{}
}

// Now says what keeps a host from taking a chunk of an order at this moment, what never changes first.
func (o *Order) Now(c *Candidate) crowd.Exclude {
	if x := o.Never(c); x.Reason != "" {
		return x
	}
	switch {
	case !c.Online:
		return exclude(crowd.HostOffline, "not connected", "")
	case c.Link < o.Link:
		return exclude(crowd.HostOld, "an older agent", "checkpoint")
	case c.Ready != crowd.Ready:
		why := c.Why
		if why == "" {
			why = crowd.OwnerPaused
		}
		return exclude(why, string(c.Ready), "")
	case c.Room <= 0:
		return exclude(crowd.HostBusy, "busy", "")
	case c.Memory < o.Memory:
		return exclude(crowd.HostSmall, "too little memory free now", "memory "+bytesText(o.Memory))
	}
	return crowd.Exclude{}
}

func exclude(r crowd.Reason, what, asked string) crowd.Exclude {
	return crowd.Exclude{Hosts: 1, Reason: r, What: what, Asked: asked}
}

// Tally counts what keeps each host away by test (Order.Now or Order.Never), most hosts first, and the different owners' groups that fit.
func Tally(hosts []Candidate, test func(*Candidate) crowd.Exclude) (fits, owners int, out []crowd.Exclude) {
	groups := map[string]bool{}
	for i := range hosts {
		x := test(&hosts[i])
		if x.Reason == "" {
			fits++
			groups[hosts[i].Group] = true
			continue
		}
		if k := slices.IndexFunc(out, func(y crowd.Exclude) bool { return y.Reason == x.Reason && y.What == x.What && y.Asked == x.Asked }); k >= 0 {
			out[k].Hosts++
		} else {
			out = append(out, x)
		}
	}
	slices.SortStableFunc(out, func(a, b crowd.Exclude) int {
		if a.Hosts != b.Hosts {
			return b.Hosts - a.Hosts
		}
		return strings.Compare(string(a.Reason)+a.What, string(b.Reason)+b.What)
	})
	return fits, len(groups), out
}

// Satisfiable says whether the enrolled hosts (online or not) could ever carry out an order; if not, the error tells what is missing.
func (o *Order) Satisfiable(hosts []Candidate) error {
	enrolled := slices.DeleteFunc(slices.Clone(hosts), func(c Candidate) bool { return c.Host.State != crowd.HostActive })
	fits, owners, out := Tally(enrolled, o.Never)
	if owners >= o.Need {
		return nil
	}
	where := ""
	if len(o.In) > 0 {
		where = " in " + strings.Join(o.In, ", ")
	}
	if fits == 0 && len(out) > 0 && out[0].Reason != crowd.CustomerSelf {
		x := out[0]
		for _, y := range out { // a place that nobody is in explains itself better than what else is wrong elsewhere
			if y.Reason == crowd.CustomerPlace {
				x = y
			}
		}
		e := crowd.Errorf(crowd.Failed, x.Reason, "none of %s fits: %d %s, and %s wanted", plural(len(enrolled), "enrolled host"), x.Hosts, x.What, owners2(o.Need))
		return e.WithHint("%s", crowd.Reasons[x.Reason].WayOut)
	}
	missing := o.Need - owners
	hint := fmt.Sprintf("wait for %d more", missing)
	if owners > 1 {
		hint = fmt.Sprintf("verify: {quorum: %d} · or %s", owners, hint)
	} else {
		hint = "verify: none, unchecked · or " + hint
	}
	if o.Unvoted {
		return crowd.Errorf(crowd.Failed, crowd.CustomerQuorum, "no host is enrolled%s", where).WithHint("crowd host token makes a link to join")
	}
	e := crowd.Errorf(crowd.Failed, crowd.CustomerQuorum, "quorum %d wants hosts of %s; %d %s enrolled%s: %d more needed",
		o.Need, owners2(o.Need), owners, isAre(owners), where, missing)
	return e.WithHint("%s", hint)
}

func owners2(n int) string {
	if n == 1 {
		return "1 owner"
	}
	return fmt.Sprintf("%d different owners", n)
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func plural(n int, s string) string {
	if n == 1 {
		return "1 " + s
	}
	return fmt.Sprintf("%d %ss", n, s)
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}

package broker

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/seal"
	"github.com/crowdcloud/crowd/internal/store"
)

const tokenTTL = time.Hour

// MakeToken makes a join link: one machine, within an hour at most.
func (b *Broker) MakeToken(ctx context.Context, c Caller, ttl time.Duration) (string, time.Time, error) {
	if err := need(c, crowd.ScopeLend); err != nil {
		return "", time.Time{}, err
	}
	if ttl <= 0 || ttl > tokenTTL {
		ttl = tokenTTL
	}
	secret := seal.NewToken()
	t := crowd.JoinToken{Hash: seal.Hash(secret), Account: c.Account.ID, Expires: b.now().Add(ttl)}
	if err := b.commit(ctx, store.PutToken{Token: t}); err != nil {
		return "", time.Time{}, err
	}
	link := seal.JoinLink{Broker: strings.TrimSuffix(b.cfg.URL, "/"), Token: secret, Fingerprint: seal.Fingerprint(b.cfg.Key.Public().(ed25519.PublicKey))}
	return link.String(), t.Expires, nil
}

var jurisdiction = regexp.MustCompile(`^[A-Z]{2}(-[A-Z0-9]{1,3})?$`)

// Join enrols a machine. remote is where it calls from.
func (b *Broker) Join(ctx context.Context, remote string, r crowd.JoinRequest) (crowd.Host, error) {
	if len(r.Key) != ed25519.PublicKeySize {
		return crowd.Host{}, invalid([]crowd.Fault{{Path: "key", Text: "wanted an Ed25519 public key of 32 bytes"}})
	}
	if err := checkName("name", r.Name); err != nil {
		return crowd.Host{}, err
	}
	if p := r.Place.Jurisdiction; p != "" && (!jurisdiction.MatchString(p) || p == "EU") {
		return crowd.Host{}, invalid([]crowd.Fault{{Path: "place", Text: fmt.Sprintf("wanted a country like DE or US-CA, found %q", clipText(p))}})
	}
	hash := seal.Hash(r.Token)
	t, err := b.st.Token(ctx, hash)
	if crowd.KindIs(err, crowd.NotFound) {
		return crowd.Host{}, crowd.Errorf(crowd.Denied, crowd.BrokerToken, "the join link is used up, expired or unknown").WithHint("ask for a new one: crowd host token")
	}
	if err != nil {
		return crowd.Host{}, err
	}
	row := crowd.Host{
		Account: t.Account, Name: r.Name, Key: slices.Clone(r.Key), Platform: cleanPlatform(r.Platform), Capacity: sane(r.Capacity),
		Place: crowd.Place{Jurisdiction: r.Place.Jurisdiction, Evidence: crowd.Declared}, Network: remote, State: crowd.HostActive, Created: b.now(),
	}
	mint(b, &row.ID)
	b.mu.Lock()
	owner := b.accounts[t.Account]
	n := 0
	taken := map[string]bool{}
	var twin error
	for _, h := range b.hosts {
		if h.State == crowd.HostLeft {
			continue
		}
		if string(h.Key) == string(row.Key) {
			whose := "by another account" // whose id isn't told
			if h.Account == t.Account {
				whose = "as " + h.ID.Short()
			}
			twin = crowd.Errorf(crowd.Conflict, crowd.HostCloned, "a machine with this key is enrolled already, %s", whose).WithHint("crowd host leave, then join again")
		}
		if h.Account == t.Account {
			n++
			taken[h.Name] = true
		}
	}
	b.mu.Unlock()
	switch {
	case owner == nil || owner.Banned != "":
		return crowd.Host{}, crowd.Errorf(crowd.Denied, crowd.PolicyForbid, "that account may not lend")
	case twin != nil:
		return crowd.Host{}, twin
	case n >= crowd.Limits.Hosts:
		return crowd.Host{}, crowd.Errorf(crowd.Exhausted, crowd.CustomerQuota, "%s has %d machines enrolled, the most there may be", owner.Name, n)
	}
	for i := 2; taken[row.Name]; i++ {
		row.Name = fmt.Sprintf("%s-%d", r.Name[:min(len(r.Name), crowd.Limits.NameBytes-4)], i)
	}
	ev := b.event(row.ID.String(), row.Account, "host.joined", "", fmt.Sprintf("%s joined from %s", row.Name, placeText(row.Place)), crowd.EventData{Host: row.ID})
	if err := b.commit(ctx, store.UseToken{Hash: hash, Now: b.now()}, store.PutHost{Host: row}, ev); err != nil {
		return crowd.Host{}, err
	}
	b.mu.Lock()
	b.addHost(row)
	b.mu.Unlock()
	return row, nil
}

func placeText(p crowd.Place) string {
	if p.Jurisdiction == "" {
		return "nowhere in particular"
	}
	return p.Jurisdiction
}

// row is a host for readers. Called with b.mu held.
func (b *Broker) hostRow(h *host) crowd.HostRow {
	r := crowd.HostRow{Host: h.Host, Online: h.conn != nil, Attempts: []crowd.Holding{}}
	if a := b.accounts[h.Account]; a != nil {
		r.Owner = a.Name
	}
	if r.Online {
		r.Ready, r.Why = h.ready, h.why
		for _, x := range h.holding {
			if h.live[x.AttemptRef] != nil {
				r.Attempts = append(r.Attempts, x)
			}
		}
	}
	return r
}

// Hosts lists the caller's machines, or all to an operator.
func (b *Broker) Hosts(_ context.Context, c Caller, all bool) ([]crowd.HostRow, error) {
	if all {
		if err := need(c, crowd.ScopeOperate); err != nil {
			return nil, err
		}
	} else if err := need(c, crowd.ScopeRead); err != nil {
		return nil, err
	}
	out := []crowd.HostRow{}
	b.mu.Lock()
	for _, h := range b.hosts {
		if h.State != crowd.HostLeft && (all || h.Account == c.Account.ID) {
			out = append(out, b.hostRow(h))
		}
	}
	b.mu.Unlock()
	slices.SortFunc(out, func(a, b crowd.HostRow) int { return strings.Compare(string(a.ID[:]), string(b.ID[:])) })
	return out, nil
}

// findHost finds a host that the caller may see, by id, short id or name. Called with b.mu held.
func (b *Broker) findHost(c Caller, ref string) (*host, error) {
	var found []*host
	for _, h := range b.hosts {
		if h.Account != c.Account.ID && !operates(c) {
			continue
		}
		if h.ID.String() == ref {
			return h, nil
		}
		if h.ID.Short() == ref || h.Name == ref && h.State != crowd.HostLeft {
			found = append(found, h)
		}
	}
	switch len(found) {
	case 0:
		return nil, notFound("host", ref)
	case 1:
		return found[0], nil
	}
	return nil, ambiguous(ref, found, func(h *host) string { return h.ID.String() })
}

// Host is one machine of the caller.
func (b *Broker) Host(_ context.Context, c Caller, ref string) (crowd.HostRow, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return crowd.HostRow{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h, err := b.findHost(c, ref)
	if err != nil {
		return crowd.HostRow{}, err
	}
	return b.hostRow(h), nil
}

// RemoveHost takes a machine out of the crowd; of one that left it changes nothing.
func (b *Broker) RemoveHost(ctx context.Context, c Caller, ref string) error {
	if err := need(c, crowd.ScopeLend); err != nil && !operates(c) {
		return err
	}
	b.mu.Lock()
	h, err := b.findHost(c, ref)
	if err != nil || h.State == crowd.HostLeft {
		b.mu.Unlock()
		return err
	}
	ops := b.removeHost(h, c.Account.ID.String(), crowd.OwnerLeft)
	s := h.conn
	b.mu.Unlock()
	err = b.commit(ctx, ops...)
	if s != nil {
		s.end(&crowd.Problem{Kind: crowd.Denied.String(), Reason: crowd.OwnerLeft, Text: "this machine was taken out of the crowd", Hint: "join again: crowd host join LINK", Final: true})
	}
	return err
}

// removeHost makes a host leave: its attempts count as returned by its owner. Called with b.mu held; the ops are to be committed.
func (b *Broker) removeHost(h *host, actor string, reason crowd.Reason) []store.Op {
	h.State, h.Reason, h.room, h.dirty = crowd.HostLeft, reason, 0, true
	for _, a := range h.live {
		a.chunk.when(func() {
			if a.leased() && h.live[a.Ref()] == a {
				b.endAttempt(a, crowd.AttemptFailed, reason, "")
			}
		})
	}
	ev := b.event(h.ID.String(), h.Account, "host.left", reason, h.Name+" left the crowd", crowd.EventData{Host: h.ID})
	ev.Event.Actor = actor
	return []store.Op{store.PutHost{Host: h.Host}, ev}
}

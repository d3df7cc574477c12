package broker

import (
	"context"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// Quote says what an order would cost and who fits, without holding anything but the price.
func (b *Broker) Quote(ctx context.Context, c Caller, spec crowd.JobSpec) (crowd.Quote, error) {
	if err := need(c, crowd.ScopeOrder); err != nil {
		return crowd.Quote{}, err
	}
	order, _, units, err := b.examine(ctx, c, &spec, b.cfg.PerGfuel)
	if err != nil {
		return crowd.Quote{}, err
	}
	canonical := crowd.Canonical(&spec)
	q := crowd.Quote{Account: c.Account.ID, Spec: digest.Of(canonical), Until: b.now().Add(15 * time.Minute), PerGfuel: b.cfg.PerGfuel}
	mint(b, &q.ID)
	b.mu.Lock()
	hosts := b.candidates()
	q.Hosts = len(hosts)
	var owners int
	q.Fits, owners, q.Excluded = sched.Tally(hosts, order.Now)
	speed := 0.0
	for i := range hosts {
		if order.Never(&hosts[i]).Reason == "" && hosts[i].Online {
			speed += sched.Speed(hosts[i].Host) * float64(max(1, hosts[i].Host.Capacity.Slots))
		}
	}
	fuel := b.learnt[spec.Program]
	b.mu.Unlock()
	if q.Excluded == nil {
		q.Excluded = []crowd.Exclude{}
	}
	q.High = spec.Price.Max
	if fuel > 0 {
		if q.Low, q.Likely, q.High, err = b.estimate(units, fuel, order.Need); err != nil {
			return crowd.Quote{}, err
		}
		if speed > 0 && owners >= order.Need {
			q.Seconds = float64(units) * fuel * float64(order.Need) / 1e9 / speed
		}
	}
	return q, b.commit(ctx, store.PutQuote{Quote: q})
}

// heldPrice is the price of a quote that the caller was given and the spec that it was made for; without a quote, the broker's price and no spec. A
// quote that isn't the caller's is NotFound, one that isn't held any more a Conflict.
func (b *Broker) heldPrice(ctx context.Context, c Caller, ref string) (perGfuel crowd.UCR, spec crowd.Digest, err error) {
	if ref == "" {
		return b.cfg.PerGfuel, spec, nil
	}
	var id crowd.QuoteID
	if !parseID(ref, &id) {
		return 0, spec, notFound("quote", ref)
	}
	q, err := b.st.Quote(ctx, id)
	switch {
	case crowd.KindIs(err, crowd.NotFound) || err == nil && q.Account != c.Account.ID:
		return 0, spec, notFound("quote", ref)
	case err != nil:
		return 0, spec, err
	case !b.now().Before(q.Until):
		return 0, spec, crowd.Errorf(crowd.Conflict, "", "%s was held until %s", ref, q.Until.UTC().Format(time.RFC3339)).WithHint("ask for a new one, or order without it")
	}
	return q.PerGfuel, q.Spec, nil
}

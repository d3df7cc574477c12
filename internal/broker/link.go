package broker

import (
	"context"
	"net/http"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
)

var _ wire = (*link.Conn)(nil)

// LinkHandler serves hosts' WebSockets.
func (b *Broker) LinkHandler() http.Handler {
	gate := &link.Gate{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		bearer := seal.NewBearer()
		c, hello, err := link.Accept(w, r, link.AcceptOptions{
			Key: b.cfg.Key, Incarnation: b.incarnation, Gate: gate,
			Lookup: func(_ context.Context, id crowd.HostID) ([]byte, error) { return b.lookup(id) },
			Admit: func(ctx context.Context, h *crowd.Hello, _ bool) (crowd.Welcome, error) {
				if err := b.letIn(h.Host); err != nil {
					return crowd.Welcome{}, err
				}
				return crowd.Welcome{Term: crowd.Term, Bearer: bearer}, b.admit(ctx, h)
			},
		})
		if err != nil {
			b.log.Info("a host's connection was refused", "from", r.RemoteAddr, "err", err)
			return
		}
		b.mu.Lock()
		closing := b.closing
		if !closing {
			b.conns.Add(1)
		}
		b.mu.Unlock()
		if closing {
			c.Close(&crowd.Problem{Kind: crowd.Unavailable.String(), Reason: crowd.BrokerRestarted, Text: "the broker stops; dial again"})
			return
		}
		network := link.Network(r.RemoteAddr)
		go func() { // Run waits for it
			defer b.conns.Done()
			b.serve(context.Background(), &judged{Conn: c, b: b, bearer: bearer}, *hello, bearer, network)
		}()
	})
}

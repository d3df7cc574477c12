package link

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/crowdcloud/crowd"
)

// TestSkew: an agent and a broker of different releases speak the highest version that both do; what they don't know is ignored.
func TestSkew(t *testing.T) {
	var now []int // as this release
	for _, w := range []struct {
		agent, broker []int
		want          int // 0: they have none in common
	}{
		{now, now, crowd.ProtocolVersion},
		{[]int{1}, now, 1},           // an old agent
		{now, []int{1}, 1},           // an old broker
		{[]int{7, 3, 2, 1}, now, 2},  // agents and brokers of the future
		{now, []int{7, 3, 2, 1}, 2},  //
		{[]int{-1, 1, 0, 1}, now, 1}, // nonsense
		{[]int{9, 8}, now, 0},
		{now, []int{9}, 0},
		{[]int{}, now, 0},
	} {
		t.Run(fmt.Sprint(w.agent, w.broker), func(t *testing.T) {
			b := newBroker(t, true)
			var said []int
			b.versions, b.admit = w.broker, func(h *crowd.Hello, _ bool) error {
				said = h.Versions
				if v := Version(h); w.broker == nil && v != w.want {
					t.Errorf("the broker will say version %d", v)
				}
				return nil
			}
			o := b.options(t)
			o.versions = w.agent
			c, welcome, err := Dial(t.Context(), o)
			if w.want == 0 {
				var closed *Closed
				if !errors.As(err, &closed) || closed.Problem.Kind != crowd.Invalid.String() || closed.Problem.Hint == "" {
					t.Fatal(err)
				}
				<-b.errs
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			far := <-b.conns
			if welcome.Version != w.want || !slices.Equal(said, spoken(w.agent)) {
				t.Errorf("version %d after %v", welcome.Version, said)
			}
			if err := c.Send(&crowd.Message{Renew: &crowd.Renew{N: 1, State: crowd.Ready}}); err != nil {
				t.Error(err)
			}
			if m, err := far.Receive(t.Context()); err != nil || m.Renew == nil {
				t.Error(m, err)
			}
			c.Close(nil)
			far.Close(nil)
			<-c.Done()
			<-far.Done()
		})
	}
}

// TestSeen: the agent learns the broker's incarnation from a broker that has proven its key, and from no other; it may refuse it.
func TestSeen(t *testing.T) {
	b := newBroker(t, true)
	o := b.options(t)
	var seen []int64
	o.Seen = func(n int64) error { seen = append(seen, n); return nil }
	connect(t, b, o)
	old := crowd.Errorf(crowd.Unavailable, crowd.BrokerOld, "older than before")
	o.DialNumber, o.Seen = 2, func(int64) error { return old }
	if _, _, err := Dial(t.Context(), o); !errors.Is(err, old) {
		t.Error(err)
	}
	far := <-b.conns // admitted, then left
	if _, err := far.Receive(t.Context()); err == nil {
		t.Error("the agent stays")
	}
	<-far.Done()

	// somebody who knows the key but hasn't got it
	liar := newBroker(t, false)
	liar.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := Accept(w, r, AcceptOptions{
			Key: append(slices.Clone(liar.key[:32]), b.key[32:]...), Incarnation: 99,
			Lookup: func(context.Context, crowd.HostID) ([]byte, error) { return b.hosts[o.Host], nil },
			Admit:  func(context.Context, *crowd.Hello, bool) (crowd.Welcome, error) { return crowd.Welcome{}, nil },
		})
		if err == nil {
			_, err = c.Receive(context.Background())
			<-c.Done()
		}
		liar.errs <- err
	})
	o.URL, o.TLS, o.Seen = liar.URL, nil, func(n int64) error { seen = append(seen, n); return nil }
	if _, _, err := Dial(t.Context(), o); crowd.AsError(err).Reason != crowd.BrokerKey {
		t.Error(err)
	}
	<-liar.errs
	if !slices.Equal(seen, []int64{1}) {
		t.Error(seen)
	}
}

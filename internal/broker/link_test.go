package broker

import (
	"context"
	"crypto/ed25519"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
)

// Over a real WebSocket and TLS, in real time: two hosts carry out a job, and a second dial with the same number voids the session.
func TestOverTheLink(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.close()
	cert, err := seal.Certificate(w.key, "127.0.0.1")
	must(t, err)
	srv := httptest.NewUnstartedServer(w.b.LinkHandler())
	srv.TLS = seal.ServerTLS(cert)
	srv.StartTLS()
	defer srv.Close()
	print := seal.Fingerprint(w.key.Public().(ed25519.PublicKey))
	dial := func(f *fake, n int64) (*link.Conn, error) {
		c, _, err := link.Dial(context.Background(), link.DialOptions{
			URL: srv.URL, TLS: seal.PinnedTLS(print), Pin: seal.Pin(print), Key: f.key, Host: f.host.ID, Session: f.session, DialNumber: n,
		})
		return c, err
	}
	var conns []*link.Conn
	for _, f := range w.owners("alice", "bob") {
		c, err := dial(f, 1)
		must(t, err)
		conns = append(conns, c)
		f.takes = time.Millisecond
		go bridge(f, c)
	}
	if j := w.done(w.submit(w.spec(20)), 20*time.Second); j.State != crowd.JobDone || j.Paid != 40_000 {
		t.Errorf("%s, paid %d", j.State, j.Paid)
	}
	_, err = dial(w.fakes[0], 1)
	wantErr(t, err, crowd.Denied, crowd.HostCloned)
	select {
	case <-conns[0].Done():
	case <-time.After(10 * time.Second):
		t.Error("the first connection of a forked session lives")
	}
	evil := &fake{key: w.fakes[0].key, host: w.fakes[1].host, session: w.fakes[1].session}
	if _, err = dial(evil, 2); !crowd.KindIs(err, crowd.Denied) {
		t.Errorf("a host with another's key: %v", err)
	}
	conns[1].Close(nil)
}

// bridge lets a fake host speak over a connection.
func bridge(f *fake, c *link.Conn) {
	p := &pipe{up: make(chan *crowd.Message), down: make(chan *crowd.Message, 100), gone: make(chan struct{})}
	f.mu.Lock()
	f.conn = p
	f.mu.Unlock()
	go f.listen(p)
	go f.renewals(p, nil)
	go func() {
		for {
			select {
			case m := <-p.up:
				_ = c.Send(m)
			case <-p.gone:
				c.Close(nil)
				return
			}
		}
	}()
	for {
		m, err := c.Receive(context.Background())
		if err != nil {
			p.Close(nil)
			return
		}
		p.down <- m
	}
}

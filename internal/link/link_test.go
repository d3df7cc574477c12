package link

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker is the far end: it accepts links and hands them to the test.
type broker struct {
	*httptest.Server
	key   ed25519.PrivateKey
	hosts map[crowd.HostID]ed25519.PublicKey
	conns chan *Conn
	errs  chan error
	gate  Gate
	admit func(*crowd.Hello, bool) error

	versions []int
}

func newBroker(t testing.TB, secure bool) *broker {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	b := &broker{key: key, hosts: map[crowd.HostID]ed25519.PublicKey{}, conns: make(chan *Conn, 100), errs: make(chan error, 100)}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := Accept(w, r, AcceptOptions{
			Key: b.key, Incarnation: 1, Gate: &b.gate, versions: b.versions,
			Lookup: func(_ context.Context, id crowd.HostID) ([]byte, error) {
				if p, ok := b.hosts[id]; ok {
					return p, nil
				}
				return nil, crowd.Errorf(crowd.NotFound, "", "no such host")
			},
			Admit: func(_ context.Context, h *crowd.Hello, unbound bool) (crowd.Welcome, error) {
				if b.admit != nil {
					if err := b.admit(h, unbound); err != nil {
						return crowd.Welcome{}, err
					}
				}
				return crowd.Welcome{Bearer: "b"}, nil
			},
		})
		if err != nil {
			b.errs <- err
			return
		}
		b.conns <- c
	}))
	b.Config.ErrorLog = discard()
	if secure {
		cert, err := seal.Certificate(key, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		b.TLS = seal.ServerTLS(cert)
		b.StartTLS()
	} else {
		b.Start()
	}
	t.Cleanup(b.Close)
	return b
}

func (b *broker) options(t testing.TB) DialOptions {
	t.Helper()
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	o := DialOptions{URL: b.URL, Key: key, DialNumber: 1}
	_, _ = rand.Read(o.Host[:])
	_, _ = rand.Read(o.Session[:])
	fp := seal.Fingerprint(b.key.Public().(ed25519.PublicKey))
	o.TLS, o.Pin = seal.PinnedTLS(fp), seal.Pin(fp)
	b.hosts[o.Host] = pub
	return o
}

func connect(t testing.TB, b *broker, o DialOptions) (host, far *Conn) {
	t.Helper()
	c, w, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if w.Bearer != "b" || w.Term != crowd.Term {
		t.Fatalf("welcome %+v", w)
	}
	far = <-b.conns
	t.Cleanup(func() {
		c.Close(nil)
		far.Close(nil)
		<-c.Done()
		<-far.Done()
	})
	return c, far
}

func TestTalk(t *testing.T) {
	for _, secure := range []bool{true, false} {
		b := newBroker(t, secure)
		unbound := false
		b.admit = func(h *crowd.Hello, u bool) error { unbound = u; return nil }
		host, far := connect(t, b, b.options(t))
		if unbound == secure {
			t.Errorf("TLS %v, unbound %v", secure, unbound)
		}
		for n := range int64(300) {
			if err := host.Send(&crowd.Message{Renew: &crowd.Renew{N: n, State: crowd.Ready}}); err != nil {
				t.Fatal(err)
			}
			m, err := far.Receive(t.Context())
			if err != nil || m.Renew == nil || m.Renew.N != n {
				t.Fatal(m, err)
			}
			if err := far.Send(&crowd.Message{Answer: &crowd.Answer{N: n}}); err != nil {
				t.Fatal(err)
			}
			if m, err = host.Receive(t.Context()); err != nil || m.Answer == nil || m.Answer.N != n {
				t.Fatal(m, err)
			}
		}
		big := &crowd.JobSpec{Args: []string{strings.Repeat("x", 100<<10)}}
		if err := far.Send(&crowd.Message{Lease: &crowd.Lease{Spec: big}}); err != nil {
			t.Fatal(err)
		}
		if m, err := host.Receive(t.Context()); err != nil || len(m.Lease.Spec.Args[0]) != 100<<10 {
			t.Fatal(err)
		}
		far.Close(&crowd.Problem{Kind: "unavailable", Reason: crowd.BrokerDrained, Text: "gone to lunch"})
		_, err := host.Receive(t.Context())
		var c *Closed
		if !errors.As(err, &c) || c.Problem.Text != "gone to lunch" || !crowd.KindIs(err, crowd.Unavailable) {
			t.Error(err)
		}
		if err := host.Send(&crowd.Message{Leave: &crowd.Leave{}}); err == nil {
			t.Error("sent on a closed connection")
		}
		if _, err := far.Receive(t.Context()); err == nil {
			t.Error("received on a closed connection")
		}
	}
}

func TestLeaveByContext(t *testing.T) {
	b := newBroker(t, true)
	host, far := connect(t, b, b.options(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := host.Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := far.Receive(t.Context()); !crowd.KindIs(err, crowd.Unavailable) || crowd.AsError(err).Reason != crowd.NetworkHost {
		t.Error(err)
	}
}

func wantClosed(t *testing.T, err error, kind crowd.ErrKind, reason crowd.Reason, text string) {
	t.Helper()
	e := crowd.AsError(err)
	if e == nil || e.Kind != kind || e.Reason != reason || !strings.Contains(e.Message, text) {
		t.Errorf("got %v (%v), wanted %v %s %q", err, e, kind, reason, text)
	}
}

func TestHandshakeRefusals(t *testing.T) {
	b := newBroker(t, true)
	t.Run("unknown host", func(t *testing.T) {
		o := b.options(t)
		delete(b.hosts, o.Host)
		_, _, err := Dial(t.Context(), o)
		wantClosed(t, err, crowd.NotFound, "", "no such host")
	})
	t.Run("another key", func(t *testing.T) {
		o := b.options(t)
		_, o.Key, _ = ed25519.GenerateKey(rand.Reader)
		_, _, err := Dial(t.Context(), o)
		wantClosed(t, err, crowd.Denied, "", "proof isn't that of")
		var c *Closed
		if !errors.As(err, &c) || !c.Problem.Final {
			t.Error("not final")
		}
	})
	t.Run("another broker's certificate", func(t *testing.T) {
		o := b.options(t)
		o.TLS = seal.PinnedTLS(seal.Fingerprint(make([]byte, 32)))
		_, _, err := Dial(t.Context(), o)
		wantClosed(t, err, crowd.Denied, crowd.BrokerKey, "pinned")
	})
	t.Run("another broker behind the certificate", func(t *testing.T) {
		o := b.options(t)
		o.Pin = seal.Pin(seal.Fingerprint(make([]byte, 32)))
		_, _, err := Dial(t.Context(), o)
		wantClosed(t, err, crowd.Denied, crowd.BrokerKey, "pinned")
	})
	t.Run("not admitted", func(t *testing.T) {
		b.admit = func(*crowd.Hello, bool) error { return crowd.Errorf(crowd.Conflict, crowd.HostCloned, "a fork") }
		defer func() { b.admit = nil }()
		_, _, err := Dial(t.Context(), b.options(t))
		wantClosed(t, err, crowd.Conflict, crowd.HostCloned, "fork")
	})
	t.Run("insides stay inside", func(t *testing.T) {
		b.admit = func(*crowd.Hello, bool) error { return crowd.Errorf(crowd.Internal, "", "disk /secret is full") }
		defer func() { b.admit = nil }()
		_, _, err := Dial(t.Context(), b.options(t))
		wantClosed(t, err, crowd.Internal, "", "the broker failed")
	})
	t.Run("no TLS to elsewhere", func(t *testing.T) {
		o := b.options(t)
		o.URL = "http://198.51.100.1:1"
		_, _, err := Dial(t.Context(), o)
		wantClosed(t, err, crowd.Denied, "", "without TLS")
	})
	t.Run("nobody there", func(t *testing.T) {
		o := b.options(t)
		o.URL = "https://127.0.0.1:1"
		_, _, err := Dial(t.Context(), o)
		wantClosed(t, err, crowd.Unavailable, crowd.NetworkBroker, "doesn't answer")
	})
	t.Run("a browser", func(t *testing.T) {
		r, _ := http.NewRequest(http.MethodGet, b.URL+Path, nil)
		r.Header.Set("Origin", "https://evil.example")
		resp, err := b.Client().Do(r)
		if err != nil || resp.StatusCode != http.StatusForbidden {
			t.Error(resp, err)
		}
		resp.Body.Close()
	})
}

// rawDial is a WebSocket to the broker without our handshake.
func rawDial(t *testing.T, b *broker) (*websocket.Conn, *tls.Conn) {
	t.Helper()
	o := b.options(t)
	tr := &transport{opts: &o}
	ws, _, err := websocket.Dial(t.Context(), b.URL+Path, &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(1 << 20)
	t.Cleanup(func() { ws.CloseNow() })
	return ws, tr.conn.(*tls.Conn)
}

func readProblem(t *testing.T, ws *websocket.Conn) *crowd.Problem {
	t.Helper()
	for {
		_, p, err := ws.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m, err := decode(p)
		if err != nil {
			t.Fatal(err)
		}
		if m.Problem != nil {
			return m.Problem
		}
	}
}

// TestReplayAndRelay: a hello that was good on one connection is worthless on another, be it heard or passed on.
func TestReplayAndRelay(t *testing.T) {
	b := newBroker(t, true)
	o := b.options(t)

	// the man in the middle has a TLS server of his own and passes every frame on
	var hello []byte
	evil := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		victim, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer victim.CloseNow()
		up, _ := rawDial(t, b)
		_, challenge, err := up.Read(r.Context())
		if err != nil {
			t.Error(err)
			return
		}
		_ = victim.Write(r.Context(), websocket.MessageText, challenge)
		if _, hello, err = victim.Read(r.Context()); err != nil {
			t.Error(err)
			return
		}
		_ = up.Write(r.Context(), websocket.MessageText, hello)
		if p := readProblem(t, up); p.Kind != crowd.Denied.String() || !strings.Contains(p.Text, "proof isn't that of") {
			t.Errorf("relay: %+v", p)
		}
		_ = victim.Close(websocket.StatusNormalClosure, "")
	}))
	evil.StartTLS()
	defer evil.Close()
	o.URL = evil.URL
	o.TLS = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} // a victim that pins nothing
	if _, _, err := Dial(t.Context(), o); !crowd.KindIs(err, crowd.Unavailable) {
		t.Error("dialled through the man in the middle:", err)
	}

	again, _ := rawDial(t, b)
	if _, _, err := again.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = again.Write(t.Context(), websocket.MessageText, hello)
	if p := readProblem(t, again); p.Kind != crowd.Denied.String() || !p.Final {
		t.Errorf("replay: %+v", p)
	}
}

func TestBadHello(t *testing.T) {
	b := newBroker(t, true)
	for _, c := range []struct{ name, send, want string }{
		{"large", `{"leave":{},"x":"` + strings.Repeat("x", crowd.Limits.HelloBytes) + `"}`, "beyond 1024 bytes"},
		{"another word", `{"leave":{}}`, "wanted a hello"},
		{"nonsense", `nonsense`, "malformed"},
		{"two words", `{"leave":{},"renew":{}}`, "exactly one word"},
		{"empty", `{"hello":{}}`, "wanted a hello"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ws, _ := rawDial(t, b)
			_ = ws.Write(t.Context(), websocket.MessageText, []byte(c.send))
			if p := readProblem(t, ws); p.Kind != "invalid" || !strings.Contains(p.Text, c.want) {
				t.Errorf("%+v", p)
			}
		})
	}
	t.Run("late", func(t *testing.T) {
		old := crowd.Limits.HelloWait
		crowd.Limits.HelloWait = 50 * time.Millisecond
		defer func() { crowd.Limits.HelloWait = old }()
		rawDial(t, b)
		for err := range b.errs {
			if strings.Contains(err.Error(), "silent") {
				return
			}
		}
	})
}

func TestGate(t *testing.T) {
	old, oldCrowded := crowd.Limits.UnprovenPerNet, crowded
	crowd.Limits.UnprovenPerNet, crowded = 2, time.Hour
	defer func() { crowd.Limits.UnprovenPerNet, crowded = old, oldCrowded }()
	b := newBroker(t, true)
	rawDial(t, b)
	rawDial(t, b)
	_, _, err := Dial(t.Context(), b.options(t))
	wantClosed(t, err, crowd.Unavailable, crowd.NetworkBroker, "429")
	o := b.options(t)
	o.LocalAddr = netip.MustParseAddr("127.0.9.1") // another network
	connect(t, b, o)
}

func TestUnwelcomeMessages(t *testing.T) {
	for _, c := range []struct {
		name, send string
		kind       crowd.ErrKind
		reason     crowd.Reason
	}{
		{"unknown word", `{"gossip":{}}`, crowd.Invalid, ""},
		{"unknown field", `{"renew":{"n":1,"karma":9}}`, crowd.Invalid, ""},
		{"no word", `{}`, crowd.Invalid, ""},
		{"trailing", `{"leave":{}} {}`, crowd.Invalid, ""},
		{"broker's word", `{"answer":{"n":1}}`, crowd.Invalid, ""},
		{"large", `{"leave":{},"` + strings.Repeat("x", crowd.Limits.MessageBytes) + `":1}`, crowd.Invalid, ""},
		{"flood", "", crowd.Exhausted, crowd.BrokerRate},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBroker(t, true)
			host, far := connect(t, b, b.options(t))
			n := 1
			if c.name == "flood" {
				c.send, n = `{"renew":{"n":1}}`, 2*int(crowd.Limits.MessageBurst)
			}
			go func() {
				for range n {
					if host.ws.Write(context.Background(), websocket.MessageText, []byte(c.send)) != nil {
						return
					}
				}
			}()
			var err error
			for err == nil {
				_, err = far.Receive(t.Context())
			}
			wantClosed(t, err, c.kind, c.reason, "")
			if _, err := host.Receive(t.Context()); err == nil {
				t.Error("still open")
			}
		})
	}
}

func TestFullQueueCloses(t *testing.T) {
	b := newBroker(t, true)
	host, far := connect(t, b, b.options(t))
	m := &crowd.Message{Lease: &crowd.Lease{Spec: &crowd.JobSpec{Args: []string{strings.Repeat("x", 100<<10)}}}}
	var err error
	for range 100 * crowd.Limits.SendQueue {
		if err = far.Send(m); err != nil {
			break
		}
	}
	wantClosed(t, err, crowd.Exhausted, crowd.NetworkHost, "doesn't take")
	<-far.Done()
	for err = nil; err == nil; {
		_, err = host.Receive(t.Context())
	}
	wantClosed(t, err, crowd.Unavailable, crowd.NetworkBroker, "")
}

func TestNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.77:123": "192.0.2.0/24", "[2001:db8:1:2::3]:1": "2001:db8:1::/48", "::ffff:192.0.2.1": "192.0.2.0/24",
		"[fe80::1%eth0]:5": "fe80::/48", "x": "", "": "",
	} {
		if got := Network(in); got != want {
			t.Errorf("%q: %q, wanted %q", in, got, want)
		}
	}
}

var _ net.Conn = (*stream)(nil)

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"renew":{"n":1,"state":"ready","capacity":{"slots":1},"room":1,"memory_bytes":1,"attempts":[{"job":"","first":0,"n":0,"done":1,"fuel":2}]}}`,
		`{"lease":{"job":"","first":0,"n":0,"count":1,"spec":{"program":"b3:"},"deadline_ns":1}}`, `{"report":{"body":"AA==","sig":""}}`,
		`{}`, `null`, `{"leave":null}`, `{"leave":{},"leave":{}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, from := range []Side{HostSide, BrokerSide} {
			m, err := Decode(b, from)
			if err != nil {
				if !crowd.KindIs(err, crowd.Invalid) {
					t.Fatal(err)
				}
				continue
			}
			// what was read can be said again and reads the same
			out, err := encode(m)
			if err != nil {
				return // beyond the limit: escapes can make it longer
			}
			if _, err := Decode(out, from); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
		}
	})
}

package link

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/coder/websocket"

	"github.com/crowdcloud/crowd"
)

const (
	exporterLabel = "EXPORTER-crowd-link"
	hostLabel     = "crowd host 1"
	brokerLabel   = "crowd broker 1"
	nonceBytes    = 32
)

// AcceptOptions are the broker's.
type AcceptOptions struct {
	Key         ed25519.PrivateKey
	Incarnation int64
	// Lookup gives a host's public key; an unknown one is NotFound.
	Lookup func(ctx context.Context, id crowd.HostID) (pub []byte, err error)
	// Admit is asked after the host has proven itself and says what it is welcomed with (Version, Term and Proof are filled in), or
	// why not: the host is told. It may close an older connection of the session.
	Admit func(ctx context.Context, h *crowd.Hello, unbound bool) (crowd.Welcome, error)
	// Gate bounds connections that haven't proven themselves and what each host says; share one among all. nil: no bound.
	Gate *Gate

	versions []int // tests; nil: crowd.ProtocolVersions
}

// Accept takes a host's connection through the handshake: a challenge, the host's proof that it holds its key on this very TLS
// channel, the broker's proof. On an error the response is written, or the connection closed; the error is for a log. Afterwards the
// connection doesn't depend on r or its handler any more.
func Accept(w http.ResponseWriter, r *http.Request, o AcceptOptions) (*Conn, *crowd.Hello, error) {
	if r.Header.Get("Origin") != "" {
		http.Error(w, "no browsers here yet", http.StatusForbidden)
		return nil, nil, crowd.Errorf(crowd.Denied, crowd.BrokerNotBuilt, "a browser from %q", r.Header.Get("Origin"))
	}
	network := Network(r.RemoteAddr)
	in, leave, err := o.Gate.enter(network)
	if err != nil {
		w.Header().Set("Retry-After", "5")
		w.Header().Set("Connection", "close") // it isn't kept for the next request
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return nil, nil, err
	}
	defer leave()
	exporter, err := exported(r.TLS)
	if err != nil {
		http.Error(w, "TLS 1.3 is needed", http.StatusUpgradeRequired)
		return nil, nil, err
	}
	sw := &smallWriter{ResponseWriter: w}
	ws, err := websocket.Accept(sw, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil, nil, crowd.Errorf(crowd.Invalid, "", "no WebSocket: %w", err)
	}
	c := newConn(ws, sw.conn, HostSide)
	_ = c.raw.SetDeadline(time.Now().Add(crowd.Limits.HelloWait))
	if err := o.Gate.opened(in, c, network); err != nil {
		return nil, nil, c.refuse(err)
	}
	h, err := c.greet(r.Context(), &o, exporter)
	if err == nil {
		err = c.Err() // it made room in the last moment
	}
	if err != nil {
		return nil, nil, c.refuse(err)
	}
	proven(c.raw)
	_ = c.raw.SetDeadline(time.Time{})
	return c, h, nil
}

func (c *Conn) greet(ctx context.Context, o *AcceptOptions, exporter []byte) (*crowd.Hello, error) {
	pub := o.Key.Public().(ed25519.PublicKey)
	ch := &crowd.Challenge{Nonce: nonce(), Incarnation: o.Incarnation, BrokerKey: pub}
	if err := c.say(&crowd.Message{Challenge: ch}); err != nil {
		return nil, err
	}
	m, err := c.hear(crowd.Limits.HelloBytes)
	if err != nil {
		return nil, err
	}
	h := m.Hello
	if h == nil || len(h.Nonce) != nonceBytes || len(h.Proof) != ed25519.SignatureSize || h.Host.IsZero() || h.Session.IsZero() || h.Dial < 1 {
		return nil, crowd.Errorf(crowd.Invalid, "", "wanted a hello")
	}
	version := highest(spoken(o.versions), h.Versions)
	if version == 0 {
		return nil, crowd.Errorf(crowd.Invalid, "", "this broker speaks versions %v of the link, the agent %v", spoken(o.versions), clip(h.Versions)).
			WithHint("update the agent, or the broker")
	}
	if h.Unbound != (exporter == nil) {
		return nil, crowd.Errorf(crowd.Denied, "", "the proof must cover the TLS channel where there is one").
			WithHint("something between agent and broker takes TLS apart")
	}
	key, err := o.Lookup(ctx, h.Host)
	if err != nil {
		return nil, err
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, crowd.ProofBytes(hostLabel, h, ch, exporter), h.Proof) {
		return nil, crowd.Errorf(crowd.Denied, "", "the proof isn't that of %s on this connection", h.Host.Short()).
			WithHint("another key, or something between agent and broker; join again if the agent's key file was lost")
	}
	c.rate = o.Gate.bucket(h.Host)
	if !c.rate.take(time.Now(), dialCost) {
		return nil, crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "%s dials or speaks too often", h.Host.Short()).WithHint("wait a few seconds")
	}
	w, err := o.Admit(ctx, h, h.Unbound)
	if err != nil {
		return nil, err
	}
	w.Version = version
	if w.Term == 0 {
		w.Term = crowd.Term
	}
	w.Proof = ed25519.Sign(o.Key, crowd.ProofBytes(brokerLabel, h, ch, exporter))
	return h, c.say(&crowd.Message{Welcome: &w})
}

// refuse tells the other end, if it was a crowd.Error that it should know, and closes.
func (c *Conn) refuse(err error) error {
	var e *crowd.Error
	var ne net.Error
	if why := c.Err(); why != nil { // closed from elsewhere: that is why
		err = why
	} else if errors.As(err, &ne) && ne.Timeout() {
		err = crowd.Errorf(crowd.Unavailable, crowd.NetworkHost, "it was silent for %v instead of proving itself", crowd.Limits.HelloWait)
	}
	if errors.As(err, &e) {
		p := Problem(e)
		if e.Kind == crowd.Internal {
			p.Text = "the broker failed" // no insides to strangers
		}
		c.Close(p)
	} else {
		err = c.lostPeer(err)
		c.abort(err)
	}
	<-c.Done()
	return err
}

// answer is the host's side.
func (c *Conn) answer(o *DialOptions, exporter []byte) (*crowd.Welcome, error) {
	m, err := c.hear(crowd.Limits.MessageBytes)
	if err != nil {
		return nil, err
	}
	ch := m.Challenge
	if ch == nil || len(ch.Nonce) != nonceBytes || len(ch.BrokerKey) != ed25519.PublicKeySize {
		return nil, crowd.Errorf(crowd.Invalid, "", "wanted a challenge")
	}
	if err := o.Pin(ch.BrokerKey); err != nil {
		return nil, err
	}
	h := &crowd.Hello{
		Host: o.Host, Session: o.Session, Dial: o.DialNumber, Nonce: nonce(), Versions: spoken(o.versions), Unbound: exporter == nil,
	}
	h.Proof = ed25519.Sign(o.Key, crowd.ProofBytes(hostLabel, h, ch, exporter))
	if err := c.say(&crowd.Message{Hello: h}); err != nil {
		return nil, err
	}
	if m, err = c.hear(crowd.Limits.MessageBytes); err != nil {
		return nil, err
	}
	w := m.Welcome
	if w == nil || !slices.Contains(spoken(o.versions), w.Version) || w.Term <= 0 {
		return nil, crowd.Errorf(crowd.Invalid, "", "wanted a welcome")
	}
	if !ed25519.Verify(ch.BrokerKey, crowd.ProofBytes(brokerLabel, h, ch, exporter), w.Proof) {
		return nil, crowd.Errorf(crowd.Denied, crowd.BrokerKey, "the broker didn't prove its key on this connection").
			WithHint("something between agent and broker?")
	}
	if o.Seen != nil {
		if err := o.Seen(ch.Incarnation); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// say and hear are for the handshake, when there is no queue yet.
func (c *Conn) say(m *crowd.Message) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	return c.ws.Write(context.Background(), websocket.MessageText, b)
}

func (c *Conn) hear(most int) (*crowd.Message, error) {
	b, err := c.read(most)
	if err != nil {
		return nil, err
	}
	m, err := decode(b.Bytes())
	putBuffer(b)
	if err == nil && m.Problem != nil {
		return nil, &Closed{*m.Problem}
	}
	return m, err
}

// exported is the channel's value that both proofs cover; nil where there is no TLS.
func exported(s *tls.ConnectionState) ([]byte, error) {
	if s == nil {
		return nil, nil
	}
	if s.Version < tls.VersionTLS13 {
		return nil, crowd.Errorf(crowd.Invalid, "", "TLS 1.3 is needed")
	}
	b, err := s.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "export from TLS: %w", err)
	}
	return b, nil
}

func nonce() []byte {
	b := make([]byte, nonceBytes)
	_, _ = rand.Read(b)
	return b
}

// Version is the highest version of the link that both speak, by the host's hello; 0: none.
func Version(h *crowd.Hello) int { return highest(crowd.ProtocolVersions, h.Versions) }

func highest(ours, theirs []int) (v int) {
	for _, x := range ours {
		if x > v && slices.Contains(theirs, x) {
			v = x
		}
	}
	return v
}

func spoken(versions []int) []int {
	if versions == nil {
		return crowd.ProtocolVersions
	}
	return versions
}

func clip(v []int) []int { return v[:min(len(v), 8)] }

package link

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/coder/websocket"

	"github.com/crowdcloud/crowd"
)

// Path is where a broker takes links.
const Path = "/v1/link"

// DialOptions are a host's.
type DialOptions struct {
	URL        string                 // the broker's, "https://HOST:PORT"; http on loopback only
	TLS        *tls.Config            // as by seal.PinnedTLS; nil: the system's authorities
	Pin        func(key []byte) error // refuses a broker's key that isn't the pinned one, as by seal.Pin; must be set
	LocalAddr  netip.Addr             // to dial from; zero: any
	Key        ed25519.PrivateKey
	Host       crowd.HostID
	Session    crowd.SessionID
	DialNumber int64 // +1 for each connection of the session, from 1
	// Seen is told the broker's incarnation once the broker has proven its key; its error ends the dial. nil: any will do. The proof doesn't
	// cover the number: nobody but the broker can change it on a channel whose key is pinned.
	Seen func(incarnation int64) error

	versions []int // tests; nil: crowd.ProtocolVersions
}

// Dial connects and goes through the handshake; ctx bounds that only, as does Limits.HelloWait twice. What the broker refuses is a
// *Closed; a broker with another key is Denied, broker.key; anything that another try may mend is Unavailable.
func Dial(ctx context.Context, o DialOptions) (*Conn, crowd.Welcome, error) {
	var none crowd.Welcome
	ctx, cancel := context.WithTimeout(ctx, 2*crowd.Limits.HelloWait)
	defer cancel()
	if o.Pin == nil {
		return nil, none, crowd.Errorf(crowd.Internal, "", "link: no pin of the broker's key")
	}
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, none, crowd.Errorf(crowd.Invalid, "", "broker's URL: %w", err)
	}
	t := &transport{opts: &o}
	u.Path = Path
	ws, resp, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{ //nolint:bodyclose // the WebSocket closes it
		HTTPClient: &http.Client{Transport: t}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if t.conn != nil {
			_ = t.conn.Close()
		}
		return nil, none, dialError(ctx, err, resp)
	}
	c := newConn(ws, t.conn, BrokerSide)
	stop := context.AfterFunc(ctx, func() { c.abort(context.Cause(ctx)) })
	_ = c.raw.SetDeadline(time.Now().Add(2 * crowd.Limits.HelloWait))
	w, err := c.answer(&o, t.exporter)
	if err == nil && stop() {
		_ = c.raw.SetDeadline(time.Time{})
		return c, *w, nil
	}
	if err == nil {
		err = ctx.Err()
	}
	if !isCrowd(err) {
		err = c.lostPeer(err)
	}
	c.abort(err)
	<-c.Done()
	return nil, none, err
}

func isCrowd(err error) bool {
	var e *crowd.Error
	return errors.As(err, &e)
}

func dialError(ctx context.Context, err error, resp *http.Response) error {
	if isCrowd(err) { // as by PinnedTLS
		return crowd.AsError(err)
	}
	if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		kind := crowd.KindOf("", resp.StatusCode)
		if kind == crowd.OK || kind == crowd.NotFound || kind == crowd.Internal || kind == crowd.Exhausted {
			kind = crowd.Unavailable
		}
		return crowd.Errorf(kind, crowd.NetworkBroker, "the broker answers %s", resp.Status)
	}
	if ctx.Err() != nil {
		return crowd.Errorf(crowd.Unavailable, crowd.NetworkBroker, "the broker doesn't answer in time: %w", ctx.Err())
	}
	return crowd.Errorf(crowd.Unavailable, crowd.NetworkBroker, "the broker doesn't answer: %w", err)
}

// transport makes one connection and one request on it. http.Transport would keep two goroutines and two more buffers for each.
type transport struct {
	opts     *DialOptions
	conn     net.Conn
	exporter []byte
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.conn != nil {
		return nil, crowd.Errorf(crowd.Denied, crowd.BrokerKey, "the broker sends the link elsewhere")
	}
	if err := t.connect(r.Context(), r.URL); err != nil {
		return nil, err
	}
	defer context.AfterFunc(r.Context(), func() { _ = t.conn.SetDeadline(time.Unix(1, 0)) })()
	if err := r.Write(t.conn); err != nil {
		return nil, err
	}
	br := bufio.NewReaderSize(io.LimitReader(t.conn, 16<<10), 1<<10)
	resp, err := http.ReadResponse(br, r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		early, _ := br.Peek(br.Buffered())
		resp.Body = &stream{early: bytes.Clone(early), Conn: t.conn}
	}
	return resp, nil
}

func (t *transport) connect(ctx context.Context, u *url.URL) error {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if t.opts.LocalAddr.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.opts.LocalAddr, 0))
	}
	secure := u.Scheme == "https" || u.Scheme == "wss"
	if !secure && !loopback(u.Hostname()) {
		return crowd.Errorf(crowd.Denied, "", "no link without TLS but to this machine itself")
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), map[bool]string{true: "443", false: "80"}[secure])
	}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil || !secure {
		t.conn = c
		return err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if t.opts.TLS != nil {
		cfg = t.opts.TLS.Clone()
	}
	if cfg.ServerName == "" {
		cfg.ServerName = u.Hostname()
	}
	cfg.NextProtos = nil
	tc := tls.Client(c, cfg)
	t.conn = tc
	if err := tc.HandshakeContext(ctx); err != nil {
		return err
	}
	state := tc.ConnectionState()
	t.exporter, err = exported(&state)
	return err
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// stream is a connection whose first bytes were read already.
type stream struct {
	early []byte
	net.Conn
}

func (s *stream) Read(p []byte) (int, error) {
	if len(s.early) > 0 {
		n := copy(p, s.early)
		s.early = s.early[n:]
		return n, nil
	}
	return s.Conn.Read(p)
}

package link

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
)

// keepAlive finds a dead peer in about a minute, in the kernel, at no cost to us.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// Network is the /24 (v4) or /48 (v6) of an address, with or without a port: what counts as one network. "" if it is no address.
func Network(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil {
			return ""
		}
		a = ap.Addr()
	}
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}

// Gate bounds what strangers and hosts can do over all their connections: how many of a network may wait to prove themselves, and what a host may
// say and how often it may dial, whichever connection it uses. The zero Gate is ready; a nil one lets all in.
type Gate struct {
	mu    sync.Mutex
	net   map[string][]*unproven // oldest first
	hosts map[crowd.HostID]*bucket
	swept int // hosts that were left by the last sweep
}

// unproven is a connection that hasn't proven itself.
type unproven struct {
	since time.Time
	conn  *Conn // nil: no WebSocket yet
	gone  bool  // it made room
}

// crowded is how old (for a Door: how long silent) a connection must be to make room for another one of its network: who is honest has proven itself
// by then.
var crowded = 250 * time.Millisecond

// enter returns how to leave. If Limits.UnprovenPerNet of that network are in, the oldest makes room; Exhausted if even that came just now.
func (g *Gate) enter(network string) (u *unproven, leave func(), err error) {
	if g == nil {
		return nil, func() {}, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.net == nil {
		g.net = map[string][]*unproven{}
	}
	in := g.net[network]
	if len(in) > 0 && len(in) >= crowd.Limits.UnprovenPerNet {
		oldest := in[0]
		if time.Since(oldest.since) < crowded {
			return nil, nil, tooMany(network)
		}
		oldest.gone = true
		if oldest.conn != nil {
			oldest.conn.Close(Problem(tooMany(network)))
		}
		in = in[1:]
	}
	u = &unproven{since: time.Now()}
	g.net[network] = append(in, u)
	return u, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.net[network] = slices.DeleteFunc(g.net[network], func(x *unproven) bool { return x == u }); len(g.net[network]) == 0 {
			delete(g.net, network)
		}
	}, nil
}

// opened notes the WebSocket of a connection that entered; an error: it has made room already.
func (g *Gate) opened(u *unproven, c *Conn, network string) error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	u.conn = c
	if u.gone {
		return tooMany(network)
	}
	return nil
}

func tooMany(network string) *crowd.Error {
	return crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "too many connections from %s at once that don't prove themselves", network)
}

// bucket is what a host may still say: one for all its connections, or dialling again would fill it.
func (g *Gate) bucket(h crowd.HostID) *bucket {
	if g == nil {
		return &bucket{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hosts == nil {
		g.hosts = map[crowd.HostID]*bucket{}
	}
	if len(g.hosts) > 2*g.swept+1000 {
		for id, b := range g.hosts {
			if b.full(time.Now()) {
				delete(g.hosts, id)
			}
		}
		g.swept = len(g.hosts)
	}
	b := g.hosts[h]
	if b == nil {
		b = &bucket{}
		g.hosts[h] = b
	}
	return b
}

// under is the TCP connection below TLS and a Door, if there are any.
func under(c net.Conn) net.Conn {
	for {
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = t.NetConn()
	}
}

const (
	readSize  = 512  // larger reads bypass the buffer
	writeSize = 1024 // as do larger writes
)

// smallWriter hands out the connection with small buffers instead of the server's two of 4 KiB, and keeps it for deadlines.
type smallWriter struct {
	http.ResponseWriter
	conn net.Conn
}

// Hijack implements http.Hijacker.
func (w *smallWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, brw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	_ = c.SetDeadline(time.Time{}) // the server's own
	if t, ok := under(c).(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(keepAlive)
	}
	if err := brw.Flush(); err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	w.conn = c
	if early, _ := brw.Reader.Peek(brw.Reader.Buffered()); len(early) > 0 {
		c = &stream{early: bytes.Clone(early), Conn: c}
	}
	return c, bufio.NewReadWriter(bufio.NewReaderSize(c, readSize), bufio.NewWriterSize(c, writeSize)), nil
}

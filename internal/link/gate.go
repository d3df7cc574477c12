package link

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"net/netip"
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

// Gate counts the connections of each network that haven't proven themselves yet. The zero Gate is ready; a nil one lets all in.
type Gate struct {
	mu  sync.Mutex
	net map[string]int
}

// enter returns how to leave, or Exhausted if Limits.UnprovenPerNet of that network are in.
func (g *Gate) enter(network string) (leave func(), err error) {
	if g == nil {
		return func() {}, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.net == nil {
		g.net = map[string]int{}
	}
	if g.net[network] >= crowd.Limits.UnprovenPerNet {
		return nil, crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "too many connections from %s at once", network)
	}
	g.net[network]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.net[network]--; g.net[network] <= 0 {
			delete(g.net, network)
		}
	}, nil
}

// under is the TCP connection below TLS, if there is any.
func under(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
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

package link

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
)

// Door is a listener that bounds how many connections of one network are open at once, before anybody has said a byte: up to Limits.ConnsPerNet. Of a
// network that has so many, the one that was silent longest makes room. A host's link that has proven itself doesn't count. Behind a proxy
// everybody is one network: no place for a Door.
type Door struct {
	net.Listener
	// Full is told of a network that had too many, at most once a minute each; may be nil. Nothing can be said to it: there is no TLS yet.
	Full func(err error)

	mu   sync.Mutex
	open map[string]map[*doorConn]bool
	told map[string]time.Time
}

// Accept implements net.Listener.
func (d *Door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		x := &doorConn{Conn: c, d: d, network: Network(c.RemoteAddr().String())}
		x.touch()
		if d.enter(x) {
			return x, nil
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // keep nothing of it
		}
		_ = c.Close()
	}
}

func (d *Door) enter(x *doorConn) bool {
	d.mu.Lock()
	in := d.open[x.network]
	var oldest *doorConn
	if len(in) > 0 && len(in) >= crowd.Limits.ConnsPerNet {
		d.tell(x.network)
		for c := range in {
			if oldest == nil || c.last.Load() < oldest.last.Load() {
				oldest = c
			}
		}
		if time.Since(time.Unix(0, oldest.last.Load())) < crowded {
			d.mu.Unlock()
			return false
		}
		delete(in, oldest)
	}
	if in == nil {
		if d.open == nil {
			d.open = map[string]map[*doorConn]bool{}
		}
		in = map[*doorConn]bool{}
		d.open[x.network] = in
	}
	in[x] = true
	d.mu.Unlock()
	if oldest != nil {
		_ = oldest.Conn.Close() // whoever has it finds out
	}
	return true
}

// tell needs d.mu.
func (d *Door) tell(network string) {
	now := time.Now()
	if d.Full == nil || now.Sub(d.told[network]) < time.Minute {
		return
	}
	if d.told == nil || len(d.told) > 1000 {
		d.told = map[string]time.Time{}
	}
	d.told[network] = now
	d.Full(crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "more than %d connections from %s at once", crowd.Limits.ConnsPerNet, network))
}

// doorConn counts until it is closed or has proven itself.
type doorConn struct {
	net.Conn
	d       *Door
	network string
	last    atomic.Int64 // when a byte passed
}

func (c *doorConn) NetConn() net.Conn { return c.Conn }

func (c *doorConn) touch() { c.last.Store(time.Now().UnixNano()) }

func (c *doorConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

func (c *doorConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

func (c *doorConn) uncount() {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	in := c.d.open[c.network]
	if delete(in, c); len(in) == 0 {
		delete(c.d.open, c.network)
	}
}

func (c *doorConn) Close() error {
	c.uncount()
	return c.Conn.Close()
}

// proven tells the Door below a connection, if there is one.
func proven(c net.Conn) {
	for {
		if d, ok := c.(*doorConn); ok {
			d.uncount()
			return
		}
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		c = t.NetConn()
	}
}

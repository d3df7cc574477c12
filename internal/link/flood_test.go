package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/seal"
)

// behindDoor is a broker whose connections come through a Door, with limits that a test reaches.
func behindDoor(t *testing.T, perNet, unproven int) (*broker, *Door, *atomic.Int64) {
	old, oldCrowded := crowd.Limits, crowded
	crowd.Limits.ConnsPerNet, crowd.Limits.UnprovenPerNet, crowd.Limits.HelloWait, crowded = perNet, unproven, 500*time.Millisecond, 100*time.Millisecond
	t.Cleanup(func() { crowd.Limits, crowded = old, oldCrowded })
	b := newBroker(t, true)
	full := &atomic.Int64{}
	d := &Door{Full: func(err error) {
		full.Add(1)
		if e := crowd.AsError(err); e.Kind != crowd.Exhausted || e.Reason != crowd.BrokerRate {
			t.Errorf("turned away with %v", err)
		}
	}}
	srv := &http.Server{Handler: b.Config.Handler, ReadHeaderTimeout: crowd.Limits.HelloWait, ErrorLog: discard()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.Listener = l
	cert, err := seal.Certificate(b.key, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(tls.NewListener(d, seal.ServerTLS(cert)))
	}()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	b.URL = "https://" + l.Addr().String()
	return b, d, full
}

func (d *Door) counts() (sum, most int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, in := range d.open {
		sum, most = sum+len(in), max(most, len(in))
	}
	return sum, most
}

func (g *Gate) counts() (sum, most int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, in := range g.net {
		sum, most = sum+len(in), max(most, len(in))
	}
	return sum, most
}

// stranger opens a connection, goes so far, and then says nothing more: 0 TCP, 1 TLS, 2 half a request, 3 a WebSocket. It ends when it is closed.
func stranger(addr string, from netip.Addr, far int) error {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 20 * time.Second}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil //nolint:nilerr // turned away
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if far > 0 {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it trusts nobody either
		if err := c.(*tls.Conn).Handshake(); err != nil {
			return nil //nolint:nilerr // turned away
		}
	}
	switch far {
	case 2:
		_, _ = io.WriteString(c, "GET "+Path+" HTTP/1.1\r\nHost: x\r\nX-")
	case 3:
		_, _ = io.WriteString(c, "GET "+Path+" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	}
	_, err = io.Copy(io.Discard, c)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return fmt.Errorf("a stranger who went as far as %d was never closed", far)
	}
	return nil
}

// A thousand connections that never prove themselves are bounded in number and time, each refused link for a reason; a host of the very same network
// gets in meanwhile.
func TestStrangersAreBounded(t *testing.T) {
	const perNet, unproven, nets, each = 20, 8, 8, 125
	b, door, full := behindDoor(t, perNet, unproven)
	var reasons sync.Map
	refused := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(refused)
		for {
			select {
			case err := <-b.errs:
				n, _ := reasons.LoadOrStore(string(crowd.AsError(err).Reason), new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
			case <-stop:
				return
			}
		}
	}()
	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	var most, mostIn atomic.Int64
	wg.Go(func() { // looks
		for range 100 {
			_, n := door.counts()
			_, in := b.gate.counts()
			most.Store(max(most.Load(), int64(n)))
			mostIn.Store(max(mostIn.Load(), int64(in)))
			time.Sleep(10 * time.Millisecond)
		}
		runtime.ReadMemStats(&during)
	})
	addr := b.URL[len("https://"):]
	for i := range nets * each {
		from := netip.AddrFrom4([4]byte{127, 0, byte(1 + i%nets), byte(1 + i/nets)})
		wg.Go(func() {
			if err := stranger(addr, from, 4*i/(nets*each)); err != nil {
				t.Error(err)
			}
		})
	}
	got := 0
	for range 2000 { // from the strangers' networks, and another
		o := b.options(t)
		o.LocalAddr = netip.AddrFrom4([4]byte{127, 0, byte(1 + got%(nets+1)), 250})
		c, _, err := Dial(t.Context(), o)
		if err == nil {
			far := <-b.conns
			c.Close(nil)
			far.Close(nil)
			<-c.Done()
			<-far.Done()
			if got++; got == 2*(nets+1) {
				break
			}
		} else {
			time.Sleep(5 * time.Millisecond) // as an agent does, who waits longer
		}
	}
	wg.Wait()
	if got != 2*(nets+1) {
		t.Errorf("only %d honest hosts got in", got)
	}
	for range 1000 {
		n, _ := door.counts()
		if in, _ := b.gate.counts(); n+in == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	<-refused
	if n, _ := door.counts(); n != 0 {
		t.Errorf("%d connections are open still", n)
	}
	if n, _ := b.gate.counts(); n != 0 {
		t.Errorf("%d links wait still", n)
	}
	if most.Load() > perNet || mostIn.Load() > unproven || most.Load() == 0 || mostIn.Load() == 0 {
		t.Errorf("of one network %d connections and %d links at once", most.Load(), mostIn.Load())
	}
	if grown := int64(during.HeapInuse) - int64(before.HeapInuse); grown > 200<<20 {
		t.Errorf("%d MiB for them", grown>>20)
	}
	told := 0
	reasons.Range(func(r, n any) bool {
		if r != string(crowd.BrokerRate) && r != string(crowd.NetworkHost) {
			t.Errorf("%d links were refused for %q", n.(*atomic.Int64).Load(), r)
		}
		told += int(n.(*atomic.Int64).Load())
		return true
	})
	if told == 0 || full.Load() == 0 {
		t.Errorf("%d links refused with a reason, %d networks turned away", told, full.Load())
	}
}

// Who is silent instead of proving itself is told so.
func TestSilentIsTold(t *testing.T) {
	b, _, _ := behindDoor(t, 10, 10)
	ws, _ := rawDial(t, b)
	p := readProblem(t, ws)
	if p.Reason != crowd.NetworkHost || p.Final {
		t.Errorf("%+v", p)
	}
	<-b.errs
}

// A host's bucket is one over all its connections: dialling again doesn't fill it, nor is another host's touched. Large messages cost more.
func TestBucketOutlivesTheConnection(t *testing.T) {
	for _, c := range []struct {
		name, text string
		most       int // messages that got through at once
	}{{"small", `{"renew":{"n":1}}`, int(crowd.Limits.MessageBurst)}, {"large", `{"renew":{"n":1,"why":"` + string(make100k()) + `"}}`, int(crowd.Limits.MessageBurst) / 10}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBroker(t, true)
			o := b.options(t)
			host, far := connect(t, b, o)
			go func() {
				for host.ws.Write(context.Background(), websocket.MessageText, []byte(c.text)) == nil {
				}
			}()
			n := 0
			var err error
			begun := time.Now()
			for err == nil {
				_, err = far.Receive(t.Context())
				n++
			}
			wantClosed(t, err, crowd.Exhausted, crowd.BrokerRate, "")
			if most := c.most + int(time.Since(begun).Seconds()*crowd.Limits.MessagesPerSecond) + 2; n > most {
				t.Errorf("%d messages got through, at most %d should", n, most)
			}
			o.DialNumber = 2
			_, _, err = Dial(t.Context(), o)
			wantClosed(t, err, crowd.Exhausted, crowd.BrokerRate, "too often")
			connect(t, b, b.options(t)) // another host of the same network
		})
	}
}

func make100k() []byte {
	b := make([]byte, 100<<10)
	for i := range b {
		b[i] = 'x'
	}
	return b
}

func TestGateForgets(t *testing.T) {
	g := &Gate{}
	for i := range 5000 {
		g.bucket(crowd.HostID{byte(i), byte(i >> 8)}).take(time.Now().Add(-time.Hour), 1)
	}
	if len(g.hosts) > 2100 {
		t.Errorf("%d buckets of hosts that are quiet", len(g.hosts))
	}
}

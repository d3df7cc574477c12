// Package link is the connection between a host and the broker: a WebSocket of JSON messages over TLS, proven by both ends before
// a word is said. See crowd.Message for the words.
package link

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/crowdcloud/crowd"
)

const (
	quietMost  = 5 * crowd.IdlePing / 2 // a peer that says nothing for so long is gone
	writeWait  = 30 * time.Second       // for one frame
	closeWait  = 3 * time.Second        // for the last frames and the other end's goodbye
	queueBytes = 8 << 20                // waiting to be sent
	keepBuffer = 4 << 10                // read buffers up to this stay with the pool
)

// Conn is one proven connection. Send and Close may be called by anybody at any time; Receive by one goroutine at a time. An idle
// connection costs no goroutine but that which waits in Receive.
type Conn struct {
	ws    *websocket.Conn
	raw   net.Conn // for deadlines
	peer  Side
	quiet time.Duration
	rate  *bucket // Receive's; for hosts' words

	mu      sync.Mutex
	queue   [][]byte
	queued  int
	writing bool
	closing bool
	aborted bool
	err     error // why it is closed
	done    chan struct{}
}

func newConn(ws *websocket.Conn, raw net.Conn, peer Side) *Conn {
	ws.SetReadLimit(-1) // read has its own, so that the other end is told why
	return &Conn{ws: ws, raw: raw, peer: peer, quiet: quietMost, rate: &bucket{}, done: make(chan struct{})}
}

// Send puts a message into the queue and returns at once. An error means that it will never arrive and that the connection is
// closed, or being closed: a queue beyond Limits.SendQueue closes it too (Exhausted). No error promises nothing: any message
// may be lost with its connection.
func (c *Conn) Send(m *crowd.Message) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return c.err
	}
	if len(c.queue) >= crowd.Limits.SendQueue || c.queued+len(b) > queueBytes {
		err := crowd.Errorf(crowd.Exhausted, crowd.NetworkHost, "the other end doesn't take its messages: %d wait", len(c.queue))
		c.abortLocked(err)
		return err
	}
	c.push(b)
	return nil
}

// push needs c.mu.
func (c *Conn) push(b []byte) {
	c.queue = append(c.queue, b)
	c.queued += len(b)
	if !c.writing {
		c.writing = true
		go c.write()
	}
}

// write lives while there is something to send.
func (c *Conn) write() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.writing, c.queue = false, nil
			last := c.closing
			c.mu.Unlock()
			if last {
				c.finish()
			}
			return
		}
		b := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		c.queued -= len(b)
		if !c.closing { // else Close has set it
			_ = c.raw.SetWriteDeadline(time.Now().Add(writeWait))
		}
		c.mu.Unlock()
		if err := c.ws.Write(context.Background(), websocket.MessageText, b); err != nil {
			c.abort(c.lostPeer(err)) // empties the queue: the next round is the last
		}
	}
}

// Receive waits for the next message. ctx's end closes the connection. After an error the connection is closed; a *Closed
// in the chain is what the other end said, or was told, before; else it is Unavailable, network.broker or network.host.
func (c *Conn) Receive(ctx context.Context) (*crowd.Message, error) {
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { c.abort(context.Cause(ctx)) })()
	}
	if err := c.expect(); err != nil {
		return nil, err
	}
	b, err := c.read(crowd.Limits.MessageBytes)
	if crowd.KindIs(err, crowd.Invalid) {
		return nil, c.fail(err)
	}
	if err != nil {
		c.abort(c.lostPeer(err))
		return nil, c.Err()
	}
	if c.peer == HostSide && !c.rate.take(time.Now(), messageCost(b.Len())) {
		return nil, c.fail(crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "more than %v messages a second, each %d KiB of one counting as another",
			crowd.Limits.MessagesPerSecond, costBytes>>10))
	}
	m, err := Decode(b.Bytes(), c.peer)
	putBuffer(b)
	if err != nil {
		return nil, c.fail(err)
	}
	if m.Problem != nil {
		c.abort(&Closed{*m.Problem})
		return nil, c.Err()
	}
	return m, nil
}

// expect sets how long the other end may be silent, unless the connection is closing.
func (c *Conn) expect() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		_ = c.raw.SetReadDeadline(time.Now().Add(c.quiet))
	}
	return c.err
}

// read returns the bytes of one message of at most most bytes, in a pooled buffer.
func (c *Conn) read(most int) (*buffer, error) {
	typ, r, err := c.ws.Reader(context.Background())
	if err != nil {
		return nil, err
	}
	if typ != websocket.MessageText {
		return nil, crowd.Errorf(crowd.Invalid, "", "wanted a text message")
	}
	b := getBuffer()
	if n, err := b.ReadFrom(io.LimitReader(r, int64(most)+1)); err != nil {
		return nil, err
	} else if n > int64(most) {
		return nil, crowd.Errorf(crowd.Invalid, "", "message beyond %d bytes", most)
	}
	return b, nil
}

// fail closes for what the other end did and returns why.
func (c *Conn) fail(err error) error {
	c.Close(Problem(err))
	return c.Err()
}

// Close sends what is queued, then p (if not nil, and only by a broker), says goodbye and closes. It returns at once; Done tells when
// all is over. Closing twice is fine: the first reason stays.
func (c *Conn) Close(p *crowd.Problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	c.closing = true
	c.err = errClosed
	_ = c.raw.SetDeadline(time.Now().Add(closeWait))
	if p != nil {
		c.err = &Closed{*p}
		if b, err := encode(&crowd.Message{Problem: p}); err == nil && c.peer == HostSide {
			c.push(b)
		}
	}
	if !c.writing {
		c.writing = true
		go c.write()
	}
}

// abort closes at once, for a reason that nobody is told.
func (c *Conn) abort(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abortLocked(err)
}

func (c *Conn) abortLocked(err error) {
	if !c.closing {
		c.closing, c.err = true, err
	}
	if c.aborted {
		return
	}
	c.aborted = true
	c.queue, c.queued = nil, 0
	_ = under(c.raw).Close() // TLS would first try to say goodbye
	if !c.writing && !c.ended() {
		c.writing = true
		go c.write() // finds nothing to write and finishes
	}
}

// finish is the writer's last act.
func (c *Conn) finish() {
	c.mu.Lock()
	aborted := c.aborted
	c.mu.Unlock()
	if aborted {
		_ = c.ws.CloseNow()
	} else {
		_ = c.ws.Close(websocket.StatusNormalClosure, "")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended() {
		close(c.done)
	}
}

func (c *Conn) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Done is closed when the connection is closed and nothing of it runs any more.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is why it is closed, nil while it isn't.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

var errClosed = crowd.Errorf(crowd.Unavailable, "", "connection closed here: %w", net.ErrClosed)

// lostPeer names the party as the other end sees it.
func (c *Conn) lostPeer(err error) error {
	reason, who := crowd.NetworkBroker, "the broker"
	if c.peer == HostSide {
		reason, who = crowd.NetworkHost, "the machine"
	}
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return crowd.Errorf(crowd.Unavailable, reason, "%s has been silent for %v: %w", who, c.quiet, err)
	case errors.Is(err, io.EOF), websocket.CloseStatus(err) >= 0:
		return crowd.Errorf(crowd.Unavailable, reason, "%s closed the connection: %w", who, err)
	}
	return crowd.Errorf(crowd.Unavailable, reason, "connection to %s lost: %w", who, err)
}

// What takes how many tokens of a host's bucket: large messages and dials cost the broker more than a word does.
const (
	costBytes = 8 << 10
	dialCost  = 40
)

func messageCost(bytes int) float64 { return float64(1 + bytes/costBytes) }

// bucket holds tokens for messages; the zero bucket is full.
type bucket struct {
	mu   sync.Mutex
	used float64
	at   time.Time
}

func (b *bucket) take(now time.Time, cost float64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	if b.used+cost > crowd.Limits.MessageBurst {
		return false
	}
	b.used += cost
	return true
}

// fill needs b.mu.
func (b *bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.used = max(0, b.used-now.Sub(b.at).Seconds()*crowd.Limits.MessagesPerSecond)
	}
	b.at = now
}

func (b *bucket) full(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.used == 0
}

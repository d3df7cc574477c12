package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/host"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
)

const (
	floodEnv    = "CROWD_BENCH_FLOOD" // set in a flooder's process: what it does
	floodHosts  = 32                  // honest ones
	floodEvil   = 20
	floodSpan   = 4 * time.Second
	floodRounds = 4
)

// flood is what a flooder's process is told.
type flood struct {
	Kind, URL, Pin, Key string
	Hosts               []floodHost
}

type floodHost struct {
	ID   crowd.HostID
	Seed []byte
	From netip.Addr
}

// floods: honest work through a broker process over TLS while each flood runs, against the same without it, in turns. The flooders are a
// process of their own at nice 19 and offer what a line at home can: what is measured is what the broker spends on them, not that the machine is shared.
func floods(ctx context.Context) ([]Row, error) {
	if s := os.Getenv(floodEnv); s != "" {
		return nil, flooder(ctx, s)
	}
	c, end, err := newCluster(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	hosts, err := c.join(ctx, floodHosts+floodEvil, 1)
	if err != nil {
		return nil, err
	}
	mallory, err := c.op.CreateAccount(ctx, "mallory")
	if err != nil {
		return nil, err
	}
	if _, err := c.op.Grant(ctx, "mallory", client.Grant{Amount: 1000 * crowd.Credit, ID: "mallory"}); err != nil {
		return nil, err
	}
	f := flood{URL: c.url, Pin: c.pin, Key: mallory.Secret}
	for _, h := range hosts[floodHosts:] {
		f.Hosts = append(f.Hosts, floodHost{h.id, h.key.Seed(), h.from})
	}
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	var done atomic.Uint64
	errs := make(chan error, floodHosts)
	for _, h := range hosts[:floodHosts] {
		if err := h.dial(ctx, c); err != nil {
			return nil, err
		}
		wg.Go(func() { errs <- h.work(ctx, 48, func(units uint64) { done.Add(units) }) })
	}
	if err := c.submitNoop(ctx, 1<<32, 16); err != nil {
		return nil, err
	}
	rate := func(span time.Duration) (float64, error) {
		n, t := done.Load(), time.Now()
		select {
		case err := <-errs:
			return 0, fmt.Errorf("an honest host's link ended: %w", err)
		case <-time.After(span):
		}
		return float64(done.Load()-n) / time.Since(t).Seconds(), nil
	}
	if _, err := rate(12 * time.Second); err != nil { // warm
		return nil, err
	}
	var rows []Row
	for _, k := range []struct{ kind, name string }{
		{"strangers", "100 strangers/s that prove nothing"},
		{"garbage", fmt.Sprintf("%d hosts × 50 forged reports/s", floodEvil)},
		{"orders", "200 orders/s of one account"},
		{"bodies", "1 GB bodies at 40 Mbit/s"},
		{"readers", "50 streams/s that nobody reads"},
	} {
		f.Kind = k.kind
		var with, without float64
		var peak, rss int64
		for range floodRounds { // in turns: the machine may be shared
			quiet, err := rate(floodSpan)
			if err != nil {
				return nil, err
			}
			now, err := rssOf(c.pid)
			if err != nil {
				return nil, err
			}
			rss = max(rss, now)
			during, most, err := c.flooded(ctx, f, rate)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.kind, err)
			}
			with, without, peak = with+during/floodRounds, without+quiet/floodRounds, max(peak, most)
		}
		rows = append(rows, row("work under "+k.name, with, "units/s", "the same without, in turns", without, 0.8, true, "higher"),
			row("memory for "+k.name, float64(max(0, peak-rss))/(1<<20), "MiB", "the broker without", float64(rss)/(1<<20), 200, false, "lower"))
	}
	return rows, nil
}

// flooded measures while a flooder runs, and the broker's largest memory.
func (c *cluster) flooded(ctx context.Context, f flood, rate func(time.Duration) (float64, error)) (during float64, peak int64, err error) {
	text, err := json.Marshal(f)
	if err != nil {
		return 0, 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	ctx, stop := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "nice", "-n", "19", self, "floods")
	cmd.Env = append(os.Environ(), floodEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		stop()
		return 0, 0, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if n, err := rssOf(c.pid); err == nil {
				peak = max(peak, n)
			}
			pause(ctx, 100*time.Millisecond)
		}
	})
	if _, err = rate(time.Second); err == nil {
		during, err = rate(floodSpan)
	}
	stop()
	wg.Wait()
	_ = cmd.Wait() // it was interrupted
	return during, peak, err
}

// flooder is the flooder's process; it ends with ctx.
func flooder(ctx context.Context, text string) error {
	var f flood
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return err
	}
	var n atomic.Int64
	defer func() { fmt.Fprintf(os.Stderr, "bench: %s offered %d\n", f.Kind, n.Load()) }()
	each := func(perSecond int, what func(i int)) {
		t := time.NewTicker(time.Second / time.Duration(perSecond))
		defer t.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				n.Add(1)
				go what(i) // ends with its connection, at the latest with the process
			}
		}
	}
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: seal.PinnedTLS(f.Pin), MaxIdleConnsPerHost: 16}, Timeout: time.Minute}
	send := func(method, path, accept string, body io.Reader) (*http.Response, error) {
		r, err := http.NewRequestWithContext(ctx, method, f.URL+path, body)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+f.Key)
		r.Header.Set("Accept", accept)
		return hc.Do(r)
	}
	switch f.Kind {
	case "strangers":
		each(100, f.stranger)
	case "garbage":
		for i := range f.Hosts {
			go f.garbage(ctx, i, &n)
		}
		<-ctx.Done()
	case "orders":
		good := `{"name":"x","program":"` + crowd.Digest{1}.String() + `","units":{"count":1},"price":{"max_ucr":1}}`
		each(200, func(i int) {
			resp, err := send("POST", "/v1/jobs", "", strings.NewReader(good[:len(good)-i%2]))
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	case "bodies":
		each(20, func(i int) {
			body := io.LimitReader(zeros{}, 256<<10) // 20 × 256 KiB a second are 40 Mbit/s
			path := []string{"POST /v1/jobs", "POST /v1/keys", "PUT /v1/blobs/" + crowd.Digest{byte(i), byte(i >> 8)}.String()}[i%3]
			method, path, _ := strings.Cut(path, " ")
			r, err := http.NewRequestWithContext(ctx, method, f.URL+path, io.MultiReader(body, stuck{ctx}))
			if err != nil {
				return
			}
			r.ContentLength = 1 << 30
			r.Header.Set("Authorization", "Bearer "+f.Key)
			if resp, err := hc.Do(r); err == nil {
				resp.Body.Close()
			}
		})
	case "readers":
		each(50, func(int) {
			if resp, err := send("GET", "/v1/events", "text/event-stream", nil); err == nil && resp.StatusCode == http.StatusOK {
				<-ctx.Done()
			} else if err == nil {
				resp.Body.Close()
			}
		})
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// stuck is the rest of a body that never comes.
type stuck struct{ ctx context.Context }

func (s stuck) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, io.ErrUnexpectedEOF }

// stranger connects, goes so far, and waits to be thrown out.
func (f *flood) stranger(i int) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 200, byte(i%8), byte(1+i%250))}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", strings.TrimPrefix(f.URL, "https://"))
	if err != nil {
		return
	}
	defer c.Close()
	if i%4 > 0 {
		t := tls.Client(c, seal.PinnedTLS(f.Pin))
		if t.Handshake() != nil {
			return
		}
		c = t
	}
	if i%4 > 1 {
		_, _ = io.WriteString(c, "GET "+link.Path+" HTTP/1.1\r\nHost: x\r\n")
	}
	if i%4 > 2 {
		_, _ = io.WriteString(c, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	}
	_, _ = io.Copy(io.Discard, c)
}

// garbage dials as an enrolled host and reports what it never did, again and again.
func (f *flood) garbage(ctx context.Context, i int, n *atomic.Int64) {
	h := f.Hosts[i]
	session, platform := newSession(), host.ThisPlatform("bench", "server")
	for dial := int64(1); ctx.Err() == nil; dial++ {
		c, _, err := link.Dial(ctx, link.DialOptions{URL: f.URL, TLS: seal.PinnedTLS(f.Pin), Pin: seal.Pin(f.Pin), LocalAddr: h.From, Key: ed25519.NewKeyFromSeed(h.Seed), Host: h.ID, Session: session, DialNumber: dial})
		if err != nil {
			pause(ctx, 200*time.Millisecond)
			continue
		}
		_ = c.Send(&crowd.Message{Renew: &crowd.Renew{N: 1, State: crowd.Paused, Platform: &platform}})
		for k := uint64(0); ctx.Err() == nil && c.Err() == nil; k++ {
			_ = c.Send(&crowd.Message{Report: &crowd.Report{AttemptRef: crowd.AttemptRef{Job: crowd.JobID{1}, First: k, N: 1}, Body: bytes.Repeat([]byte{1}, 400), Sig: make([]byte, 64)}})
			n.Add(1)
			pause(ctx, 20*time.Millisecond)
			if k%50 == 49 {
				go func() { _, _ = c.Receive(ctx) }() // why it was closed
			}
		}
		c.Close(nil)
	}
}

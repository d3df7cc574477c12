package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/host"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
)

const crowdBin = "bin/crowd"

// cluster is a real broker process over TLS, and what talks to it.
type cluster struct {
	dir  string
	url  string
	pin  string
	pid  int
	op   *client.Client
	ada  *client.Client
	stop func()
}

// newCluster starts a broker and a funded customer; end stops and removes everything.
func newCluster(ctx context.Context) (c *cluster, end func(), err error) {
	dir, err := os.MkdirTemp("", "crowd-bench-")
	if err != nil {
		return nil, nil, err
	}
	c = &cluster{dir: dir}
	end = func() {
		if c.stop != nil {
			c.stop()
		}
		os.RemoveAll(dir)
	}
	if err := c.start(ctx); err != nil {
		end()
		return nil, nil, err
	}
	return c, end, nil
}

func (c *cluster) start(ctx context.Context) error {
	log, err := os.Create(filepath.Join(c.dir, "broker.log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(crowdBin, "broker", "run", "--json", "--listen", "127.0.0.1:0", "--data", filepath.Join(c.dir, "data"))
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.pid = cmd.Process.Pid
	c.stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		log.Close()
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("broker didn't start: %w (see %s)", err, log.Name())
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	var ready struct {
		URL string `json:"url"`
		Pin string `json:"pin"`
		Key string `json:"owner_key"`
	}
	if err := json.Unmarshal(line, &ready); err != nil {
		return fmt.Errorf("broker said %q: %w", line, err)
	}
	c.url, c.pin = ready.URL, ready.Pin
	if c.op, err = c.client(ready.Key); err != nil {
		return err
	}
	acc, err := c.op.CreateAccount(ctx, "ada")
	if err != nil {
		return err
	}
	if _, err := c.op.Grant(ctx, "ada", client.Grant{Amount: 1e6 * crowd.Credit, ID: "bench"}); err != nil {
		return err
	}
	c.ada, err = c.client(acc.Secret)
	return err
}

func (c *cluster) client(key string) (*client.Client, error) {
	return client.New(client.Options{Broker: c.url, Key: key, TLS: seal.PinnedTLS(c.pin)})
}

// simHost is a host that has no engine: it answers every lease at once with what a program that prints nothing gives.
type simHost struct {
	id   crowd.HostID
	key  ed25519.PrivateKey
	from netip.Addr
	conn *link.Conn
}

// join enrols n hosts, of as many owners as there are accounts for: perOwner hosts each.
func (c *cluster) join(ctx context.Context, n, perOwner int) ([]*simHost, error) {
	hosts := make([]*simHost, n)
	sem := make(chan struct{}, 32)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for o := 0; o*perOwner < n; o++ {
		acc, err := c.op.CreateAccount(ctx, fmt.Sprintf("owner-%d", o))
		if err != nil {
			return nil, err
		}
		owner, err := c.client(acc.Secret)
		if err != nil {
			return nil, err
		}
		for i := o * perOwner; i < min(n, (o+1)*perOwner); i++ {
			wg.Add(1)
			sem <- struct{}{}
			go func() {
				defer func() { <-sem; wg.Done() }()
				h, err := c.joinOne(ctx, owner, i)
				mu.Lock()
				hosts[i] = h
				if first == nil {
					first = err
				}
				mu.Unlock()
			}()
		}
	}
	wg.Wait()
	return hosts, first
}

func (c *cluster) joinOne(ctx context.Context, owner *client.Client, i int) (*simHost, error) {
	token, err := owner.CreateToken(ctx, time.Hour)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.dir, "hosts", fmt.Sprint(i))
	from := netip.AddrFrom4([4]byte{127, byte(1 + i/250), byte(1 + i%250), 1}) // a network each
	p, err := host.Join(ctx, token.Link, host.JoinOptions{Dir: dir, Name: fmt.Sprintf("sim-%d", i), Place: "DE", Platform: host.ThisPlatform("bench", "server"),
		Capacity: crowd.Capacity{Slots: 8, MemoryBytes: 8 << 30, DiskBytes: 1 << 30, Speed: 1}, LocalAddr: from})
	if err != nil {
		return nil, err
	}
	key, err := seal.LoadKey(filepath.Join(dir, "host.key"))
	return &simHost{id: p.Host.ID, key: key, from: from}, err
}

func (h *simHost) dial(ctx context.Context, c *cluster) error {
	var err error
	h.conn, _, err = link.Dial(ctx, link.DialOptions{URL: c.url, TLS: seal.PinnedTLS(c.pin), Pin: seal.Pin(c.pin), LocalAddr: h.from, Key: h.key, Host: h.id, Session: newSession(), DialNumber: 1})
	return err
}

func (h *simHost) renew(n int64, room int) error {
	platform := host.ThisPlatform("bench", "server")
	return h.conn.Send(&crowd.Message{Renew: &crowd.Renew{N: n, State: crowd.Ready, Room: room, Memory: 8 << 30, Platform: &platform,
		Capacity: crowd.Capacity{Slots: 8, MemoryBytes: 8 << 30, DiskBytes: 1 << 30, Speed: 1}}})
}

// work answers leases until ctx ends or the connection does; done gets the units of each accepted report.
func (h *simHost) work(ctx context.Context, room int, done func(units uint64)) error {
	if err := h.renew(1, room); err != nil {
		return err
	}
	counts := map[crowd.AttemptRef]uint64{}
	renewal := int64(2)
	last := time.Now()
	for {
		m, err := h.conn.Receive(ctx)
		if err != nil {
			return err
		}
		switch {
		case m.Lease != nil:
			l := m.Lease
			counts[l.AttemptRef] = l.Count
			o, body := noopOutcome(l.First, l.Count)
			r := &crowd.Report{AttemptRef: l.AttemptRef, Digest: digest.Of(o.Manifest()), Fuel: o.Fuel(), Seconds: 0.001, Body: body}
			r.Sig = ed25519.Sign(h.key, crowd.ReportBytes(h.id, r.AttemptRef, r.Digest, r.Fuel))
			if err := h.conn.Send(&crowd.Message{Report: r}); err != nil {
				return err
			}
		case m.Reported != nil:
			if m.Reported.Answer == crowd.ReportAccepted {
				done(counts[m.Reported.AttemptRef])
			}
			delete(counts, m.Reported.AttemptRef)
		case m.Problem != nil:
			return fmt.Errorf("closed: %s", m.Problem.Text)
		}
		if time.Since(last) > crowd.RenewEvery {
			last = time.Now()
			if err := h.renew(renewal, max(0, room-len(counts))); err != nil {
				return err
			}
			renewal++
		}
	}
}

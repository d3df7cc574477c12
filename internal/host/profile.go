package host

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/seal"
)

const (
	profileName = "host.json"
	keyName     = "host.key"
)

// Profile is what a machine knows of its membership.
type Profile struct {
	Broker      string     `json:"broker"` // "https://HOST:PORT"
	Fingerprint string     `json:"fingerprint"`
	Host        crowd.Host `json:"host"`
	Joined      time.Time  `json:"joined"`

	key ed25519.PrivateKey
}

// LoadProfile reads a folder that Join made; NotFound if there is none.
func LoadProfile(dir string) (*Profile, error) {
	b, err := os.ReadFile(filepath.Join(dir, profileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, crowd.Errorf(crowd.NotFound, "", "this machine has not joined any crowd").WithHint("crowd host join LINK")
	}
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "read profile: %w", err)
	}
	p := &Profile{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "%s is damaged: %w", filepath.Join(dir, profileName), err).WithHint("join again by a new link")
	}
	if p.key, err = seal.LoadKey(filepath.Join(dir, keyName)); err != nil {
		return nil, err
	}
	return p, nil
}

// client speaks HTTP to the broker and nobody else.
func (p *Profile) client(from netip.Addr) *http.Client {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: d.DialContext, TLSClientConfig: seal.PinnedTLS(p.Fingerprint), TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// JoinOptions say as what a machine joins.
type JoinOptions struct {
	Dir       string // made if it isn't there
	Name      string
	Place     string // jurisdiction, as the owner declares it
	Platform  crowd.Platform
	Capacity  crowd.Capacity
	LocalAddr netip.Addr
}

// Join enrols this machine by a join link and leaves its profile and key in o.Dir. Conflict if it has joined already; what the broker refuses is
// its own error (broker.token: the link is used up). The key is made first and kept, so a second try with the same link is the same host.
func Join(ctx context.Context, joinLink string, o JoinOptions) (*Profile, error) {
	l, err := seal.ParseJoinLink(joinLink)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "make the agent's folder: %w", err)
	}
	if old, err := LoadProfile(o.Dir); err == nil {
		return nil, crowd.Errorf(crowd.Conflict, "", "this machine has joined %s already, as %s", old.Broker, old.Host.Name).
			WithHint("crowd host leave, then join again; or another folder for another agent")
	} else if !crowd.KindIs(err, crowd.NotFound) {
		return nil, err
	}
	p := &Profile{Broker: l.Broker, Fingerprint: l.Fingerprint, Joined: time.Now().UTC().Truncate(time.Second)}
	if p.key, err = seal.LoadOrCreateKey(filepath.Join(o.Dir, keyName)); err != nil {
		return nil, err
	}
	c := p.client(o.LocalAddr)
	defer c.CloseIdleConnections()
	body, _ := json.Marshal(crowd.JoinRequest{
		Token: l.Token, Key: p.key.Public().(ed25519.PublicKey), Name: o.Name, Platform: o.Platform, Capacity: o.Capacity,
		Place: crowd.Place{Jurisdiction: o.Place},
	})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Broker+"/v1/hosts/join", bytes.NewReader(body))
	if err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "broker's URL: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	sum := seal.Hash(l.Token + " " + string(p.key.Public().(ed25519.PublicKey))) // another machine with this link is another request
	r.Header.Set("Idempotency-Key", fmt.Sprintf("%x", sum[:16]))
	resp, err := c.Do(r)
	if err != nil {
		return nil, netError(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, readProblem(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, crowd.Limits.RequestBody)).Decode(&p.Host); err != nil || p.Host.ID.IsZero() {
		return nil, crowd.Errorf(crowd.Internal, "", "the broker's answer makes no sense: %v", err)
	}
	b, _ := json.MarshalIndent(p, "", "  ")
	if err := writeFile(filepath.Join(o.Dir, profileName), append(b, '\n')); err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "write profile: %w", err)
	}
	return p, nil
}

// Forget removes what Join and the agent left in dir: everything, if purge, else all but the log.
func Forget(dir string, purge bool) error {
	if purge {
		return os.RemoveAll(dir)
	}
	var errs []error
	for _, n := range []string{profileName, keyName, ownerName, seenName, handoverName, "outbox", "cache", controlName} {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, n)))
	}
	return errors.Join(errs...)
}

// netError says that the broker doesn't answer, or answers with another key.
func netError(err error) error {
	var e *crowd.Error
	if errors.As(err, &e) {
		return e
	}
	return crowd.Errorf(crowd.Unavailable, crowd.NetworkBroker, "the broker doesn't answer: %w", err).WithHint("nothing was changed, the same again is safe")
}

// readProblem reads a problem document (RFC 9457 with code, reason, hint).
func readProblem(resp *http.Response) error {
	var p struct {
		Detail string       `json:"detail"`
		Title  string       `json:"title"`
		Code   string       `json:"code"`
		Reason crowd.Reason `json:"reason"`
		Hint   string       `json:"hint"`
	}
	_ = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&p)
	text := strings.TrimSpace(p.Detail)
	if text == "" {
		text = "the broker answers " + resp.Status
	}
	return &crowd.Error{Kind: crowd.KindOf(p.Code, resp.StatusCode), Status: resp.StatusCode, Reason: p.Reason, Message: text, Hint: p.Hint}
}

// writeFile replaces a file durably, readable by its owner only.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

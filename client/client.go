// Package client speaks to a broker: typed calls that mirror its API, with tries that can't do a thing twice, resumable uploads, event
// streams, and the profile file with its contexts.
//
// Errors are *crowd.Error as the broker made them: crowd.AsError(err).Kind tells what to do. A broker that doesn't answer is Unavailable,
// network.broker.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/crowdcloud/crowd"
)

// Options of New.
type Options struct {
	Broker string // "https://cloud.example", with a port if it isn't 443; http on this machine only
	Key    string // ck_…; "" for what needs none
	// TLS says whom to trust: nil is the system's authorities. A broker with a certificate of its own is trusted by its key's
	// fingerprint: a config whose VerifyConnection checks that.
	TLS       *tls.Config
	KeySource string // where Key came from, for the message when the broker doesn't know it
	UserAgent string
	Delays    []time.Duration // between tries; nil: 1, 3 and 6 s
	Log       *slog.Logger    // nil: none
}

// Client is a broker as seen with one API key. Safe for concurrent use.
type Client struct {
	o    Options
	base string
	host string // for messages
	http *http.Client

	heard atomic.Bool // it has answered something
}

var defaultDelays = []time.Duration{time.Second, 3 * time.Second, 6 * time.Second}

// New makes a client. Invalid if the address can't be one.
func New(o Options) (*Client, error) {
	base, err := NormalBroker(o.Broker)
	if err != nil {
		return nil, err
	}
	u, _ := url.Parse(base)
	if o.Delays == nil {
		o.Delays = defaultDelays
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig: o.TLS, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 90 * time.Second,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 60 * time.Second, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment,
	}
	return &Client{o: o, base: base, host: u.Host, http: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// NormalBroker is a broker's address as it is kept: "cloud.example" becomes "https://cloud.example". Plain http is for this machine only.
func NormalBroker(s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSpace(s), "/")
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		return "", crowd.Errorf(crowd.Invalid, "", "%q is no broker's address", s).WithHint("https://HOST or https://HOST:PORT")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return "", crowd.Errorf(crowd.Invalid, "", "plain http is for a broker on this machine only").WithHint("https://%s", u.Host)
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Broker is the address.
func (c *Client) Broker() string { return c.base }

// Close lets idle connections go.
func (c *Client) Close() { c.http.CloseIdleConnections() }

type idemKey struct{}

// WithIdempotencyKey makes the next mutating call under ctx use a key of the caller's: the same call under it happens once, for a day.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, idemKey{}, key)
}

// call is one request to the API.
type call struct {
	method, path string
	query        url.Values
	header       http.Header
	in           any    // JSON; nil: body
	body         []byte // as it is
}

// json does a call and reads a 2xx answer into out (nil: thrown away); anything else is an error.
func (c *Client) json(ctx context.Context, q call, out any) error {
	resp, err := c.do(ctx, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return c.refusal(resp)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.gaveUp(ctx, fmt.Errorf("its answer broke off: %w", err), 1, 0)
	}
	return nil
}

// do sends a request, again if that may help, and returns the last answer whatever its status; the caller closes its body. A POST carries one
// idempotency key over all its tries, so that it happens once. No answer at all is Unavailable, network.broker.
func (c *Client) do(ctx context.Context, q call) (*http.Response, error) {
	body, header := q.body, q.header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if q.in != nil {
		var err error
		if body, err = json.Marshal(q.in); err != nil {
			return nil, crowd.Errorf(crowd.Internal, "", "encode request: %w", err)
		}
		header.Set("Content-Type", "application/json")
	}
	if q.method == http.MethodPost {
		key, _ := ctx.Value(idemKey{}).(string)
		if key == "" {
			key = rand.Text()
		}
		header.Set("Idempotency-Key", key)
	}
	path := q.path
	if len(q.query) > 0 {
		path += "?" + q.query.Encode()
	}
	begun := time.Now()
	var told error // by an earlier try: better than that time was over
	for try := 1; ; try++ {
		resp, err := c.once(ctx, q.method, path, body, header)
		last := try > len(c.o.Delays)
		if err == nil {
			c.heard.Store(true)
		} else if told == nil || ctx.Err() == nil {
			told = err
		}
		switch {
		case err == nil && (last || !passing(resp, try)):
			return resp, nil
		case err != nil && (last || final(err) || ctx.Err() != nil):
			return nil, c.gaveUp(ctx, told, try, time.Since(begun))
		}
		wait := c.o.Delays[try-1]
		if err == nil {
			c.o.Log.Debug("the broker is busy", "try", try, "status", resp.StatusCode)
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
			_ = resp.Body.Close()
		} else {
			c.o.Log.Debug("no answer", "try", try, "err", err)
		}
		if sleep(ctx, wait) != nil {
			return nil, c.gaveUp(ctx, told, try, time.Since(begun))
		}
	}
}

func (c *Client) once(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "%v", err)
	}
	r.Header = header.Clone()
	if c.o.Key != "" {
		r.Header.Set("Authorization", "Bearer "+c.o.Key)
	}
	if c.o.UserAgent != "" {
		r.Header.Set("User-Agent", c.o.UserAgent)
	}
	return c.http.Do(r)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// passing tells the refusals that another try may find gone.
func passing(resp *http.Response, try int) bool {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	case http.StatusConflict: // our own first try may still run
		return try > 1 && resp.Request.Method == http.MethodPost
	}
	return false
}

// final tells the errors that another try won't mend: the pin's refusal, a certificate, an address that can't be.
func final(err error) bool {
	var e *crowd.Error
	var cert *tls.CertificateVerificationError
	return errors.As(err, &e) || errors.As(err, &cert)
}

// gaveUp says why there was no answer: the caller's time is over while a broker that answers was at it, or the broker doesn't answer.
func (c *Client) gaveUp(ctx context.Context, told error, tries int, took time.Duration) error {
	var e *crowd.Error
	var late net.Error
	switch {
	case errors.As(told, &e) || ctx.Err() == nil:
		return c.silent(told, tries, took)
	case errors.Is(ctx.Err(), context.Canceled) || told == nil || c.heard.Load() && errors.As(told, &late) && late.Timeout():
		return c.waited(ctx.Err())
	}
	return c.silent(told, tries, took)
}

func (c *Client) waited(err error) error {
	return &crowd.Error{Kind: crowd.Unavailable, Message: fmt.Sprintf("gave up waiting for %s", c.host), Hint: "the same command again is safe", Err: err}
}

// silent says that the broker doesn't answer, in words.
func (c *Client) silent(err error, tries int, took time.Duration) error {
	var e *crowd.Error
	if errors.As(err, &e) {
		return e
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return &crowd.Error{Kind: crowd.Denied, Reason: crowd.BrokerKey, Message: fmt.Sprintf("%s shows a certificate that nobody vouches for", c.host),
			Hint: "if it is its own: crowd account login with the link that its operator gave you", Err: err}
	}
	text := "no answer"
	var dns *net.DNSError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "refused"):
		text = "connection refused"
	case errors.As(err, &dns):
		text = "no such name"
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		text = "the connection broke"
	case strings.Contains(err.Error(), "HTTP response to HTTPS client"):
		text = "it speaks plain http"
	}
	many := "1 try"
	if tries > 1 {
		many = fmt.Sprintf("%d tries", tries)
	}
	return &crowd.Error{Kind: crowd.Unavailable, Reason: crowd.NetworkBroker, Err: err,
		Message: fmt.Sprintf("%s doesn't answer: %s, %s in %.0f s", c.host, text, many, max(1, took.Seconds())),
		Hint:    "nothing was changed, the same command again is safe · crowd doctor"}
}

// refusal reads the broker's own error.
func (c *Client) refusal(resp *http.Response) *crowd.Error {
	var p struct {
		Detail string        `json:"detail"`
		Code   string        `json:"code"`
		Reason crowd.Reason  `json:"reason"`
		Hint   string        `json:"hint"`
		Errors []crowd.Fault `json:"errors"`
		ID     string        `json:"instance"`
	}
	_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p)
	e := &crowd.Error{Kind: crowd.KindOf(p.Code, resp.StatusCode), Status: resp.StatusCode, Reason: p.Reason, Message: p.Detail, Hint: p.Hint}
	for _, f := range p.Errors {
		f.Path = strings.TrimPrefix(f.Path, "body.")
		e.Faults = append(e.Faults, f)
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized && e.Reason == crowd.CustomerKey && c.o.Key != "" && c.o.KeySource != "":
		e.Message = fmt.Sprintf("%s knows no key %s, which comes from %s", c.host, KeyHint(c.o.Key), c.o.KeySource)
	case e.Message == "":
		e.Message = fmt.Sprintf("%s answers %s", c.host, resp.Status)
	case e.Kind == crowd.Internal && p.ID != "":
		e.Hint = "tell the broker's operator: " + p.ID
	}
	return e
}

// KeyHint is what may be shown of a key: "ck_…d41x".
func KeyHint(key string) string {
	if len(key) < 20 {
		return "ck_…"
	}
	return "ck_…" + key[len(key)-4:]
}

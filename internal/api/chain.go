package api

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/link"
)

// request is what is known of a request besides its bytes.
type request struct {
	id     crowd.RequestID
	caller broker.Caller
	leave  []func() // to be called when it has ended
}

type requestKey struct{}

func requestOf(ctx context.Context) string {
	if q, ok := ctx.Value(requestKey{}).(*request); ok {
		return q.id.String()
	}
	return ""
}

func shortRequest(ctx context.Context) string {
	if q, ok := ctx.Value(requestKey{}).(*request); ok {
		return q.id.Short()
	}
	return "this request"
}

func callerOf(ctx context.Context) broker.Caller {
	if q, ok := ctx.Value(requestKey{}).(*request); ok {
		return q.caller
	}
	return broker.Caller{}
}

// chain puts around every request, in this order: its id, headers, the log, recovery, the origin check, the body's limit, who asks, rates,
// and the answer kept for a repeated POST.
func (s *server) chain() http.Handler {
	linkHandler := s.b.LinkHandler()
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/link" { // its own checks; takes the connection over
			linkHandler.ServeHTTP(rw, r)
			return
		}
		start := time.Now()
		q := &request{}
		var random [10]byte
		_, _ = rand.Read(random[:])
		mint(&q.id, start, random)
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, q))
		w := &recorder{ResponseWriter: rw}
		secure(w.Header())
		defer func() {
			for _, leave := range q.leave {
				leave()
			}
			if p := recover(); p != nil && p != any(http.ErrAbortHandler) { //nolint:errorlint // it is compared as the value that was thrown
				s.log.Error("request panicked", "request", q.id.String(), "path", logPath(r), "panic", p)
				if w.status == 0 {
					s.fail(w, r, crowd.Errorf(crowd.Internal, "", "panic"))
				}
			}
			s.log.Info("request", "method", r.Method, "path", logPath(r), "status", w.status, "bytes", w.bytes,
				"ms", time.Since(start).Milliseconds(), "account", q.caller.Account.Name, "request", q.id.String())
		}()
		if err := s.admit(w, r, q); err != nil {
			s.fail(w, r, err)
			return
		}
		s.answer(w, r)
	})
}

func mint[K crowd.Kind](id *crowd.ID[K], now time.Time, r [10]byte) { *id = crowd.MakeID[K](now, r) }

// logPath is a path without secrets: a join token stands in one, and who mistypes may put a key there.
func logPath(r *http.Request) string {
	if p := path.Clean("/" + r.URL.Path); p == "/j" || strings.HasPrefix(p, "/j/") {
		return "/j/…"
	}
	return secretForm.ReplaceAllString(r.URL.Path, "ck_…")
}

func secure(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// public says which paths need no key: hosts bring a bearer of their own, a join request its token.
func public(r *http.Request) bool {
	p := r.URL.Path
	return !strings.HasPrefix(p, "/v1/") && p != "/metrics" || strings.HasPrefix(p, "/v1/link/") || p == "/v1/hosts/join" || p == "/v1/reasons"
}

func (s *server) admit(w *recorder, r *http.Request, q *request) error {
	if o := r.Header.Get("Origin"); o != "" && !ownOrigin(o, r) {
		return crowd.Errorf(crowd.Denied, "", "requests from pages of %s are not allowed", clip(o))
	}
	if r.ContentLength != 0 { // the server reads on in a body that nobody wanted, up to 256 KiB
		_ = http.NewResponseController(w.ResponseWriter).SetReadDeadline(time.Now().Add(slow))
	}
	if !streams(r) && r.ContentLength != 0 {
		r.Body = http.MaxBytesReader(w, &timedBody{ReadCloser: r.Body, rc: http.NewResponseController(w)}, crowd.Limits.RequestBody)
	}
	if err := s.known(r, q); err != nil {
		return err
	}
	if !streams(r) && r.ContentLength > crowd.Limits.RequestBody {
		return tooLarge()
	}
	return s.bound(r, q)
}

// known finds out who asks, and whether he may so often.
func (s *server) known(r *http.Request, q *request) error {
	if strings.HasPrefix(r.URL.Path, "/v1/link/") {
		return nil // a host's bearer is looked at there
	}
	if public(r) {
		return s.nets.allow(link.Network(r.RemoteAddr), r.URL.Path == "/v1/hosts/join", time.Now())
	}
	secret, ok := bearer(r)
	if !ok {
		return &crowd.Error{Kind: crowd.Denied, Status: 401, Reason: crowd.CustomerKey, Message: "no API key given", Hint: "Authorization: Bearer ck_… · crowd account login"}
	}
	c, err := s.b.Authenticate(r.Context(), secret, s.o.TrustLoopback && fromHere(r))
	if err != nil {
		if e := s.nets.allow(link.Network(r.RemoteAddr), true, time.Now()); e != nil {
			return e
		}
		return err
	}
	q.caller = c
	return s.b.Allow(c.Account.ID)
}

func bearer(r *http.Request) (string, bool) {
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(secret), strings.EqualFold(scheme, "Bearer") && len(secret) > 0 && len(secret) < 200
}

// fromHere reports whether a request comes from this machine itself and not through a proxy on it.
func fromHere(r *http.Request) bool {
	for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(h) != "" {
			return false
		}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

func ownOrigin(o string, r *http.Request) bool {
	u, err := url.Parse(o)
	return err == nil && u.Host == r.Host && (u.Scheme == "https") == (r.TLS != nil)
}

// streams tells the uploads that have limits of their own.
func streams(r *http.Request) bool {
	return r.Method == http.MethodPut && (strings.HasPrefix(r.URL.Path, "/v1/blobs/") || strings.HasPrefix(r.URL.Path, "/v1/link/outcomes/") || strings.HasPrefix(r.URL.Path, "/v1/link/states/"))
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// answer routes a request, once per idempotency key.
func (s *server) answer(w *recorder, r *http.Request) {
	if _, pattern := s.mux.Handler(r); pattern == "" {
		s.unknown(w, r)
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if r.Method != http.MethodPost || key == "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.fail(w, r, bodyError(err))
		return
	}
	key = strings.Trim(key, `"`)
	h := sha256.New()
	h.Write([]byte(r.Method + " " + r.URL.RequestURI() + "\n"))
	h.Write(body)
	hash := [32]byte(h.Sum(nil))
	status, kept, done, err := s.b.IdemBegin(r.Context(), callerOf(r.Context()), key, hash)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if status != 0 {
		s.replay(w, r, status, kept)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r = r.WithContext(broker.WithIdem(r.Context(), key, hash))
	w.keep = &bytes.Buffer{}
	finished := false
	defer func() {
		if !finished { // a panic: free the key, keep nothing
			_ = done(500, nil)
		}
	}()
	s.mux.ServeHTTP(w, r)
	finished = true
	if w.status/100 != 2 { // nothing was done: the next try is a first one, and nobody fills the store with refusals
		_ = done(0, nil)
		return
	}
	answer, err := s.sealAnswer(r, w.keep.Bytes())
	if err == nil {
		err = done(w.status, answer)
	}
	if err != nil {
		s.log.Error("can't keep an answer for repeats", "request", requestOf(r.Context()), "err", err)
	}
}

// replay gives the answer of the first request again.
func (s *server) replay(w http.ResponseWriter, r *http.Request, status int, kept []byte) {
	body, err := s.openAnswer(r, kept)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var thing struct {
		ID      string `json:"id"`
		Version int64  `json:"version"`
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if status >= 300 {
		h.Set("Content-Type", "application/problem+json")
	} else if status == http.StatusCreated && json.Unmarshal(body, &thing) == nil && thing.ID != "" {
		h.Set("Location", strings.TrimSuffix(r.URL.Path, "/")+"/"+thing.ID)
		if thing.Version > 0 {
			h.Set("ETag", etag(thing.Version))
		}
	}
	h.Set("Idempotent-Replayed", "true")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// secretive tells the answers that hold a secret. They are kept sealed with a key that follows from the caller's own secret, which the broker
// never keeps: the store alone reveals nothing.
func secretive(r *http.Request) bool {
	return r.URL.Path == "/v1/accounts" || r.URL.Path == "/v1/keys" || r.URL.Path == "/v1/tokens"
}

func answerSeal(r *http.Request) (cipher.AEAD, error) {
	secret, _ := bearer(r)
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "crowd kept answer 1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (s *server) sealAnswer(r *http.Request, b []byte) ([]byte, error) {
	if !secretive(r) {
		return b, nil
	}
	a, err := answerSeal(r)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, b, nil), nil
}

func (s *server) openAnswer(r *http.Request, b []byte) ([]byte, error) {
	if !secretive(r) {
		return b, nil
	}
	a, err := answerSeal(r)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "open a kept answer: %w", err)
	}
	if b, err = a.Open(nil, nil, b, nil); err != nil {
		return nil, crowd.Errorf(crowd.Conflict, "", "this idempotency key was used with another API key")
	}
	return b, nil
}

// unknown answers what no pattern matches: 404, or 405 with what is allowed.
func (s *server) unknown(w http.ResponseWriter, r *http.Request) {
	probe := &recorder{ResponseWriter: &discard{h: http.Header{}}}
	h, _ := s.mux.Handler(r)
	h.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.Header().Get("Allow"))
		s.fail(w, r, &crowd.Error{Kind: crowd.Invalid, Status: 405, Message: "no " + r.Method + " here", Hint: "allowed: " + probe.Header().Get("Allow")})
		return
	}
	s.fail(w, r, crowd.Errorf(crowd.NotFound, "", "there is nothing at %s", clip(logPath(r))).WithHint("/docs lists what there is"))
}

func bodyError(err error) error {
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		return tooLarge()
	}
	return crowd.Errorf(crowd.Unavailable, "", "the request broke off: %w", err)
}

func tooLarge() error {
	return &crowd.Error{Kind: crowd.Invalid, Status: 413, Reason: crowd.CustomerFile, Message: fmt.Sprintf("a request has at most %d KiB", crowd.Limits.RequestBody>>10), Hint: "files go to /v1/blobs first"}
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// recorder notes what was answered, and keeps the body if it may be asked for again.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	began  time.Time // when the first byte was written
	keep   *bytes.Buffer
}

func (w *recorder) WriteHeader(status int) {
	if w.status != 0 { // what can't be written any more has failed already
		return
	}
	w.status = status
	w.hurry()
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (n int, err error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.keep != nil {
		w.keep.Write(b)
	}
	for len(b) > 0 {
		w.hurry()
		piece := b[:min(len(b), writePiece)]
		k, err := w.ResponseWriter.Write(piece)
		n += k
		w.bytes += int64(k)
		if err != nil {
			return n, err
		}
		b = b[len(piece):]
	}
	return n, nil
}

// writePiece is what one deadline is for.
const writePiece = 64 << 10

// hurry gives whoever reads the answer until then for the next piece of it. Event streams have no pace of their own.
func (w *recorder) hurry() {
	now := time.Now()
	if w.began.IsZero() {
		w.began = now
	}
	until := pace(w.began, w.bytes, now)
	if w.Header().Get("Content-Type") == "text/event-stream" {
		until = now.Add(slow)
	}
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(until)
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// netRates are token buckets by network, for those who haven't said who they are.
type netRates struct {
	mu sync.Mutex
	m  map[string]*netBucket
}

type netBucket struct {
	tokens float64
	at     time.Time
}

const netPerSecond, netBurst, costly = 50, 500, 10

// allow takes a token from a network's bucket, ten for what guesses at secrets.
func (n *netRates) allow(network string, guess bool, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil || len(n.m) > 10000 {
		n.m = map[string]*netBucket{} // a flood of networks: everybody starts anew
	}
	b := n.m[network]
	if b == nil {
		b = &netBucket{tokens: netBurst}
		n.m[network] = b
	} else {
		b.tokens = min(netBurst, b.tokens+now.Sub(b.at).Seconds()*netPerSecond)
	}
	b.at = now
	cost := 1.0
	if guess {
		cost = costly
	}
	if b.tokens < cost {
		return crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "too many requests from your network").WithHint("wait a second")
	}
	b.tokens -= cost
	return nil
}

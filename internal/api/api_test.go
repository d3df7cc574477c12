package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/seal"
	"github.com/crowdcloud/crowd/internal/store"
)

// world is a broker with an operator and two accounts, behind a real HTTP server.
type world struct {
	t        *testing.T
	dir      string
	url      string
	st       *store.Store
	b        *broker.Broker
	api      *server
	stop     func()
	from     func() *http.Client // nil: the default one
	log      *lockedBuffer
	operator string // secrets
	ada, bob string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), log: &lockedBuffer{}}
	w.start()
	t.Cleanup(func() { w.stop() })
	w.ada, w.bob = w.account("ada", 1000), w.account("bob", 0)
	return w
}

// start opens the store and serves; stop ends both, and another start goes on with what was there.
func (w *world) start() {
	t := w.t
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	w.st, err = store.Open(ctx, w.dir, store.Options{})
	must(t, err)
	w.b, err = broker.New(broker.Config{Dir: w.dir, Store: w.st, Key: brokerKey, URL: "http://127.0.0.1:1", PerGfuel: 1000, Version: "test"})
	must(t, err)
	b, st, done := w.b, w.st, make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	if secret, err := b.Bootstrap(ctx); err != nil || secret != "" {
		must(t, err)
		w.operator = secret
	}
	w.api = newServer(b, Options{Log: slog.New(slog.NewTextHandler(w.log, nil)), Version: "test", TrustLoopback: true})
	srv := httptest.NewUnstartedServer(w.api.chain())
	srv.Config.ReadHeaderTimeout = headWait
	srv.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	srv.Start()
	w.url = srv.URL
	w.stop = func() {
		cancel()
		srv.CloseClientConnections()
		srv.Close()
		must(t, <-done)
		must(t, st.Close())
	}
}

var brokerKey = ed25519.NewKeyFromSeed(make([]byte, 32))

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return m
}

func (w *world) do(method, path, key, body string, header ...string) answer {
	w.t.Helper()
	r, err := http.NewRequest(method, w.url+path, strings.NewReader(body))
	must(w.t, err)
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := http.DefaultClient
	if w.from != nil {
		client = w.from()
	}
	resp, err := client.Do(r)
	must(w.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(w.t, err)
	return answer{resp.StatusCode, resp.Header, b}
}

func (w *world) want(status int, method, path, key, body string, header ...string) answer {
	w.t.Helper()
	a := w.do(method, path, key, body, header...)
	if a.status != status {
		w.t.Fatalf("%s %s: %d, want %d: %s", method, path, a.status, status, a.body)
	}
	return a
}

func (w *world) account(name string, credits int) string {
	w.t.Helper()
	secret := w.want(201, "POST", "/v1/accounts", w.operator, fmt.Sprintf(`{"name":%q}`, name)).json(w.t)["secret"].(string)
	if credits > 0 {
		w.want(201, "POST", "/v1/accounts/"+name+"/grants", w.operator, fmt.Sprintf(`{"id":"g-%s","amount_ucr":%d}`, name, credits*1_000_000))
	}
	return secret
}

// host enrols a machine of an account, by its join link.
func (w *world) host(key, name string) {
	w.t.Helper()
	link, err := seal.ParseJoinLink(w.want(201, "POST", "/v1/tokens", key, `{}`).json(w.t)["link"].(string))
	must(w.t, err)
	q := crowd.JoinRequest{Token: link.Token, Key: bytes.Repeat([]byte(name[:1]), 32), Name: name, Place: crowd.Place{Jurisdiction: "DE"},
		Platform: crowd.Platform{OS: "linux", Arch: "amd64", Device: "desktop"}, Capacity: crowd.Capacity{Slots: 2, MemoryBytes: 4 << 30, DiskBytes: 10 << 30, Speed: 1}}
	body, err := json.Marshal(q)
	must(w.t, err)
	first := w.want(201, "POST", "/v1/hosts/join", "", string(body), "Idempotency-Key", name)
	if again := w.want(201, "POST", "/v1/hosts/join", "", string(body), "Idempotency-Key", name); string(again.body) != string(first.body) {
		w.t.Errorf("a machine whose answer got lost is another one: %s", again.body)
	}
	w.problem(w.want(409, "POST", "/v1/hosts/join", "", string(body)), "conflict", "host.cloned")
	q.Key = bytes.Repeat([]byte("?"), 32)
	body, err = json.Marshal(q)
	must(w.t, err)
	w.problem(w.want(403, "POST", "/v1/hosts/join", "", string(body)), "denied", "broker.token") // a link works once
}

func (w *world) upload(key, content string) string {
	d := digest.Of([]byte(content)).String()
	w.want(201, "PUT", "/v1/blobs/"+d, key, content)
	return d
}

func (w *world) spec(extra string) string {
	return fmt.Sprintf(`{"name":"test","program":%q,"units":{"count":10},"price":{"max_ucr":1000000}%s}`, w.upload(w.ada, program), extra)
}

var headWait = 10 * time.Second

const program = "\x00asm a program"

func (w *world) problem(a answer, code, reason string) {
	w.t.Helper()
	p := a.json(w.t)
	if a.header.Get("Content-Type") != "application/problem+json" || p["code"] != code || reason != "" && p["reason"] != reason ||
		!strings.HasPrefix(fmt.Sprint(p["instance"]), "req_") || p["detail"] == "" || p["title"] == "" || p["status"] != float64(a.status) {
		w.t.Errorf("wanted a problem %s %s, got %d %s: %s", code, reason, a.status, a.header.Get("Content-Type"), a.body)
	}
}

func TestProblems(t *testing.T) {
	w := newWorld(t)
	a := w.want(401, "GET", "/v1/jobs", "", "")
	w.problem(a, "denied", "customer.key")
	if a.header.Get("WWW-Authenticate") == "" {
		t.Error("no WWW-Authenticate")
	}
	w.problem(w.want(401, "GET", "/v1/jobs", "ck_wrong", ""), "denied", "customer.key")
	w.problem(w.want(404, "GET", "/v1/jobs/nosuch", w.ada, ""), "not_found", "")
	w.problem(w.want(404, "GET", "/v1/nosuch", w.ada, ""), "not_found", "")
	w.problem(w.want(405, "PUT", "/v1/jobs", w.ada, ""), "invalid", "")
	w.problem(w.want(422, "GET", "/v1/jobs?colour=red", w.ada, ""), "invalid", "")
	w.problem(w.want(422, "GET", "/v1/jobs?state=weird", w.ada, ""), "invalid", "")
	w.problem(w.want(403, "GET", "/v1/status", w.ada, ""), "denied", "customer.scope")
	w.problem(w.want(403, "POST", "/v1/accounts", w.ada, `{"name":"eve"}`), "denied", "customer.scope")
	w.problem(w.want(422, "POST", "/v1/keys", w.ada, `{"scopes":["read"],"colour":"red"}`), "invalid", "customer.file")
	w.problem(w.want(413, "POST", "/v1/jobs", w.ada, strings.Repeat(" ", 2<<20)), "invalid", "")
	p := w.want(422, "POST", "/v1/jobs", w.ada, `{"program":"b3:zz","units":{"count":"many"},"colour":"red"}`)
	w.problem(p, "invalid", "customer.file")
	if e := p.json(t)["errors"].([]any); len(e) < 3 || !strings.HasPrefix(e[0].(map[string]any)["location"].(string), "body.") {
		t.Errorf("not all faults at once: %s", p.body)
	}
}

func TestJobs(t *testing.T) {
	w := newWorld(t)
	w.problem(w.want(422, "POST", "/v1/jobs", w.ada, `{"program":"b3:`+strings.Repeat("0a", 32)+`","units":{"count":1},"price":{"max_ucr":1}}`), "invalid", "customer.file")
	w.problem(w.want(402, "POST", "/v1/jobs", w.ada, strings.Replace(w.spec(""), "1000000", "9000000000", 1)), "exhausted", "customer.no_credit")
	w.host(w.ada, "xhost")
	w.host(w.bob, "yhost")
	carol := w.account("carol", 0)
	w.host(carol, "zhost")

	a := w.want(201, "POST", "/v1/jobs", w.ada, w.spec(""), "Idempotency-Key", "k1")
	id := a.json(t)["id"].(string)
	if a.header.Get("Location") != "/v1/jobs/"+id || a.header.Get("ETag") != `"1"` {
		t.Errorf("headers: %v", a.header)
	}
	again := w.want(201, "POST", "/v1/jobs", w.ada, w.spec(""), "Idempotency-Key", "k1")
	if again.json(t)["id"] != id || again.header.Get("Location") != a.header.Get("Location") {
		t.Errorf("the same key ordered twice: %s", again.body)
	}
	w.problem(w.want(422, "POST", "/v1/jobs", w.ada, w.spec(`,"retries":1`), "Idempotency-Key", "k1"), "invalid", "")
	if n := len(w.want(200, "GET", "/v1/jobs", w.ada, "").json(t)["items"].([]any)); n != 1 {
		t.Errorf("%d jobs", n)
	}
	two := w.want(201, "POST", "/v1/jobs", w.ada, w.spec(""))
	if two.json(t)["name"] != "test-2" {
		t.Errorf("name: %s", two.body)
	}
	first := w.want(200, "GET", "/v1/jobs?limit=1", w.ada, "").json(t)
	if first["next"] == nil {
		t.Error("no cursor")
	}
	rest := w.want(200, "GET", "/v1/jobs?limit=1&after="+first["next"].(string), w.ada, "").json(t)
	if rest["items"].([]any)[0].(map[string]any)["id"] != id {
		t.Errorf("second page: %v", rest)
	}

	got := w.want(200, "GET", "/v1/jobs/test", w.ada, "")
	w.want(304, "GET", "/v1/jobs/test", w.ada, "", "If-None-Match", got.header.Get("ETag"))
	w.want(200, "GET", "/v1/jobs/test", w.ada, "", "If-None-Match", `"0"`, "Prefer", "wait=30")
	// another account's thing looks like nothing
	w.problem(w.want(404, "GET", "/v1/jobs/"+id, w.bob, ""), "not_found", "")
	w.problem(w.want(404, "POST", "/v1/jobs/"+id+"/cancel", w.bob, ""), "not_found", "")
	w.problem(w.want(404, "GET", "/v1/hosts/xhost", w.bob, ""), "not_found", "")
	w.problem(w.want(409, "GET", "/v1/jobs/test/units/3/stdout", w.ada, ""), "conflict", "")
	w.problem(w.want(404, "GET", "/v1/jobs/test/units/99", w.ada, ""), "not_found", "")
	if n := len(w.want(200, "GET", "/v1/jobs/test/results?from=4&with=stdout", w.ada, "").json(t)["items"].([]any)); n != 6 {
		t.Errorf("%d results", n)
	}
	for _, part := range []string{"chunks", "attempts", "logs"} {
		w.want(200, "GET", "/v1/jobs/test/"+part, w.ada, "")
	}
	if why := w.want(200, "GET", "/v1/why/test", w.ada, "").json(t); why["hosts"] != float64(3) {
		t.Errorf("why: %v", why)
	}
	if q := w.want(201, "POST", "/v1/quotes", w.ada, w.spec("")).json(t); q["hosts"] != float64(3) {
		t.Errorf("quote: %v", q)
	}

	quote := w.want(201, "POST", "/v1/quotes", w.ada, w.spec("")).json(t)["id"].(string)
	w.problem(w.want(404, "POST", "/v1/jobs?quote=quo_"+strings.Repeat("0", 26), w.ada, w.spec("")), "not_found", "")
	w.want(202, "POST", "/v1/jobs/"+w.want(201, "POST", "/v1/jobs?quote="+quote, w.ada, w.spec("")).json(t)["id"].(string)+"/cancel", w.ada, "")
	w.problem(w.want(422, "POST", "/v1/jobs?colour=red", w.ada, w.spec("")), "invalid", "customer.file")

	// a watcher is woken by the change
	woken := make(chan answer, 1)
	go func() {
		woken <- w.do("GET", "/v1/jobs/test", w.ada, "", "If-None-Match", got.header.Get("ETag"), "Prefer", "wait=30")
	}()
	if c := w.want(202, "POST", "/v1/jobs/test/cancel", w.ada, ""); c.json(t)["state"] != "cancelled" {
		t.Errorf("cancel: %s", c.body)
	}
	if a := <-woken; a.status != 200 || a.json(t)["state"] != "cancelled" {
		t.Errorf("watch: %d %s", a.status, a.body)
	}
	w.want(202, "POST", "/v1/jobs/"+id+"/cancel", w.ada, "")
	m := w.want(200, "GET", "/v1/accounts/me", w.ada, "").json(t)["balances"].(map[string]any)
	if m["free_ucr"] != float64(999_000_000) || m["held_ucr"] != float64(1_000_000) {
		t.Errorf("balances: %v", m)
	}
	if sum := w.want(200, "GET", "/v1/status", w.operator, "").json(t)["ledger_sum_ucr"]; sum != float64(0) {
		t.Errorf("the ledger sums to %v", sum)
	}
}

func TestBlobs(t *testing.T) {
	w := newWorld(t)
	content := strings.Repeat("0123456789", 100)
	path := "/v1/blobs/" + digest.Of([]byte(content)).String()
	w.want(404, "HEAD", path, w.ada, "")
	if a := w.want(202, "PUT", path, w.ada, content[:400], "Content-Range", "bytes 0-399/1000"); a.json(t)["have_bytes"] != float64(400) {
		t.Errorf("%s", a.body)
	}
	w.problem(w.want(409, "PUT", path, w.ada, content[600:], "Content-Range", "bytes 600-999/1000"), "conflict", "")
	w.problem(w.want(400, "PUT", path, w.ada, content, "Content-Range", "bytes 5-1/x"), "invalid", "")
	if a := w.want(202, "HEAD", path, w.ada, ""); a.header.Get(haveHeader) != "400" {
		t.Errorf("%v", a.header)
	}
	w.want(201, "PUT", path, w.ada, content[400:], "Content-Range", "bytes 400-999/1000")
	w.want(200, "HEAD", path, w.ada, "")
	if a := w.want(200, "GET", path, w.ada, ""); string(a.body) != content || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%v", a.header)
	}
	if a := w.want(206, "GET", path, w.ada, "", "Range", "bytes=10-14"); string(a.body) != "01234" {
		t.Errorf("%s", a.body)
	}
	// a digest is a name, not a capability
	w.want(404, "HEAD", path, w.bob, "")
	w.problem(w.want(404, "GET", path, w.bob, ""), "not_found", "")
	w.problem(w.want(422, "PUT", "/v1/blobs/"+digest.Of([]byte("x")).String(), w.ada, "y"), "invalid", "customer.file")
	w.problem(w.want(401, "GET", "/v1/link/blobs/"+digest.Of([]byte("x")).String(), "", ""), "denied", "customer.key")
	w.problem(w.want(401, "PUT", "/v1/link/outcomes/job_"+strings.Repeat("0", 26)+"/0/1/"+digest.Of([]byte("x")).String(), w.ada, "x"), "denied", "customer.key")
}

func TestKeys(t *testing.T) {
	w := newWorld(t)
	a := w.want(201, "POST", "/v1/keys", w.ada, `{"scopes":["read"],"ttl_seconds":60}`, "Idempotency-Key", "kk")
	key := a.json(t)["secret"].(string)
	if again := w.want(201, "POST", "/v1/keys", w.ada, `{"scopes":["read"],"ttl_seconds":60}`, "Idempotency-Key", "kk"); again.json(t)["secret"] != key {
		t.Errorf("a repeat made another key: %s", again.body)
	}
	w.want(200, "GET", "/v1/jobs", key, "")
	w.problem(w.want(403, "POST", "/v1/tokens", key, `{}`), "denied", "customer.scope")
	w.problem(w.want(403, "POST", "/v1/keys", key, `{"scopes":["order"]}`), "denied", "customer.scope")
	order := w.want(201, "POST", "/v1/keys", w.ada, `{"scopes":["order"],"cap_ucr":5}`).json(t)["secret"].(string)
	if me := w.want(200, "GET", "/v1/accounts/me", order, "").json(t); me["name"] != "ada" || me["balances"] != nil {
		t.Errorf("who may not read sees %v", me)
	}
	for _, path := range []string{"/v1/keys", "/v1/postings", "/v1/blobs/" + w.upload(w.ada, "x")} {
		w.problem(w.want(403, "GET", path, order, ""), "denied", "customer.scope")
	}
	w.problem(w.want(403, "POST", "/v1/keys", order, `{"scopes":["order"]}`), "denied", "customer.scope")
	list := w.want(200, "GET", "/v1/keys", w.ada, "")
	if strings.Contains(string(list.body), key) || !strings.Contains(string(list.body), "…"+key[len(key)-4:]) {
		t.Errorf("keys: %s", list.body)
	}
	w.want(204, "DELETE", "/v1/keys/"+a.json(t)["id"].(string), w.ada, "")
	w.problem(w.want(401, "GET", "/v1/jobs", key, ""), "denied", "customer.key")
	if n := len(w.want(200, "GET", "/v1/postings", w.ada, "").json(t)["items"].([]any)); n == 0 {
		t.Error("no postings")
	}
}

func TestStrangers(t *testing.T) {
	w := newWorld(t)
	w.problem(w.want(403, "GET", "/healthz", "", "", "Origin", "https://evil.example"), "denied", "")
	w.want(200, "GET", "/healthz", "", "", "Origin", w.url)
	for _, h := range []string{"X-Forwarded-For", "Forwarded"} { // a proxy on this machine is not this machine
		w.problem(w.want(403, "GET", "/v1/status", w.operator, "", h, "192.0.2.1"), "denied", "customer.scope")
	}
	w.problem(w.want(401, "GET", "/metrics", "", ""), "denied", "customer.key")
	w.problem(w.want(403, "GET", "/metrics", w.ada, ""), "denied", "customer.scope")
	if a := w.want(200, "GET", "/metrics", w.operator, ""); !strings.Contains(string(a.body), "crowd_") {
		t.Errorf("metrics: %.200s", a.body)
	}
	a := w.want(200, "GET", "/j/q7k4m2xdp3ws9fza", "", "")
	if !strings.Contains(string(a.body), "crowd join") || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("join page: %s", a.body)
	}
	limited := false
	for range 200 {
		if a := w.do("GET", "/v1/jobs", "ck_guess", ""); a.status == 429 {
			limited = true
			w.problem(a, "exhausted", "broker.rate")
			if a.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			break
		}
	}
	if !limited {
		t.Error("keys can be guessed without end")
	}
	for _, secret := range []string{w.operator, w.ada, "q7k4m2xdp3ws9fza"} {
		if strings.Contains(w.log.String(), secret) {
			t.Error("a secret stands in the log")
		}
	}
}

func TestPages(t *testing.T) {
	w := newWorld(t)
	spec := w.want(200, "GET", "/openapi.json", "", "").json(t)
	if spec["openapi"] != "3.1.0" || len(spec["paths"].(map[string]any)) < 20 {
		t.Errorf("openapi: %v, %d paths", spec["openapi"], len(spec["paths"].(map[string]any)))
	}
	for path := range spec["paths"].(map[string]any) {
		if a := w.want(200, "GET", "/docs", "", ""); !strings.Contains(string(a.body), path) {
			t.Errorf("/docs lacks %s", path)
		}
	}
	w.want(200, "GET", "/schema/crowd.json", "", "").json(t)
	if a := w.want(200, "GET", "/problems/customer.no_credit", "", ""); !strings.Contains(string(a.body), crowd.Reasons[crowd.CustomerCredit].Means) {
		t.Errorf("%s", a.body)
	}
	w.problem(w.want(404, "GET", "/problems/customer.unheard", "", ""), "not_found", "")
	if n := len(w.want(200, "GET", "/v1/reasons", "", "").json(t)["items"].([]any)); n != len(crowd.Reasons) {
		t.Errorf("%d reasons", n)
	}
	w.want(200, "GET", "/readyz", "", "")
}

// A watcher that waits longer than a slow body may take isn't cut off; a slow body is.
func TestPatience(t *testing.T) {
	slow = 100 * time.Millisecond
	t.Cleanup(func() { slow = 30 * time.Second })
	w := newWorld(t)
	w.host(w.bob, "yhost")
	w.host(w.account("carol", 0), "zhost")
	w.want(201, "POST", "/v1/jobs", w.ada, w.spec(""))
	for range 2 { // the second on a connection that was used before
		a := w.want(200, "GET", "/v1/jobs/test", w.ada, "")
		begun := time.Now()
		w.want(304, "GET", "/v1/jobs/test", w.ada, "", "If-None-Match", a.header.Get("ETag"), "Prefer", "wait=1")
		if time.Since(begun) < 900*time.Millisecond {
			t.Errorf("it waited %v only", time.Since(begun))
		}
	}
	r, pipe := io.Pipe()
	defer pipe.Close()
	q, err := http.NewRequest("POST", w.url+"/v1/jobs", r)
	must(t, err)
	q.Header.Set("Authorization", "Bearer "+w.ada)
	go func() { _, _ = pipe.Write([]byte("{")) }() // and then nothing
	resp, err := http.DefaultClient.Do(q)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != 503 {
			t.Errorf("a body that never ends: %d", resp.StatusCode)
		}
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	list := w.want(200, "GET", "/v1/events?limit=1", w.ada, "").json(t)
	if len(list["items"].([]any)) != 1 || list["next"] == nil {
		t.Fatalf("%v", list)
	}
	r, err := http.NewRequest("GET", w.url+"/v1/events", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+w.ada)
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Last-Event-ID", list["next"].(string))
	resp, err := http.DefaultClient.Do(r)
	must(t, err)
	defer resp.Body.Close()
	w.want(201, "POST", "/v1/keys", w.ada, `{"scopes":["read"]}`)
	var seen strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "event: key.created") {
		n, err := resp.Body.Read(buf)
		must(t, err)
		seen.Write(buf[:n])
	}
	if !strings.HasPrefix(seen.String(), "id: ") || strings.Contains(seen.String(), "bob") {
		t.Errorf("%s", seen.String())
	}
	w.problem(w.want(422, "GET", "/v1/events?after=x", w.ada, ""), "invalid", "")
}

package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

var quick = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := New(Options{Broker: s.URL, Key: "ck_0123456789abcdefghijkd41x", KeySource: "CROWD_KEY", Delays: quick})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPostHappensOnce(t *testing.T) {
	var keys []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"name":"gw","future":1}`)
	})
	j, err := c.Submit(t.Context(), &crowd.JobSpec{}, "")
	if err != nil || j.Name != "gw" {
		t.Fatalf("%+v, %v", j, err)
	}
	if len(keys) != 3 || keys[0] == "" || keys[0] != keys[1] || keys[1] != keys[2] {
		t.Errorf("idempotency keys: %q", keys)
	}
	if _, err := c.Submit(WithIdempotencyKey(t.Context(), "mine"), &crowd.JobSpec{}, ""); err != nil || keys[3] != "mine" {
		t.Errorf("key %q, %v", keys[3], err)
	}
}

func TestRefusalIsTheBrokersOwnError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusPaymentRequired)
		_, _ = io.WriteString(w, `{"status":402,"detail":"not enough credit","code":"exhausted","reason":"customer.no_credit","hint":"less","errors":[{"location":"body.price.max_ucr","message":"above free credit"}]}`)
	})
	_, err := c.Submit(t.Context(), &crowd.JobSpec{}, "")
	e := crowd.AsError(err)
	if e.Kind != crowd.Exhausted || e.Reason != crowd.CustomerCredit || e.Hint != "less" || len(e.Faults) != 1 {
		t.Fatalf("%+v", e)
	}
	if !strings.HasSuffix(e.Faults[0].Path, "price.max_ucr") {
		t.Errorf("fault at %q", e.Faults[0].Path)
	}
}

func TestUnknownKeySaysWhereItComesFrom(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"detail":"the broker knows no key","code":"denied","reason":"customer.key"}`)
	})
	_, err := c.Me(t.Context())
	if !crowd.KindIs(err, crowd.Denied) || !strings.Contains(err.Error(), "knows no key ck_…d41x, which comes from CROWD_KEY (customer.key)") {
		t.Error(err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c, err := New(Options{Broker: "http://" + addr, Delays: quick})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Me(t.Context())
	e := crowd.AsError(err)
	if e.Kind != crowd.Unavailable || e.Reason != crowd.NetworkBroker || !strings.HasPrefix(e.Message, addr+" doesn't answer: connection refused, 4 tries in ") || e.Hint == "" {
		t.Errorf("%+v", e)
	}
}

func TestGivingUp(t *testing.T) {
	var answers atomic.Bool
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if answers.Load() {
			_, _ = io.WriteString(w, "{}")
			return
		}
		<-r.Context().Done()
	})
	for _, reason := range []crowd.Reason{crowd.NetworkBroker, ""} { // what never answered is unreachable; what did is only slow
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := c.Me(ctx); !crowd.KindIs(err, crowd.Unavailable) || crowd.AsError(err).Reason != reason {
			t.Error(err)
		}
		cancel()
		answers.Store(true)
		if me, err := c.Me(t.Context()); err != nil || me.Balances != nil {
			t.Error(me, err)
		}
		answers.Store(false)
	}
}

func TestNormalBroker(t *testing.T) {
	for in, want := range map[string]string{
		"cloud.example": "https://cloud.example", "https://Cloud.Example:27693/": "https://cloud.example:27693", "http://127.0.0.1:1": "http://127.0.0.1:1",
		"http://cloud.example": "", "ftp://x": "", "https://": "", "https://u:p@x": "", "https://x/y": "", "": "",
	} {
		got, err := NormalBroker(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// blobServer keeps uploads as the broker does and breaks the first connections off.
type blobServer struct {
	mu     sync.Mutex
	have   []byte
	total  int
	breaks int
	puts   int
}

func (b *blobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w.Header().Set("Crowd-Have-Bytes", fmt.Sprint(len(b.have)))
	if r.Method == http.MethodHead {
		switch {
		case b.total > 0 && len(b.have) == b.total:
		case len(b.have) > 0:
			w.WriteHeader(http.StatusAccepted)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
		return
	}
	b.puts++
	var from, to int
	if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &b.total); err != nil || from > len(b.have) {
		w.WriteHeader(http.StatusConflict)
		return
	}
	body, _ := io.ReadAll(r.Body)
	b.have = append(b.have[:from], body...)
	if b.breaks > 0 { // it arrived, but its answer never does
		b.breaks--
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(map[string]int{"have_bytes": len(b.have)})
}

func TestUploadGoesOn(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), (2*pieceBytes+1000)/16)
	b := &blobServer{breaks: 2, have: bytes.Clone(content[:12345])}
	c := serve(t, b.ServeHTTP)
	var last int64
	err := c.Upload(t.Context(), crowd.Digest{1}, int64(len(content)), bytes.NewReader(content), func(have, _ int64) { last = have })
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.have, content) || last != int64(len(content)) {
		t.Errorf("%d of %d bytes, told %d", len(b.have), len(content), last)
	}
	puts := b.puts
	if err := c.Upload(t.Context(), crowd.Digest{1}, int64(len(content)), bytes.NewReader(content), nil); err != nil || b.puts != puts {
		t.Errorf("sent again: %v", err)
	}
}

func TestEventsGoOnWhereTheyBroke(t *testing.T) {
	var froms []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		froms = append(froms, r.Header.Get("Last-Event-ID"))
		w.Header().Set("Content-Type", "text/event-stream")
		n := len(froms)
		_, _ = fmt.Fprintf(w, ":\n\nid: %d\nevent: x\ndata: {\"seq\":%d,\"event\":\"x\"}\n\n", n, n)
	})
	n := 0
	for e, err := range c.Events(t.Context(), "job", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; e.Seq != int64(n) {
			t.Errorf("event %d came as %d", e.Seq, n)
		}
		if n == 3 {
			break
		}
	}
	if strings.Join(froms, " ") != "0 1 2" {
		t.Errorf("asked from %q", froms)
	}
}

func TestWatchJobEndsWithTheJob(t *testing.T) {
	n := int64(0)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n++
		if n == 2 {
			if r.Header.Get("If-None-Match") != `"1"` || r.Header.Get("Prefer") != "wait=30" {
				t.Errorf("asked with %v", r.Header)
			}
			w.WriteHeader(http.StatusNotModified)
			return
		}
		j := crowd.JobDetail{Job: crowd.Job{Version: n, State: crowd.JobRunning}}
		if n == 3 {
			j.State = crowd.JobDone
		}
		_ = json.NewEncoder(w).Encode(j)
	})
	var states []crowd.JobState
	for d, err := range c.WatchJob(t.Context(), "gw") {
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, d.State)
	}
	if fmt.Sprint(states) != "[running done]" {
		t.Error(states)
	}
}

func TestProfile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "crowd")
	p, err := LoadProfile(dir)
	if err != nil {
		t.Fatal(err)
	}
	p.Contexts["work"] = Context{Broker: "https://a", Account: "ada", Key: "ck_work", Pin: "pin", MaxCost: "10cr"}
	p.Contexts["home"] = Context{Broker: "https://b", Account: "ada", Key: "ck_home"}
	p.Current = "work"
	if err := p.Save(); err != nil {
		t.Fatal(err)
	}
	if p, err = LoadProfile(dir); err != nil {
		t.Fatal(err)
	}
	type want struct{ broker, key, keyFrom, pin string }
	for _, x := range []struct {
		flag string
		env  map[string]string
		want want
	}{
		{"", nil, want{"https://a", "ck_work", `context "work"`, "pin"}},
		{"home", nil, want{"https://b", "ck_home", `context "home"`, ""}},
		{"", map[string]string{"CROWD_CONTEXT": "home"}, want{"https://b", "ck_home", `context "home"`, ""}},
		{"", map[string]string{"CROWD_KEY": "ck_env"}, want{"https://a", "ck_env", "CROWD_KEY", "pin"}},
		{"home", map[string]string{"CROWD_KEY": "ck_env"}, want{"https://b", "ck_home", `context "home"`, ""}},
		{"", map[string]string{"CROWD_BROKER": "https://c"}, want{"https://c", "", "", ""}}, // no key goes to another broker
		{"", map[string]string{"CROWD_BROKER": "https://c", "CROWD_KEY": "ck_env", "CROWD_PIN": "p"}, want{"https://c", "ck_env", "CROWD_KEY", "p"}},
	} {
		s, err := p.Settings(x.flag, func(k string) string { return x.env[k] })
		if got := (want{s.Broker.Value, s.Key.Value, s.Key.From, s.Pin.Value}); err != nil || got != x.want {
			t.Errorf("-c %q %v: %+v, %v", x.flag, x.env, got, err)
		}
	}
	if _, err := p.Settings("gone", func(string) string { return "" }); !crowd.KindIs(err, crowd.NotFound) {
		t.Error(err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(p.Path(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadProfile(dir); !crowd.KindIs(err, crowd.Denied) {
		t.Errorf("a profile that others can read: %v", err)
	}
}

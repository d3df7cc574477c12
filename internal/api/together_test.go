package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/digest"
)

// together makes n requests that are sent at the same time; each gets its number.
func together(n int, f func(i int) answer) []answer {
	all := make([]answer, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			all[i] = f(i)
		})
	}
	close(start)
	wg.Wait()
	return all
}

func (w *world) free(key string) float64 {
	w.t.Helper()
	return w.want(200, "GET", "/v1/accounts/me", key, "").json(w.t)["balances"].(map[string]any)["free_ucr"].(float64)
}

func (w *world) items(key, path string) []any {
	w.t.Helper()
	return w.want(200, "GET", path, key, "").json(w.t)["items"].([]any)
}

// oneOrder checks that what came back under one idempotency key was one order, and returns its id and body.
func (w *world) oneOrder(answers []answer) (id, body string) {
	w.t.Helper()
	for _, a := range answers {
		switch a.status {
		case 201:
			got := a.json(w.t)["id"].(string)
			if id == "" {
				id, body = got, strings.TrimSpace(string(a.body))
			}
			if got != id || strings.TrimSpace(string(a.body)) != body {
				w.t.Errorf("one key gave %s and %s:\n%s\n%s", id, got, body, a.body)
			}
		case 409:
			w.problem(a, "conflict", "")
		default:
			w.t.Errorf("%d %s", a.status, a.body)
		}
	}
	return id, body
}

// One idempotency key is one job: sent fifty times at once, after a restart, and when the first answer was lost with the broker.
func TestOneKeyIsOneJob(t *testing.T) {
	w := newWorld(t)
	w.machine(w.bob, "bobhost")
	spec := w.spec(`,"verify":{"none":true}`)
	send := func(int) answer { return w.do("POST", "/v1/jobs", w.ada, spec, "Idempotency-Key", "once") }
	id, body := w.oneOrder(together(50, send))
	if id == "" {
		t.Fatal("none of fifty was taken")
	}
	check := func(when string, jobs int) {
		t.Helper()
		if n := len(w.items(w.ada, "/v1/jobs")); n != jobs {
			t.Errorf("%s: %d jobs", when, n)
		}
		if f := w.free(w.ada); f != float64(1_000_000_000-jobs*1_000_000) {
			t.Errorf("%s: %v free", when, f)
		}
		orders := 0
		for _, p := range w.items(w.ada, "/v1/postings") {
			if strings.HasPrefix(p.(map[string]any)["txn"].(string), "order:") {
				orders++
			}
		}
		if orders != jobs {
			t.Errorf("%s: %d escrows", when, orders)
		}
	}
	check("at once", 1)
	for i, a := range together(50, send) {
		if a.status != 201 || strings.TrimSpace(string(a.body)) != body || a.header.Get("Idempotent-Replayed") != "true" {
			t.Fatalf("repeat %d: %d %s, first %s", i, a.status, a.body, body)
		}
	}
	w.stop()
	w.start()
	again, body2 := w.oneOrder(together(50, send))
	if again != id || body2 != body {
		t.Errorf("after a restart: %s", body2)
	}
	check("after a restart", 1)

	// the broker takes the order and dies before it says so, and before the answer is kept by its own
	h := sha256.Sum256([]byte("POST /v1/jobs\n" + spec))
	c, err := w.b.Authenticate(t.Context(), w.ada, true)
	must(t, err)
	s, err := decodeSpec([]byte(spec))
	must(t, err)
	lost, err := w.b.SubmitQuoted(broker.WithIdem(t.Context(), "lost", h), c, s, "")
	must(t, err)
	w.stop()
	w.start()
	got, _ := w.oneOrder(together(50, func(int) answer { return w.do("POST", "/v1/jobs", w.ada, spec, "Idempotency-Key", "lost") }))
	if got != lost.ID.String() {
		t.Errorf("the lost answer's job is %s, the repeats' %s", lost.ID, got)
	}
	check("after a lost answer", 2)

	// what was refused wasn't done: the same key is free for the order that is right
	w.want(422, "POST", "/v1/jobs", w.ada, `{"name":"wrong"}`, "Idempotency-Key", "mended")
	w.want(201, "POST", "/v1/jobs", w.ada, spec, "Idempotency-Key", "mended")
	check("after a refusal", 3)
}

// brokerProcess is a broker in a process of its own, this test binary, that can be killed.
type brokerProcess struct {
	cmd   *exec.Cmd
	ready struct{ URL, Ada, Bob, Operator string }
}

const brokerProcessEnv = "CROWD_TEST_BROKER_DIR"

// TestBrokerProcess isn't a test: it is the process.
func TestBrokerProcess(t *testing.T) {
	dir := os.Getenv(brokerProcessEnv)
	if dir == "" {
		t.Skip("only as a process of other tests")
	}
	w := &world{t: t, dir: dir, log: &lockedBuffer{}}
	w.start()
	out := map[string]string{"URL": w.url}
	if w.operator != "" {
		out["Operator"], out["Ada"], out["Bob"] = w.operator, w.account("ada", 1000), w.account("bob", 0)
		w.ada, w.bob = out["Ada"], out["Bob"]
		w.machine(w.bob, "bobhost")
		w.spec("") // uploads the program
	}
	must(t, json.NewEncoder(os.Stdout).Encode(out))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func startBrokerProcess(t *testing.T, dir string) *brokerProcess {
	t.Helper()
	p := &brokerProcess{cmd: exec.Command(os.Args[0], "-test.run=^TestBrokerProcess$")}
	p.cmd.Env = append(os.Environ(), brokerProcessEnv+"="+dir)
	in, err := p.cmd.StdinPipe()
	must(t, err)
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	must(t, p.cmd.Start())
	t.Cleanup(func() {
		in.Close()
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	must(t, json.NewDecoder(out).Decode(&p.ready))
	return p
}

// A broker that is killed at any moment of an order has taken it or not; the same key again tells which, and orders once.
func TestOneKeyOverKills(t *testing.T) {
	dir := t.TempDir()
	p := startBrokerProcess(t, dir)
	keys := p.ready
	spec := `{"name":"test","program":"` + digest.Of([]byte(program)).String() + `","units":{"count":1},"verify":{"none":true},"price":{"max_ucr":1000000}}`
	rounds := 3
	if os.Getenv("CROWD_SOAK") != "" {
		rounds = 40
	}
	send := func(key string) (answer, error) {
		r, err := http.NewRequestWithContext(context.Background(), "POST", p.ready.URL+"/v1/jobs", strings.NewReader(spec))
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+keys.Ada)
		r.Header.Set("Idempotency-Key", key)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return answer{}, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return answer{resp.StatusCode, resp.Header, b}, err
	}
	told := map[string]string{}
	for round := range rounds {
		var mu sync.Mutex
		var wg sync.WaitGroup
		first := make(chan struct{}, 50)
		for i := range 50 {
			key := fmt.Sprintf("k%d.%d", round, i%10) // each of ten keys five times
			wg.Go(func() {
				a, err := send(key)
				first <- struct{}{}
				if err != nil || a.status != 201 {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if id := fmt.Sprint(a.json(t)["id"]); told[key] == "" || told[key] == id {
					told[key] = id
				} else {
					t.Errorf("%s is %s and %s", key, told[key], id)
				}
			})
		}
		for range round * 50 / rounds { // so many have come back; the rest is somewhere
			<-first
		}
		must(t, p.cmd.Process.Kill())
		_ = p.cmd.Wait()
		wg.Wait()
		p = startBrokerProcess(t, dir)
		for i := range 10 {
			key := fmt.Sprintf("k%d.%d", round, i)
			a, err := send(key)
			must(t, err)
			id := fmt.Sprint(a.json(t)["id"])
			if a.status != 201 || told[key] != "" && told[key] != id {
				t.Errorf("%s was %q before the kill, is %d %s", key, told[key], a.status, a.body)
			}
			told[key] = id
		}
	}
	w := &world{t: t, url: p.ready.URL}
	if n := len(w.items(keys.Ada, "/v1/jobs?limit=1000")); n != 10*rounds {
		t.Errorf("%d jobs of %d keys", n, 10*rounds)
	}
	if f := w.free(keys.Ada); f != float64(1000-10*rounds)*1e6 {
		t.Errorf("%v free", f)
	}
	if sum := w.want(200, "GET", "/v1/status", keys.Operator, "").json(t)["ledger_sum_ucr"]; sum != float64(0) {
		t.Errorf("the ledger sums to %v", sum)
	}
}

// Fifty orders at once never hold more than the key's cap or the account's credit; those that are refused leave nothing.
func TestCapsHoldTogether(t *testing.T) {
	w := newWorld(t)
	w.machine(w.bob, "bobhost")
	spec := w.spec(`,"verify":{"none":true}`) // of 1 cr each
	order := func(key string, jobs int, reason crowd.Reason) {
		t.Helper()
		before, seen := w.free(w.ada), len(w.items(w.ada, "/v1/events?limit=1000"))
		taken := 0
		for _, a := range together(50, func(int) answer { return w.do("POST", "/v1/jobs", key, spec) }) {
			switch a.status {
			case 201:
				taken++
			case 402:
				w.problem(a, "exhausted", string(reason))
			default:
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		if taken != jobs {
			t.Errorf("%d orders were taken, wanted %d", taken, jobs)
		}
		if spent := before - w.free(w.ada); spent != float64(jobs)*1e6 {
			t.Errorf("%v spent on %d orders", spent, jobs)
		}
		queued := 0
		for _, e := range w.items(w.ada, "/v1/events?limit=1000")[seen:] {
			if e.(map[string]any)["event"] == "job.queued" {
				queued++
			}
		}
		if queued != jobs {
			t.Errorf("%d events of %d orders", queued, jobs)
		}
		me := w.want(200, "GET", "/v1/accounts/me", key, "").json(t)["key"].(map[string]any)
		if me["spent_ucr"] != float64(jobs)*1e6 {
			t.Errorf("the key spent %v", me["spent_ucr"])
		}
	}
	capped := func(ucr int) string {
		return w.want(201, "POST", "/v1/keys", w.ada, fmt.Sprintf(`{"scopes":["order","read"],"cap_ucr":%d}`, ucr)).json(t)["secret"].(string)
	}
	order(capped(7_500_000), 7, crowd.CustomerCap)
	w.want(201, "POST", "/v1/accounts", w.operator, `{"name":"sink"}`)
	for range 40 { // down to 5 cr free: what is held is gone
		w.want(201, "POST", "/v1/jobs", w.ada, strings.Replace(spec, "1000000", "24700000", 1))
	}
	if f := w.free(w.ada); f != 5e6 {
		t.Fatalf("%v free", f)
	}
	order(capped(20_000_000), 5, crowd.CustomerCredit) // and what the key would have had stays its own
	if n := len(w.items(w.ada, "/v1/jobs?limit=1000")); n != 7+40+5 {
		t.Errorf("%d jobs", n)
	}
	if sum := w.want(200, "GET", "/v1/status", w.operator, "").json(t)["ledger_sum_ucr"]; sum != float64(0) {
		t.Errorf("the ledger sums to %v", sum)
	}
	w.stop()
	w.start() // and so it is on disk
	if f, n := w.free(w.ada), len(w.items(w.ada, "/v1/jobs?limit=1000")); f != 0 || n != 52 {
		t.Errorf("after a restart %v free, %d jobs", f, n)
	}
}

// Never more jobs open than an account may have, however many are ordered at once.
func TestOpenJobsTogether(t *testing.T) {
	most := crowd.Limits.OpenJobs
	crowd.Limits.OpenJobs = 10
	t.Cleanup(func() { crowd.Limits.OpenJobs = most })
	w := newWorld(t)
	w.machine(w.bob, "bobhost")
	spec := w.spec(`,"verify":{"none":true}`)
	taken := 0
	for _, a := range together(50, func(int) answer { return w.do("POST", "/v1/jobs", w.ada, spec) }) {
		if a.status == 201 {
			taken++
		} else if w.problem(a, "exhausted", "customer.quota"); a.status != 429 || a.header.Get("Retry-After") == "" {
			t.Errorf("%d %v", a.status, a.header)
		}
	}
	if n := len(w.items(w.ada, "/v1/jobs?limit=1000")); taken != 10 || n != 10 {
		t.Errorf("%d taken, %d jobs", taken, n)
	}
}

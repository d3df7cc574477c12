package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/seal"
	"github.com/crowdcloud/crowd/internal/store"
)

// things are what an account has, as they are named in requests. Two of them name the same sorts of things at the same places.
type things struct {
	names   []string // of jobs: full id, short id, name; a living and an ended one
	chunk   string   // JOB/FIRST/N of an attempt
	host    []string
	key     []string
	account []string
	quote   string
	blobs   []string
	upload  string // unfinished
	token   string // used
	hostKey []byte
	spec    crowd.JobSpec
}

func (x things) all() []string {
	return slices.Concat(x.names, x.host, x.key, x.account, []string{x.quote, x.upload, x.token}, x.blobs)
}

// rule is what holds for a route.
type rule struct {
	// needs are the scopes without which it is refused: of each group one must be there. can is a request that they are enough for; nil: own's first.
	needs [][]crowd.Scope
	can   func(w *world) call
	// own are requests of bob's for what is his: taken, and nothing of ada's is in the answers.
	own []call
	// foreign are bob's requests for things of ada's, or of nobody's: answered with status, and alike.
	foreign func(x things) []call
	status  int
	public  bool // answers without a key, and says nothing of anybody
}

type call struct {
	method, path, body string
	header             []string
	key                string // "": bob's
	status             int    // of own; 0: any 2xx
}

func gets(paths ...string) (all []call) {
	for _, p := range paths {
		all = append(all, call{method: "GET", path: p})
	}
	return all
}

// each makes a request for each name.
func each(method, form string, names func(things) []string) func(things) []call {
	return func(x things) (all []call) {
		for _, n := range names(x) {
			all = append(all, call{method: method, path: fmt.Sprintf(form, n)})
		}
		return all
	}
}

func jobsOf(x things) []string  { return x.names }
func blobsOf(x things) []string { return append([]string{x.upload}, x.blobs...) }

var (
	reads  = [][]crowd.Scope{{crowd.ScopeRead}}
	orders = [][]crowd.Scope{{crowd.ScopeOrder}}
	lends  = [][]crowd.Scope{{crowd.ScopeLend}}
	runs   = [][]crowd.Scope{{crowd.ScopeOperate}}
)

// rules has one rule for each route that the mux knows: a route without one fails the test.
func (w *world) rules(bearer string) map[string]rule {
	text := rule{public: true}
	bobs := "/v1/jobs/bobjob"
	return map[string]rule{
		"GET /{$}": {public: true, own: []call{{method: "GET", path: "/"}}}, "GET /docs": text, "GET /healthz": text, "GET /readyz": text, "GET /openapi.json": text, "GET /openapi.yaml": text,
		"GET /openapi-3.0.json": text, "GET /openapi-3.0.yaml": text, "GET /schema/crowd.json": text, "GET /v1/reasons": text,
		"GET /j/{token}":       {public: true, foreign: each("GET", "/j/%s", func(x things) []string { return []string{x.token} }), status: 200},
		"GET /problems/{code}": {public: true, own: gets("/problems/not_found"), foreign: each("GET", "/problems/%s", things.all), status: 404},
		"GET /metrics":         {needs: runs, foreign: func(things) []call { return gets("/metrics") }, status: 403, can: func(*world) call { return gets("/metrics")[0] }},
		"POST /v1/hosts/join": {public: true, status: 403, foreign: func(x things) []call {
			return []call{{method: "POST", path: "/v1/hosts/join", body: joinBody(x.token, bytes.Repeat([]byte("n"), 32))}}
		}},

		"GET /v1/link/blobs/{digest}": {status: 404, foreign: func(x things) (all []call) {
			for _, b := range blobsOf(x) {
				all = append(all, call{method: "GET", path: "/v1/link/blobs/" + b, key: bearer})
			}
			return all
		}},
		"PUT /v1/link/outcomes/{job}/{first}/{n}/{digest}": {status: 404, foreign: func(x things) []call {
			return []call{{method: "PUT", path: "/v1/link/outcomes/" + x.chunk + "/" + digest.Of([]byte("x")).String(), body: "x", key: bearer}}
		}},
		"PUT /v1/link/states/{job}/{first}/{n}/{seq}/{root}": {status: -1, foreign: func(x things) []call {
			return []call{{method: "PUT", path: "/v1/link/states/" + x.chunk + "/1/" + digest.Of([]byte("x")).String() + "?fuel=1", body: "x", key: bearer, header: []string{"Crowd-Signature", "AAAA"}}}
		}},

		"GET /v1/accounts/me": {own: gets("/v1/accounts/me")},
		"POST /v1/accounts": {needs: runs, status: 403, can: func(*world) call { return call{method: "POST", path: "/v1/accounts", body: `{"name":"new"}`} },
			foreign: func(things) []call { return []call{{method: "POST", path: "/v1/accounts", body: `{"name":"ada"}`}} }},
		"POST /v1/accounts/{ref}/grants": {needs: runs, status: 403, can: func(*world) call {
			return call{method: "POST", path: "/v1/accounts/bob/grants", body: `{"amount_ucr":1}`}
		}, foreign: func(x things) (all []call) {
			for _, a := range x.account {
				all = append(all, call{method: "POST", path: "/v1/accounts/" + a + "/grants", body: `{"amount_ucr":1}`})
			}
			return all
		}},
		"GET /v1/keys":          {needs: reads, own: gets("/v1/keys")},
		"POST /v1/keys":         {needs: orders, own: []call{{method: "POST", path: "/v1/keys", body: `{"scopes":["order"]}`}}},
		"DELETE /v1/keys/{ref}": {needs: orders, status: 404, foreign: each("DELETE", "/v1/keys/%s", func(x things) []string { return x.key }), can: deleteKey},
		"GET /v1/postings":      {needs: reads, own: gets("/v1/postings")},

		"PUT /v1/blobs/{digest}": {needs: orders, can: func(w *world) call {
			return call{method: "PUT", path: "/v1/blobs/" + digest.Of([]byte("mine")).String(), body: "mine"}
		}, status: 202, foreign: func(x things) (all []call) { // what others have is no reason to have less to send
			for _, b := range blobsOf(x) {
				all = append(all, call{method: "PUT", path: "/v1/blobs/" + b, body: "1", header: []string{"Content-Range", "bytes 0-0/9"}})
			}
			return all
		}},
		"HEAD /v1/blobs/{digest}": {needs: [][]crowd.Scope{{crowd.ScopeRead, crowd.ScopeOrder}}, can: func(w *world) call { return call{method: "HEAD", path: "/v1/blobs/" + w.upload(w.bob, "bob's")} },
			status: 404, foreign: each("HEAD", "/v1/blobs/%s", blobsOf)},
		"GET /v1/blobs/{digest}": {needs: reads, can: func(w *world) call { return call{method: "GET", path: "/v1/blobs/" + w.upload(w.bob, "bob's")} },
			status: 404, foreign: each("GET", "/v1/blobs/%s", blobsOf)},

		"POST /v1/jobs": {needs: orders, can: func(w *world) call { return call{method: "POST", path: "/v1/jobs", body: w.bobSpec("more")} }, status: -1,
			foreign: func(x things) []call {
				return []call{{method: "POST", path: "/v1/jobs", body: specText(x.spec)}, {method: "POST", path: "/v1/jobs?quote=" + x.quote, body: w.bobSpec("more")}}
			}},
		"POST /v1/quotes": {needs: orders, own: []call{{method: "POST", path: "/v1/quotes", body: w.bobSpec("more")}}, status: 422,
			foreign: func(x things) []call { return []call{{method: "POST", path: "/v1/quotes", body: specText(x.spec)}} }},
		"GET /v1/jobs":                           {needs: reads, own: gets("/v1/jobs", "/v1/jobs?living=true", "/v1/jobs?label=canary=ada", "/v1/jobs?limit=1000")},
		"GET /v1/jobs/{ref}":                     {needs: reads, own: gets(bobs), status: 404, foreign: each("GET", "/v1/jobs/%s", jobsOf)},
		"POST /v1/jobs/{ref}/cancel":             {needs: append(orders, reads...), can: cancelJob, status: 404, foreign: each("POST", "/v1/jobs/%s/cancel", jobsOf)},
		"GET /v1/jobs/{ref}/chunks":              {needs: reads, own: gets(bobs + "/chunks"), status: 404, foreign: each("GET", "/v1/jobs/%s/chunks", jobsOf)},
		"GET /v1/jobs/{ref}/attempts":            {needs: reads, own: gets(bobs + "/attempts"), status: 404, foreign: each("GET", "/v1/jobs/%s/attempts", jobsOf)},
		"GET /v1/jobs/{ref}/results":             {needs: reads, own: gets(bobs + "/results?with=stdout,stderr"), status: 404, foreign: each("GET", "/v1/jobs/%s/results?with=stdout,stderr", jobsOf)},
		"GET /v1/jobs/{ref}/logs":                {needs: reads, own: gets(bobs + "/logs"), status: 404, foreign: each("GET", "/v1/jobs/%s/logs", jobsOf)},
		"GET /v1/jobs/{ref}/units/{unit}":        {needs: reads, own: []call{{method: "GET", path: bobs + "/units/0", status: 409}}, status: 404, foreign: each("GET", "/v1/jobs/%s/units/0", jobsOf)},
		"GET /v1/jobs/{ref}/units/{unit}/stdout": {needs: reads, own: []call{{method: "GET", path: bobs + "/units/0/stdout", status: 409}}, status: 404, foreign: each("GET", "/v1/jobs/%s/units/0/stdout", jobsOf)},
		"GET /v1/jobs/{ref}/units/{unit}/stderr": {needs: reads, own: []call{{method: "GET", path: bobs + "/units/0/stderr", status: 409}}, status: 404, foreign: each("GET", "/v1/jobs/%s/units/0/stderr", jobsOf)},
		"GET /v1/jobs/{ref}/units/{unit}/files/{path...}": {needs: reads, own: []call{{method: "GET", path: bobs + "/units/0/files/left.txt", status: 409}}, status: 404,
			foreign: each("GET", "/v1/jobs/%s/units/0/files/left.txt", jobsOf)},

		"GET /v1/hosts":       {needs: reads, own: gets("/v1/hosts"), status: 403, foreign: func(things) []call { return gets("/v1/hosts?all=true") }},
		"GET /v1/hosts/{ref}": {needs: reads, own: gets("/v1/hosts/bobhost"), status: 404, foreign: each("GET", "/v1/hosts/%s", func(x things) []string { return x.host })},
		"DELETE /v1/hosts/{ref}": {needs: [][]crowd.Scope{{crowd.ScopeLend, crowd.ScopeOperate}}, can: func(w *world) call {
			return call{method: "DELETE", path: "/v1/hosts/" + w.machine(w.bob, fmt.Sprintf("gone%d", time.Now().UnixNano())).row.ID.String()}
		}, status: 404, foreign: each("DELETE", "/v1/hosts/%s", func(x things) []string { return x.host })},
		"POST /v1/tokens": {needs: lends, own: []call{{method: "POST", path: "/v1/tokens", body: `{}`}}},

		"GET /v1/events": {needs: reads, own: gets("/v1/events", "/v1/events?limit=1000"), status: 0, foreign: func(x things) (all []call) {
			for _, of := range x.all() {
				all = append(all, call{method: "GET", path: "/v1/events?of=" + of})
			}
			return all
		}},
		"GET /v1/why/{ref...}": {needs: reads, own: gets("/v1/why/bobjob", "/v1/why/bobjob/0", "/v1/why/bobhost"), status: 404, foreign: func(x things) (all []call) {
			for _, of := range slices.Concat(x.names, x.host, x.key, x.account) {
				all = append(all, gets("/v1/why/"+of, "/v1/why/"+of+"/0")...)
			}
			return all
		}},
		"GET /v1/status": {needs: runs, status: 403, can: func(*world) call { return gets("/v1/status")[0] }, foreign: func(things) []call { return gets("/v1/status") }},
	}
}

func joinBody(token string, key []byte) string {
	b, _ := json.Marshal(crowd.JoinRequest{Token: token, Key: key, Name: "eve", Place: crowd.Place{Jurisdiction: "DE"}})
	return string(b)
}

func specText(s crowd.JobSpec) string {
	b, _ := json.Marshal(s)
	return string(b)
}

func (w *world) bobSpec(name string) string {
	return fmt.Sprintf(`{"name":%q,"program":%q,"units":{"count":4},"verify":{"none":true},"price":{"max_ucr":1000}}`, name, w.upload(w.bob, "\x00asm bob's"))
}

func deleteKey(w *world) call {
	return call{method: "DELETE", path: "/v1/keys/" + w.want(201, "POST", "/v1/keys", w.bob, `{"scopes":["order"]}`).json(w.t)["id"].(string)}
}

func cancelJob(w *world) call {
	return call{method: "POST", path: "/v1/jobs/" + w.want(201, "POST", "/v1/jobs", w.bob, w.bobSpec("tocancel")).json(w.t)["id"].(string) + "/cancel"}
}

// other names things of the same forms that nobody has.
func (x things) other(t *testing.T) things {
	y := x
	y.names, y.host, y.key, y.account = absent[crowd.JobID](t, x.names), absent[crowd.HostID](t, x.host), absent[crowd.KeyID](t, x.key), absent[crowd.AccountID](t, x.account)
	y.quote = absent[crowd.QuoteID](t, []string{x.quote})[0]
	first, rest, _ := strings.Cut(x.chunk, "/")
	y.chunk = absent[crowd.JobID](t, []string{first})[0] + "/" + rest
	y.token = strings.Repeat("7", len(x.token))
	y.hostKey = bytes.Repeat([]byte{9}, len(x.hostKey))
	y.blobs = nil
	lost := func(d string) string { return digest.Of([]byte("nobody has " + d)).String() }
	for _, d := range x.blobs {
		y.blobs = append(y.blobs, lost(d))
	}
	y.upload = lost(x.upload)
	y.spec.Program = lost(x.spec.Program)
	y.spec.Inputs = slices.Clone(x.spec.Inputs)
	for i := range y.spec.Inputs {
		y.spec.Inputs[i].Digest = digest.Of([]byte("nobody has it"))
	}
	return y
}

const letters = "0123456789abcdefghjkmnpqrstvwxyz"

// absent changes the random part of ids, whole or short, and of names.
func absent[I interface {
	comparable
	String() string
	Short() string
}](t *testing.T, names []string) (out []string) {
	for _, n := range names {
		switch {
		case strings.Contains(n, "_") && !strings.Contains(n, "…"):
			b := []byte(n)
			for i := len(b) - 6; i < len(b)-1; i++ { // not the last: it has fewer bits
				b[i] = letters[(strings.IndexByte(letters, b[i])+1)%len(letters)]
			}
			out = append(out, string(b))
		case strings.Contains(n, "…"):
			out = append(out, n[:len(n)-4]+"0000")
		default:
			out = append(out, "q"+n[1:])
		}
	}
	return out
}

// town makes ada's things: a job at work on carol's host, an ended one, a quote, blobs, keys, a machine; and some of bob's.
func (w *world) town() (x things, bobs *machine, secrets []string) {
	t := w.t
	w.want(201, "POST", "/v1/accounts/bob/grants", w.operator, `{"id":"g-bob","amount_ucr":1000000000}`)
	carols := w.machine(w.account("carol", 0), "carolhost")
	must(t, carols.dial(1))
	canary := []string{"canary-arg-ada", "canary-env-ada", "canary-label-ada", "canary-said-ada", "canary-input-ada"}
	carols.said = []byte(canary[3])
	program, input := w.upload(w.ada, "\x00asm ada's canary-program-ada"), w.upload(w.ada, canary[4])
	d, err := crowd.ParseDigest(input)
	must(t, err)
	x.spec = crowd.JobSpec{Name: "adaended", Program: program, Args: []string{canary[0]}, Env: map[string]string{"SECRET": canary[1]}, Labels: map[string]string{"canary": "ada", "text": canary[2]},
		Units: crowd.Units{Count: 2}, Chunk: 2, Verify: crowd.Verify{None: true}, Price: crowd.PriceRule{Max: 1000}, Inputs: []crowd.Input{{As: "in.txt", Digest: d, Size: int64(len(canary[4]))}}}
	ended := w.want(201, "POST", "/v1/jobs", w.ada, specText(x.spec)).json(t)["id"].(string)
	if a := carols.report(carols.lease()); a != crowd.ReportAccepted {
		t.Fatalf("carol's report: %s", a)
	}
	for s := ""; s != "done"; { // its end follows the report's answer
		s = w.want(200, "GET", "/v1/jobs/"+ended, w.ada, "").json(t)["state"].(string)
	}
	living := x.spec
	living.Name, living.Units.Count = "adaliving", 40
	at := w.want(201, "POST", "/v1/jobs", w.ada, specText(living)).json(t)["id"].(string)
	l := carols.lease()
	for _, id := range []string{at, ended} {
		var j crowd.JobID
		must(t, j.UnmarshalText([]byte(id)))
		x.names = append(x.names, id, j.Short())
	}
	x.names = append(x.names, "adaliving", "adaended")
	x.chunk = fmt.Sprintf("%s/%d/%d", l.Job, l.First, l.N)
	adas := w.machine(w.ada, "adahost")
	x.host, x.token, x.hostKey = []string{adas.row.ID.String(), adas.row.ID.Short(), "adahost", carols.row.ID.String(), carols.row.ID.Short(), "carolhost"}, adas.token, adas.row.Key
	k := w.want(201, "POST", "/v1/keys", w.ada, `{"scopes":["read"]}`).json(t)
	var kid crowd.KeyID
	must(t, kid.UnmarshalText([]byte(k["id"].(string))))
	x.key = []string{kid.String(), kid.Short(), k["hint"].(string)}
	var acc crowd.AccountID
	must(t, acc.UnmarshalText([]byte(k["account"].(string))))
	x.account = []string{acc.String(), acc.Short()}
	x.quote = w.want(201, "POST", "/v1/quotes", w.ada, specText(x.spec)).json(t)["id"].(string)
	x.blobs = []string{program, input}
	part := digest.Of([]byte("ada's part")).String()
	w.want(202, "PUT", "/v1/blobs/"+part, w.ada, "ada", "Content-Range", "bytes 0-2/10")
	x.upload = part
	bobs = w.machine(w.bob, "bobhost")
	must(t, bobs.dial(0))
	w.want(201, "POST", "/v1/jobs", w.bob, w.bobSpec("bobjob"))
	secrets = slices.Concat(canary, x.all(), []string{k["secret"].(string), w.ada, "adaended", "adaliving", "adahost"})
	return x, bobs, secrets
}

func (c call) do(w *world, key string) answer {
	if c.key != "" {
		key = c.key
	}
	return w.do(c.method, c.path, key, c.body, c.header...)
}

var requestForm = regexp.MustCompile(`req_[0-9a-z]{26}`)

// same is an answer as one that was asked for other things would see it.
func (a answer) same(from, to things) string {
	h := maps.Clone(a.header)
	h.Del("Date")
	s := fmt.Sprintf("%d %v\n%s", a.status, h, requestForm.ReplaceAll(a.body, []byte("req")))
	old, now := append(from.all(), strings.SplitN(from.chunk, "/", 2)[0]), append(to.all(), strings.SplitN(to.chunk, "/", 2)[0])
	for i, d := range append(slices.Clone(from.blobs), from.upload) {
		old, now = append(old, d[:7]+"…"), append(now, append(slices.Clone(to.blobs), to.upload)[i][:7]+"…")
	}
	for i := range from.spec.Inputs {
		old, now = append(old, from.spec.Inputs[i].Digest.String()), append(now, to.spec.Inputs[i].Digest.String())
	}
	for i := range old {
		s = strings.ReplaceAll(s, old[i], now[i])
	}
	return s
}

// patterns are the routes: those that the mux knows, in which the API's description must be.
func (w *world) patterns() []string {
	s := newServer(w.b, Options{})
	for path, item := range s.huma.OpenAPI().Paths {
		for method, op := range map[string]any{"GET": item.Get, "HEAD": item.Head, "POST": item.Post, "PUT": item.Put, "DELETE": item.Delete, "PATCH": item.Patch} {
			if fmt.Sprint(op) == "<nil>" {
				continue
			}
			if !slices.ContainsFunc(s.mux.patterns, func(p string) bool { return strings.ReplaceAll(p, "...}", "}") == method+" "+path }) {
				w.t.Errorf("the description has %s %s, the mux hasn't", method, path)
			}
		}
	}
	return s.mux.patterns
}

// Another account's things look like what isn't there, on every route; nothing of another account is in what one's own requests give.
func TestIsolation(t *testing.T) {
	w := newWorld(t)
	x, bobs, secrets := w.town()
	y := x.other(t)
	rules := w.rules(bobs.bearer)
	before := w.want(200, "GET", "/v1/jobs/adaliving", w.ada, "").json(t)["state"]
	checked := 0
	put := "PUT /v1/blobs/{digest}" // last: it makes uploads of bob's own
	for _, p := range append(slices.DeleteFunc(slices.Clone(w.patterns()), func(p string) bool { return p == put }), put) {
		r, ok := rules[p]
		if !ok {
			t.Errorf("no rule for %s: say in rules what another account may see there", p)
			continue
		}
		if r.public && r.own == nil && r.foreign == nil {
			_, path, _ := strings.Cut(p, " ")
			r.own = gets(path)
		}
		if r.own == nil && r.foreign == nil {
			t.Errorf("the rule for %s checks nothing", p)
		}
		for _, c := range r.own {
			a := c.do(w, w.bob)
			if c.status != 0 && a.status != c.status || c.status == 0 && a.status/100 != 2 {
				t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
			}
			for _, s := range secrets {
				if bytes.Contains(a.body, []byte(s)) || strings.Contains(fmt.Sprint(a.header), s) {
					t.Errorf("%s %s tells %q of ada: %.300s", c.method, c.path, s, a.body)
				}
			}
			checked++
		}
		if r.foreign == nil {
			continue
		}
		hers, nobodys := r.foreign(x), r.foreign(y)
		for i := range hers {
			a, b := hers[i].do(w, w.bob), nobodys[i].do(w, w.bob)
			if r.status > 0 && a.status != r.status || r.status < 0 && a.status/100 != 4 {
				t.Errorf("%s %s: %d, want %d: %s", hers[i].method, hers[i].path, a.status, r.status, a.body)
			}
			if s, want := a.same(x, x), b.same(y, x); s != want {
				t.Errorf("%s %s tells that it is there:\n%s\nof what isn't:\n%s", hers[i].method, hers[i].path, s, want)
			}
			checked++
		}
	}
	for p := range rules {
		if !slices.Contains(w.patterns(), p) {
			t.Errorf("a rule for %s, which is no route", p)
		}
	}
	if checked < 100 {
		t.Errorf("only %d requests were looked at", checked)
	}
	// nothing of hers was touched
	if s := w.want(200, "GET", "/v1/jobs/adaliving", w.ada, "").json(t)["state"]; s != before || s != "running" {
		t.Errorf("her job was %v and is %v", before, s)
	}
	w.want(200, "GET", "/v1/hosts/adahost", w.ada, "")
	if n := len(w.want(200, "GET", "/v1/keys", w.ada, "").json(t)["items"].([]any)); n != 2 {
		t.Errorf("she has %d keys", n)
	}
	if a := w.want(200, "GET", "/v1/jobs/adaended/units/0/stdout", w.ada, ""); string(a.body) != "canary-said-ada" {
		t.Errorf("her result: %s", a.body)
	}
	// a machine's public key is no way to its owner's things
	token := w.want(201, "POST", "/v1/tokens", w.bob, `{}`).json(t)["link"].(string)
	l, err := seal.ParseJoinLink(token)
	must(t, err)
	a := w.want(409, "POST", "/v1/hosts/join", "", joinBody(l.Token, x.hostKey))
	for _, s := range secrets {
		if bytes.Contains(a.body, []byte(s)) {
			t.Errorf("joining with ada's machine's public key tells %q: %s", s, a.body)
		}
	}
	// nor is her idempotency key
	spec := w.bobSpec("again")
	w.want(422, "POST", "/v1/jobs", w.ada, spec, "Idempotency-Key", "shared") // bob's program isn't hers
	w.want(201, "POST", "/v1/quotes", w.ada, specText(x.spec), "Idempotency-Key", "shared2")
	if a := w.want(422, "POST", "/v1/quotes", w.bob, specText(x.spec), "Idempotency-Key", "shared2"); a.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("bob got ada's answer: %s", a.body)
	}
	w.want(201, "POST", "/v1/jobs", w.bob, spec, "Idempotency-Key", "shared")
	w.want(405, "GET", "/v1/jobs/adaliving/cancel", w.bob, "")
}

// An event stream of one account tells nothing of another's, while both have much to tell.
func TestIsolationOfStreams(t *testing.T) {
	w := newWorld(t)
	_, _, secrets := w.town()
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.url+"/v1/events", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+w.bob)
	r.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(r)
	must(t, err)
	defer resp.Body.Close()
	for range 5 {
		w.want(201, "POST", "/v1/keys", w.ada, `{"scopes":["read"]}`)
		w.want(201, "POST", "/v1/keys", w.bob, `{"scopes":["read"]}`)
	}
	w.want(202, "POST", "/v1/jobs/bobjob/cancel", w.bob, "") // first, or carol's host turns to it
	w.want(202, "POST", "/v1/jobs/adaliving/cancel", w.ada, "")
	w.want(201, "POST", "/v1/keys", w.bob, `{"scopes":["read"]}`)
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for strings.Count(seen.String(), "event: key.created") < 6 {
		n, err := resp.Body.Read(buf)
		must(t, err)
		seen.Write(buf[:n])
	}
	if !strings.Contains(seen.String(), "event: job.cancelled") {
		t.Error("bob's stream lacks his job's end")
	}
	for _, s := range secrets {
		if strings.Contains(seen.String(), s) {
			t.Errorf("bob's stream tells %q of ada", s)
		}
	}
}

// Each scope is refused one by one, and is enough where it is enough.
func TestScopes(t *testing.T) {
	w := newWorld(t)
	_, bobs, _ := w.town()
	w.from = elsewhere(t) // or so many wrong keys are taken for a guesser
	rules := w.rules(bobs.bearer)
	var bob crowd.Account
	must(t, json.Unmarshal(w.want(200, "GET", "/v1/accounts/me", w.bob, "").body, &bob))
	n := 0
	key := func(scopes []crowd.Scope, expires time.Time) string {
		secret := seal.NewSecret()
		k := crowd.Key{Account: bob.ID, Hash: seal.Hash(secret), Hint: seal.SecretHint(secret), Scopes: scopes, Created: time.Now(), Expires: expires}
		n++
		mint(&k.ID, time.Now(), [10]byte{byte(n), byte(n >> 8), 7})
		must(t, w.st.Apply(t.Context(), store.PutKey{Key: k}))
		return secret
	}
	expired, deleted := key(crowd.Scopes, time.Now().Add(-time.Second)), key(crowd.Scopes, time.Time{})
	w.want(204, "DELETE", "/v1/keys/"+w.want(200, "GET", "/v1/accounts/me", deleted, "").json(t)["key"].(map[string]any)["id"].(string), deleted, "")
	for _, p := range w.patterns() {
		r := rules[p]
		if r.public || strings.Contains(p, "/v1/link/") {
			continue
		}
		can := r.can
		if can == nil {
			can = func(*world) call { return r.own[0] }
		}
		c := can(w)
		for what, secret := range map[string]string{"expired": expired, "deleted": deleted, "no": "", "unknown": seal.NewSecret(), "a host's": bobs.bearer} {
			if a := w.do(c.method, c.path, secret, c.body); a.status != 401 {
				t.Errorf("%s with %s key: %d", p, what, a.status)
			}
		}
		for _, in := range []string{"key", "api_key", "access_token", "Authorization", "token"} { // a key in a URL is none
			sep := map[bool]string{true: "&", false: "?"}[strings.Contains(c.path, "?")]
			if a := w.do(c.method, c.path+sep+in+"="+w.bob, "", c.body); a.status != 401 {
				t.Errorf("%s with a key in the URL: %d", p, a.status)
			}
		}
		enough := []crowd.Scope{}
		for _, group := range r.needs {
			others := slices.DeleteFunc(slices.Clone(crowd.Scopes), func(s crowd.Scope) bool { return slices.Contains(group, s) })
			a := w.do(c.method, c.path, key(others, time.Time{}), c.body)
			if a.status != 403 || c.method != "HEAD" && a.json(t)["reason"] != string(crowd.CustomerScope) {
				t.Errorf("%s without %v: %d %s", p, group, a.status, a.body)
			}
			enough = append(enough, group[0])
			for _, s := range group[1:] { // each of a group will do
				if a := can(w).do(w, key([]crowd.Scope{s}, time.Time{})); a.status == 401 || a.status == 403 {
					t.Errorf("%s with %v only: %d %s", p, s, a.status, a.body)
				}
			}
		}
		if a := can(w).do(w, key(enough, time.Time{})); a.status == 401 || a.status == 403 {
			t.Errorf("%s with %v: %d %s", p, enough, a.status, a.body)
		}
	}
	if log := w.log.String(); strings.Contains(log, w.bob) || strings.Contains(log, expired) {
		t.Error("a key from a URL stands in the log")
	}
	w.do("GET", "/v1/jobs/"+w.bob, w.ada, "")
	w.do("GET", "//j/"+bobs.token, "", "")
	if log := w.log.String(); strings.Contains(log, w.bob) || strings.Contains(log, bobs.token) {
		t.Error("a secret that was put into a path stands in the log")
	}
	if !strings.Contains(w.log.String(), "path=/v1/jobs/bobjob") {
		t.Error("the log wasn't looked at") // or what is searched above isn't it
	}
}

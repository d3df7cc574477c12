package host

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/link"
	"github.com/crowdcloud/crowd/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeEngine runs units that do nothing but wait for step: each needs one token, or none if step is nil.
type fakeEngine struct {
	step   chan struct{}
	stdout []byte
	tasks  chan guest.Task // gets what is run, if it isn't nil

	mu     sync.Mutex
	slots  []*fakeSlot
	trace  []string
	failed error
}

type fakeSlot struct {
	e      *fakeEngine
	mu     sync.Mutex
	run    chan struct{} // closed while not frozen
	closed chan struct{}
	once   sync.Once
}

func (e *fakeEngine) say(s string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.trace = append(e.trace, s)
}

func (e *fakeEngine) count(s string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.trace {
		if t == s {
			n++
		}
	}
	return n
}

func (e *fakeEngine) Slot(context.Context, crowd.JobID) (guest.Slot, error) {
	s := &fakeSlot{e: e, run: make(chan struct{}), closed: make(chan struct{})}
	close(s.run)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slots = append(e.slots, s)
	return s, nil
}
func (e *fakeEngine) Bench(context.Context) (float64, error) { return 1, nil }
func (e *fakeEngine) Layers() []guest.Layer {
	return []guest.Layer{{Name: "seccomp", Held: true}, {Name: "landlock", Why: "this kernel has none"}}
}
func (e *fakeEngine) Close() error { return nil }

func (s *fakeSlot) Freeze() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run = make(chan struct{})
	s.e.say("freeze")
	return nil
}

func (s *fakeSlot) Thaw() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.run)
	s.e.say("thaw")
	return nil
}

func (s *fakeSlot) Close() error {
	s.once.Do(func() { close(s.closed); s.e.say("close") })
	return nil
}

func (s *fakeSlot) Run(ctx context.Context, t guest.Task, blobs guest.Blobs, progress func(done, fuel uint64)) (*crowd.Outcome, []crowd.UnitContent, error) {
	s.e.say("run")
	if s.e.tasks != nil {
		s.e.tasks <- t
	}
	if s.e.failed != nil {
		return nil, nil, s.e.failed
	}
	o := &crowd.Outcome{First: t.First}
	var cs []crowd.UnitContent
	if !t.Program.IsZero() && blobs != nil && s.e.stdout == nil {
		b, err := blobs.Open(ctx, t.Program)
		if err != nil {
			return nil, nil, err
		}
		b.Close()
	}
	for i := range t.Plans {
		if s.e.step != nil {
			select {
			case <-s.e.step:
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			case <-s.closed:
				return nil, nil, crowd.Errorf(crowd.Failed, crowd.HostFailed, "killed")
			}
		}
		s.mu.Lock()
		run := s.run
		s.mu.Unlock()
		select {
		case <-run:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		u := crowd.UnitResult{Fuel: 10}
		if len(s.e.stdout) > 0 {
			u.Stdout = crowd.ContentRef{Size: int64(len(s.e.stdout)), Digest: digest.Of(s.e.stdout)}
		}
		o.Units = append(o.Units, u)
		cs = append(cs, crowd.UnitContent{Stdout: s.e.stdout})
		progress(uint64(i+1), o.Fuel())
	}
	return o, cs, nil
}

// fakeBroker is the far end of one host's link.
type fakeBroker struct {
	t   *testing.T
	srv *httptest.Server
	key ed25519.PrivateKey

	mu     sync.Mutex
	host   crowd.Host
	refuse error
	blobs  map[crowd.Digest][]byte
	puts   map[string][]byte
	gets   []string // ranges asked for
	cut    int      // bytes after which a GET breaks off, once
	busy   int      // PUTs that are refused: another upload runs
	deaf   int      // PUTs that aren't read
	dials  []int64

	sessions    []crowd.SessionID
	incarnation atomic.Int64
	states      []statePut       // that came
	kept        map[string]int64 // the number of the last one that was accepted, by attempt
	roots       map[string]crowd.Digest
	noState     int           // HTTP status for all of them; 0: as a broker does
	lose        int           // answers that are lost
	hold        chan struct{} // one is taken before a checkpoint is read

	conns chan *link.Conn
	said  chan *crowd.Message // all that the host says but Renews that nobody waits for
}

func newFakeBroker(t *testing.T) *fakeBroker {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	b := &fakeBroker{t: t, key: key, blobs: map[crowd.Digest][]byte{}, puts: map[string][]byte{}, kept: map[string]int64{}, roots: map[string]crowd.Digest{}, conns: make(chan *link.Conn, 10), said: make(chan *crowd.Message, 1000)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/hosts/join", b.join)
	mux.HandleFunc("GET /v1/link", b.link)
	mux.HandleFunc("GET /v1/link/blobs/{digest}", b.get)
	mux.HandleFunc("PUT /v1/link/outcomes/{job}/{first}/{n}/{digest}", b.put)
	mux.HandleFunc("PUT /v1/link/states/{job}/{first}/{n}/{seq}/{root}", b.putState)
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	b.srv = httptest.NewUnstartedServer(mux)
	cert, err := seal.Certificate(key, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	b.srv.TLS = seal.ServerTLS(cert)
	b.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.srv.StartTLS()
	b.incarnation.Store(1)
	t.Cleanup(b.srv.Close)
	return b
}

func (b *fakeBroker) joinLink() string {
	return seal.JoinLink{Broker: b.srv.URL, Token: "abcdefghjkmn", Fingerprint: seal.Fingerprint(b.key.Public().(ed25519.PublicKey))}.String()
}

func (b *fakeBroker) join(w http.ResponseWriter, r *http.Request) {
	var q crowd.JoinRequest
	_ = json.NewDecoder(r.Body).Decode(&q)
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.Token != "abcdefghjkmn" || b.host.Name != "" {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"detail":"the link is used up","code":"denied","reason":"broker.token","hint":"ask for a new one"}`)
		return
	}
	b.host = crowd.Host{Name: q.Name, Key: q.Key, Place: q.Place}
	var rnd [10]byte
	mint(&b.host.ID, rnd)
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(b.host)
}

func (b *fakeBroker) link(w http.ResponseWriter, r *http.Request) {
	c, _, err := link.Accept(w, r, link.AcceptOptions{
		Key: b.key, Incarnation: b.incarnation.Load(),
		Lookup: func(context.Context, crowd.HostID) ([]byte, error) { return b.host.Key, nil },
		Admit: func(_ context.Context, h *crowd.Hello, _ bool) (crowd.Welcome, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.dials, b.sessions = append(b.dials, h.Dial), append(b.sessions, h.Session)
			return crowd.Welcome{Bearer: "bearer"}, b.refuse
		},
	})
	if err == nil {
		b.conns <- c
	}
}

func (b *fakeBroker) get(w http.ResponseWriter, r *http.Request) {
	d, _ := crowd.ParseDigest(r.PathValue("digest"))
	b.mu.Lock()
	data, ok := b.blobs[d]
	b.gets = append(b.gets, r.Header.Get("Range"))
	cut := b.cut
	b.cut = 0
	b.mu.Unlock()
	if !ok || r.Header.Get("Authorization") != "Bearer bearer" {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	if cut > 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:cut])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(data)))
}

func (b *fakeBroker) put(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	busy, deaf := b.busy > 0, b.deaf > 0
	b.busy, b.deaf = b.busy-1, b.deaf-1
	b.mu.Unlock()
	if deaf {
		time.Sleep(2 * time.Second) // the server sees no end of a connection whose body isn't read
		panic(http.ErrAbortHandler)
	}
	body, _ := io.ReadAll(r.Body)
	if busy {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"detail":"another upload runs","code":"conflict"}`)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.puts[r.URL.Path] = body
}

// statePut is a checkpoint as it came.
type statePut struct {
	crowd.AttemptRef
	seq  int64
	root crowd.Digest
	fuel uint64
	body []byte
}

func (b *fakeBroker) putState(w http.ResponseWriter, r *http.Request) {
	if b.hold != nil {
		select {
		case <-b.hold:
		case <-time.After(10 * time.Second):
		}
	}
	var p statePut
	_ = p.Job.UnmarshalText([]byte(r.PathValue("job")))
	p.First, _ = strconv.ParseUint(r.PathValue("first"), 10, 64)
	p.N, _ = strconv.Atoi(r.PathValue("n"))
	p.seq, _ = strconv.ParseInt(r.PathValue("seq"), 10, 64)
	p.root, _ = crowd.ParseDigest(r.PathValue("root"))
	p.fuel, _ = strconv.ParseUint(r.URL.Query().Get("fuel"), 10, 64)
	sig, _ := base64.StdEncoding.DecodeString(r.Header.Get("Crowd-Signature"))
	var err error
	if p.body, err = io.ReadAll(r.Body); err != nil {
		return
	}
	if digest.Of(p.body) != p.root || r.Header.Get("Authorization") != "Bearer bearer" ||
		!ed25519.Verify(b.host.Key, crowd.StateBytes(b.host.ID, p.AttemptRef, p.seq, p.root, p.fuel), sig) {
		b.t.Errorf("a checkpoint that a broker refuses: %+v", p)
	}
	b.mu.Lock()
	b.states = append(b.states, p)
	key := fmt.Sprint(p.AttemptRef)
	last, status, lost := b.kept[key], b.noState, b.lose > 0
	answer := crowd.StateRepeat
	switch {
	case status != 0:
	case last > 0 && p.seq == last && p.root == b.roots[key]:
	case last > 0 && p.seq != last+1:
		status = http.StatusConflict
	default:
		answer = crowd.StateAccepted
		b.kept[key], b.roots[key] = p.seq, p.root
	}
	if lost {
		b.lose--
	}
	b.mu.Unlock()
	switch {
	case lost:
		panic(http.ErrAbortHandler)
	case status != 0:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"detail":"it isn't yours"}`)
	default:
		_ = json.NewEncoder(w).Encode(map[string]crowd.StateAnswer{"answer": answer})
	}
}

// came gives the numbers and fuel of the checkpoints that came, as text.
func (b *fakeBroker) came() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := ""
	for _, p := range b.states {
		s += fmt.Sprintf("%d:%d ", p.seq, p.fuel)
	}
	return strings.TrimSpace(s)
}

// session takes the host's next connection, answers its Renews and passes on what it says.
func (b *fakeBroker) session() *link.Conn {
	b.t.Helper()
	var c *link.Conn
	select {
	case c = <-b.conns:
	case <-time.After(10 * time.Second):
		b.t.Fatal("the host doesn't dial")
	}
	done := make(chan struct{})
	b.t.Cleanup(func() { c.Close(nil); <-c.Done(); <-done })
	go func() {
		defer close(done)
		for {
			m, err := c.Receive(context.Background())
			if err != nil {
				return
			}
			if m.Renew != nil {
				_ = c.Send(&crowd.Message{Answer: &crowd.Answer{N: m.Renew.N}})
			}
			b.said <- m
		}
	}()
	return c
}

// expect waits for something that the host says.
func expect[T any](b *fakeBroker, what string, pick func(*crowd.Message) (T, bool)) T {
	b.t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case m := <-b.said:
			if v, ok := pick(m); ok {
				return v
			}
		case <-late:
			b.t.Fatalf("the host never says: %s", what)
		}
	}
}

func (b *fakeBroker) report() *crowd.Report {
	b.t.Helper()
	return expect(b, "a report", func(m *crowd.Message) (*crowd.Report, bool) { return m.Report, m.Report != nil })
}

func (b *fakeBroker) returned() *crowd.Return {
	b.t.Helper()
	return expect(b, "a return", func(m *crowd.Message) (*crowd.Return, bool) { return m.Return, m.Return != nil })
}

func (b *fakeBroker) renewed(what string, ok func(*crowd.Renew) bool) *crowd.Renew {
	b.t.Helper()
	return expect(b, "a renewal with "+what, func(m *crowd.Message) (*crowd.Renew, bool) {
		return m.Renew, m.Renew != nil && ok(m.Renew)
	})
}

var testJob = crowd.JobID{1, 2, 3}

func leaseOf(first, count uint64, program crowd.Digest) *crowd.Message {
	return &crowd.Message{Lease: &crowd.Lease{
		AttemptRef: crowd.AttemptRef{Job: testJob, First: first, N: 1}, Count: count, Deadline: time.Hour,
		Spec: &crowd.JobSpec{Name: "test", Program: program.String(), Units: crowd.Units{Count: 100}},
	}}
}

// machine is an agent under test.
type machine struct {
	*Agent
	dir  string
	done chan error   // what Run returned
	stop func() error // ends Run and returns what it returned
}

func joined(t *testing.T, b *fakeBroker) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := Join(t.Context(), b.joinLink(), JoinOptions{Dir: dir, Name: "tower", Place: "DE"}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, dir string, e guest.Engine, change func(*Options)) *machine {
	t.Helper()
	o := Options{
		Dir: dir, Engine: e, Capacity: crowd.Capacity{Slots: 2, MemoryBytes: 2 << 30, DiskBytes: 1 << 20},
		Platform: ThisPlatform("test", ""), backoff: func(int) time.Duration { return time.Millisecond },
	}
	if change != nil {
		change(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	m := &machine{Agent: a, dir: dir, done: done}
	m.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			t.Error("the agent doesn't stop")
			return nil
		}
	})
	t.Cleanup(func() { _ = m.stop() })
	return m
}

// until waits for a condition that some other goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

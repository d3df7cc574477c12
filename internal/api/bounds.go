package api

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/link"
)

// What one account, one host or one network that nobody knows may have open at once. Rates bound how often something begins; these bound what those
// can hold who never finish: slow writers, slow readers, watchers.

// atOnce counts what runs at once, by name. The zero value is ready.
type atOnce struct {
	mu sync.Mutex
	m  map[string]*slots
}

type slots struct {
	n    int
	line []chan struct{} // who waits, each closed when a slot has become its own
}

// enter takes a slot unless most are taken.
func (a *atOnce) enter(name string, most int) (leave func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.slots(name)
	if s.n >= most {
		return nil, false
	}
	s.n++
	return func() { a.leave(name) }, true
}

// wait takes a slot as soon as there is one; not ok: ctx has ended.
func (a *atOnce) wait(ctx context.Context, name string, most int) (leave func(), ok bool) {
	a.mu.Lock()
	s := a.slots(name)
	if s.n < most && len(s.line) == 0 {
		s.n++
		a.mu.Unlock()
		return func() { a.leave(name) }, true
	}
	mine := make(chan struct{})
	s.line = append(s.line, mine)
	a.mu.Unlock()
	select {
	case <-mine:
		return func() { a.leave(name) }, true
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, c := range s.line {
		if c == mine {
			s.line = append(s.line[:i], s.line[i+1:]...)
			return nil, false
		}
	}
	return func() { a.leave(name) }, true // it came at the same moment
}

// slots needs a.mu.
func (a *atOnce) slots(name string) *slots {
	if a.m == nil {
		a.m = map[string]*slots{}
	}
	if a.m[name] == nil {
		a.m[name] = &slots{}
	}
	return a.m[name]
}

func (a *atOnce) leave(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.m[name]
	if len(s.line) > 0 { // the slot is handed on
		close(s.line[0])
		s.line = s.line[1:]
		return
	}
	if s.n--; s.n == 0 {
		delete(a.m, name)
	}
}

// queueFor is how long a request may wait for others of its account that read results.
var queueFor = 20 * time.Second

// bound counts a request among those of who asks until it has ended.
func (s *server) bound(r *http.Request, q *request) error {
	name := s.who(r, q)
	take := func(kind string, most int, what string) error {
		leave, ok := s.open.enter(kind+"\x00"+name, most)
		if !ok {
			return crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "%d %s of yours are open, the most there may be at once", most, what).WithHint("let some of them end first")
		}
		q.leave = append(q.leave, leave)
		return nil
	}
	if err := take("all", crowd.Limits.RequestsAtOnce, "requests"); err != nil {
		return err
	}
	if r.ContentLength != 0 {
		if err := take("body", crowd.Limits.BodiesAtOnce, "requests with a body"); err != nil {
			return err
		}
	}
	if waits(r) {
		return take("stream", crowd.Limits.StreamsAtOnce, "requests that wait for news")
	}
	if !heavy(r) {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), queueFor)
	defer cancel()
	leave, ok := s.open.wait(ctx, "heavy\x00"+name, crowd.Limits.HeavyAtOnce)
	if !ok {
		return crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "%d requests of yours read results already", crowd.Limits.HeavyAtOnce).WithHint("let some of them end first")
	}
	q.leave = append(q.leave, leave)
	return nil
}

// who is whom a request counts for: an account, a host, or the network of those who haven't said who they are.
func (s *server) who(r *http.Request, q *request) string {
	if !q.caller.Account.ID.IsZero() {
		return q.caller.Account.ID.String()
	}
	if strings.HasPrefix(r.URL.Path, "/v1/link/") {
		secret, _ := bearer(r)
		if id, err := s.b.HostOf(secret); err == nil {
			return id.String()
		}
	}
	return link.Network(r.RemoteAddr)
}

// waits tells requests that are held open until something happens.
func waits(r *http.Request) bool {
	return r.URL.Path == "/v1/events" && eventStream(r) || strings.HasPrefix(r.URL.Path, "/v1/jobs/") && waitOf(r.Header.Get("Prefer")) > 0
}

func eventStream(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}

// heavy tells requests that hold whole outcomes in memory.
func heavy(r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v1/jobs/")
	_, part, _ := strings.Cut(rest, "/")
	return ok && (part == "results" || part == "logs" || strings.HasPrefix(part, "units/"))
}

// reading waits for its turn to read outcomes from disk; the answer is written after leave.
func (s *server) reading(ctx context.Context) (leave func(), err error) {
	wait, cancel := context.WithTimeout(ctx, queueFor)
	defer cancel()
	leave, ok := s.open.wait(wait, "reading", crowd.Limits.HeavyInAll)
	if !ok {
		return nil, crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "too many requests read results").WithHint("try again in a few seconds")
	}
	return leave, nil
}

// pace says until when the next piece of a body or an answer must have passed, after n bytes since it began: slow for each piece, and on average
// no slower than Limits.BytesPerSecond, so that nobody holds a place with a byte now and then.
func pace(began time.Time, n int64, now time.Time) time.Time {
	piece := now.Add(slow)
	whole := began.Add(2*slow + time.Duration(float64(n)/float64(crowd.Limits.BytesPerSecond)*float64(time.Second)))
	if whole.Before(piece) {
		return whole
	}
	return piece
}

var secretForm = regexp.MustCompile(`ck_[0-9A-Za-z]{8,}`)

// routes is a mux that knows what it was told.
type routes struct {
	http.ServeMux
	patterns []string
}

// HandleFunc registers a handler.
func (m *routes) HandleFunc(pattern string, f func(http.ResponseWriter, *http.Request)) {
	m.patterns = append(m.patterns, pattern)
	m.ServeMux.HandleFunc(pattern, f)
}

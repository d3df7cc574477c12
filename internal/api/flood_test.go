package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// limits lets a test change the table and the patience of the API.
func limits(t *testing.T, change func()) {
	old, oldSlow, oldQueue, oldHead := crowd.Limits, slow, queueFor, headWait
	t.Cleanup(func() { crowd.Limits, slow, queueFor, headWait = old, oldSlow, oldQueue, oldHead })
	change()
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A storm of orders by one account, good and bad, is held off by quota and rate with a reason; another account is served all the while.
func TestOrderStorm(t *testing.T) {
	limits(t, func() { crowd.Limits.OpenJobs = 50 })
	w := newWorld(t)
	w.machine(w.bob, "bobhost")
	w.want(201, "POST", "/v1/accounts/bob/grants", w.operator, `{"id":"g-bob","amount_ucr":1000000000}`)
	good, bobs := w.spec(`,"verify":{"none":true}`), w.bobSpec("bobs")
	n := 4000
	if os.Getenv("CROWD_SOAK") != "" {
		n = 100_000
	}
	bad := []string{`{`, `{"name":"x"}`, `[]`, strings.Repeat("[", 5000), good[:len(good)-1], strings.Repeat(" ", 200<<10)}
	var mu sync.Mutex
	statuses, reasons := map[int]int{}, map[string]int{}
	before := heap()
	var sent atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				i := sent.Add(1)
				if i > int64(n) {
					return
				}
				body := good
				if i%3 > 0 {
					body = bad[int(i)%len(bad)]
				}
				a := w.do("POST", "/v1/jobs", w.ada, body)
				mu.Lock()
				statuses[a.status]++
				if a.status == 429 {
					reasons[fmt.Sprint(a.json(t)["reason"])]++
					if a.header.Get("Retry-After") == "" {
						t.Error("429 without Retry-After")
					}
				}
				mu.Unlock()
			}
		})
	}
	served := 0
	for sent.Load() < int64(n) && served < 40 {
		w.want(201, "POST", "/v1/jobs", w.bob, bobs)
		w.want(200, "GET", "/v1/jobs", w.bob, "")
		served++
	}
	wg.Wait()
	for s := range statuses {
		if s != 201 && s != 429 && s != 422 && s != 413 && s != 400 {
			t.Errorf("%d answers %d", statuses[s], s)
		}
	}
	if statuses[201] != 50 || reasons["customer.quota"] == 0 || reasons["broker.rate"] == 0 || len(reasons) != 2 {
		t.Errorf("statuses %v, reasons %v", statuses, reasons)
	}
	if served == 0 {
		t.Error("bob wasn't served")
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("%d MiB are kept of %d orders", grown>>20, n)
	}
}

// pour sends a head and then a body without end, until the other end closes or the body has had most bytes. It says how many went out and what came back.
func (w *world) pour(head string, most int64, piece func() []byte) (sent int64, first string) {
	w.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	must(w.t, err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	_, err = io.WriteString(c, head)
	must(w.t, err)
	got := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(c).ReadString('\n')
		got <- line
	}()
	for sent < most {
		n, err := c.Write(piece())
		sent += int64(n)
		if err != nil {
			break
		}
	}
	return sent, <-got
}

// A body of a gigabyte is refused at the cap, on every route, with and without a key, however its length is told: neither read nor kept.
func TestLargeBodies(t *testing.T) {
	limits(t, func() {
		crowd.Limits.OutcomeBytes, crowd.Limits.StateBytes = 1<<20, 1<<20
		crowd.Limits.RequestBurst = 1e6
	})
	w := newWorld(t)
	x, bobs, _ := w.town()
	const most = int64(1) << 30
	const cap = 16 << 20 // what the sockets' buffers hold, and the cap
	chunk := append([]byte("10000\r\n"), append(bytes.Repeat([]byte("x"), 0x10000), '\r', '\n')...)
	plain := bytes.Repeat([]byte(" "), 1<<16)
	d := digest.Of([]byte("large")).String()
	paths := strings.NewReplacer("{$}", "", "{ref}", "bobjob", "{ref...}", "bobjob", "{unit}", "0", "{path...}", "x", "{code}", "x", "{token}", "x", "{digest}", d,
		"{job}/{first}/{n}", x.chunk, "{seq}", "1", "{root}", d)
	var peak atomic.Int64
	stop, looked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), int64(m.HeapInuse)))
			}
		}
	}()
	before := heap()
	n := 0
	var wg sync.WaitGroup
	sem := make(chan struct{}, 32)
	for _, p := range w.patterns() {
		method, path, _ := strings.Cut(p, " ")
		path = paths.Replace(path)
		if strings.Contains(path, "/states/") {
			path += "?fuel=1"
		}
		for _, key := range []string{w.bob, ""} {
			if strings.HasPrefix(path, "/v1/link/") && key != "" {
				key = bobs.bearer
			}
			for how, length := range map[string]string{
				"chunked": "Transfer-Encoding: chunked", "declared": fmt.Sprintf("Content-Length: %d", most),
				"announced less": "Transfer-Encoding: chunked\r\nContent-Range: bytes 0-9/10",
			} {
				if key == w.bob && path == "/v1/blobs/"+d && how == "declared" {
					continue // that is what blobs are for
				}
				head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nCrowd-Signature: AAAA\r\n%s\r\n", method, path, length)
				if key != "" {
					head += "Authorization: Bearer " + key + "\r\n"
				}
				piece := chunk
				if how == "declared" {
					piece = plain
				}
				n++
				sem <- struct{}{}
				wg.Go(func() {
					defer func() { <-sem }()
					sent, answer := w.pour(head+"\r\n", most, func() []byte { return piece })
					if sent > cap {
						t.Errorf("%s %s, %s: %d MiB were taken", method, path, how, sent>>20)
					}
					if method == "POST" && !strings.HasSuffix(path, "/cancel") && strings.HasPrefix(answer, "HTTP/1.1 2") { // a cancel has no body to be large
						t.Errorf("%s %s, %s: %q", method, path, how, answer)
					}
				})
			}
		}
	}
	wg.Wait()
	close(stop)
	<-looked
	if n < 150 {
		t.Errorf("only %d floods", n)
	}
	if grown := peak.Load() - before; grown > 128<<20 {
		t.Errorf("%d MiB in memory", grown>>20)
	}
	w.want(200, "GET", "/v1/jobs", w.bob, "")
}

// hold makes requests that nobody finishes: head is sent, then a byte of drip now and then, and nothing is read. end closes them; left tells how many
// the server has let go.
type held struct {
	conns []net.Conn
	wg    sync.WaitGroup
	left  atomic.Int64
}

func (w *world) hold(n int, head string, drip string) *held {
	w.t.Helper()
	h := &held{}
	for range n {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		must(w.t, err)
		_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		_, err = io.WriteString(c, head)
		must(w.t, err)
		h.conns = append(h.conns, c)
		if drip != "" {
			h.wg.Go(func() {
				for {
					if _, err := io.WriteString(c, drip); err != nil {
						h.left.Add(1)
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
	}
	w.t.Cleanup(h.end)
	return h
}

func (h *held) end() {
	for _, c := range h.conns {
		c.Close()
	}
	h.wg.Wait()
}

// opened waits until so many requests of a kind are.
func (w *world) opened(kind string, n int) {
	w.t.Helper()
	for range 500 {
		sum := 0
		w.api.open.mu.Lock()
		for name, s := range w.api.open.m {
			if strings.HasPrefix(name, kind+"\x00") {
				sum += s.n
			}
		}
		w.api.open.mu.Unlock()
		if sum >= n {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	w.t.Errorf("there are never %d of %s open", n, kind)
}

// line is the first line of the answer to a request whose body, if any, stays out.
func (w *world) line(head string) string {
	_, line := w.pour(head, 0, nil)
	return line
}

// until repeats a request until it is answered so.
func (w *world) until(status int, head string) {
	w.t.Helper()
	line := ""
	for range 500 {
		if line = w.line(head); strings.HasPrefix(line, fmt.Sprintf("HTTP/1.1 %d", status)) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Errorf("never answered with %d, but %q: %.80q", status, line, head)
}

// Readers and writers that never finish are bounded in number for each account and let go in time; other accounts don't notice.
func TestSlowPeers(t *testing.T) {
	limits(t, func() {
		slow, queueFor, headWait = 500*time.Millisecond, 100*time.Millisecond, 300*time.Millisecond
		crowd.Limits.RequestsAtOnce, crowd.Limits.BodiesAtOnce, crowd.Limits.StreamsAtOnce, crowd.Limits.HeavyAtOnce = 8, 4, 4, 2
		crowd.Limits.RequestBurst = 1e6
	})
	w := newWorld(t)
	big := w.upload(w.ada, strings.Repeat("0123456789abcdef", 2<<20)) // 32 MiB: more than sockets hold
	job := w.decided(400, 16_000)
	before := heap()
	head := func(request, more string) string {
		return request + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + w.ada + "\r\n" + more + "\r\n"
	}
	events, results := head("GET /v1/events", "Accept: text/event-stream\r\n"), head("GET /v1/jobs/"+job+"/results?with=stdout,stderr&limit=1000", "")
	blob, order := head("GET /v1/blobs/"+big, ""), head("POST /v1/jobs", "Content-Length: 100000\r\n")
	upload := head("PUT /v1/blobs/"+digest.Of([]byte("slow")).String(), "Content-Length: 1000000\r\n")
	for _, c := range []struct {
		name, kind, head, drip string
		n                      int
		again                  string // refused while they are there
		freed                  bool   // by time alone
		free                   int    // what again gives after
	}{
		{"event streams", "stream", events, "", crowd.Limits.StreamsAtOnce, events, false, 200},
		{"readers of results", "heavy", results, "", crowd.Limits.HeavyAtOnce, results, true, 200},
		{"readers of blobs", "all", blob, "", crowd.Limits.RequestsAtOnce, blob, true, 200},
		{"writers of orders", "body", order, " ", crowd.Limits.BodiesAtOnce, order, true, 503},
		{"writers of blobs", "body", upload, "x", 1, upload, true, 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			want := "HTTP/1.1 429"
			if c.name == "writers of blobs" {
				want = "HTTP/1.1 409" // of one blob at most one
			}
			var h *held
			line := ""
			for try := 0; try < 20 && !strings.HasPrefix(line, want); try++ { // a slow machine may let them go before it looks
				if h != nil {
					h.end()
				}
				h = w.hold(c.n+3, c.head, c.drip) // more than there may be: no place is left by chance
				w.opened(c.kind, c.n)
				line = w.line(c.again)
			}
			if !strings.HasPrefix(line, want) {
				t.Fatalf("one more is answered %q", line)
			}
			w.want(200, "GET", "/v1/jobs", w.bob, "")
			if !c.freed {
				h.end()
			}
			if c.free == 503 { // let go when the time for its body is over
				w.until(503, c.again)
			} else {
				w.until(c.free, c.again)
			}
			h.end()
			w.until(200, head("GET /v1/jobs", ""))
		})
	}
	w.t = t
	if grown := heap() - before; grown > 128<<20 {
		t.Errorf("%d MiB are kept", grown>>20)
	}
	// who is slow with the head of a request is closed
	h := w.hold(20, "GET /v1/jobs HTTP/1.1\r\nX-", "x")
	for range 500 {
		if h.left.Load() == 20 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d of 20 slow heads were closed", h.left.Load())
}

// A piece now and then is no pace: the whole must come on, too. Who is quick enough may take as long as it takes.
func TestPace(t *testing.T) {
	began := time.Unix(1e9, 0)
	quick, late := crowd.Limits.BytesPerSecond*2, 10*time.Hour
	if until := pace(began, quick*int64(late/time.Second), began.Add(late)); until != began.Add(late+slow) {
		t.Errorf("a quick one is given until %v", until.Sub(began))
	}
	if until := pace(began, int64(late/slow), began.Add(late)); until.After(began.Add(3 * slow)) {
		t.Errorf("a byte now and then is given until %v", until.Sub(began))
	}
	if until := pace(began, 0, began); until != began.Add(slow) {
		t.Errorf("the first piece is given until %v", until.Sub(began))
	}
}

// What waits in line gets its turn; nothing is left when all is over.
func TestAtOnce(t *testing.T) {
	var a atOnce
	var now, most atomic.Int64
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			leave, ok := a.wait(t.Context(), "x", 3)
			if !ok {
				t.Error("no turn")
				return
			}
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			runtime.Gosched()
			now.Add(-1)
			leave()
		})
	}
	wg.Wait()
	if most.Load() > 3 || len(a.m) != 0 {
		t.Errorf("%d at once, %d left", most.Load(), len(a.m))
	}
	leave, _ := a.enter("x", 1)
	if _, ok := a.enter("x", 1); ok {
		t.Error("a second one got in")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := a.wait(ctx, "x", 1); ok {
		t.Error("waited beyond its context")
	}
	leave()
	if len(a.m) != 0 {
		t.Errorf("%d left", len(a.m))
	}
}

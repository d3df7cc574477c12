package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
)

// outgoing is a finished attempt that the broker has not acknowledged. Its file is the report as JSON with its length before it, then the body.
type outgoing struct {
	crowd.Report
	body []byte
}

func outboxPath(dir string, r crowd.AttemptRef) string {
	return filepath.Join(dir, "outbox", fmt.Sprintf("%s-%d-%d", r.Job, r.First, r.N))
}

// storeOutgoing makes it durable. The report's own Body stays empty on disk.
func storeOutgoing(dir string, o *outgoing) error {
	head := o.Report
	head.Body = nil
	j, err := json.Marshal(head)
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(j)+len(o.body)), uint32(len(j)))
	b = append(append(b, j...), o.body...)
	return writeFile(outboxPath(dir, o.AttemptRef), b)
}

func loadOutgoing(path string) (*outgoing, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) < 4 || uint64(len(b)) < 4+uint64(binary.BigEndian.Uint32(b)) {
		return nil, errors.New("cut short")
	}
	n := int(binary.BigEndian.Uint32(b))
	o := &outgoing{body: b[4+n:]}
	if err := json.Unmarshal(b[4:4+n], &o.Report); err != nil {
		return nil, err
	}
	want := o.Ref
	if want.IsZero() {
		m, _, err := manifestOf(o.body)
		if err != nil || digest.Of(m) != o.Digest {
			return nil, errors.New("the body doesn't match")
		}
	} else if digest.Of(o.body) != want {
		return nil, errors.New("the body doesn't match")
	}
	return o, nil
}

// manifestOf finds the manifest at the front of an own body.
func manifestOf(body []byte) (manifest []byte, o *crowd.Outcome, err error) {
	const head = 16
	if len(body) < head {
		return nil, nil, errors.New("cut short")
	}
	first, n := binary.Uvarint(body[head:])
	if n <= 0 {
		return nil, nil, errors.New("cut short")
	}
	count, m := binary.Uvarint(body[head+n:])
	if m <= 0 {
		return nil, nil, errors.New("cut short")
	}
	o, rest, err := crowd.ParseManifest(body, first, count)
	if err != nil {
		return nil, nil, err
	}
	return body[:len(body)-len(rest)], o, nil
}

// loadOutbox reads all that an earlier life left to say; damaged files are removed: their attempts run again elsewhere.
func loadOutbox(dir string) (all []*outgoing, err error) {
	names, err := os.ReadDir(filepath.Join(dir, "outbox"))
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "read the outbox: %w", err)
	}
	for _, e := range names {
		path := filepath.Join(dir, "outbox", e.Name())
		if strings.HasPrefix(e.Name(), ".tmp-") {
			_ = os.Remove(path)
			continue
		}
		o, err := loadOutgoing(path)
		if err != nil || outboxPath(dir, o.AttemptRef) != path {
			_ = os.Remove(path)
			continue
		}
		o.body = nil
		all = append(all, o)
	}
	return all, nil
}

// mailLoop says reports until each is acknowledged: each once per connection, large bodies before it by HTTP.
func (a *Agent) mailLoop(ctx context.Context) {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	tries := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.mail:
		case <-retry.C:
		}
		if again := a.sendMail(ctx); again {
			retry.Reset(a.o.backoff(tries))
			tries++
		} else {
			tries = 0
		}
	}
}

// refused reports whether an upload is no use ever. Conflict isn't: another upload of the same still runs, perhaps our own on a dead connection.
func refused(e *crowd.Error) bool {
	return e.Kind == crowd.NotFound || e.Kind == crowd.Denied && e.Status != http.StatusUnauthorized || e.Kind == crowd.Invalid
}

// sendMail says what hasn't been said on this connection; again: something failed that may work later.
func (a *Agent) sendMail(ctx context.Context) (again bool) {
	a.mu.Lock()
	conn, bearer := a.conn, a.bearer
	var todo []*attempt
	if conn != nil {
		for _, at := range a.held {
			if at.report != nil && at.said != conn {
				todo = append(todo, at)
			}
		}
	}
	a.mu.Unlock()
	for _, at := range todo {
		o, err := loadOutgoing(outboxPath(a.o.Dir, at.AttemptRef))
		if err != nil {
			if ctx.Err() == nil {
				a.forget(at.AttemptRef, Entry{What: "outcome.lost", Reason: crowd.HostFailed, Text: err.Error()})
			}
			continue
		}
		r := o.Report
		if r.Ref.IsZero() {
			r.Body = o.body
		} else if err := a.upload(ctx, bearer, o); err != nil {
			e := crowd.AsError(err)
			if refused(e) {
				a.forget(at.AttemptRef, Entry{What: "outcome.refused", Reason: e.Reason, Text: e.Message})
				continue
			}
			a.log.Warn("can't upload an outcome", "job", r.Job.Short(), "chunk", r.First, "err", err)
			again = true
			continue
		}
		if !a.wait(ctx, a.pace.next(time.Now())) || conn.Send(&crowd.Message{Report: &r}) != nil {
			return false // the next connection says it again
		}
		a.mu.Lock()
		at.said = conn
		a.mu.Unlock()
	}
	return again
}

// pace keeps reports at half of what a broker takes from a host before it closes the connection.
type pace struct{ from time.Time }

// next is how long to wait before the next report.
func (p *pace) next(now time.Time) time.Duration {
	each := time.Duration(2 * float64(time.Second) / crowd.Limits.MessagesPerSecond)
	burst := time.Duration(crowd.Limits.MessageBurst/2) * each
	if p.from.Before(now.Add(-burst)) {
		p.from = now.Add(-burst)
	}
	p.from = p.from.Add(each)
	return max(0, p.from.Sub(now))
}

func (a *Agent) upload(ctx context.Context, bearer string, o *outgoing) error {
	_, err := a.put(ctx, bearer, fmt.Sprintf("/v1/link/outcomes/%s/%d/%d/%s", o.Job, o.First, o.N, o.Ref), o.body, nil)
	return err
}

// put uploads a body, for as long as bytes go, and gives what the broker says to it.
func (a *Agent) put(ctx context.Context, bearer, path string, body []byte, head http.Header) ([]byte, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stall := time.AfterFunc(a.o.stall, func() { stop(errStalled) })
	defer stall.Stop()
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, a.profile.Broker+path, &lively{bytes.NewReader(body), stall, a.o.stall})
	if err != nil {
		return nil, err
	}
	for name, v := range head {
		r.Header[name] = v
	}
	r.ContentLength = int64(len(body))
	r.Header.Set("Authorization", "Bearer "+bearer)
	r.Header.Set("Content-Type", "application/octet-stream")
	resp, err := a.http.Do(r)
	if err != nil {
		return nil, netError(cause(ctx, err))
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, readProblem(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, netError(cause(ctx, err))
	}
	return b, nil
}

// forget ends an attempt here for good, with a line for the owner; nothing if it isn't held.
func (a *Agent) forget(ref crowd.AttemptRef, e Entry) {
	a.mu.Lock()
	at := a.held[ref]
	if at == nil {
		a.mu.Unlock()
		return
	}
	delete(a.held, ref)
	at.stop(errDropped)
	done := at.report != nil
	e = e.about(at)
	a.mu.Unlock()
	if done {
		if err := os.Remove(outboxPath(a.o.Dir, ref)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("can't remove an outcome", "err", err)
		}
	}
	a.book.add(e)
	poke(a.changed)
}

var errDropped = crowd.Errorf(crowd.Conflict, "", "the attempt isn't this host's any more")

// reported acts on the broker's word about a report.
func (a *Agent) reported(r *crowd.Reported) {
	e := Entry{What: "chunk.done", Answer: r.Answer}
	switch r.Answer {
	case crowd.ReportAccepted, crowd.ReportRepeat:
		a.mu.Lock()
		if a.held[r.AttemptRef] != nil {
			a.done++
		}
		a.mu.Unlock()
	case crowd.ReportConflict, crowd.ReportVoid:
		e.What, e.Text = "chunk.refused", "the broker doesn't want this outcome"
		a.log.Warn("a report was refused", "job", r.Job.Short(), "chunk", r.First, "attempt", r.N, "answer", r.Answer)
	}
	crash.Point("outbox.said")
	a.forget(r.AttemptRef, e)
}

package broker

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
)

// Outcomes too large for a report are files named by their attempt, one each: the next upload replaces the last, and it goes when the attempt
// ends other than by silence, or its chunk closes. Nobody can fill the disk with them beyond what he holds.

func (b *Broker) outcomePath(h crowd.HostID, ref crowd.AttemptRef) string {
	return filepath.Join(b.cfg.Dir, "outcomes", fmt.Sprintf("%s-%s-%d-%d", h, ref.Job, ref.First, ref.N))
}

// mayUpload reports whether an attempt's outcome could still count. Called with b.mu held.
func (a *attempt) mayUpload() bool {
	return a.chunk.State == crowd.ChunkOpen && (a.State == crowd.AttemptLeased || a.State == crowd.AttemptExpired)
}

// doneWith notes that what an attempt did so far counts for nothing more: what was uploaded for it is removed. Called with b.mu held.
func (b *Broker) doneWith(a *attempt) {
	if a.late {
		a.host.accrue(b.now())
		a.late = false
		a.host.late--
	}
	if a.uploaded {
		a.uploaded = false
		path := b.outcomePath(a.Attempt.Host, a.Ref())
		b.pool.add(func() { _ = os.Remove(path) })
	}
}

// keepOutcomes takes up the outcomes that were there at the start: of attempts that could still count; others are removed.
func (b *Broker) keepOutcomes() {
	of := map[string]*attempt{}
	for _, j := range b.jobs {
		for _, c := range j.open {
			for _, a := range c.attempts {
				if a.mayUpload() {
					of[b.outcomePath(a.Attempt.Host, a.Ref())] = a
				}
			}
		}
	}
	dir := filepath.Join(b.cfg.Dir, "outcomes")
	entries, err := os.ReadDir(dir)
	if err != nil {
		b.log.Warn("can't look at uploaded outcomes", "err", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if a := of[path]; a != nil {
			a.uploaded = true
		} else {
			_ = os.Remove(path)
		}
	}
}

// HostPutOutcome takes the body of an attempt's outcome that is too large for its report.
func (b *Broker) HostPutOutcome(_ context.Context, bearer string, ref crowd.AttemptRef, d crowd.Digest, body io.Reader) error {
	s, err := b.bearer(bearer)
	if err != nil {
		return err
	}
	b.mu.Lock()
	a := b.openAttempt(ref)
	ok := a != nil && a.Attempt.Host == s.host.ID && a.mayUpload()
	b.mu.Unlock()
	gone := notFound("attempt", fmt.Sprintf("%s/%d.%d", ref.Job.Short(), ref.First, ref.N))
	if !ok {
		return gone
	}
	path := b.outcomePath(s.host.ID, ref)
	leave, free := b.uploads.enter(path)
	if !free {
		return crowd.Errorf(crowd.Conflict, "", "another upload of %s runs", d.Short())
	}
	defer leave()
	f, err := os.CreateTemp(filepath.Dir(path), ".in-*")
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "keep outcome: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	h := digest.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(body, crowd.Limits.OutcomeBytes+1))
	switch {
	case diskFull(err):
		return keepError(err)
	case err != nil:
		return crowd.Errorf(crowd.Unavailable, crowd.NetworkHost, "the upload broke off: %w", err)
	case n > crowd.Limits.OutcomeBytes:
		return &crowd.Error{Kind: crowd.Invalid, Status: 413, Reason: crowd.GuestOutput, Message: fmt.Sprintf("an outcome has at most %d bytes", crowd.Limits.OutcomeBytes)}
	case h.Sum() != d:
		return crowd.Errorf(crowd.Invalid, "", "what was sent is %s, not %s", h.Sum().Short(), d.Short())
	}
	crash.Point("outcome.before")
	if err := f.Close(); err != nil {
		return keepError(err)
	}
	if err := os.Rename(f.Name(), path); err != nil { // the store makes it durable when it is reported
		return keepError(err)
	}
	crash.Point("outcome.after")
	b.mu.Lock()
	a.uploaded = true
	if ok = b.openAttempt(ref) == a && a.mayUpload(); !ok {
		b.doneWith(a)
	}
	b.mu.Unlock()
	if !ok {
		return gone
	}
	return nil
}

// bodiesAtOnce is how many bytes of uploaded outcomes are in memory at once, over all reports.
const bodiesAtOnce = 256 << 20

// budget is a number of bytes that work shares; what finds too few left waits in line, without keeping a worker.
type budget struct {
	mu   sync.Mutex
	left int64
	line []claim
}

type claim struct {
	n int64
	f func()
}

// take calls f once n bytes are its own, now or by a worker later.
func (b *budget) take(n int64, f func()) {
	b.mu.Lock()
	if len(b.line) > 0 || b.left < n {
		b.line = append(b.line, claim{n, f})
		b.mu.Unlock()
		return
	}
	b.left -= n
	b.mu.Unlock()
	f()
}

// give returns n bytes and lets those in line go on that now may.
func (b *budget) give(n int64, p *pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
	for len(b.line) > 0 && b.line[0].n <= b.left {
		b.left -= b.line[0].n
		p.add(b.line[0].f)
		b.line[0] = claim{}
		b.line = b.line[1:]
	}
}

// withBody gets the body of a report, checks it and calls then: that its manifest is the one that votes, and its contents are what that says.
// What then is called with holds its bytes of the budget until letGo.
func (b *Broker) withBody(x *answer, count uint64, then func()) {
	if x.r.Ref.IsZero() {
		x.body = x.r.Body
		if len(x.body) > crowd.Limits.InlineBody {
			x.fault = "its body is too large for a report"
		} else {
			x.check(count)
		}
		then()
		return
	}
	path := b.outcomePath(x.s.host.ID, x.r.AttemptRef)
	st, err := os.Stat(path)
	if err != nil {
		x.fault = "its outcome was not uploaded"
		then()
		return
	}
	n := st.Size()
	b.bodies.take(n, func() {
		x.held = n
		if x.body, err = readMost(path, n); err != nil {
			x.fault = "its outcome was not uploaded"
		} else if digest.Of(x.body) != x.r.Ref {
			x.fault = "its outcome is not what was uploaded"
		} else {
			x.check(count)
		}
		then()
	})
}

// readMost reads a file of at most n bytes.
func readMost(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Size() > n {
		err = fmt.Errorf("%d bytes instead of %d", st.Size(), n)
	}
	if err != nil {
		return nil, err
	}
	body := make([]byte, st.Size())
	_, err = io.ReadFull(f, body)
	return body, err
}

// letGo forgets a report's body.
func (b *Broker) letGo(x *answer) {
	x.body, x.outcome, x.fault = nil, nil, ""
	if x.held > 0 {
		b.bodies.give(x.held, &b.pool)
		x.held = 0
	}
}

// check parses a report's body, and says its fault if it has one.
func (x *answer) check(count uint64) {
	r := x.r
	o, contents, err := crowd.ParseBody(x.body, r.First, count)
	if err != nil {
		x.fault = crowd.AsError(err).Message
		return
	}
	manifest := o.Manifest()
	if fuel := o.Fuel(); digest.Of(manifest) != r.Digest || !x.unfueled && fuel != r.Fuel || x.unfueled && fuel != 0 {
		x.fault = "its manifest isn't the one it signed"
		return
	}
	for i, c := range contents {
		u := o.Units[i]
		ok := u.Stdout.Size == 0 || digest.Of(c.Stdout) == u.Stdout.Digest
		for k, f := range u.Files {
			ok = ok && (f.Size == 0 || digest.Of(c.Files[k]) == f.Digest)
		}
		if !ok {
			x.fault = "its contents aren't what its manifest says"
			return
		}
	}
	x.outcome = o
}

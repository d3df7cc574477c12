package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
)

const (
	fetchTries    = 6
	transferStall = 30 * time.Second // without a byte
)

var errStalled = crowd.Errorf(crowd.Unavailable, crowd.NetworkBroker, "the transfer stalled")

// fetch is the cache's FetchFunc: GET from the broker, going on where it broke off, as long as the link stands or comes back.
func (a *Agent) fetch(ctx context.Context, d crowd.Digest, f *os.File, have int64, room func(int64) error) error {
	var err error
	for try := range fetchTries {
		if try > 0 && !a.wait(ctx, a.o.backoff(try)) {
			return context.Cause(ctx)
		}
		bearer, e := a.waitOnline(ctx)
		if e != nil {
			return e
		}
		var more int64
		more, err = a.fetchOnce(ctx, bearer, d, f, have, room)
		have += more
		if err == nil {
			return nil
		}
		if k := crowd.AsError(err).Kind; ctx.Err() != nil || k != crowd.Unavailable && k != crowd.Exhausted && k != crowd.Internal && !unauthorized(err) {
			return err
		}
	}
	return err
}

// unauthorized: the bearer is that of an earlier connection.
func unauthorized(err error) bool { return crowd.AsError(err).Status == http.StatusUnauthorized }

func (a *Agent) waitOnline(ctx context.Context) (bearer string, err error) {
	for {
		a.mu.Lock()
		online, connected := a.online, a.conn != nil
		bearer = a.bearer
		a.mu.Unlock()
		if connected {
			return bearer, nil
		}
		select {
		case <-online:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// fetchOnce appends what one request gives; more may be negative: the file was started over.
func (a *Agent) fetchOnce(ctx context.Context, bearer string, d crowd.Digest, f *os.File, have int64, room func(int64) error) (more int64, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stall := time.AfterFunc(a.o.stall, func() { stop(errStalled) })
	defer stall.Stop()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.profile.Broker+"/v1/link/blobs/"+d.String(), nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+bearer)
	r.Header.Set("Accept-Encoding", "identity") // else a proxy may hide how large it is
	if have > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	resp, err := a.http.Do(r)
	if err != nil {
		return 0, netError(cause(ctx, err))
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable: // all is there, or too much: the digest tells
		return 0, nil
	case resp.StatusCode == http.StatusOK:
		more = -have
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have)):
	case resp.StatusCode/100 == 2:
		return 0, crowd.Errorf(crowd.Failed, crowd.HostFailed, "the broker answers a range with %q", resp.Header.Get("Content-Range"))
	default:
		return 0, readProblem(resp)
	}
	at := have + more
	switch size := at + resp.ContentLength; {
	case resp.ContentLength < 0:
		return 0, crowd.Errorf(crowd.Failed, crowd.HostFailed, "the broker doesn't say how large %s is", d.Short())
	case size > crowd.Limits.BlobBytes:
		return 0, crowd.Errorf(crowd.Failed, crowd.HostFailed, "%s is larger than any blob may be", d.Short())
	default:
		if err := room(size); err != nil {
			return 0, err
		}
	}
	if err := f.Truncate(at); err != nil {
		return more, crowd.Errorf(crowd.Failed, crowd.HostFailed, "write the cache: %w", err)
	}
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return more, crowd.Errorf(crowd.Failed, crowd.HostFailed, "write the cache: %w", err)
	}
	n, err := io.Copy(f, &lively{resp.Body, stall, a.o.stall}) // at most ContentLength
	more += n
	switch {
	case err != nil && isWrite(err):
		return more, crowd.Errorf(crowd.Failed, crowd.HostFailed, "write the cache: %w", err)
	case err != nil:
		return more, netError(cause(ctx, err))
	case n != resp.ContentLength:
		return more, netError(io.ErrUnexpectedEOF)
	}
	return more, nil
}

func isWrite(err error) bool {
	var p *os.PathError
	return errors.As(err, &p)
}

// lively puts off the end of a transfer with every byte.
type lively struct {
	io.Reader
	stall *time.Timer
	after time.Duration
}

func (l *lively) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.stall.Reset(l.after)
	}
	return n, err
}

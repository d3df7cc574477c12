package host

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// lastStateWait is how long an attempt that goes back to the broker waits, its guest gone, until its newest checkpoint is there.
const lastStateWait = time.Second

// keeper holds what an attempt has saved and the broker doesn't have: the newest, those before it are worth nothing any more.
type keeper struct {
	saved chan struct{} // of size 1
	last  chan struct{} // closed when nothing more is saved
	ended chan struct{} // closed when nothing more is sent

	mu   sync.Mutex
	next *checkpoint // waits; nil: nothing does
}

type checkpoint struct {
	state []byte
	fuel  uint64
}

// save puts a checkpoint in place of the one that waits.
func (k *keeper) save(state []byte, fuel uint64) {
	k.mu.Lock()
	k.next = &checkpoint{state, fuel}
	k.mu.Unlock()
	poke(k.saved)
}

func (k *keeper) take() *checkpoint {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.next
	k.next = nil
	return c
}

// startKeeper takes an attempt's checkpoints to the broker until end, which returns when nothing is sent any more: at once, or when the newest
// has arrived if it is wanted, there is a connection, and it doesn't take long.
func (a *Agent) startKeeper(at *attempt) (k *keeper, end func(wanted bool)) {
	k = &keeper{saved: make(chan struct{}, 1), last: make(chan struct{}), ended: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer close(k.ended)
		a.keepStates(ctx, at, k)
	}()
	return k, func(wanted bool) {
		close(k.last)
		if wanted && a.connected() {
			t := time.NewTimer(lastStateWait)
			defer t.Stop()
			select {
			case <-k.ended:
			case <-t.C:
			}
		}
		stop()
		<-k.ended
	}
}

func (a *Agent) connected() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conn != nil
}

// keepStates sends one checkpoint after the other until ctx ends, the broker wants no more of them, or the last one has arrived.
func (a *Agent) keepStates(ctx context.Context, at *attempt, k *keeper) {
	seq := int64(1)
	if at.state != nil {
		seq += at.state.Seq
	}
	for over := false; ; {
		c := k.take()
		switch {
		case c != nil:
			if !a.keepState(ctx, at, seq, c) {
				return
			}
			seq++
		case over:
			return
		default:
			select {
			case <-k.saved:
			case <-k.last:
				over = true
			case <-ctx.Done():
				return
			}
		}
	}
}

// keepState sends a checkpoint until it is answered: an answer may have been lost, so nothing else is sent with its number. False: no more
// are wanted, or ctx has ended.
func (a *Agent) keepState(ctx context.Context, at *attempt, seq int64, c *checkpoint) bool {
	root := digest.Of(c.state)
	for try := 0; ; try++ {
		if try > 0 && !a.wait(ctx, a.o.backoff(try)) {
			return false
		}
		bearer, err := a.waitOnline(ctx)
		if err != nil {
			return false
		}
		err = a.putState(ctx, bearer, at.AttemptRef, seq, root, c)
		if err == nil {
			return true
		}
		e := crowd.AsError(err)
		switch {
		case ctx.Err() != nil:
			return false
		case e.Kind == crowd.Conflict: // others go on with it; its outcome may count all the same
			a.mu.Lock()
			entry := Entry{What: "state.refused", Reason: e.Reason, Text: e.Message}.about(at)
			a.mu.Unlock()
			a.book.add(entry)
			return false
		case e.Status == http.StatusMethodNotAllowed || refused(e): // or the broker is older than checkpoints
			a.log.Warn("the broker takes no checkpoints of this", "job", at.Job.Short(), "chunk", at.First, "err", err)
			return false
		}
		a.log.Info("can't send a checkpoint", "job", at.Job.Short(), "chunk", at.First, "err", err, "try", try)
	}
}

// putState sends a checkpoint once. Nil: the broker has it.
func (a *Agent) putState(ctx context.Context, bearer string, ref crowd.AttemptRef, seq int64, root crowd.Digest, c *checkpoint) error {
	path := fmt.Sprintf("/v1/link/states/%s/%d/%d/%d/%s?fuel=%d", ref.Job, ref.First, ref.N, seq, root, c.fuel)
	sig := ed25519.Sign(a.profile.key, crowd.StateBytes(a.profile.Host.ID, ref, seq, root, c.fuel))
	b, err := a.put(ctx, bearer, path, c.state, http.Header{"Crowd-Signature": {base64.StdEncoding.EncodeToString(sig)}})
	if err != nil {
		return err
	}
	var said struct {
		Answer crowd.StateAnswer `json:"answer"`
	}
	if err := json.Unmarshal(b, &said); err != nil {
		return netError(fmt.Errorf("an answer to a checkpoint that makes no sense: %w", err))
	}
	switch said.Answer {
	case crowd.StateAccepted, crowd.StateRepeat:
		return nil
	case crowd.StateConflict:
		return crowd.Errorf(crowd.Conflict, "", "the attempt isn't this machine's to go on with")
	}
	return netError(fmt.Errorf("an answer to a checkpoint that makes no sense: %q", oneLine(string(said.Answer))))
}

// stateOf is what the attempt begins with; nil: nothing.
func (a *Agent) stateOf(ctx context.Context, at *attempt) ([]byte, error) {
	if at.state == nil {
		return nil, nil
	}
	f, err := a.cache.OpenAtMost(ctx, at.state.Root, at.state.Size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, f.Size())
	if int64(len(b)) != at.state.Size {
		return nil, crowd.Errorf(crowd.Failed, crowd.HostFailed, "the state to begin with has %d bytes, not %d as the lease says", len(b), at.state.Size)
	}
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, crowd.Errorf(crowd.Internal, crowd.HostFailed, "read the cache: %w", err)
	}
	return b, nil
}

// badState says what is wrong with a lease of a job with checkpoints; "": nothing.
func badState(l *crowd.Lease, spec *crowd.JobSpec) string {
	s, every := l.State, spec.CheckpointEvery()
	switch {
	case every > 0 && l.Count != 1:
		return fmt.Sprintf("a chunk of %d units with checkpoints", l.Count)
	case s != nil && every == 0:
		return "a state to begin with, of a job without checkpoints"
	case s != nil && (s.Seq < 1 || s.Root.IsZero() || s.Size < 1 || s.Size > crowd.Limits.StateBytes):
		return fmt.Sprintf("a state to begin with of %d bytes, number %d", s.Size, s.Seq)
	}
	return ""
}

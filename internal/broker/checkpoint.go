package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/price"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// A unit's newest checkpoint of each lineage is a file, named by what its row says; the row is the truth, the file is on disk before it. A lineage
// is the attempts that went on from one another: it has one vote, replicas never share one.

func (b *Broker) statePath(u *crowd.UnitState) string {
	return filepath.Join(b.cfg.Dir, "states", fmt.Sprintf("%s-%d-%d-%d-%x", u.Job, u.First, u.Lineage, u.Seq, u.Root[:8]))
}

// resumes picks the lineage that a new attempt at a chunk goes on with, 0 if none: the one that got farthest of those that nobody is at and whose
// word isn't in yet.
func (c *chunk) resumes() (line int) {
	best := uint64(0)
	for l, u := range c.states {
		free := true
		for _, a := range c.attempts {
			if a.Line() == l && (a.leased() || a.State == crowd.AttemptReported || a.State == crowd.AttemptVoid) {
				free = false
			}
		}
		if free && (line == 0 || u.Fuel > best || u.Fuel == best && l < line) {
			line, best = l, u.Fuel
		}
	}
	return line
}

// unvotedFuel is what the winners of a unit with checkpoints are paid for: its fuel isn't voted on, so it is the middle (of two the higher) of what they
// say, each no more than the time that its lineage was seen at work can have burnt. row is the last of them as it will be. Called with b.mu held.
func (b *Broker) unvotedFuel(c *chunk, by []*attempt, row crowd.Attempt, winners []int) uint64 {
	said := []uint64{}
	for _, i := range winners {
		a, fuel := by[i], by[i].Fuel
		if i == len(by)-1 {
			fuel = row.Fuel
		}
		seconds, fast := 0.0, 0.0
		for _, x := range c.attempts {
			if x.Line() != a.Line() {
				continue
			}
			end := x.EndedAt
			if x == a && i == len(by)-1 {
				end = row.EndedAt
			}
			seconds += max(0, end.Sub(x.LeasedAt).Seconds())
			if x.host != nil {
				fast = max(fast, x.host.Record.Speed, min(sched.Speed(&x.host.Host), 1))
			}
		}
		said = append(said, price.WitnessedFuel(fuel, seconds, fast))
	}
	if len(said) == 0 {
		return row.Fuel
	}
	slices.Sort(said)
	return said[len(said)/2]
}

// mixed reports whether hosts of other groups worked in an attempt's lineage.
func (c *chunk) mixed(a *attempt) bool {
	for _, x := range c.attempts {
		if x != a && x.Line() == a.Line() && x.Group != a.Group {
			return true
		}
	}
	return false
}

// bars reports whether a group may not take another attempt at a chunk with checkpoints: it left one that others go on from, so that its vote would be
// in their answer already. Going on with that very lineage is fine.
func (c *chunk) bars(group string) bool {
	if c.Need <= 1 || len(c.states) == 0 {
		return false
	}
	next := c.resumes()
	for _, a := range c.attempts {
		if a.Group == group && a.Line() != next && c.states[a.Line()] != nil {
			return true
		}
	}
	return false
}

// resume is the checkpoint that an attempt begins with.
func (a *attempt) resume() *crowd.Resume {
	u := a.chunk.states[a.Line()]
	if u == nil { // an attempt that left it itself is told it too: if it is told its lease again, it lost its memory
		return nil
	}
	return &crowd.Resume{Seq: u.Seq, Root: u.Root, Size: u.Size, Fuel: u.Fuel}
}

// HostPutState keeps a checkpoint of a unit's /state. The answer is durable.
func (b *Broker) HostPutState(_ context.Context, bearer string, u crowd.UnitState, sig []byte, body io.Reader) (crowd.StateAnswer, error) {
	s, err := b.bearer(bearer)
	if err != nil {
		return "", err
	}
	if !ed25519.Verify(ed25519.PublicKey(s.host.Key), crowd.StateBytes(s.host.ID, u.AttemptRef, u.Seq, u.Root, u.Fuel), sig) {
		return "", crowd.Errorf(crowd.Invalid, "", "the checkpoint's signature is wrong")
	}
	b.mu.Lock()
	a, answer, err := b.stateOf(s, &u)
	if answer == "" && err == nil {
		err = b.mayKeep(a, &u)
	}
	b.mu.Unlock()
	if answer != "" || err != nil {
		return answer, errors.Join(err, conflictIf(answer, u))
	}
	path := b.statePath(&u)
	leave, free := b.uploads.enter(fmt.Sprintf("%s-%d-%d", u.Job, u.First, u.Lineage))
	if !free {
		return "", crowd.Errorf(crowd.Unavailable, "", "another upload of checkpoint %d runs", u.Seq) // a Conflict would be the last word
	}
	defer leave()
	if u.Size, err = b.writeState(path, &u, body); err != nil {
		return "", err
	}
	crash.Point("state.before")
	done := make(chan crowd.StateAnswer, 1)
	var failed error
	b.mu.Lock()
	a.chunk.when(func() {
		a, answer, err := b.stateOf(s, &u)
		if failed = err; answer != "" || err != nil {
			done <- answer
			return
		}
		c := a.chunk
		old := c.states[u.Lineage]
		u.At = b.now()
		c.hold()
		b.apply([]store.Op{store.PutState{State: u}}, func(err error) []func() {
			answer := crowd.StateConflict
			if failed = err; err == nil || crowd.KindIs(err, crowd.Conflict) {
				failed = nil
			}
			if err == nil {
				answer = crowd.StateAccepted
				if c.states == nil {
					c.states = map[int]*crowd.UnitState{}
				}
				c.job.stateBytes += u.Size
				if old != nil {
					c.job.stateBytes -= old.Size
				}
				c.states[u.Lineage] = &u
			}
			b.free(c)
			return []func(){func() {
				crash.Point("state.after")
				if old != nil && err == nil {
					_ = os.Remove(b.statePath(old))
				}
				done <- answer
			}}
		})
	})
	b.mu.Unlock()
	answer = <-done
	if answer != crowd.StateAccepted && answer != crowd.StateRepeat {
		b.mu.Lock()
		if !b.namesState(&u) {
			_ = os.Remove(path)
		}
		b.mu.Unlock()
	}
	if failed != nil {
		return "", failed
	}
	return answer, conflictIf(answer, u)
}

func conflictIf(answer crowd.StateAnswer, u crowd.UnitState) error {
	if answer != crowd.StateConflict {
		return nil
	}
	return crowd.Errorf(crowd.Conflict, "", "attempt %d at unit %d of %s isn't this host's to go on with, or checkpoint %d isn't its next", u.N, u.First, u.Job.Short(), u.Seq)
}

// stateOf finds a checkpoint's attempt and fills in its lineage; an answer says that nothing is to be done. Only the host's newest connection may, but
// that isn't the attempt's fault: it says it again. Called with b.mu held.
func (b *Broker) stateOf(s *session, u *crowd.UnitState) (*attempt, crowd.StateAnswer, error) {
	a := b.openAttempt(u.AttemptRef)
	if a == nil || a.Attempt.Host != s.host.ID || !a.leased() || a.chunk.job.ending || a.chunk.job.spec.CheckpointEvery() == 0 {
		return nil, crowd.StateConflict, nil
	}
	if s.host.conn != s || a.pending || b.closing {
		return nil, "", crowd.Errorf(crowd.Unavailable, crowd.NetworkHost, "the connection is not the newest one").WithHint("dial again")
	}
	u.Lineage = a.Line()
	last := a.chunk.states[u.Lineage]
	switch {
	case u.Seq < 1:
	case last == nil, u.Seq > last.Seq && u.Fuel >= last.Fuel: // after a restore the host is ahead
		return a, "", nil
	case u.Seq == last.Seq && u.Root == last.Root:
		return a, crowd.StateRepeat, nil
	}
	return nil, crowd.StateConflict, nil
}

// fastest is what no processor burns in a second.
const fastest = 100e9

// mayKeep refuses a checkpoint that comes too soon, is too much for its customer, or claims what can't be. Called with b.mu held.
func (b *Broker) mayKeep(a *attempt, u *crowd.UnitState) error {
	j, now, base := a.chunk.job, b.now(), uint64(0)
	if last := a.chunk.states[u.Lineage]; last != nil {
		base = last.Fuel
		if last.N == u.N && now.Sub(last.At) < min(j.spec.CheckpointEvery()/2, 2*time.Second) {
			return crowd.Errorf(crowd.Exhausted, crowd.BrokerRate, "the last checkpoint of this unit came %v ago", now.Sub(last.At).Round(time.Millisecond))
		}
	}
	if float64(u.Fuel)-float64(base) > fastest*(now.Sub(a.LeasedAt).Seconds()+crowd.Skew.Seconds()) {
		return crowd.Errorf(crowd.Invalid, "", "nothing burns %d of fuel in %v", u.Fuel-base, now.Sub(a.LeasedAt))
	}
	sum := int64(0)
	for _, x := range b.jobs {
		if x.Account == j.Account {
			sum += x.stateBytes
		}
	}
	if sum > crowd.Limits.AccountStateBytes {
		return crowd.Errorf(crowd.Exhausted, crowd.CustomerQuota, "the checkpoints of the customer's units come to more than %d bytes", crowd.Limits.AccountStateBytes)
	}
	return nil
}

// namesState reports whether a chunk's newest checkpoint of a lineage is this one. Called with b.mu held.
func (b *Broker) namesState(u *crowd.UnitState) bool {
	if j := b.jobs[u.Job]; j != nil {
		if c := j.open[u.First]; c != nil {
			x := c.states[u.Lineage]
			return x != nil && x.Seq == u.Seq && x.Root == u.Root
		}
	}
	return false
}

// writeState makes a checkpoint durable under its name. Of what it holds only the fuel is read.
func (b *Broker) writeState(path string, u *crowd.UnitState, body io.Reader) (int64, error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".in-*")
	if err != nil {
		return 0, keepError(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	h := digest.New()
	head := make([]byte, 64)
	k, err := io.ReadFull(body, head)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	var n int64
	if err == nil {
		n, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(io.MultiReader(bytes.NewReader(head[:k]), body), crowd.Limits.StateBytes+1))
	}
	switch {
	case diskFull(err):
		return 0, keepError(err)
	case err != nil:
		return 0, crowd.Errorf(crowd.Unavailable, crowd.NetworkHost, "the upload broke off: %w", err)
	case n > crowd.Limits.StateBytes:
		return 0, &crowd.Error{Kind: crowd.Invalid, Status: 413, Reason: crowd.GuestOutput, Message: fmt.Sprintf("a checkpoint has at most %d bytes", crowd.Limits.StateBytes)}
	case h.Sum() != u.Root:
		return 0, crowd.Errorf(crowd.Invalid, "", "what was sent is %s, not %s", h.Sum().Short(), u.Root.Short())
	}
	if fuel, ok := crowd.CheckpointFuel(head[:k]); !ok || fuel != u.Fuel {
		return 0, crowd.Errorf(crowd.Invalid, "", "what was sent is no checkpoint at %d of fuel", u.Fuel)
	}
	return n, nameFile(f, path)
}

// dropStates are the ops of a chunk that needs its checkpoints no more.
func (c *chunk) dropStates() (ops []store.Op) {
	if len(c.states) > 0 {
		ops = append(ops, store.DropStates{Job: c.Job, First: c.First})
	}
	return ops
}

// removeStates removes the files of a chunk's checkpoints, once no row names them. Called with b.mu held.
func (b *Broker) removeStates(c *chunk) {
	for _, u := range c.states {
		c.job.stateBytes -= u.Size
		path := b.statePath(u)
		b.pool.add(func() { _ = os.Remove(path) })
	}
	c.states = nil
}

// keepStates removes what no row names from the folder of checkpoints, at the start.
func (b *Broker) keepStates() {
	named := map[string]bool{}
	for _, j := range b.jobs {
		for _, c := range j.open {
			for _, u := range c.states {
				named[filepath.Base(b.statePath(u))] = true
			}
		}
	}
	dir := filepath.Join(b.cfg.Dir, "states")
	entries, err := os.ReadDir(dir)
	if err != nil {
		b.log.Warn("can't look at checkpoints", "err", err)
	}
	for _, e := range entries {
		if !named[e.Name()] {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// openState opens the checkpoint that a live attempt of a host begins with, nil if d is none.
func (b *Broker) openState(h *host, d crowd.Digest) (io.ReadSeekCloser, error) {
	b.mu.Lock()
	var path string
	for _, a := range h.live {
		if r := a.resume(); r != nil && r.Root == d {
			path = b.statePath(a.chunk.states[a.Line()])
		}
	}
	b.mu.Unlock()
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, notFound("checkpoint", strings.TrimPrefix(d.Short(), "b3:"))
	}
	return f, nil
}

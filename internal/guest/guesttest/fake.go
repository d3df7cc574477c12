// Package guesttest tests that an engine keeps the contract of package guest, and has a fake one that does.
package guesttest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
)

// Fake is an engine without processes or wasm: what a unit gives is a function of its plan, the same in all fakes. It
// opens the program and the inputs as an engine does, but looks at the inputs only. By the first argument a unit
//
//	exit N      exits with code N
//	loop        never ends
//	copy A B    copies the input A, a path under /in, to B, a path under /out
//	trap        ends with guest.trap
//	count N     counts in /state/count from where that stands up to N, 100 units of fuel and a UnitTime (0: a millisecond) each, and writes
//	            N and a newline to stdout
//
// and else writes its arguments, joined by spaces, and a newline to stdout.
type Fake struct {
	UnitTime time.Duration // each unit takes this long, not counting freezes
	// Twist, if set, changes a unit's result before it is put in the outcome: a host that lies or fails.
	Twist func(p crowd.Plan, u *crowd.UnitResult, c *crowd.UnitContent)
	Speed float64 // what Bench says; 0: 1

	mu     sync.Mutex
	closed bool
	slots  []*fakeSlot
}

var _ guest.Engine = (*Fake)(nil)

// Slot implements [guest.Engine].
func (f *Fake) Slot(ctx context.Context, job crowd.JobID) (guest.Slot, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, failed("the engine is closed")
	}
	thawed := make(chan struct{})
	close(thawed)
	s := &fakeSlot{f: f, job: job, gone: make(chan struct{}), frozen: make(chan struct{}), thawed: thawed}
	f.slots = append(f.slots, s)
	return s, nil
}

// Bench implements [guest.Engine].
func (f *Fake) Bench(ctx context.Context) (float64, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if f.Speed == 0 {
		return 1, nil
	}
	return f.Speed, nil
}

// Layers implements [guest.Engine].
func (f *Fake) Layers() []guest.Layer {
	return []guest.Layer{{Name: "fake", Why: "this engine runs nothing"}}
}

// Close implements [guest.Engine].
func (f *Fake) Close() error {
	f.mu.Lock()
	f.closed = true
	slots := slices.Clone(f.slots)
	f.mu.Unlock()
	for _, s := range slots {
		_ = s.Close()
	}
	return nil
}

func failed(format string, args ...any) *crowd.Error {
	return crowd.Errorf(crowd.Failed, crowd.HostFailed, format, args...)
}

type fakeSlot struct {
	f    *Fake
	job  crowd.JobID
	busy sync.Mutex // held by Run
	gone chan struct{}
	once sync.Once

	mu     sync.Mutex
	frozen chan struct{} // closed while frozen
	thawed chan struct{} // closed while not
}

func (s *fakeSlot) Freeze() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.frozen:
	default:
		close(s.frozen)
		s.thawed = make(chan struct{})
	}
	return nil
}

func (s *fakeSlot) Thaw() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.thawed:
	default:
		close(s.thawed)
		s.frozen = make(chan struct{})
	}
	return nil
}

func (s *fakeSlot) gates() (frozen, thawed chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frozen, s.thawed
}

func (s *fakeSlot) Close() error {
	s.once.Do(func() { close(s.gone) })
	return nil
}

func (s *fakeSlot) Run(ctx context.Context, t guest.Task, blobs guest.Blobs, progress func(done, fuel uint64)) (o *crowd.Outcome, contents []crowd.UnitContent, err error) {
	if !s.busy.TryLock() {
		return nil, nil, failed("the slot is running another task")
	}
	defer s.busy.Unlock()
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if t.Job != s.job {
		return nil, nil, failed("the slot is another job's")
	}
	if (t.Every > 0 || t.State != nil) && len(t.Plans) != 1 {
		return nil, nil, failed("a task of %d units with checkpoints, 1 is possible", len(t.Plans))
	}
	if _, err := readAll(ctx, blobs, t.Program); err != nil {
		return nil, nil, err
	}
	o = &crowd.Outcome{First: t.First}
	for i, p := range t.Plans {
		u, c, took, err := s.f.unit(ctx, t, p, blobs)
		if err == nil && len(p.Args) > 2 && p.Args[1] == "count" {
			took, err = 0, s.count(ctx, t, p.Args[2], &u, &c)
		}
		if err != nil {
			return nil, nil, err
		}
		if t.Limits.Time > 0 && took > t.Limits.Time {
			if err := s.pass(ctx, t.Limits.Time); err != nil {
				return nil, nil, err
			}
			return nil, nil, crowd.Errorf(crowd.Failed, crowd.GuestTime, "unit %d ran longer than %v", p.Unit, t.Limits.Time)
		}
		if err := s.pass(ctx, took); err != nil {
			return nil, nil, err
		}
		o.Units, contents = append(o.Units, u), append(contents, c)
		if progress != nil {
			progress(uint64(i+1), o.Fuel())
		}
	}
	return o, contents, nil
}

// count runs a unit that counts, with checkpoints.
func (s *fakeSlot) count(ctx context.Context, t guest.Task, to string, u *crowd.UnitResult, c *crowd.UnitContent) error {
	k := &crowd.Checkpoint{}
	if t.State != nil {
		var err error
		if k, err = crowd.ParseCheckpoint(t.State); err != nil {
			return failed("the state to begin with: %w", err)
		}
	}
	n, end, step := 0, 0, max(s.f.UnitTime, time.Millisecond)
	for _, f := range k.Files {
		n, _ = strconv.Atoi(strings.TrimSpace(string(f.Data)))
	}
	end, _ = strconv.Atoi(to)
	for ran := step; n < end; ran += step {
		if err := s.pass(ctx, step); err != nil {
			return err
		}
		n++
		k.Fuel += 100
		if t.Every > 0 && t.Save != nil && ran >= t.Every {
			ran = 0
			k.Files = []crowd.StateFile{{Path: "count", Data: fmt.Appendln(nil, n)}}
			t.Save(k.Bytes(), k.Fuel)
		}
	}
	u.Fuel, c.Stdout = k.Fuel, fmt.Appendln(nil, n)
	u.Stdout = ref(c.Stdout)
	return nil
}

// pass lets time go by, not counting freezes.
func (s *fakeSlot) pass(ctx context.Context, d time.Duration) error {
	for {
		frozen, thawed := s.gates()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.gone:
			return failed("the slot was closed")
		case <-thawed:
		}
		if d <= 0 {
			select {
			case <-s.gone:
				return failed("the slot was closed")
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-frozen:
				continue
			default:
				return nil
			}
		}
		begun := time.Now()
		timer := time.NewTimer(d)
		select {
		case <-timer.C:
			d = 0
		case <-frozen:
			d -= time.Since(begun)
		case <-ctx.Done():
		case <-s.gone:
		}
		timer.Stop()
	}
}

const never = 1 << 62

// unit computes what a unit gives and how long that takes.
func (f *Fake) unit(ctx context.Context, t guest.Task, p crowd.Plan, blobs guest.Blobs) (u crowd.UnitResult, c crowd.UnitContent, took time.Duration, err error) {
	took = f.UnitTime
	u.Fuel = 1000 + uint64(sha256.Sum256([]byte(strings.Join(p.Args, "\x00")))[0])
	in := map[string][]byte{}
	for _, i := range p.Inputs {
		if in["/in/"+i.As], err = readAll(ctx, blobs, i.Digest); err != nil {
			return u, c, 0, err
		}
	}
	arg := func(i int) string {
		if i < len(p.Args) {
			return p.Args[i]
		}
		return ""
	}
	switch arg(1) {
	case "exit":
		code, _ := strconv.ParseUint(arg(2), 10, 32)
		u.Exit = uint32(code)
	case "loop":
		took = never
	case "trap":
		u.Reason = crowd.GuestTrap
	case "copy":
		b, ok := in[arg(2)]
		name, ok2 := strings.CutPrefix(arg(3), "/out/")
		if !ok || !ok2 {
			u.Exit = 1
		} else if guest.Kept(t.Keep, name) {
			u.Files, c.Files = []crowd.OutputFile{{Path: name, ContentRef: ref(b)}}, [][]byte{b}
		}
	default:
		c.Stdout = []byte(strings.Join(p.Args, " ") + "\n")
		u.Stdout = ref(c.Stdout)
	}
	if f.Twist != nil {
		f.Twist(p, &u, &c)
		u.Stdout, u.Stderr = ref(c.Stdout), int64(len(c.Stderr))
		for i := range u.Files {
			u.Files[i].ContentRef = ref(c.Files[i])
		}
	}
	return u, c, took, nil
}

func ref(b []byte) crowd.ContentRef {
	if len(b) == 0 {
		return crowd.ContentRef{}
	}
	return crowd.ContentRef{Size: int64(len(b)), Digest: digest.Of(b)}
}

func readAll(ctx context.Context, blobs guest.Blobs, d crowd.Digest) ([]byte, error) {
	b, err := blobs.Open(ctx, d)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, failed("read %s: %w", d.Short(), err)
	}
	defer b.Close()
	p := make([]byte, b.Size())
	if n, err := b.ReadAt(p, 0); n < len(p) && !errors.Is(err, io.EOF) {
		return nil, failed("read %s: %w", d.Short(), err)
	}
	return p, nil
}

// Blobs are blobs in memory.
type Blobs map[crowd.Digest][]byte

// Add keeps b and gives its digest.
func (m Blobs) Add(b []byte) crowd.Digest {
	d := digest.Of(b)
	m[d] = b
	return d
}

// Open implements [guest.Blobs].
func (m Blobs) Open(_ context.Context, d crowd.Digest) (guest.Blob, error) {
	b, ok := m[d]
	if !ok {
		return nil, crowd.Errorf(crowd.NotFound, "", "no blob %s", d.Short())
	}
	return blob{strings.NewReader(string(b))}, nil
}

type blob struct{ *strings.Reader }

func (blob) Close() error { return nil }

package wasm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/cage"
	"github.com/crowdcloud/crowd/internal/guest"
)

const (
	startWait  = 30 * time.Second // for a child to enter its cage
	freezeWait = 2 * time.Second  // for a child that is frozen by a frame to say so
)

type frame struct {
	t frameType
	p []byte
}

// process is a caged child and the frames it sends. What it sends is believed as little as possible: it may be a
// guest's that broke out of the engine.
type process struct {
	child  *cage.Child
	layers []guest.Layer
	frames chan frame // closed when the child says no more
	alive  atomic.Uint64
	frozen chan struct{} // it says that it is frozen
	polite bool          // freeze by a frame even where the system could

	gone    chan struct{} // closed by kill
	once    sync.Once
	reading sync.WaitGroup
	broken  error // why reading ended, once frames is closed

	mu sync.Mutex // of writing
}

// startProcess starts a child and waits until it is in its cage.
func startProcess(self string, polite bool, what string, data int64, dir string) (*process, error) {
	args := []string{ChildWord, what, strconv.FormatInt(data, 10)}
	if dir != "" {
		args = append(args, dir)
	}
	child, err := cage.Start(cage.Spec{Path: self, Args: args})
	if err != nil {
		return nil, failed("start a guest's process: %w", err)
	}
	p := newProcess(child)
	p.polite = polite
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	select {
	case f, ok := <-p.frames:
		if ok && f.t == fromLayers && json.Unmarshal(f.p, &p.layers) == nil {
			return p, nil
		}
		err = p.died(f)
	case <-timer.C:
		err = failed("a guest's process did not start within %v", startWait)
	}
	p.kill()
	return nil, err
}

func newProcess(child *cage.Child) *process {
	p := &process{child: child, frames: make(chan frame), frozen: make(chan struct{}, 1), gone: make(chan struct{})}
	p.reading.Go(p.read)
	return p
}

func failed(format string, args ...any) *crowd.Error {
	return crowd.Errorf(crowd.Failed, crowd.HostFailed, format, args...)
}

// read passes frames on until the child's end.
func (p *process) read() {
	defer close(p.frames)
	r := bufio.NewReaderSize(p.child.Stdout, 64<<10)
	for {
		t, b, err := readFrame(r, maxToParent)
		if err != nil {
			p.broken = err
			return
		}
		switch t {
		case fromAlive:
			p.alive.Add(1)
		case fromFrozen:
			select {
			case p.frozen <- struct{}{}:
			default:
			}
		default:
			select {
			case p.frames <- frame{t, b}:
			case <-p.gone:
				return
			}
		}
	}
}

// died says why a child doesn't go on: f is what it said instead of what was wanted, if anything.
func (p *process) died(f frame) error {
	if f.t == fromFailed {
		return failed("the guest's process gave up: %s", plain(f.p))
	}
	if f.t != 0 {
		return failed("the guest's process said what it shouldn't (%q)", byte(f.t))
	}
	if !errors.Is(p.broken, io.EOF) && !p.isGone() {
		return failed("the guest's process can't be understood: %w", p.broken)
	}
	if p.isGone() {
		return failed("the slot was closed")
	}
	select {
	case <-p.child.Done():
	case <-time.After(time.Second): // it closed its pipe and lives on
		_ = p.child.Kill()
	}
	err := p.child.Wait()
	said := plain(p.child.Stderr())
	if said != "" {
		said = ": " + said
	}
	return failed("the guest's process ended (%v)%s", err, said)
}

func (p *process) isGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// plain makes a child's words fit for a log: one line, no control characters.
func plain(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte("\n\n"))
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, string(b[:min(len(b), 500)]))
	return strings.TrimSpace(s)
}

// send writes a frame. It may block for as long as the child doesn't read; kill unblocks it.
func (p *process) send(t frameType, payload []byte) error {
	if len(payload) > maxToChild {
		return failed("a plan of %d bytes is too large", len(payload))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.child.Stdin.Write(appendFrame(make([]byte, 0, frameHead+len(payload)), t, payload)); err != nil {
		return failed("write to the guest's process: %w", err)
	}
	return nil
}

func (p *process) freeze() error {
	err := errors.ErrUnsupported
	if !p.polite {
		err = p.child.Freeze()
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	select {
	case <-p.frozen: // of an earlier time
	default:
	}
	if err := p.send(toFreeze, nil); err != nil {
		return p.unlessEnded(err)
	}
	timer := time.NewTimer(freezeWait)
	defer timer.Stop()
	select {
	case <-p.frozen:
		return nil
	case <-p.child.Done():
		return nil
	case <-timer.C:
		return failed("the guest did not stop within %v", freezeWait)
	}
}

func (p *process) thaw() error {
	err := errors.ErrUnsupported
	if !p.polite {
		err = p.child.Thaw()
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return p.unlessEnded(p.send(toThaw, nil))
	}
	return err
}

// unlessEnded is nil for a child that has ended: it uses no processor.
func (p *process) unlessEnded(err error) error {
	select {
	case <-p.child.Done():
		return nil
	default:
		return err
	}
}

// kill ends the child and waits until it is gone.
func (p *process) kill() {
	p.once.Do(func() {
		close(p.gone)
		_ = p.child.Kill()
		_ = p.child.Wait()
		p.child.Stdin.Close()
		p.child.Stdout.Close()
		p.reading.Wait()
	})
}

// ended reports whether the child is no more.
func (p *process) ended() bool {
	select {
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

var errStopped = fmt.Errorf("the engine is closed: %w", io.ErrClosedPipe)

package wasm

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
)

// parts are the contents of a unit as they come in.
type parts struct {
	head *head
	want []int64 // stdout, stderr, files
	got  [][]byte
	at   int
}

func newParts(h *head) *parts {
	p := &parts{head: h, want: []int64{h.Stdout, h.Stderr}}
	for _, f := range h.Files {
		p.want = append(p.want, f.Size)
	}
	p.got = make([][]byte, len(p.want))
	return p
}

// full skips what is complete and tells whether everything is.
func (p *parts) full() bool {
	for p.at < len(p.want) && int64(len(p.got[p.at])) == p.want[p.at] {
		p.at++
	}
	return p.at == len(p.want)
}

// add takes a piece; pieces don't reach over the end of a part.
func (p *parts) add(b []byte) error {
	if len(b) == 0 || p.full() || int64(len(b)) > p.want[p.at]-int64(len(p.got[p.at])) {
		return failed("the guest's process sent more than it said")
	}
	p.got[p.at] = append(p.got[p.at], b...)
	return nil
}

// receive takes a frame from the child, which may be hostile.
func (r *run) receive(f frame) error {
	switch {
	case f.t == fromReady && !r.ready:
		r.mu.Lock()
		r.ready = true
		r.s.watch.work(r.sent > 0, true)
		r.mu.Unlock()
		return nil
	case f.t == fromBlob && r.ready:
		return r.ask(f.p)
	case (f.t == fromState || f.t == fromSaved || f.t == fromUnsaved) && r.saves():
		return r.receiveState(f)
	case f.t == fromUnit && r.ready && r.parts == nil && r.state == nil && r.running():
		if len(f.p) > 0 {
			if len(r.head)+len(f.p) > maxHead {
				return failed("the end of a unit is too long")
			}
			r.head = append(r.head, f.p...)
			return nil
		}
		h, err := parseHead(r.head, r.t.Limits.Output)
		if err != nil {
			return failed("the guest's process: %w", err)
		}
		r.head, r.parts = nil, newParts(h)
		return r.finish()
	case f.t == fromData && r.parts != nil:
		if err := r.parts.add(f.p); err != nil {
			return err
		}
		return r.finish()
	}
	return r.s.p.died(f)
}

func (r *run) running() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent > r.ended
}

// finish turns a unit whose contents are complete into its result.
func (r *run) finish() error {
	if !r.parts.full() {
		return nil
	}
	h, got := r.parts.head, r.parts.got
	r.parts = nil
	u := crowd.UnitResult{Exit: h.Exit, Reason: h.Reason, Fuel: h.Fuel, Stdout: ref(got[0])}
	c := crowd.UnitContent{Stdout: got[0], Stderr: got[1]}
	r.total += u.Stdout.Size
	for i, f := range h.Files {
		if !guest.Kept(r.t.Keep, f.Path) {
			return failed("the guest's process sent a file that is not kept")
		}
		u.Files = append(u.Files, crowd.OutputFile{Path: f.Path, ContentRef: ref(got[2+i])})
		c.Files = append(c.Files, got[2+i])
		r.total += f.Size
	}
	if r.total > crowd.Limits.OutcomeBytes {
		return failed("the units' output comes to more than %d bytes", crowd.Limits.OutcomeBytes)
	}
	if r.stderr += int64(len(c.Stderr)); r.stderr > maxStderr {
		c.Stderr = []byte("[stderr left out: the units before wrote too much]\n")
	}
	u.Stderr = int64(len(c.Stderr))
	r.o.Units, r.contents = append(r.o.Units, u), append(r.contents, c)
	if r.fuel+u.Fuel < r.fuel {
		return failed("more fuel than there is")
	}
	r.fuel += u.Fuel
	for _, in := range r.t.Plans[r.ended].Inputs {
		r.blobs.release(in.Digest)
	}
	<-r.room
	r.mu.Lock()
	r.ended++
	r.ran += r.s.watch.work(r.sent > r.ended, true)
	r.mu.Unlock()
	r.progress(uint64(r.ended), r.fuel)
	return nil
}

func ref(b []byte) crowd.ContentRef {
	if len(b) == 0 {
		return crowd.ContentRef{}
	}
	return crowd.ContentRef{Size: int64(len(b)), Digest: digest.Of(b)}
}

// ask notes that the child wants a piece of an input. It may want one at a time.
func (r *run) ask(b []byte) error {
	var a ask
	if len(b) < len(a.digest) {
		return failed("the guest's process asks for nothing that there could be")
	}
	d := decoder{b: b[copy(a.digest[:], b):]}
	off, n := d.uvarint(), d.uvarint()
	if d.bad || len(d.b) > 0 || off > uint64(crowd.Limits.BlobBytes) || n == 0 || n > maxAsk {
		return failed("the guest's process asks for nothing that there could be")
	}
	a.off, a.n = int64(off), int(n)
	if !r.asking.CompareAndSwap(false, true) {
		return failed("the guest's process asks before it was answered")
	}
	r.asks <- a
	return nil
}

// answer sends what the child asks for, of the inputs of the units under way and of nothing else.
func (r *run) answer(ctx context.Context) error {
	buf := make([]byte, maxAsk)
	for {
		var a ask
		select {
		case a = <-r.asks:
		case <-ctx.Done():
			return nil
		}
		if err := r.blobs.read(a.digest, buf[:a.n], a.off); err != nil {
			return err
		}
		r.asking.Store(false)
		if err := r.s.p.send(toBlob, buf[:a.n]); err != nil {
			return err
		}
	}
}

// openBlobs are the inputs of the units under way.
type openBlobs struct {
	from guest.Blobs

	mu   sync.Mutex
	held map[crowd.Digest]*openBlob
}

type openBlob struct {
	blob guest.Blob
	refs int
}

func newOpenBlobs(from guest.Blobs) *openBlobs {
	return &openBlobs{from: from, held: map[crowd.Digest]*openBlob{}}
}

// open makes an input readable until it is released as often, and gives its size. Only one goroutine opens.
func (o *openBlobs) open(ctx context.Context, d crowd.Digest) (int64, error) {
	o.mu.Lock()
	b := o.held[d]
	if b != nil {
		b.refs++
	}
	o.mu.Unlock()
	if b != nil {
		return b.blob.Size(), nil
	}
	blob, err := o.from.Open(ctx, d)
	if err != nil {
		return 0, inputError(d, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held[d] = &openBlob{blob: blob, refs: 1}
	return blob.Size(), nil
}

func inputError(d crowd.Digest, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if e := (*crowd.Error)(nil); errors.As(err, &e) && e.Reason == crowd.HostSmall {
		return err // its reason tells the broker more
	}
	return failed("read the input %s: %w", d.Short(), err)
}

func (o *openBlobs) release(d crowd.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if b := o.held[d]; b != nil {
		if b.refs--; b.refs == 0 {
			delete(o.held, d)
			_ = b.blob.Close()
		}
	}
}

func (o *openBlobs) read(d crowd.Digest, p []byte, off int64) error {
	o.mu.Lock()
	defer o.mu.Unlock() // it stays open meanwhile
	b := o.held[d]
	if b == nil || off+int64(len(p)) > b.blob.Size() {
		return failed("the guest's process asks for what its task doesn't name")
	}
	if n, err := b.blob.ReadAt(p, off); n < len(p) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return inputError(d, err)
	}
	return nil
}

func (o *openBlobs) closeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range o.held {
		_ = b.blob.Close()
	}
	o.held = nil
}

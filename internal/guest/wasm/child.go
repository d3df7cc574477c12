package wasm

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/cage"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/wasmprep"
)

// ChildWord is the argument by which the binary knows that it is to be a guest's process: main calls ChildMain then,
// before anything else.
const ChildWord = "guest-child"

// What a child is for: its second argument. The third is how many bytes of memory it may have, the fourth its folder.
const (
	childRun     = "run"     // runs units; may read the folder, the cache
	childCompile = "compile" // prepares a program into the folder
	childCheck   = "check"   // prepares a program for nothing but the report
)

// start is a unit to run.
type start struct {
	plan  crowd.Plan
	state []byte // a checkpoint; nil: none
}

// ChildMain is main of a guest's process: it enters the cage, then serves its parent over stdin and stdout until they
// are closed. It gives the exit code.
func ChildMain() int {
	if len(os.Args) < 4 {
		return fatal("a guest's process wants to know what it is for")
	}
	what := os.Args[2]
	data, err := strconv.ParseInt(os.Args[3], 10, 64)
	if err != nil {
		return fatal(err)
	}
	rules := cage.Rules{DataBytes: data}
	dir := ""
	if len(os.Args) > 4 {
		dir = os.Args[4]
	}
	switch what {
	case childRun:
		rules.ReadDirs = []string{dir}
	case childCompile:
		rules.WriteDirs, rules.FileBytes = []string{dir}, 1<<30
	}
	report, err := cage.Enter(rules)
	if err != nil {
		return fatal(err)
	}
	runtime.GOMAXPROCS(2) // one runs the guest, the other listens
	c := newChild(os.Stdin, os.Stdout)
	c.sayLayers(report)
	switch what {
	case childRun:
		c.serve(context.Background())
	case childCompile, childCheck:
		c.prepare(context.Background(), dir)
	default:
		return fatal("unknown kind of guest's process")
	}
	return 0
}

func fatal(why any) int {
	fmt.Fprintln(os.Stderr, why)
	return 1
}

// child is the far side of a slot.
type child struct {
	in     *bufio.Reader
	work   chan any // wireTask or start, in order
	answer chan []byte
	gate   gate

	mu  sync.Mutex // guards out
	out *bufio.Writer

	loading atomic.Bool
	task    wireTask
	entry   string
	machine *machine
	blocks  blocks
}

func newChild(in io.Reader, out io.Writer) *child {
	c := &child{
		in:     bufio.NewReaderSize(in, 64<<10),
		out:    bufio.NewWriterSize(out, 64<<10),
		work:   make(chan any, 2*window),
		answer: make(chan []byte, 1),
	}
	c.gate.init(func() { c.send(fromFrozen, nil) })
	return c
}

// send writes a frame; without its parent the child has no reason to be.
func (c *child) send(t frameType, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(t, payload)
	if c.out.Flush() != nil {
		os.Exit(0)
	}
}

func (c *child) put(t frameType, payload []byte) {
	var head [frameHead]byte
	head[0] = byte(t)
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	_, _ = c.out.Write(head[:]) // the error stays until Flush
	_, _ = c.out.Write(payload)
}

func (c *child) fail(err error) {
	c.send(fromFailed, []byte(err.Error())[:min(len(err.Error()), 8<<10)])
	os.Exit(1)
}

func (c *child) sayLayers(r cage.Report) {
	var list []guest.Layer
	for _, l := range r.Layers {
		list = append(list, guest.Layer{Name: l.Name, Held: l.Held, Why: l.Why})
	}
	b, err := json.Marshal(list)
	if err != nil {
		c.fail(err)
	}
	c.send(fromLayers, b)
}

// serve runs what the parent sends, until it closes the pipe.
func (c *child) serve(ctx context.Context) {
	go c.listen() // for as long as the process lives
	go c.beat()
	for w := range c.work {
		switch w := w.(type) {
		case wireTask:
			c.load(ctx, w)
		case start:
			c.unit(ctx, w.plan, w.state)
		}
	}
}

// listen takes frames from the parent. It never waits for the guest: the parent has at most window units under way.
func (c *child) listen() {
	var state []byte
	for {
		t, p, err := readFrame(c.in, maxToChild)
		if err != nil {
			os.Exit(0) // the parent is gone or done
		}
		switch t {
		case toTask:
			var w wireTask
			if err = json.Unmarshal(p, &w); err == nil {
				c.work <- w
			}
		case toUnit:
			var plan crowd.Plan
			if err = json.Unmarshal(p, &plan); err == nil {
				c.work <- start{plan, state}
			}
			state = nil
		case toState:
			if state = append(state, p...); int64(len(state)) > crowd.Limits.StateBytes {
				err = errors.New("the state to begin with is too large")
			}
		case toBlob:
			c.answer <- p
		case toFreeze:
			c.gate.freeze(true)
		case toThaw:
			c.gate.freeze(false)
		case toDuty:
			if len(p) == 2 {
				c.gate.setDuty(int(binary.BigEndian.Uint16(p)))
			}
		default:
			err = fmt.Errorf("unknown frame %q", byte(t))
		}
		if err != nil {
			c.fail(err)
		}
	}
}

// beat tells the parent that the guest gets on.
func (c *child) beat() {
	last := uint64(0)
	for range time.Tick(beatEvery) {
		if n := c.gate.polls.Load(); n != last || c.loading.Load() {
			last = n
			c.send(fromAlive, nil)
		}
	}
}

func (c *child) load(ctx context.Context, t wireTask) {
	c.gate.begin()
	defer c.gate.end()
	if c.machine == nil || c.entry != t.Entry || c.task.Interpret != t.Interpret {
		c.loading.Store(true)
		defer c.loading.Store(false)
		if c.machine != nil {
			_ = c.machine.close(ctx)
		}
		m, err := loadMachine(ctx, t.Entry, t.Interpret)
		if err != nil {
			c.fail(fmt.Errorf("load the program: %w", err))
		}
		c.machine, c.entry = m, t.Entry
	}
	c.task = t
	c.blocks.reset()
	c.send(fromReady, nil)
}

func (c *child) unit(ctx context.Context, p crowd.Plan, state []byte) {
	c.gate.begin()
	defer c.gate.end()
	if c.machine == nil {
		c.fail(errors.New("a unit without a program"))
	}
	slice := int64(sliceCompiled)
	if !c.machine.compiled {
		slice = sliceInterpreted
	}
	u, ok := newUnit(p, c.task, slice)
	if !ok {
		c.fail(errors.New("two inputs have one name"))
	}
	u.blobs = func(i int) blob { return &remoteBlob{c: c, digest: p.Inputs[i].Digest, size: p.Inputs[i].Size} }
	if state != nil {
		if err := u.restore(state); err != nil {
			c.fail(fmt.Errorf("the state to begin with: %w", err))
		}
	}
	c.machine.breath = c.gate.breath
	if c.task.Every > 0 {
		c.machine.breath = newSaver(c, u).breath
	}
	if u.End == nil {
		if err := c.machine.run(ctx, u); err != nil {
			c.fail(err)
		}
	}
	c.report(u)
}

// report sends how a unit ended and what it left.
func (c *child) report(u *unit) {
	h := head{Exit: u.End.Exit, Reason: u.End.Reason, Fuel: u.spent(), Stdout: int64(len(u.Stdout)), Stderr: int64(len(u.Stderr))}
	if h.Reason != "" {
		h.Exit = 0
	}
	var files []*node
	if h.Reason == "" {
		paths, nodes := u.FS.outFiles()
		for i, p := range paths {
			if guest.Kept(u.Task.Keep, p) {
				h.Files = append(h.Files, fileHead{Path: p, Size: nodes[i].Size})
				files = append(files, nodes[i])
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// a head is cut into frames like contents: paths can be long
	b := h.append(nil)
	for len(b) > dataPiece {
		c.put(fromUnit, b[:dataPiece])
		b = b[dataPiece:]
	}
	c.put(fromUnit, b)
	c.put(fromUnit, nil)
	for _, p := range [][]byte{u.Stdout, u.Stderr} {
		for len(p) > 0 {
			n := min(len(p), dataPiece)
			c.put(fromData, p[:n])
			p = p[n:]
		}
	}
	piece := make([]byte, pageSize)
	for _, n := range files {
		for off := int64(0); off < n.Size; off += pageSize {
			c.put(fromData, piece[:n.readAt(piece, off)])
		}
	}
	if c.out.Flush() != nil {
		os.Exit(0)
	}
}

// prepare makes a cache entry of the program that the parent sends in pieces, the last of them empty.
func (c *child) prepare(ctx context.Context, dir string) {
	var module []byte
	for {
		t, p, err := readFrame(c.in, maxToChild)
		if err != nil {
			os.Exit(0)
		}
		if t != toBlob || int64(len(module)+len(p)) > crowd.Limits.ProgramBytes {
			c.fail(errors.New("wanted a program"))
		}
		if len(p) == 0 {
			break
		}
		module = append(module, p...)
	}
	p, err := wasmprep.Prepare(module, prepLimits())
	if err != nil {
		var e *wasmprep.Error
		if errors.As(err, &e) {
			c.refuse(e.What, e.Hint)
		}
		c.refuse(err.Error(), "")
	}
	if err := c.compile(ctx, p.Module, dir); err != nil {
		c.refuse(firstLine(err.Error()), "build it again, for wasm32-wasip1")
	}
	b, err := json.Marshal(p.Report)
	if err != nil || len(b) > maxToParent {
		c.refuse("it imports too much", "")
	}
	c.send(fromReport, b)
}

func (c *child) refuse(what, hint string) {
	b := appendText(nil, what[:min(len(what), 2000)])
	c.send(fromRefuse, appendText(b, hint[:min(len(hint), 2000)]))
	os.Exit(0)
}

// compile makes sure that the engine takes a program, and leaves its code in dir if there is one. An error is the program's fault.
func (c *child) compile(ctx context.Context, prepared []byte, dir string) error {
	var m *machine
	var err error
	if dir != "" {
		if err := writeFile(filepath.Join(dir, moduleFile), prepared); err != nil {
			c.fail(err)
		}
		if m, err = newMachine(ctx, prepared, filepath.Join(dir, codeDir), false); err != nil {
			m = nil // perhaps there was no room for the code
		}
	}
	if m == nil {
		if m, err = newMachine(ctx, prepared, "", false); err != nil {
			return err
		}
	}
	defer m.close(ctx)
	return checkImports(m.code)
}

func writeFile(path string, b []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// remoteBlob is an input: the parent has it.
type remoteBlob struct {
	c      *child
	digest crowd.Digest
	size   int64
}

func (b *remoteBlob) readAt(p []byte, off int64) {
	for len(p) > 0 {
		block := b.c.blocks.get(b, off/blockSize)
		n := copy(p, block[off%blockSize:])
		p, off = p[n:], off+int64(n)
	}
}

// fetch asks the parent for n bytes; it kills the child when it can't answer.
func (b *remoteBlob) fetch(off int64, n int) []byte {
	q := append([]byte(nil), b.digest[:]...)
	q = binary.AppendUvarint(q, uint64(off))
	b.c.send(fromBlob, binary.AppendUvarint(q, uint64(n)))
	p := <-b.c.answer
	if len(p) != n {
		b.c.fail(errors.New("the parent gave another number of bytes than asked for"))
	}
	return p
}

// blocks keeps pieces of inputs, the last used ones, and reads ahead where reading goes on.
type blocks struct {
	have  map[blockKey]*block
	clock uint64
	last  blockKey // fetched last
}

type blockKey struct {
	digest crowd.Digest
	n      int64
}

type block struct {
	data []byte
	used uint64
}

const maxBlocks = 256

func (b *blocks) reset() { *b = blocks{have: map[blockKey]*block{}} }

func (b *blocks) get(r *remoteBlob, n int64) []byte {
	b.clock++
	key := blockKey{r.digest, n}
	if have := b.have[key]; have != nil {
		have.used = b.clock
		return have.data
	}
	want := int64(blockSize)
	if b.last == (blockKey{r.digest, n - 1}) {
		want = maxAsk
	}
	want = min(want, r.size-n*blockSize)
	data := r.fetch(n*blockSize, int(want))
	for i := int64(0); len(data) > 0; i++ {
		size := min(len(data), blockSize)
		b.last = blockKey{r.digest, n + i}
		b.keep(b.last, data[:size:size])
		data = data[size:]
	}
	return b.have[key].data
}

func (b *blocks) keep(key blockKey, data []byte) {
	if len(b.have) >= maxBlocks {
		var oldest blockKey
		age := ^uint64(0)
		for k, v := range b.have {
			if v.used < age {
				oldest, age = k, v.used
			}
		}
		delete(b.have, oldest)
	}
	b.have[key] = &block{data: data, used: b.clock}
}

package wasm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/wasmprep"
)

const (
	metaFile    = "meta.json"
	prepareTime = 5 * time.Minute // of running
	prepareData = 3 << 30
	maxEntry    = 1 << 30
)

// cache keeps prepared programs with their compiled code in folders, one per program. An entry is made by a child that
// runs no guest's code and can write nothing but the new entry, is moved in place when it is complete, and is checked
// against the digests noted then when this process first uses it. Its key names the program, the preparation, the
// engine and the platform, so that an entry is never wrong but only of no use.
type cache struct {
	dir   string // entries stand here
	tmp   string
	most  int64
	start func(what, dir string) (*process, error)
	log   *slog.Logger

	making sync.WaitGroup

	mu    sync.Mutex
	known map[string]*cached // entries used or being made
}

// cached is an entry in use or in the making.
type cached struct {
	key     string
	refs    int
	ready   chan struct{} // closed when it is made or failed
	err     error
	cancel  context.CancelFunc
	process *process // that makes it
	watch   *watch
	slots   map[*Slot]bool // waiting for it; true: frozen
	iced    bool
}

type meta struct {
	Program crowd.Digest            `json:"program"`
	Report  wasmprep.Report         `json:"report"`
	Files   map[string]crowd.Digest `json:"files"`
}

func newCache(dir string, most int64, log *slog.Logger, start func(what, dir string) (*process, error)) (*cache, error) {
	c := &cache{dir: filepath.Join(dir, "programs"), tmp: filepath.Join(dir, "tmp"), most: most, start: start, log: log, known: map[string]*cached{}}
	if err := os.RemoveAll(c.tmp); err != nil {
		return nil, err
	}
	for _, d := range []string{c.dir, c.tmp} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	c.evict()
	return c, nil
}

// engineVersion is the version of the wazero in this binary.
var engineVersion = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, d := range info.Deps {
		if d.Path == "github.com/tetratelabs/wazero" {
			return d.Version
		}
	}
	return ""
})

func cacheKey(program crowd.Digest) string {
	d := digest.Of(fmt.Appendf(nil, "program %x prepared %d %v for %s %s %s", program[:], wasmprep.Version,
		prepLimits().CanonicalNaN, engineVersion(), runtime.GOOS, runtime.GOARCH))
	return fmt.Sprintf("%x", d[:16])
}

// handle is an entry that can't be evicted until it is released.
type handle struct {
	c   *cache
	e   *cached
	dir string
}

func (h handle) release() {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.e.refs--
}

// entry gives a program's entry, made now if need be: by one child, however many slots want it. It gives up when ctx
// ends; the making does when nobody waits for it any more.
func (c *cache) entry(ctx context.Context, program crowd.Digest, blobs guest.Blobs, s *Slot) (handle, error) {
	for {
		h, err := c.entryOnce(ctx, program, blobs, s)
		if !errors.Is(err, context.Canceled) || ctx.Err() != nil || s.p.isGone() {
			return h, err
		} // others gave up what this one had joined
	}
}

func (c *cache) entryOnce(ctx context.Context, program crowd.Digest, blobs guest.Blobs, s *Slot) (handle, error) {
	key := cacheKey(program)
	c.mu.Lock()
	e := c.known[key]
	if e == nil {
		making, cancel := context.WithCancel(context.WithoutCancel(ctx))
		e = &cached{key: key, ready: make(chan struct{}), cancel: cancel, watch: newWatch(), slots: map[*Slot]bool{}}
		c.known[key] = e
		c.making.Go(func() { c.make(making, e, program, blobs) })
	}
	e.refs++
	e.slots[s] = s.frozen.Load()
	c.mu.Unlock()
	c.ice(e)

	var err error
	select {
	case <-e.ready:
		err = e.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.p.gone:
		err = failed("the slot was closed")
	}
	c.mu.Lock()
	delete(e.slots, s)
	if err != nil {
		e.refs--
		if e.refs == 0 {
			e.cancel()
		}
	}
	c.mu.Unlock()
	c.ice(e)
	if err != nil {
		return handle{}, err
	}
	return handle{c, e, filepath.Join(c.dir, key)}, nil
}

// freeze is called when a slot is frozen or thawed: the child that works for it is, too.
func (c *cache) freeze(s *Slot, on bool) {
	c.mu.Lock()
	var mine []*cached
	for _, e := range c.known {
		if _, ok := e.slots[s]; ok {
			e.slots[s] = on
			mine = append(mine, e)
		}
	}
	c.mu.Unlock()
	for _, e := range mine {
		c.ice(e)
	}
}

// ice freezes the child that makes e if one of those who wait is frozen, and thaws it if none is.
func (c *cache) ice(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	on := false
	for _, frozen := range e.slots {
		on = on || frozen
	}
	if e.process == nil || e.iced == on {
		return
	}
	e.iced = on
	e.watch.freeze(on)
	if !on {
		_ = e.process.child.Thaw()
	} else if e.process.child.Freeze() != nil {
		_ = e.process.child.Kill() // the owner comes first
	}
}

// make finds an entry on disk or has it made.
func (c *cache) make(ctx context.Context, e *cached, program crowd.Digest, blobs guest.Blobs) {
	defer e.cancel()
	dir := filepath.Join(c.dir, e.key)
	err := checkEntry(dir, program)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("a cached program is damaged and is made again", "program", program, "err", err)
		}
		if err = os.RemoveAll(dir); err == nil {
			err = c.prepare(ctx, e, dir, program, blobs)
		}
		if err == nil {
			c.evict()
		}
	} else {
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // used
	}
	c.mu.Lock()
	e.err = err
	if err != nil {
		delete(c.known, e.key)
	}
	c.mu.Unlock()
	close(e.ready)
}

// prepare has a child make an entry and moves it in place.
func (c *cache) prepare(ctx context.Context, e *cached, dir string, program crowd.Digest, blobs guest.Blobs) (err error) {
	module, err := readProgram(ctx, program, blobs)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(c.tmp, "")
	if err != nil {
		return failed("%w", err)
	}
	defer os.RemoveAll(tmp)
	p, err := c.start(childCompile, tmp)
	if err != nil {
		return err
	}
	defer p.kill()
	c.mu.Lock()
	e.process = p
	c.mu.Unlock()
	c.ice(e)
	report, err := prepareIn(ctx, p, e.watch, module)
	c.mu.Lock()
	e.process = nil
	c.mu.Unlock()
	if err != nil {
		return err
	}
	m := meta{Program: program, Report: report}
	if m.Files, err = digestFiles(tmp); err != nil {
		return failed("the prepared program: %w", err)
	}
	b, err := json.Marshal(m)
	if err == nil {
		err = writeFile(filepath.Join(tmp, metaFile), b)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return failed("keep the prepared program: %w", err)
	}
	return nil
}

func readProgram(ctx context.Context, program crowd.Digest, blobs guest.Blobs) ([]byte, error) {
	b, err := blobs.Open(ctx, program)
	if err != nil {
		return nil, inputError(program, err)
	}
	defer b.Close()
	if b.Size() > crowd.Limits.ProgramBytes {
		return nil, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "the program has %d bytes, at most %d are possible", b.Size(), crowd.Limits.ProgramBytes)
	}
	module := make([]byte, b.Size())
	if n, err := b.ReadAt(module, 0); n < len(module) {
		return nil, inputError(program, err)
	}
	if digest.Of(module) != program {
		return nil, failed("the program %s has other bytes than its digest says", program.Short())
	}
	return module, nil
}

// prepareIn sends a program to a child that prepares it, and gives what the child says. The child is gone then.
func prepareIn(ctx context.Context, p *process, w *watch, module []byte) (report wasmprep.Report, err error) {
	w.work(true, true)
	var sending sync.WaitGroup
	sending.Go(func() { // ends at the latest when p is killed; then p.frames tells
		for rest := module; len(rest) > 0; {
			n := min(len(rest), 1<<20)
			if p.send(toBlob, rest[:n]) != nil {
				return
			}
			rest = rest[n:]
		}
		_ = p.send(toBlob, nil)
	})
	defer func() {
		p.kill() // it has said all
		sending.Wait()
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait, late, _ := w.left(prepareTime, prepareTime)
		if late {
			return report, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "the program took longer than %v to compile", prepareTime)
		}
		timer.Reset(wait)
		select {
		case f, ok := <-p.frames:
			if ok && f.t == fromReport && json.Unmarshal(f.p, &report) == nil {
				return report, nil
			}
			if ok && f.t == fromRefuse {
				d := decoder{b: f.p}
				what, hint := plain(d.bytes(2000)), plain(d.bytes(2000))
				return report, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "the program can't be run: %s", what).WithHint("%s", hint)
			}
			return report, p.died(f)
		case <-ctx.Done():
			return report, context.Cause(ctx)
		case <-w.changed:
		case <-timer.C:
		}
	}
}

// digestFiles reads all files of an entry but its meta. Anything but plain files and folders is an error.
func digestFiles(dir string) (map[string]crowd.Digest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	files := map[string]crowd.Digest{}
	total := int64(0)
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == metaFile {
			return err
		}
		if !d.Type().IsRegular() || len(files) > 16 {
			return fmt.Errorf("%s doesn't belong there", path)
		}
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum, n, err := digest.Reader(io.LimitReader(f, maxEntry))
		if total += n; total >= maxEntry {
			return errors.New("it is too large")
		}
		files[path] = sum
		return err
	})
	return files, err
}

// checkEntry compares an entry with what was noted when it was made.
func checkEntry(dir string, program crowd.Digest) error {
	b, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return err
	}
	var m meta
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	files, err := digestFiles(dir)
	if err != nil {
		return err
	}
	if m.Program != program || len(files) != len(m.Files) {
		return errors.New("it isn't what it was")
	}
	for name, sum := range m.Files {
		if files[name] != sum {
			return fmt.Errorf("%s isn't what it was", name)
		}
	}
	return nil
}

// evict removes the entries used longest ago until the rest is no larger than allowed; those in use stay.
func (c *cache) evict() {
	type item struct {
		key  string
		size int64
		used time.Time
	}
	var items []item
	total := int64(0)
	list, err := os.ReadDir(c.dir)
	if err != nil {
		c.log.Warn("can't look through the program cache", "err", err)
	}
	for _, d := range list {
		it := item{key: d.Name()}
		if info, err := d.Info(); err == nil {
			it.used = info.ModTime()
		}
		_ = filepath.WalkDir(filepath.Join(c.dir, it.key), func(_ string, d fs.DirEntry, err error) error {
			if err == nil {
				if info, err := d.Info(); err == nil {
					it.size += info.Size()
				}
			}
			return nil
		})
		total += it.size
		items = append(items, it)
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Compare(a.used.UnixNano(), b.used.UnixNano()) })
	for _, it := range items {
		if total <= c.most {
			return
		}
		if c.removable(it.key) {
			if err := os.RemoveAll(filepath.Join(c.dir, it.key)); err != nil {
				c.log.Warn("can't remove a cached program", "err", err)
			}
			total -= it.size
		}
	}
}

// removable forgets an entry that nobody uses.
func (c *cache) removable(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.known[key]
	if e == nil {
		return true
	}
	select {
	case <-e.ready:
	default:
		return false
	}
	if e.refs > 0 {
		return false
	}
	delete(c.known, key)
	return true
}

// close gives up what is being made and waits for it.
func (c *cache) close() {
	c.mu.Lock()
	for _, e := range c.known {
		e.cancel()
	}
	c.mu.Unlock()
	c.making.Wait()
}

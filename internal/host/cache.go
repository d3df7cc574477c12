package host

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
)

// FetchFunc appends the rest of the content named d to f, which holds have bytes of it already (or anything: it may start over by
// truncating). Before it writes it says to room how large the content is, and gives up with room's error. A nil error promises that f is complete, not
// that it is right.
type FetchFunc func(ctx context.Context, d crowd.Digest, f *os.File, have int64, room func(size int64) error) error

// Cache is content by digest in a folder, at most so many bytes of it, what is on its way included; the least recently used goes first, and what
// doesn't fit beside what is open is refused (host.small). A digest is checked before a file gets
// its name and again when a process opens it for the first time. Safe for concurrent use; implements guest.Blobs.
type Cache struct {
	dir   string
	most  int64
	fetch FetchFunc

	mu    sync.Mutex
	blobs map[crowd.Digest]*cached
	parts map[crowd.Digest]*cached // on their way, or broken off; open: being fetched
	size  int64                    // of all, parts by what they will be
	busy  map[crowd.Digest]*fetching
}

type cached struct {
	size    int64
	used    time.Time
	open    int
	checked bool // in this life
	fresh   bool // just came and wasn't opened yet: stays for a while
}

const freshFor = time.Minute

func (e *cached) idle(now time.Time) bool {
	return e.open == 0 && (!e.fresh || now.Sub(e.used) > freshFor)
}

// fetching is a fetch that several may wait for.
type fetching struct {
	done chan struct{}
	err  error
}

// OpenCache takes what is in dir. most 0: 1 GiB.
func OpenCache(dir string, most int64, fetch FetchFunc) (*Cache, error) {
	if most == 0 {
		most = 1 << 30
	}
	c := &Cache{dir: dir, most: most, fetch: fetch, blobs: map[crowd.Digest]*cached{}, parts: map[crowd.Digest]*cached{}, busy: map[crowd.Digest]*fetching{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "read the cache: %w", err)
	}
	for _, e := range entries {
		name, part := strings.CutSuffix(e.Name(), partSuffix)
		d, err := crowd.ParseDigest("b3:" + name)
		if err != nil {
			continue
		}
		i, err := e.Info()
		switch {
		case err != nil || !i.Mode().IsRegular():
			continue
		case part && time.Since(i.ModTime()) > 24*time.Hour:
			_ = os.Remove(filepath.Join(dir, e.Name()))
			continue
		}
		into := c.blobs
		if part {
			into = c.parts
		}
		into[d] = &cached{size: i.Size(), used: i.ModTime()}
		c.size += i.Size()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.evict()
	return c, nil
}

const partSuffix = ".part"

func (c *Cache) path(d crowd.Digest) string { return filepath.Join(c.dir, hex.EncodeToString(d[:])) }

// Usage is how many bytes of how many are used.
func (c *Cache) Usage() (used, most int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size, c.most
}

// Open gives content, fetching it first if need be. Several at once fetch once.
func (c *Cache) Open(ctx context.Context, d crowd.Digest) (guest.Blob, error) {
	return c.OpenAtMost(ctx, d, crowd.Limits.BlobBytes)
}

// OpenAtMost is Open, but fetches nothing that is larger than most (host.failed).
func (c *Cache) OpenAtMost(ctx context.Context, d crowd.Digest, most int64) (guest.Blob, error) {
	for range 3 { // a damaged one is fetched anew, one that was evicted meanwhile too
		b, err := c.openHere(d)
		if b != nil || err != nil {
			return b, err
		}
		if err := c.get(ctx, d, most); err != nil {
			return nil, err
		}
	}
	return nil, crowd.Errorf(crowd.Internal, crowd.HostFailed, "the cache doesn't keep %s", d.Short())
}

// openHere returns nil, nil if it isn't there, or was damaged and is gone now.
func (c *Cache) openHere(d crowd.Digest) (guest.Blob, error) {
	c.mu.Lock()
	e := c.blobs[d]
	if e == nil {
		c.mu.Unlock()
		return nil, nil
	}
	e.open++
	e.used, e.fresh = time.Now(), false
	check := !e.checked
	c.mu.Unlock()

	f, err := os.Open(c.path(d))
	if err == nil && check {
		var got crowd.Digest
		var n int64
		if got, n, err = digest.Reader(f); err == nil && (got != d || n != e.size) {
			err = errDamaged
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if f != nil {
			f.Close()
		}
		e.open--
		if c.blobs[d] == e {
			delete(c.blobs, d)
			c.size -= e.size
			_ = os.Remove(c.path(d))
		}
		if errors.Is(err, errDamaged) || errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, crowd.Errorf(crowd.Internal, crowd.HostFailed, "read the cache: %w", err)
	}
	e.checked = true
	_ = os.Chtimes(c.path(d), e.used, e.used) // for the next life's order
	return &blob{File: f, cache: c, d: d, e: e}, nil
}

var errDamaged = errors.New("damaged")

// get fetches, or waits for who does.
func (c *Cache) get(ctx context.Context, d crowd.Digest, most int64) error {
	c.mu.Lock()
	if c.blobs[d] != nil {
		c.mu.Unlock()
		return nil
	}
	f := c.busy[d]
	mine := f == nil
	if mine {
		f = &fetching{done: make(chan struct{})}
		c.busy[d] = f
	}
	c.mu.Unlock()
	if mine {
		f.err = c.bring(ctx, d, most)
		c.mu.Lock()
		delete(c.busy, d)
		c.mu.Unlock()
		close(f.done)
		return f.err
	}
	select {
	case <-f.done:
		if f.err != nil && errors.Is(f.err, context.Canceled) && ctx.Err() == nil {
			return c.get(ctx, d, most) // who fetched was stopped, we weren't
		}
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// room makes room for a part that will have size bytes, by removing what isn't in use; host.small if that isn't enough.
func (c *Cache) room(d crowd.Digest, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.parts[d]
	more := size - p.size
	if size <= c.most { // or it would remove all for nothing
		c.size, p.size = c.size+more, size
		if c.evict(); c.size <= c.most {
			return nil
		}
		c.size, p.size = c.size-more, size-more
	}
	return crowd.Errorf(crowd.Failed, crowd.HostSmall, "%s has %d bytes, the cache may have %d in all and others are in use", d.Short(), size, c.most)
}

// bring fetches, counting what is on its way; what broke off stays, to go on with, unless there is no room for it.
func (c *Cache) bring(ctx context.Context, d crowd.Digest, most int64) error {
	c.mu.Lock()
	p := c.parts[d]
	if p == nil {
		p = &cached{}
		c.parts[d] = p
	}
	p.open++
	c.mu.Unlock()
	n, err := c.bringPart(ctx, d, most)
	c.mu.Lock()
	defer c.mu.Unlock()
	path := c.path(d) + partSuffix
	if err == nil {
		c.blobs[d] = &cached{size: n, used: time.Now(), checked: true, fresh: true}
		c.size += n
	} else if crowd.AsError(err).Reason == crowd.HostSmall {
		_ = os.Remove(path)
	}
	c.size -= p.size
	delete(c.parts, d)
	if st, e := os.Stat(path); e == nil {
		c.parts[d] = &cached{size: st.Size(), used: time.Now()}
		c.size += st.Size()
	}
	c.evict()
	return err
}

// bringPart fetches into a part file, checks it and gives it its name. It returns the size.
func (c *Cache) bringPart(ctx context.Context, d crowd.Digest, most int64) (int64, error) {
	part := c.path(d) + partSuffix
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, crowd.Errorf(crowd.Internal, crowd.HostFailed, "write the cache: %w", err)
	}
	defer f.Close()
	have, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = c.fetch(ctx, d, f, have, func(size int64) error {
			if size > most {
				return crowd.Errorf(crowd.Failed, crowd.HostFailed, "%s has %d bytes, at most %d were expected", d.Short(), size, most)
			}
			return c.room(d, size)
		})
	}
	if err != nil {
		return 0, err // the part stays, to go on with
	}
	if _, err = f.Seek(0, io.SeekStart); err != nil {
		return 0, crowd.Errorf(crowd.Internal, crowd.HostFailed, "write the cache: %w", err)
	}
	got, n, err := digest.Reader(f)
	if err == nil && got != d {
		_ = os.Remove(part)
		return 0, crowd.Errorf(crowd.Failed, crowd.HostFailed, "what came for %s has another digest", d.Short())
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		crash.Point("cache.part.after")
		err = os.Rename(part, c.path(d))
	}
	if err == nil {
		err = syncDir(c.dir)
		crash.Point("cache.whole.after")
	}
	if err != nil {
		return 0, crowd.Errorf(crowd.Internal, crowd.HostFailed, "write the cache: %w", err)
	}
	return n, nil
}

// evict removes the least recently used until the rest fits; what is open or being fetched stays. Needs c.mu.
func (c *Cache) evict() {
	if c.size <= c.most {
		return
	}
	type item struct {
		*cached
		d    crowd.Digest
		of   map[crowd.Digest]*cached
		path string
	}
	var all []item
	now := time.Now()
	for d, e := range c.blobs {
		if e.idle(now) {
			all = append(all, item{e, d, c.blobs, c.path(d)})
		}
	}
	for d, e := range c.parts {
		if e.idle(now) {
			all = append(all, item{e, d, c.parts, c.path(d) + partSuffix})
		}
	}
	slices.SortFunc(all, func(a, b item) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.path, b.path)) })
	for _, i := range all {
		if c.size <= c.most {
			return
		}
		if err := os.Remove(i.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		c.size -= i.size
		delete(i.of, i.d)
	}
}

// blob is open content; while it is, it stays.
type blob struct {
	*os.File
	cache *Cache
	d     crowd.Digest
	e     *cached
	once  sync.Once
}

func (b *blob) Size() int64 { return b.e.size }

func (b *blob) Close() error {
	b.once.Do(func() {
		b.cache.mu.Lock()
		defer b.cache.mu.Unlock()
		b.e.open--
		b.cache.evict()
	})
	return b.File.Close()
}

package wasm

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

func TestCache(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(fixture(t, "noop"))
	open := func(bytes int64) *Engine {
		return testEngine(t, func(e *Engine) { e.o.CacheDir, e.o.CacheBytes = dir, bytes })
	}
	e := open(0)
	first, _ := w.run(t, e)
	entry := filepath.Join(e.cache.dir, cacheKey(digest.Of(w.module)))
	stat := func() time.Time {
		info, err := os.Stat(filepath.Join(entry, metaFile))
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	made := stat()
	w.run(t, open(0))
	if !stat().Equal(made) {
		t.Error("the entry was made again")
	}

	// damage is found and mended
	if err := os.WriteFile(filepath.Join(entry, moduleFile), fixture(t, "probe"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, _ := w.run(t, open(0))
	if !bytes.Equal(o.Manifest(), first.Manifest()) || stat().Equal(made) {
		t.Error("a damaged entry was used")
	}

	// without compiled code it is compiled again
	codes, _ := filepath.Glob(filepath.Join(entry, codeDir, "*", "*"))
	if len(codes) != 1 && compilerWorks() {
		t.Errorf("compiled code %v", codes)
	}

	// the oldest go
	e = open(1)
	if list, _ := os.ReadDir(e.cache.dir); len(list) != 0 {
		t.Errorf("%d entries left of a cache of a byte", len(list))
	}
	w.run(t, e)
}

// Slots that want the same program at once have it made once; who gives up doesn't spoil it for the others.
func TestCacheTogether(t *testing.T) {
	e := testEngine(t, nil)
	w := newWorld(fixture(t, "probe"), "x")
	var wg sync.WaitGroup
	for i := range 4 {
		s, err := e.slot(context.Background(), crowd.JobID{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		if i == 0 {
			cancel()
		}
		wg.Go(func() {
			defer cancel()
			if _, _, err := s.Run(ctx, w.task(), w.blobs, nil); (err != nil) != (i == 0) {
				t.Error(err)
			}
			s.Close()
		})
	}
	wg.Wait()
}

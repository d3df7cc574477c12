//go:build unix

package store

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// A pipe has no end: it is refused before it is opened.
func TestPipes(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	s, _ := furnished(t, dir)
	must(t, s.Close())
	pipe := filepath.Join(to, "pipe")
	must(t, syscall.Mkfifo(pipe, 0o600))
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, err := CheckBackup(ctx, pipe)
		if !crowd.KindIs(err, crowd.Invalid) {
			t.Errorf("check: %v", err)
		}
		if _, err = Restore(ctx, pipe, filepath.Join(to, "r"), RestoreOptions{}); !crowd.KindIs(err, crowd.Invalid) {
			t.Errorf("restore: %v", err)
		}
		for _, force := range []bool{false, true} {
			if _, err = WriteBackup(ctx, dir, pipe, force, nil); !crowd.KindIs(err, crowd.Invalid) {
				t.Errorf("backup: %v", err)
			}
		}
	}()
	select {
	case <-over:
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for the pipe")
	}
}

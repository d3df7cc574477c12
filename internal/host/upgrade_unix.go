//go:build !windows

package host

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// start makes this process the new program.
func (h *Handover) start(args []string) error {
	signal.Ignore(syscall.SIGHUP) // or a second one, before the new program listens, would end it
	syscall.ForkLock.Lock()       // nobody else inherits the lock
	defer syscall.ForkLock.Unlock()
	if h.lock > 0 {
		if _, err := unix.FcntlInt(uintptr(h.lock), unix.F_SETFD, 0); err != nil {
			return err
		}
		defer unix.CloseOnExec(h.lock)
	}
	return syscall.Exec(h.self, args, os.Environ())
}

// swap puts staged in self's place; at each moment there is a program.
func swap(self, staged string) error {
	old := staged + ".old"
	if err := os.Link(self, old); err != nil {
		if err = copyFile(self, old); err != nil {
			return err
		}
	}
	if err := os.Rename(old, previous(self)); err != nil {
		return errors.Join(err, os.Remove(old))
	}
	if err := os.Rename(staged, self); err != nil {
		return err
	}
	return syncDir(filepath.Dir(self))
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Sync(), dst.Close())
}

func isBusy(err error) bool { return errors.Is(err, syscall.ETXTBSY) }

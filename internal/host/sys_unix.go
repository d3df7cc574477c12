//go:build !windows

package host

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/crowdcloud/crowd"
)

// dirLock makes this process the only agent of a folder, until close or its end.
type dirLock struct{ f *os.File }

// lockDir takes the lock. was is the descriptor on which the process before this one, with the same number, held it: its lock goes on, and nobody
// came in between. 0: there was none.
func lockDir(dir string, was int) (l *dirLock, inherited bool, err error) {
	path := filepath.Join(dir, lockName)
	f := openLock(path, was)
	if inherited = f != nil; !inherited {
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return nil, false, crowd.Errorf(crowd.Internal, "", "lock the agent's folder: %w", err)
		}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, false, errRuns(dir)
		}
		return nil, false, crowd.Errorf(crowd.Internal, "", "lock the agent's folder: %w", err)
	}
	return &dirLock{f}, inherited, nil
}

// openLock is the descriptor was, if that is the lock's file.
func openLock(path string, was int) *os.File {
	var there, that unix.Stat_t
	if was <= 2 || unix.Fstat(was, &that) != nil || unix.Stat(path, &there) != nil || there.Dev != that.Dev || there.Ino != that.Ino {
		return nil
	}
	unix.CloseOnExec(was)
	return os.NewFile(uintptr(was), path)
}

func (l *dirLock) close() {
	if l.f != nil {
		l.f.Close()
	}
}

// keep gives the lock to the program that this process becomes, by its descriptor; 0 where it can't.
func (l *dirLock) keep() int {
	fd, err := unix.FcntlInt(l.f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return 0
	}
	return fd
}

func closeLock(fd int) { _ = unix.Close(fd) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// diskFree is how many bytes this user could still write under dir.
func diskFree(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil //nolint:unconvert // other systems have other types
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

func diskFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

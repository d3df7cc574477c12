package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/crowdcloud/crowd"
)

var (
	kernel32             = windows.NewLazySystemDLL("kernel32.dll")
	getTickCount64       = kernel32.NewProc("GetTickCount64")
	globalMemoryStatusEx = kernel32.NewProc("GlobalMemoryStatusEx")
)

// bootClock also runs while the machine sleeps.
func bootClock() time.Duration {
	ms, _, _ := getTickCount64.Call()
	return time.Duration(ms) * time.Millisecond
}

type memoryStatus struct {
	length, load                                                uint32
	total, avail, totalPage, availPage, totalVirt, availVirt, x uint64
}

func memoryNow() (m memoryStatus) {
	m.length = uint32(unsafe.Sizeof(m))
	if ok, _, _ := globalMemoryStatusEx.Call(uintptr(unsafe.Pointer(&m))); ok == 0 {
		return memoryStatus{}
	}
	return m
}

func memory() int64     { return int64(memoryNow().total) }
func memoryFree() int64 { return int64(memoryNow().avail) }

// peerIsOwner trusts the socket file's access list: the agent's folder is in its user's profile.
func peerIsOwner(net.Conn) bool { return true }

// dirLock makes this process the only agent of a folder, until close or its end.
type dirLock struct{ f *os.File }

// lockDir takes the lock. No process inherits it here.
func lockDir(dir string, _ int) (l *dirLock, inherited bool, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, crowd.Errorf(crowd.Internal, "", "lock the agent's folder: %w", err)
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
	if err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, false, errRuns(dir)
		}
		return nil, false, crowd.Errorf(crowd.Internal, "", "lock the agent's folder: %w", err)
	}
	return &dirLock{f}, false, nil
}

func (l *dirLock) close() { l.f.Close() }

func (l *dirLock) keep() int { return 0 }

func closeLock(int) {}

// syncDir does nothing: a rename is durable with the file system's own log.
func syncDir(string) error { return nil }

func diskFree(dir string) (free int64, err error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var n uint64
	if err := windows.GetDiskFreeSpaceEx(p, &n, nil, nil); err != nil {
		return 0, err
	}
	return int64(n), nil
}

func kernel() string {
	v := windows.RtlGetVersion()
	return fmt.Sprintf("Windows %d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber)
}

func diskFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}

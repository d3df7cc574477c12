package host

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bootClock also runs while the machine sleeps.
func bootClock() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0 // the wall clock alone, then
	}
	return time.Duration(t.Nano())
}

// memory is the machine's, or what the control group of this process may have of it.
func memory() int64 {
	total := int64(0)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		total = meminfo(string(b), "MemTotal:")
	}
	for _, limit := range groupLimits() {
		if limit > 0 && (total == 0 || limit < total) {
			total = limit
		}
	}
	return total
}

// memoryFree is what could be had without swapping anybody out; 0: unknown.
func memoryFree() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return meminfo(string(b), "MemAvailable:")
}

func meminfo(s, key string) int64 {
	_, rest, _ := strings.Cut(s, key)
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kib, _ := strconv.ParseInt(f[0], 10, 64)
	return kib << 10
}

// groupLimits are the memory limits of this process's control group and those above it, of both versions.
func groupLimits() (limits []int64) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		root, file := "/sys/fs/cgroup", "memory.max"
		if f[1] != "" {
			if !strings.Contains(f[1], "memory") {
				continue
			}
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		for dir := filepath.Clean("/" + f[2]); ; dir = filepath.Dir(dir) {
			if b, err := os.ReadFile(filepath.Join(root, dir, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n < 1<<60 {
					limits = append(limits, n)
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return limits
}

// peerIsOwner reports whether the other end of a unix socket is this user, or root.
func peerIsOwner(c net.Conn) bool {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	uid := -1
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid == 0 || uid == os.Geteuid()
}

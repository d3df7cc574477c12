package host

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bootClock is the time since boot by the wall clock: without cgo mach_continuous_time is out of reach. It jumps with the wall clock,
// which lease.Clock expects; it does run while the machine sleeps.
func bootClock() time.Duration {
	t, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return 0
	}
	return time.Since(time.Unix(t.Unix()).Round(0))
}

func memory() int64 {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0
	}
	return int64(n)
}

func memoryFree() int64 { return 0 }

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
		if cred, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid == 0 || uid == os.Geteuid()
}

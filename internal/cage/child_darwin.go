package cage

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func self() (string, error) { return os.Executable() }

func dieWithParent(*syscall.SysProcAttr) {}

// waitable cannot wait without reaping here, so a signal could meet a number just freed; a child in a session of its own
// makes that improbable.
func waitable(int) {}

func maxRSS(s *os.ProcessState) int64 {
	if u, ok := s.SysUsage().(*syscall.Rusage); ok {
		return u.Maxrss
	}
	return 0
}

func (c *Child) usage() (Usage, error) {
	return Usage{}, fmt.Errorf("usage of a running child: %w", errors.ErrUnsupported)
}

func idle(pid int) error { return unix.Setpriority(unix.PRIO_PROCESS, pid, 20) }

package cage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// self names the running binary by the link that stays right when its file is replaced or out of the user's reach.
func self() (string, error) {
	const link = "/proc/self/exe"
	if _, err := os.Stat(link); err == nil {
		return link, nil
	}
	return os.Executable()
}

func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// waitable waits for the end of a process without reaping it.
func waitable(pid int) {
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

func maxRSS(s *os.ProcessState) int64 {
	if u, ok := s.SysUsage().(*syscall.Rusage); ok {
		return u.Maxrss * 1024
	}
	return 0
}

// usage reads /proc/pid/stat: fields 14, 15 (times in ticks) and 24 (pages), counted after the parenthesised name.
func (c *Child) usage() (Usage, error) {
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Pid()))
	if err != nil {
		return Usage{}, err
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 22 {
		return Usage{}, fmt.Errorf("unknown form of /proc/pid/stat")
	}
	num := func(field int) int64 {
		n, _ := strconv.ParseInt(string(f[field-3]), 10, 64)
		return n
	}
	return Usage{
		CPU: time.Duration(num(14)+num(15)) * time.Second / ticksPerSecond,
		RSS: num(24) * int64(os.Getpagesize()),
	}, nil
}

// idle gives all threads of a process the lowest priority for processor and disk; new threads inherit it.
func idle(pid int) error {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := idleThread(tid); err != nil && !errors.Is(err, unix.ESRCH) { // threads end
			return err
		}
	}
	return nil
}

func idleThread(tid int) error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, tid, 19); err != nil {
		return fmt.Errorf("nice: %w", err)
	}
	const ioprioWhoProcess, ioprioIdle = 1, 3 << 13
	if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid), ioprioIdle); e != 0 {
		return fmt.Errorf("disk priority: %w", e)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
	if err := unix.SchedSetAttr(tid, &attr, 0); err != nil {
		return fmt.Errorf("scheduling class idle: %w", err)
	}
	return nil
}

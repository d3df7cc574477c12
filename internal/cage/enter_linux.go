package cage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// enter goes from what needs rights to what takes them: seccomp comes last.
func enter(r *Report, rules Rules) error {
	r.add(Descriptors, "only stdin, stdout and stderr were inherited", closeInherited())
	r.add(Rlimits, "no core dumps, few descriptors, files and memory as the rules say", rlimits(rules))
	r.add(Priority, "nice 19, scheduling class idle, disk class idle", idle(os.Getpid()))
	r.add(NoNewPrivs, "set on every thread", ll.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	if err := restrictPaths(r, rules); err != nil {
		return err
	}
	r.add(Capabilities, "none on any thread", dropCapabilities())
	r.add(NonDumpable, "no core dumps and no attaching", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	files := len(rules.ReadDirs)+len(rules.WriteDirs) > 0
	r.add(Seccomp, "what the Go runtime and a wasm compiler need, on every thread", restrictCalls(files))
	return nil
}

func harden(r *Report) {
	err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	r.add(NonDumpable, "no core dumps and no attaching", errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)))
}

// closeInherited closes what came through exec: of all descriptors just those lack the close-on-exec flag, which the Go
// runtime sets on its own. Closing all from 3 on would take the runtime's poller away.
func closeInherited() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("cannot list the descriptors: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("cannot list the descriptors: %w", err)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd <= 2 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// rlimits leaves the number of processes alone: the kernel counts all of a user's, so a low limit would keep the child
// from having threads. Seccomp refuses new processes.
func rlimits(rules Rules) error {
	set := func(what int, most int64) error {
		lim := unix.Rlimit{Cur: uint64(most), Max: uint64(most)}
		var have unix.Rlimit
		if err := unix.Getrlimit(what, &have); err != nil {
			return err
		}
		if lim.Max > have.Max { // lowered before, by whoever runs the agent
			lim.Cur, lim.Max = have.Max, have.Max
		}
		return unix.Setrlimit(what, &lim)
	}
	err := errors.Join(
		set(unix.RLIMIT_CORE, 0),
		set(unix.RLIMIT_FSIZE, rules.FileBytes),
		set(unix.RLIMIT_NOFILE, 64),
		set(unix.RLIMIT_MEMLOCK, 0),
		set(unix.RLIMIT_MSGQUEUE, 0),
	)
	if rules.DataBytes > 0 {
		err = errors.Join(err, set(unix.RLIMIT_DATA, rules.DataBytes))
	}
	return err
}

// restrictPaths fails when the system has landlock and a folder cannot be allowed.
func restrictPaths(r *Report, rules Rules) error {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		r.lacks("this kernel has no landlock; a kernel from 5.13 on with lsm=landlock does", Landlock)
		return nil
	}
	read := landlock.PathAccess(ll.AccessFSReadFile|ll.AccessFSReadDir, rules.ReadDirs...)
	err = landlock.V11.BestEffort().Restrict(read, landlock.RWDirs(rules.WriteDirs...))
	if err != nil {
		r.add(Landlock, "", err)
		return err
	}
	more := ""
	if abi >= 4 {
		more += ", no TCP ports"
	}
	if abi >= 6 {
		more += ", no signals or abstract sockets out of the cage"
	}
	r.add(Landlock, fmt.Sprintf("abi %d: no path but the folders allowed%s", abi, more), nil)
	return nil
}

// dropCapabilities takes what root may do; another user has none.
func dropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, addr(&hdr), addr(&data[0]), 0)
	runtime.KeepAlive(&data)
	if e == syscall.ENOTSUP {
		return errors.New("this program was built with cgo, which keeps it from reaching all threads")
	}
	if e != 0 {
		return e
	}
	return nil
}

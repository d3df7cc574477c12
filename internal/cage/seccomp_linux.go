package cage

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

func addr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

// hostile are calls that no honest guest's host makes: they end the process.
var hostile = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_open", "pidfd_getfd", "pidfd_send_signal",
	"execve", "execveat", "fork", "vfork", "unshare", "setns",
	"mount", "umount2", "umount", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
	"mount_setattr", "open_by_handle_at", "name_to_handle_at",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"keyctl", "add_key", "request_key", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
	"reboot", "swapon", "swapoff", "iopl", "ioperm", "modify_ldt", "settimeofday", "clock_settime", "acct", "quotactl",
}

// allowed is what the Go runtime, os.File on pipes and wazero's compiler use. mprotect is among it because a compiler
// makes memory executable. A guest's code cannot name a system call: this list bounds what is left to someone who broke
// out of the wasm sandbox.
var allowed = []string{
	"read", "readv", "write", "writev", "close", "fstat", "lseek", "pread64", "pwrite64",
	"mmap", "munmap", "mremap", "mprotect", "madvise", "mincore", "brk",
	"futex", "nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "getrandom",
	"sched_yield", "sched_getaffinity", "getcpu",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
	"getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "exit", "exit_group",
	"set_robust_list", "rseq",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2",
}

// fileCalls are allowed besides when the rules allow a folder; which paths they reach is landlock's part.
var fileCalls = []string{
	"openat", "newfstatat", "fstatat", "statx", "readlinkat", "getdents64", "faccessat", "faccessat2",
	"ftruncate", "fsync", "fdatasync", "mkdirat", "unlinkat", "renameat", "renameat2", "preadv", "pwritev", "fallocate",
}

// The flags with which the Go runtime makes a thread (with CLONE_SETTLS on amd64), and the C library in a program built
// with cgo, such as for the race detector. CLONE_THREAD is among them; nothing else may be cloned.
const (
	goThread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	cThread  = goThread | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
)

// notThere makes a call fail as on a kernel without it: the C library then falls back from clone3, whose arguments a
// filter cannot see, to clone.
const notThere = seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)

// conditional are calls allowed with certain arguments only. The process number cannot change: there is no new process.
func conditional() []seccomp.NameWithConditions {
	const prSetVMA = 0x53564d41 // names memory for debuggers; the runtime does that
	equal := func(name string, arg uint32, value uint64) seccomp.NameWithConditions {
		c := seccomp.Condition{Argument: arg, Operation: seccomp.Equal, Value: value}
		return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{c}}
	}
	list := []seccomp.NameWithConditions{
		equal("clone", 0, goThread),
		equal("clone", 0, goThread|unix.CLONE_SETTLS),
		equal("clone", 0, cThread),
		equal("tgkill", 0, uint64(os.Getpid())), // preemption
		equal("prctl", 0, prSetVMA),
	}
	for _, cmd := range []uint64{unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL} { // not F_SETOWN: it sends signals
		list = append(list, equal("fcntl", 1, cmd))
	}
	return list
}

// restrictCalls installs the filter on all threads. A hostile call ends the process, any other that is not allowed fails
// with EPERM, so that a library that merely tries gets an error that it can report. Calls of another architecture's
// numbering fail likewise.
func restrictCalls(files bool) error {
	info, err := arch.GetInfo("")
	if err != nil {
		return fmt.Errorf("no system call filter for this architecture: %w", err)
	}
	known := func(names []string) (have []string) {
		for _, n := range names {
			if _, ok := info.SyscallNames[n]; ok {
				have = append(have, n)
			}
		}
		return have
	}
	names := known(allowed)
	if files {
		names = append(names, known(fileCalls)...)
	}
	var conds []seccomp.NameWithConditions
	for _, c := range conditional() {
		if _, ok := info.SyscallNames[c.Name]; ok {
			conds = append(conds, c)
		}
	}
	err = seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{
				{Action: seccomp.ActionKillProcess, Names: known(hostile)},
				{Action: notThere, Names: known([]string{"clone3"})},
				{Action: seccomp.ActionAllow, Names: names, NamesWithCondtions: conds},
			},
		},
	})
	if err != nil {
		return err
	}
	// The kernel says by a positive number that it could not reach a thread, which the library takes for success.
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); !errors.Is(err, unix.EPERM) {
		unix.Close(fd)
		return errors.New("the filter was loaded and does not filter")
	}
	return nil
}

package cage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/tetratelabs/wazero"
	"golang.org/x/sys/unix"
)

// childMain is the child's side of the tests: mode, folder, what to try and on what. It says "done" or the error.
func childMain(args []string) {
	if args[0] == "parent" {
		c, err := Start(Spec{Args: []string{childWord, "caged", "/", "spin", ""}})
		if err == nil {
			_, err = bufio.NewReader(c.Stdout).ReadString('\n')
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(c.Pid())
		io.Copy(io.Discard, os.Stdin) // until killed
	}
	mode, dir, try, arg := args[0], args[1], args[2], args[3]
	var rules Rules
	if try == "alloc" {
		rules.DataBytes = 600 << 20
	}
	switch mode {
	case "caged-files":
		rules.ReadDirs = []string{dir}
	case "caged-write":
		rules.WriteDirs, rules.FileBytes = []string{dir}, 1<<20
	case "caged-require":
		rules.Require = []string{Seccomp, "namespaces"}
	}
	old := startThreads()
	if mode != "free" {
		r, err := Enter(rules)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if try == "report" {
			for _, l := range r.Layers {
				fmt.Printf("%s\t%s\t%s\n", l.Name, map[bool]string{true: "held", false: "lacks"}[l.Held], l.Why)
			}
			return
		}
	}
	err := errors.New("no such thing to try")
	if f := tries[try]; f != nil {
		err = f(arg)
	} else if try == "socket on old threads" {
		err = old(func() error { return tries["socket"]("1") })
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("done")
}

// startThreads makes threads before the cage is entered. The function it gives acts on each of them and wants the same
// outcome everywhere.
func startThreads() func(func() error) error {
	const n = 4
	work, out := make(chan func() error), make(chan error)
	for range n {
		go func() {
			runtime.LockOSThread()
			out <- nil
			out <- (<-work)()
		}()
	}
	for range n {
		<-out
	}
	return func(act func() error) error {
		for range n {
			work <- act
		}
		first := <-out
		for range n - 1 {
			if err := <-out; !errors.Is(err, first) {
				return fmt.Errorf("%v on one thread, %v on another", first, err)
			}
		}
		return first
	}
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	fd, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return e
	}
	_ = fd
	return nil
}

func zeros() uintptr {
	var b [256]byte
	return uintptr(unsafe.Pointer(&b))
}

var tries = map[string]func(arg string) error{
	"open": func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Read(make([]byte, 1)); err != nil && !strings.HasSuffix(path, "/mem") { // address 0 is no memory
			return err
		}
		return nil
	},
	"create": func(path string) error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = f.WriteString("x")
		return errors.Join(err, f.Close())
	},
	"fd": func(fd string) error {
		n, _ := strconv.Atoi(fd)
		_, err := unix.Pread(n, make([]byte, 10), 0)
		return err
	},
	"env": func(name string) error {
		if os.Getenv(name) == "" {
			return errors.New("no such variable")
		}
		return nil
	},
	"socket": func(family string) error {
		n, _ := strconv.Atoi(family)
		_, err := unix.Socket(n, unix.SOCK_DGRAM, 0)
		return err
	},
	"socketpair": func(string) error {
		_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return err
	},
	"pipe": func(string) error { return unix.Pipe2(make([]int, 2), 0) },
	"exec": func(path string) error {
		fmt.Println("done") // true says nothing
		return unix.Exec(path, []string{path}, nil)
	},
	"memfd": func(string) error { _, err := unix.MemfdCreate("x", 0); return err },
	"fork": func(string) error {
		pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if e != 0 {
			return e
		}
		if pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		_, err := unix.Wait4(int(pid), nil, 0, nil)
		return err
	},
	"clone newuser":    func(string) error { return raw(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)) },
	"vfork":            func(string) error { return raw(sysVfork) },
	"ptrace":           func(string) error { return raw(unix.SYS_PTRACE, unix.PTRACE_TRACEME) },
	"process_vm_readv": func(string) error { return raw(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid())) },
	"kill parent":      func(string) error { return unix.Kill(os.Getppid(), 0) },
	"tgkill parent":    func(string) error { return unix.Tgkill(os.Getppid(), os.Getppid(), 0) },
	"sigqueue parent": func(string) error {
		return raw(unix.SYS_RT_SIGQUEUEINFO, uintptr(os.Getppid()), uintptr(unix.SIGTERM), zeros())
	},
	"fcntl setown": func(string) error {
		_, err := unix.FcntlInt(0, unix.F_SETOWN, os.Getpid())
		return err
	},
	"ioctl":           func(string) error { return raw(unix.SYS_IOCTL, 0, unix.TIOCSTI, zeros()) },
	"mount":           func(string) error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") },
	"unshare":         func(string) error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"setns":           func(string) error { return raw(unix.SYS_SETNS, 0, 0) },
	"bpf":             func(string) error { return raw(unix.SYS_BPF, 0, zeros(), 64) },
	"perf_event_open": func(string) error { return raw(unix.SYS_PERF_EVENT_OPEN, zeros(), 0, 0, ^uintptr(0), 0) },
	"userfaultfd":     func(string) error { return raw(unix.SYS_USERFAULTFD, 1) },
	"io_uring_setup":  func(string) error { return raw(unix.SYS_IO_URING_SETUP, 1, zeros()) },
	"keyctl":          func(string) error { return raw(unix.SYS_KEYCTL, 0, ^uintptr(2)) },
	"pidfd_open":      func(string) error { _, err := unix.PidfdOpen(os.Getppid(), 0); return err },
	"prlimit parent": func(string) error {
		return unix.Prlimit(os.Getppid(), unix.RLIMIT_CORE, nil, &unix.Rlimit{})
	},
	"undump": func(string) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"setuid": func(string) error { return raw(unix.SYS_SETUID, 0) },
	"wazero": func(string) error { return runWasm() },
	"threads": func(string) error {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				runtime.LockOSThread()
				for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
					runtime.GC()
				}
				time.Sleep(time.Millisecond) // the poller
			})
		}
		wg.Wait()
		return nil
	},
	"alloc": func(mib string) error {
		n, _ := strconv.Atoi(mib)
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		runtime.KeepAlive(b)
		return nil
	},
	"echo": func(string) error {
		in, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		fmt.Fprint(os.Stderr, strings.Repeat("e", 1<<20))
		fmt.Printf("%scage", in)
		os.Exit(0)
		return nil
	},
	"spin": func(string) error {
		fmt.Println("spinning")
		for n := 0; ; n++ {
			if n%1_000_000 == 0 {
				runtime.Gosched()
			}
		}
	},
	"harden": func(string) error {
		if r := Harden(); !r.Held(NonDumpable) {
			return errors.New(r.String())
		}
		if v, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); v != 0 || err != nil {
			return fmt.Errorf("dumpable is %d, %v", v, err)
		}
		return nil
	},
}

// runWasm compiles and runs a function that counts to its argument, while the collector runs.
func runWasm() error {
	wasm := []byte("\x00asm\x01\x00\x00\x00\x01\x06\x01\x60\x01\x7f\x01\x7f\x03\x02\x01\x00\x05\x03\x01\x00\x10\x07\x05\x01\x01f\x00\x00" +
		"\x0a\x17\x01\x15\x01\x01\x7f\x03\x40\x20\x01\x41\x01\x6a\x22\x01\x20\x00\x49\x0d\x00\x0b\x20\x01\x0b")
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithMemoryLimitPages(16))
	defer rt.Close(ctx)
	mod, err := rt.Instantiate(ctx, wasm)
	if err != nil {
		return err
	}
	for range 10 {
		res, err := mod.ExportedFunction("f").Call(ctx, 1_000_000)
		if err != nil || res[0] != 1_000_000 {
			return fmt.Errorf("%v %v", res, err)
		}
		runtime.GC()
	}
	return nil
}

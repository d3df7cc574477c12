package cage

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is its own child: started with this word it does as childMain says.
const childWord = "caged-child"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == childWord {
		childMain(os.Args[2:])
		return
	}
	os.Exit(m.Run())
}

// users are whom children run as: when we are root, as root and as nobody.
func users() map[string]*User {
	if os.Getuid() != 0 {
		return map[string]*User{"self": nil}
	}
	return map[string]*User{"root": nil, "nobody": {UID: 65534, GID: 65534}}
}

func start(t *testing.T, user *User, args ...string) *Child {
	t.Helper()
	c, err := Start(Spec{Args: append([]string{childWord}, args...), User: user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Kill(); c.Wait(); c.Stdin.Close(); c.Stdout.Close() })
	return c
}

// ask starts a child, waits for its end and gives what it said and how it ended.
func ask(t *testing.T, user *User, args ...string) (string, error) {
	t.Helper()
	c := start(t, user, args...)
	out, err := io.ReadAll(c.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Wait()
	if err != nil && len(out) == 0 {
		out = c.Stderr()
	}
	return strings.TrimSpace(string(out)), err
}

// openDir is a folder in which every user may write.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Every way out is refused, by the layer named. Where the layer is the kernel's and the kernel lacks it, the case is
// skipped.
func TestRefused(t *testing.T) {
	const (
		bare  = "caged"       // no folders
		files = "caged-files" // a folder: the calls for files are allowed
	)
	dir, outside := openDir(t), openDir(t)
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("the secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := unix.FcntlInt(held.Fd(), unix.F_SETFD, 0); err != nil { // leaks to every child from here on
		t.Fatal(err)
	}
	fd := strconv.Itoa(int(held.Fd()))
	const sigsys = "killed by a filter"
	for _, tc := range []struct {
		try, arg string
		mode     string
		layer    string
		want     string // error, or sigsys
		free     string // who can do it uncaged: "all", "root" or nobody
	}{
		{"open", "/etc/passwd", bare, Seccomp, "operation not permitted", "all"},
		{"open", "/etc/passwd", files, Landlock, "permission denied", "all"},
		{"open", "/proc/1/environ", bare, Seccomp, "operation not permitted", ""},
		{"open", "/proc/1/environ", files, Landlock, "permission denied", ""},
		{"open", "/proc/" + strconv.Itoa(os.Getpid()) + "/mem", bare, Seccomp, "operation not permitted", "root"},
		{"open", "/proc/" + strconv.Itoa(os.Getpid()) + "/mem", files, Landlock, "permission denied", "root"},
		{"create", filepath.Join(outside, "new"), bare, Seccomp, "operation not permitted", "all"},
		{"create", filepath.Join(outside, "new"), files, Landlock, "permission denied", "all"},
		{"create", filepath.Join(dir, "new"), files, Landlock, "permission denied", "all"}, // the folder is for reading
		{"fd", fd, bare, Descriptors, "bad file descriptor", "all"},
		{"env", "CROWD_SECRET", bare, Environment, "no such variable", ""},
		{"socket", strconv.Itoa(unix.AF_INET), bare, Seccomp, "operation not permitted", "all"},
		{"socket", strconv.Itoa(unix.AF_UNIX), bare, Seccomp, "operation not permitted", "all"},
		{"socket", strconv.Itoa(unix.AF_NETLINK), bare, Seccomp, "operation not permitted", "all"},
		{"socketpair", "", bare, Seccomp, "operation not permitted", "all"},
		{"pipe", "", bare, Seccomp, "operation not permitted", "all"},
		{"exec", "/bin/true", bare, Seccomp, sigsys, "all"},
		{"memfd", "", bare, Seccomp, "operation not permitted", "all"},
		{"fork", "", bare, Seccomp, "operation not permitted", "all"},
		{"clone newuser", "", bare, Seccomp, "operation not permitted", ""},
		{"vfork", "", bare, Seccomp, sigsys, ""},  // uncaged it would run twice in one memory
		{"ptrace", "", bare, Seccomp, sigsys, ""}, // uncaged it would stop at its next signal
		{"process_vm_readv", "", bare, Seccomp, sigsys, "root"},
		{"kill parent", "", bare, Seccomp, "operation not permitted", "root"},
		{"tgkill parent", "", bare, Seccomp, "operation not permitted", "root"},
		{"sigqueue parent", "", bare, Seccomp, "operation not permitted", ""},
		{"fcntl setown", "", bare, Seccomp, "operation not permitted", "all"},
		{"ioctl", "", bare, Seccomp, "operation not permitted", ""},
		{"mount", "", bare, Seccomp, sigsys, ""},
		{"unshare", "", bare, Seccomp, sigsys, ""},
		{"setns", "", bare, Seccomp, sigsys, ""},
		{"bpf", "", bare, Seccomp, sigsys, ""},
		{"perf_event_open", "", bare, Seccomp, sigsys, ""},
		{"userfaultfd", "", bare, Seccomp, sigsys, ""},
		{"io_uring_setup", "", bare, Seccomp, sigsys, ""},
		{"keyctl", "", bare, Seccomp, sigsys, ""},
		{"pidfd_open", "", bare, Seccomp, sigsys, "all"},
		{"prlimit parent", "", bare, Seccomp, "operation not permitted", "root"},
		{"undump", "", bare, Seccomp, "operation not permitted", "all"},
		{"setuid", "", bare, Seccomp, "operation not permitted", "root"},
		{"socket on old threads", "", bare, Seccomp, "operation not permitted", "all"},
	} {
		for who, user := range users() {
			t.Run(tc.try+" "+tc.arg+" "+tc.mode+" as "+who, func(t *testing.T) {
				t.Setenv("CROWD_SECRET", "x")
				if tc.try == "create" {
					tc.arg += who
				}
				lacking := strings.Contains(reportOf(t, user), tc.layer+"\tlacks")
				if lacking && tc.layer == Landlock {
					t.Skip("this kernel has no landlock")
				}
				if tc.free == "all" || tc.free == "root" && who == "root" {
					if said, err := ask(t, user, "free", dir, tc.try, tc.arg); said != "done" || err != nil {
						t.Fatalf("uncaged: %s (%v), so this proves nothing", said, err)
					}
				}
				said, err := ask(t, user, tc.mode, dir, tc.try, tc.arg)
				if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGSYS {
					said = sigsys
				}
				if !strings.HasSuffix(said, tc.want) {
					t.Errorf("%q (%v), want %q from %s", said, err, tc.want, tc.layer)
				}
			})
		}
	}
}

var reports = map[bool]string{}

// reportOf tells each layer of a caged child as "name<tab>held" or "name<tab>lacks".
func reportOf(t *testing.T, user *User) string {
	t.Helper()
	if _, ok := reports[user == nil]; !ok {
		said, err := ask(t, user, "caged", "/", "report", "")
		if err != nil {
			t.Fatalf("%s: %v", said, err)
		}
		reports[user == nil] = said
		t.Logf("layers:\n%s", said)
	}
	return reports[user == nil]
}

// All layers hold here, but landlock on kernels without it.
func TestReport(t *testing.T) {
	for who, user := range users() {
		said := reportOf(t, user)
		for _, layer := range []string{Descriptors, Environment, Rlimits, Priority, NoNewPrivs, Capabilities, NonDumpable, Seccomp} {
			if layer == Capabilities && strings.Contains(said, "cgo") {
				continue // under the race detector
			}
			if !strings.Contains(said, layer+"\theld") {
				t.Errorf("as %s: %s does not hold:\n%s", who, layer, said)
			}
		}
	}
	said, err := ask(t, nil, "caged-require", "/", "report", "")
	if err == nil || !strings.Contains(said, "is required") {
		t.Errorf("a layer that is not there was required: %s, %v", said, err)
	}
}

// What guests need works inside: wasm compiled and run, garbage collected, preempted, on several threads; and the folder
// that was allowed.
func TestAllowed(t *testing.T) {
	dir := openDir(t)
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for who, user := range users() {
		for _, tc := range [][3]string{
			{"caged", "wazero", ""},
			{"caged", "threads", ""},
			{"caged", "alloc", "200"},
			{"caged-files", "open", filepath.Join(dir, "in")},
			{"caged-write", "create", filepath.Join(dir, "out-"+who)},
		} {
			if tc[1] == "alloc" && underRace {
				continue
			}
			if said, err := ask(t, user, tc[0], dir, tc[1], tc[2]); said != "done" || err != nil {
				t.Errorf("%v as %s: %s (%v)", tc, who, said, err)
			}
		}
	}
	if said, err := ask(t, nil, "caged", dir, "alloc", "1500"); err == nil {
		t.Errorf("1500 MiB under a limit of 600: %s", said)
	}
}

func TestEcho(t *testing.T) {
	c := start(t, nil, "caged", "/", "echo", "")
	fmt.Fprint(c.Stdin, "hello ")
	c.Stdin.Close()
	out, _ := io.ReadAll(c.Stdout)
	if err := c.Wait(); err != nil || string(out) != "hello cage" {
		t.Errorf("%q, %v", out, err)
	}
	if !bytes.Equal(c.Stderr(), []byte(strings.Repeat("e", 64<<10))) {
		t.Errorf("kept %d bytes of stderr", len(c.Stderr()))
	}
	if u, err := c.Usage(); err != nil || u.CPU == 0 || u.RSS == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := unix.Kill(c.Pid(), 0); err != unix.ESRCH {
		t.Errorf("a zombie remains: %v", err)
	}
	if err := errors.Join(c.Kill(), c.Freeze(), c.Thaw()); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// spin starts a child that computes for ever, and waits until it is caged.
func spin(t *testing.T) *Child {
	t.Helper()
	c := start(t, nil, "caged", "/", "spin", "")
	if line, err := bufio.NewReader(c.Stdout).ReadString('\n'); line != "spinning\n" {
		t.Fatalf("%q %v %s", line, err, c.Stderr())
	}
	return c
}

func TestFreezeThawKill(t *testing.T) {
	c := spin(t)
	wait := func(what int) {
		t.Helper()
		if err := unix.Waitid(unix.P_PID, c.Pid(), nil, what, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Freeze(); err != nil {
		t.Fatal(err)
	}
	wait(unix.WSTOPPED)
	if err := c.Thaw(); err != nil {
		t.Fatal(err)
	}
	wait(unix.WCONTINUED)
	if u, err := c.Usage(); err != nil || u.RSS == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := c.Freeze(); err != nil { // a frozen one can be killed
		t.Fatal(err)
	}
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("ended with %v", err)
	}
}

func TestPriority(t *testing.T) {
	c := spin(t)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.Pid()))
	if err != nil || len(tasks) < 2 {
		t.Fatal(len(tasks), err)
	}
	for _, task := range tasks {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", c.Pid(), task.Name()))
		if err != nil {
			continue // a thread may end
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if nice, policy := f[19-3], f[41-3]; nice != "19" || policy != "5" {
			t.Errorf("thread %s: nice %s, policy %s", task.Name(), nice, policy)
		}
	}
}

// A child does not outlive a parent that is killed.
func TestDiesWithParent(t *testing.T) {
	parent := start(t, nil, "parent")
	line, err := bufio.NewReader(parent.Stdout).ReadString('\n')
	pid, _ := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid == 0 {
		t.Fatalf("%q %v %s", line, err, parent.Stderr())
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skipf("no pidfd here: %v", err)
	}
	defer unix.Close(fd)
	if err := parent.Kill(); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int(10*time.Second/time.Millisecond)); n != 1 {
		unix.Kill(pid, unix.SIGKILL)
		t.Errorf("the child lives on: %v", err)
	}
}

func TestHarden(t *testing.T) {
	said, err := ask(t, nil, "free", "/", "harden", "")
	if said != "done" || err != nil {
		t.Errorf("%s %v", said, err)
	}
}

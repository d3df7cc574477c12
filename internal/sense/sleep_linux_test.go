package sense

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"

	"github.com/crowdcloud/crowd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const busConfig = `<busconfig><type>session</type><listen>unix:path=PATH</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`

// daemon runs a real message bus on a socket of its own. stop ends it.
func daemon(t *testing.T) (address string, stop func()) {
	t.Helper()
	bin, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("no dbus-daemon here: scripts/setup.sh")
	}
	dir, err := os.MkdirTemp("", "bus-") // short: it is a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(file, []byte(strings.Replace(busConfig, "PATH", filepath.Join(dir, "bus"), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(bin, "--config-file="+file, "--nofork", "--nopidfile", "--print-address=1")
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = c.Process.Kill(); _ = c.Wait() })
	t.Cleanup(stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), stop
}

// fakeLogin is logind's part of the bus.
type fakeLogin struct {
	t     *testing.T
	conn  *dbus.Conn
	locks chan *lock
}

// lock is one that was given.
type lock struct{ theirs, ours *os.File }

func (l *fakeLogin) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "sleep" || who != "crowd" || why == "" || mode != "delay" {
		l.t.Errorf("a lock for %q %q %q %q", what, who, why, mode)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.t.Cleanup(func() { r.Close(); w.Close() })
	fd := dbus.UnixFD(w.Fd())
	l.locks <- &lock{theirs: w, ours: r}
	return fd, nil
}

// given is the next lock, once it has arrived at the other end.
func (l *fakeLogin) given(what string) *lock {
	l.t.Helper()
	k := next(l.t, what, l.locks)
	for range 2000 {
		if copies(l.t, k.theirs) == 2 {
			k.theirs.Close()
			return k
		}
		time.Sleep(5 * time.Millisecond)
	}
	l.t.Fatalf("never arrives: %s", what)
	return nil
}

// copies is how many descriptors of this process are that file, opened to write.
func copies(t *testing.T, f *os.File) (n int) {
	t.Helper()
	want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	all, _ := os.ReadDir("/proc/self/fd")
	for _, e := range all {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		info, _ := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if to == want && strings.Contains(string(info), "1\nmnt_id") /* the end of its flags: O_WRONLY */ {
			n++
		}
	}
	return n
}

// released waits until nobody holds it any more.
func (k *lock) released(t *testing.T) {
	t.Helper()
	_ = k.ours.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := k.ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal("still held:", err)
	}
}

func (k *lock) held(t *testing.T) {
	t.Helper()
	_ = k.ours.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := k.ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("not held:", err)
	}
}

func (l *fakeLogin) Get(_, name string) (dbus.Variant, *dbus.Error) {
	if name != delayedName {
		return dbus.Variant{}, dbus.MakeFailedError(errors.New("no such property"))
	}
	return dbus.MakeVariant(uint64(5_000_000)), nil
}

func login1(t *testing.T, bus string) *fakeLogin {
	t.Helper()
	l := &fakeLogin{t: t, conn: client(t, bus), locks: make(chan *lock, 10)}
	for _, face := range []string{manager, "org.freedesktop.DBus.Properties"} {
		if err := l.conn.Export(l, loginPath, face); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := l.conn.RequestName(login, 0); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(r, err)
	}
	return l
}

func client(t *testing.T, bus string) *dbus.Conn {
	t.Helper()
	c, err := dbus.Connect(bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func announce(t *testing.T, c *dbus.Conn, begins bool) {
	t.Helper()
	if err := c.Emit(loginPath, manager+"."+prepare, begins); err != nil {
		t.Fatal(err)
	}
}

// next is what comes within ten seconds.
func next[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("never: %s", what)
	}
	return v
}

// TestSleep: the system waits until Before has returned; after waking there is a lock again; a stranger's word doesn't count.
func TestSleep(t *testing.T) {
	bus, stop := daemon(t)
	login := login1(t, bus)
	before, goOn, after := make(chan bool), make(chan bool), make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	sleep := func() {
		ended <- Sleep(ctx, SleepOptions{Bus: bus, Before: func() { before <- true; <-goOn }, After: func() { after <- true }})
	}
	go sleep()
	k := login.given("the first lock")
	announce(t, client(t, bus), true) // not logind's
	announce(t, login.conn, false)    // nothing began
	for range 2 {
		announce(t, login.conn, true)
		next(t, "the sleep", before)
		k.held(t)
		goOn <- true
		k.released(t)
		announce(t, login.conn, false)
		next(t, "the end of sleep", after)
		k = login.given("another lock")
	}
	cancel()
	if err := next(t, "the end", ended); err != nil {
		t.Error(err)
	}
	k.released(t)

	// the bus goes away while the machine sleeps: that is an end of sleep too
	ctx = t.Context()
	go sleep()
	login.given("a lock")
	announce(t, login.conn, true)
	next(t, "the sleep", before)
	goOn <- true
	stop()
	next(t, "the end of sleep", after)
	if err := next(t, "the end", ended); !crowd.KindIs(err, crowd.Unavailable) || errors.Is(err, ErrNever) {
		t.Error(err)
	}
}

// TestNobody: without a bus, or without logind on it, that is said and nothing else happens.
func TestNobody(t *testing.T) {
	o := SleepOptions{Bus: "unix:path=" + filepath.Join(t.TempDir(), "none"), Before: func() { t.Error("before") }, After: func() { t.Error("after") }}
	if err := Sleep(t.Context(), o); !crowd.KindIs(err, crowd.Unavailable) {
		t.Error(err)
	}
	o.Bus, _ = daemon(t)
	if err := Sleep(t.Context(), o); !crowd.KindIs(err, crowd.Unavailable) {
		t.Error(err)
	}
	if _, err := CheckSleep(t.Context(), o.Bus); !crowd.KindIs(err, crowd.Unavailable) {
		t.Error(err)
	}
	login := login1(t, o.Bus)
	if d, err := CheckSleep(t.Context(), o.Bus); err != nil || d != 5*time.Second {
		t.Error(d, err)
	}
	k := next(t, "the lock", login.locks)
	k.theirs.Close()
	k.released(t)
}

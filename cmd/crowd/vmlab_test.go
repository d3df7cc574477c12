//go:build linux

package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lab is what small virtual machines are made of: a kernel, and a first file system with this crowd and the program testdata/vminit.
type lab struct {
	dir            string // of everything, gone at the end
	kernel, initrd string
}

// vmUnpacked is where `scripts/setup.sh soak` leaves Debian's kernel.
const vmUnpacked = "../../out/vm"

// newLab skips the test unless heavy tests are wanted and can run.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("CROWD_SOAK") == "" {
		t.Skip("CROWD_SOAK isn't set: a virtual machine without hardware help takes minutes")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64 here: scripts/setup.sh soak")
	}
	kernels, _ := filepath.Glob(vmUnpacked + "/boot/vmlinuz-*")
	if len(kernels) == 0 {
		t.Skip("no kernel in out/vm: scripts/setup.sh soak")
	}
	l := &lab{dir: shortTemp(t), kernel: kernels[len(kernels)-1]}
	l.initrd = filepath.Join(l.dir, "initrd")
	agent, vminit := filepath.Join(l.dir, "crowd"), filepath.Join(l.dir, "vminit")
	l.build(t, agent, ".")
	l.build(t, vminit, "./testdata/vminit")

	f, err := os.Create(l.initrd)
	must(t, err)
	defer f.Close()
	a := &cpio{w: f}
	for _, d := range []string{"dev", "proc", "sys", "tmp", "modules"} {
		a.add(d, fs.ModeDir|0o755, nil)
	}
	for name, from := range map[string]string{"init": vminit, "crowd": agent} {
		b, err := os.ReadFile(from)
		must(t, err)
		a.add(name, 0o755, b)
	}
	modules, err := moduleOrder(vmUnpacked, "virtio_pci", "virtio_net")
	must(t, err)
	for i, path := range modules {
		b, err := os.ReadFile(path)
		must(t, err)
		a.add(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(path)), 0o644, b)
	}
	must(t, a.end())
	return l
}

func (l *lab) build(t *testing.T, to, pkg string) {
	t.Helper()
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

// cpio writes the archive that a kernel unpacks as its first file system ("newc" in its early-userspace documentation).
type cpio struct {
	w   io.Writer
	n   int
	err error
}

func (c *cpio) add(name string, mode fs.FileMode, content []byte) {
	unix, links := uint32(mode.Perm())|syscall.S_IFREG, 1
	if mode.IsDir() {
		unix, links = uint32(mode.Perm())|syscall.S_IFDIR, 2
	}
	if c.n++; name == trailer {
		unix = 0
	}
	head := "070701"
	for _, v := range []int{c.n, int(unix), 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		head += fmt.Sprintf("%08x", v)
	}
	for _, part := range [][]byte{append([]byte(head+name), 0), content} {
		part = append(part[:len(part):len(part)], make([]byte, -len(part)&3)...)
		if c.err == nil {
			_, c.err = c.w.Write(part)
		}
	}
}

const trailer = "TRAILER!!!"

func (c *cpio) end() error {
	c.add(trailer, 0, nil)
	return c.err
}

// moduleOrder finds kernel modules below root, each after those that it needs.
func moduleOrder(root string, names ...string) (order []string, err error) {
	at := map[string]string{}
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			at[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	var add func(name string)
	add = func(name string) {
		path := at[name]
		if err != nil || path == "" || slices.Contains(order, path) { // no such module: built in
			return
		}
		f, e := elf.Open(path)
		if e != nil {
			err = fmt.Errorf("%s: %w", path, e)
			return
		}
		defer f.Close()
		var info []byte
		if s := f.Section(".modinfo"); s != nil {
			info, err = s.Data()
		}
		for field := range bytes.SplitSeq(info, []byte{0}) {
			if needs, ok := strings.CutPrefix(string(field), "depends="); ok && needs != "" {
				for need := range strings.SplitSeq(needs, ",") {
					add(need)
				}
			}
		}
		order = append(order, path)
	}
	for _, n := range names {
		add(n)
	}
	return order, err
}

// vm is a virtual machine that runs. It ends with the test.
type vm struct {
	t       *testing.T
	name    string
	console string // file
	qmp     *monitor
	port    net.Conn // vminit's
	answers *json.Decoder
	kill    func() // idempotent
}

const (
	bootWait = 3 * time.Minute
	askWait  = 3 * time.Minute
)

// start runs a machine: from its beginning, or as saved in a file. A restored one stands still until told to go on.
func (l *lab) start(t *testing.T, name, saved string) *vm {
	t.Helper()
	file := func(s string) string { return filepath.Join(l.dir, name+"."+s) }
	args := []string{
		"-accel", "tcg,tb-size=128", "-machine", "q35,usb=off,vmport=off", "-cpu", "max", "-smp", "1", "-m", "512",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-rtc", "base=utc,clock=host",
		"-kernel", l.kernel, "-initrd", l.initrd, "-append", "console=ttyS0 panic=-1 mem_sleep_default=deep",
		"-qmp", "unix:" + file("qmp") + ",server=on,wait=off",
		"-serial", "file:" + file("console"),
		"-chardev", "socket,id=port,path=" + file("port") + ",server=on,wait=off", "-serial", "chardev:port",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
	}
	if saved != "" {
		args = append(args, "-S", "-incoming", "exec:cat "+saved)
	}
	c := exec.Command("qemu-system-x86_64", args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // however the test ends
	var errs bytes.Buffer
	c.Stderr = &errs
	must(t, c.Start())
	v := &vm{t: t, name: name, console: file("console")}
	v.kill = sync.OnceFunc(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	t.Cleanup(func() {
		v.kill()
		if t.Failed() {
			t.Logf("%s\n%s%s", name, errs.String(), v.said())
		}
	})
	q, err := dialSoon(file("qmp"))
	must(t, err)
	t.Cleanup(func() { q.Close() })
	v.qmp, err = newMonitor(q)
	must(t, err)
	v.port, err = dialSoon(file("port"))
	must(t, err)
	t.Cleanup(func() { v.port.Close() })
	v.answers = json.NewDecoder(v.port)
	return v
}

// boot starts a machine and waits until its vminit listens.
func (l *lab) boot(t *testing.T, name string) *vm {
	t.Helper()
	began := time.Now()
	v := l.start(t, name, "")
	if a := v.answer(bootWait); a.Out != "ready" {
		t.Fatalf("%s says %+v", name, a)
	}
	t.Logf("%s: started in %s", name, time.Since(began).Round(100*time.Millisecond))
	return v
}

// dialSoon connects to a socket that a process which has just started is about to make.
func dialSoon(path string) (c net.Conn, err error) {
	for range 600 {
		if c, err = net.Dial("unix", path); err == nil {
			return c, nil
		}
		time.Sleep(50 * time.Millisecond) // a poll: QEMU says nothing
	}
	return nil, err
}

// said is all that its console has shown.
func (v *vm) said() string {
	b, _ := os.ReadFile(v.console)
	return string(b)
}

type vmAnswer struct {
	Out  string `json:"out"`
	Code int    `json:"code"`
}

// say asks vminit for something; the answer is for answer.
func (v *vm) say(do string, args ...string) {
	v.t.Helper()
	b, err := json.Marshal(map[string]any{"do": do, "args": args})
	must(v.t, err)
	_, err = v.port.Write(append(b, '\n'))
	must(v.t, err)
}

func (v *vm) answer(within time.Duration) (a vmAnswer) {
	v.t.Helper()
	_ = v.port.SetReadDeadline(time.Now().Add(within))
	if err := v.answers.Decode(&a); err != nil {
		v.t.Fatalf("%s doesn't answer: %v", v.name, err)
	}
	return a
}

// ask does something in the machine and returns what it printed; anything but success ends the test.
func (v *vm) ask(do string, args ...string) string {
	v.t.Helper()
	v.say(do, args...)
	a := v.answer(askWait)
	if a.Code != 0 {
		v.t.Fatalf("%s: %s %v: %d\n%s", v.name, do, args, a.Code, a.Out)
	}
	return a.Out
}

// monitor speaks with QEMU (its "QMP": JSON over a socket).
type monitor struct {
	c      net.Conn
	d      *json.Decoder
	events []string // that came while something else was awaited
}

type qmpWord struct {
	Event  string                 `json:"event"`
	Return json.RawMessage        `json:"return"`
	Error  *struct{ Desc string } `json:"error"`
}

func newMonitor(c net.Conn) (*monitor, error) {
	m := &monitor{c: c, d: json.NewDecoder(c)}
	if _, err := m.next(time.Minute); err != nil { // its greeting
		return nil, err
	}
	_, err := m.do("qmp_capabilities", nil)
	return m, err
}

func (m *monitor) next(within time.Duration) (w qmpWord, err error) {
	_ = m.c.SetReadDeadline(time.Now().Add(within))
	err = m.d.Decode(&w)
	return w, err
}

// do commands and returns the answer.
func (m *monitor) do(command string, args map[string]any) (json.RawMessage, error) {
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	if err := json.NewEncoder(m.c).Encode(req); err != nil {
		return nil, err
	}
	for {
		w, err := m.next(2 * time.Minute)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", command, err)
		case w.Error != nil:
			return nil, fmt.Errorf("%s: %s", command, w.Error.Desc)
		case w.Event != "":
			m.events = append(m.events, w.Event)
		default:
			return w.Return, nil
		}
	}
}

// event waits until QEMU says that something happened.
func (m *monitor) event(name string, within time.Duration) error {
	for end := time.Now().Add(within); ; {
		if i := slices.Index(m.events, name); i >= 0 {
			m.events = slices.Delete(m.events, i, i+1)
			return nil
		}
		w, err := m.next(time.Until(end))
		if err != nil {
			return fmt.Errorf("no %s: %w", name, err)
		}
		m.events = append(m.events, w.Event)
	}
}

// save writes a machine that stands still to a file.
func (m *monitor) save(file string) error {
	if _, err := m.do("migrate", map[string]any{"uri": "exec:cat > " + file}); err != nil {
		return err
	}
	return m.await("query-migrate", "completed")
}

// await polls a command until its status is as wanted.
func (m *monitor) await(query, status string) error {
	var s struct{ Status string }
	for range 1200 {
		b, err := m.do(query, nil)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		if s.Status == status {
			return nil
		}
		if s.Status == "failed" {
			return errors.New(query + ": failed")
		}
		time.Sleep(100 * time.Millisecond) // a poll: that is how QEMU is asked
	}
	return fmt.Errorf("%s: still %s", query, s.Status)
}

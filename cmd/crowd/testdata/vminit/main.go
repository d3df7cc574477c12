//go:build linux

// Command vminit is the first process of the small virtual machine that heavy tests run an agent in (see vmlab_test.go). It mounts what
// a program expects, loads the network card's modules from /modules in the order of their names, and then does what the test says: a JSON
// request a line on the second serial port, a JSON answer for each. What it starts speaks on the console.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// request is what to do: run a program to its end, start one, read a file, sleep.
type request struct {
	Do   string   `json:"do"`
	Args []string `json:"args"`
}

// answer is what came of it.
type answer struct {
	Out  string `json:"out"`
	Code int    `json:"code"`
}

func main() {
	if err := serve(); err != nil {
		fmt.Println("vminit:", err)
		time.Sleep(time.Second) // for the console to say it
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func serve() error {
	if err := prepare(); err != nil {
		return err
	}
	port, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	raw := &unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200}
	raw.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, raw); err != nil {
		return fmt.Errorf("ttyS1: %w", err)
	}
	say := json.NewEncoder(port)
	if err := say.Encode(answer{Out: "ready"}); err != nil {
		return err
	}
	for lines := bufio.NewReader(port); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		var r request
		a := answer{Code: -1, Out: "no request"}
		if json.Unmarshal(line, &r) == nil {
			a = do(r)
		}
		if err := say.Encode(a); err != nil {
			return err
		}
	}
}

func prepare() error {
	for _, m := range []struct{ what, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		_ = os.MkdirAll(m.at, 0o755)
		if err := unix.Mount(m.what, m.at, m.what, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := load(m); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	if err := up("lo", 127, 0, 0, 1); err != nil {
		return err
	}
	return up("eth0", 10, 0, 2, 15) // where QEMU's user network expects it; its own end is 10.0.2.2
}

func load(module string) error {
	f, err := os.Open(module)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// up gives an interface an address and starts it.
func up(name string, ip ...byte) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	set := func(call uint, v []byte) {
		if err == nil && v != nil {
			err = r.SetInet4Addr(v)
		}
		if err == nil {
			err = unix.IoctlIfreq(s, call, r)
		}
	}
	set(unix.SIOCSIFADDR, ip)
	if name != "lo" {
		set(unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0})
	}
	if err == nil {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	}
	set(unix.SIOCSIFFLAGS, nil)
	if err != nil {
		return fmt.Errorf("network %s: %w", name, err)
	}
	return nil
}

func do(r request) answer {
	var out []byte
	var err error
	switch {
	case r.Do == "run" && len(r.Args) > 0:
		out, err = command(r.Args).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return answer{string(out), exit.ExitCode()}
		}
	case r.Do == "start" && len(r.Args) > 0:
		c := command(r.Args)
		c.Stdout, c.Stderr = os.Stdout, os.Stdout
		if err = c.Start(); err == nil {
			go func() {
				_ = c.Wait()
				fmt.Printf("vminit: %s has ended with %d\n", r.Args[0], c.ProcessState.ExitCode())
			}()
		}
	case r.Do == "read" && len(r.Args) == 1:
		out, err = os.ReadFile(r.Args[0])
	case r.Do == "sleep":
		err = os.WriteFile("/sys/power/state", []byte("mem"), 0) // returns when somebody has woken the machine
	default:
		err = errors.New("no such request")
	}
	if err != nil {
		return answer{err.Error(), -1}
	}
	return answer{Out: string(out)}
}

func command(args []string) *exec.Cmd {
	c := exec.Command(args[0], args[1:]...)
	c.Env = []string{"HOME=/", "PATH=/"}
	return c
}

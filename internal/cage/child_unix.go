//go:build unix

package cage

import (
	"errors"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// systemState is what a child needs of the system besides its process.
type systemState struct{} //nolint:unused // as on windows

func prepare(cmd *exec.Cmd, spec Spec) error {
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if u := spec.User; u != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID}
	}
	dieWithParent(cmd.SysProcAttr)
	return nil
}

// started lowers the priority, for whatever runs before the child lowers its own.
func (c *Child) started() error {
	_ = idle(c.Pid())
	return nil
}

func (c *Child) release() {}

func (c *Child) signal(s syscall.Signal) error {
	err := unix.Kill(-c.Pid(), s)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (c *Child) kill() error   { return c.signal(unix.SIGKILL) }
func (c *Child) freeze() error { return c.signal(unix.SIGSTOP) }
func (c *Child) thaw() error   { return c.signal(unix.SIGCONT) }

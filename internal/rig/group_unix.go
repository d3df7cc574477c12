//go:build unix

package rig

import (
	"os/exec"
	"syscall"
)

// ownGroup keeps a terminal's Ctrl-C from reaching the process beside us.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// Stop halts a process without a word, as a machine that hangs would be; Cont lets it go on.
func (p *Proc) Stop() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *Proc) Cont() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

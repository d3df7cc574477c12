//go:build !unix

package rig

import (
	"errors"
	"os/exec"
)

func ownGroup(*exec.Cmd) {}

// Stop and Cont want a system with signals.
func (p *Proc) Stop() error { return errors.ErrUnsupported }
func (p *Proc) Cont() error { return nil }

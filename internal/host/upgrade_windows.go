package host

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
)

// start runs the new program beside this process, which is about to end.
func (h *Handover) start(args []string) error {
	c := exec.Command(h.self)
	c.Args = args
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	return c.Start()
}

// swap puts staged in self's place. A program that runs can be renamed, but not overwritten.
func swap(self, staged string) error {
	old := previous(self)
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(self, old); err != nil {
		return err
	}
	if err := os.Rename(staged, self); err != nil {
		return errors.Join(err, os.Rename(old, self))
	}
	return nil
}

func isBusy(error) bool { return false }

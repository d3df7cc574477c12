//go:build !linux && !darwin

package store

import "errors"

// swapDirs would exchange two folders in one step: this system can't.
func swapDirs(_, _ string) error { return errors.ErrUnsupported }

package store

import "golang.org/x/sys/unix"

// swapDirs exchanges two folders in one step.
func swapDirs(a, b string) error { return unix.RenamexNp(a, b, unix.RENAME_SWAP) }

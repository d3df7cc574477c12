package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// freeOf is what may still be written to the disk of a folder.
func freeOf(dir string) (int64, error) {
	var s unix.Statfs_t
	err := unix.Statfs(dir, &s)
	return int64(s.Bavail) * s.Bsize, err
}

// chill brings a file to the disk and out of the system's memory.
func chill(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

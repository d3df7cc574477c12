//go:build unix

package wasm

import "golang.org/x/sys/unix"

func reserve(n uint64) ([]byte, error) {
	if n == 0 {
		n = uint64(unix.Getpagesize())
	}
	return unix.Mmap(-1, 0, int(n), unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

func commit(b []byte) error { return unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE) }

func release(b []byte) { _ = unix.Munmap(b) }

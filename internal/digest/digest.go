// Package digest computes BLAKE3 digests.
package digest

import (
	"io"

	"lukechampine.com/blake3"

	"github.com/crowdcloud/crowd"
)

// Of is the digest of b. The digest of no bytes is that of the empty string, not zero.
func Of(b []byte) crowd.Digest { return blake3.Sum256(b) }

// Reader reads r to its end and returns its digest and length.
func Reader(r io.Reader) (crowd.Digest, int64, error) {
	h := New()
	n, err := io.Copy(h, r)
	return h.Sum(), n, err
}

// Hash is a running digest; use it from one goroutine at a time.
type Hash struct{ h *blake3.Hasher }

// New starts one.
func New() *Hash { return &Hash{blake3.New(32, nil)} }

func (h *Hash) Write(p []byte) (int, error) { return h.h.Write(p) }

// Sum is the digest of what was written so far.
func (h *Hash) Sum() (d crowd.Digest) {
	h.h.Sum(d[:0])
	return d
}

package crowd

import (
	"encoding/hex"
	"strings"
)

// Digest is a BLAKE3-256 hash of some bytes; its text form is "b3:" and 64 hex digits. The zero Digest means none.
// A digest is a name, not a capability. Package digest computes them.
type Digest [32]byte

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return "b3:" + hex.EncodeToString(d[:])
}

// Short is the form for people: "b3:77aa…".
func (d Digest) Short() string {
	if d.IsZero() {
		return ""
	}
	return "b3:" + hex.EncodeToString(d[:2]) + "…"
}

// ParseDigest reads the text form.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	h, ok := strings.CutPrefix(s, "b3:")
	if b, err := hex.DecodeString(h); ok && err == nil && len(b) == len(d) {
		copy(d[:], b)
		return d, nil
	}
	return d, Errorf(Invalid, "", "wanted a digest b3:<64 hex digits>, found %q", clip(s, 80))
}

// MarshalText and UnmarshalText use the text form; a zero digest is "".
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Digest) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	*d, err = ParseDigest(string(b))
	return err
}

// clip cuts s to at most n bytes, for messages that quote a stranger.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

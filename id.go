package crowd

import (
	"encoding/binary"
	"strings"
	"time"
)

// ID names a thing of kind K: a UUIDv7 (sortable by creation). Its text form is the kind's prefix, "_" and 26 letters of
// Crockford's base32 in lower case. An id is never a secret. The zero ID names nothing and prints as "".
type ID[K Kind] [16]byte

// Kind is the kind of thing an ID names.
type Kind interface{ prefix() string }

type (
	jobKind     struct{}
	hostKind    struct{}
	accountKind struct{}
	keyKind     struct{}
	quoteKind   struct{}
	requestKind struct{}
	sessionKind struct{}
)

func (jobKind) prefix() string     { return "job" }
func (hostKind) prefix() string    { return "host" }
func (accountKind) prefix() string { return "acc" }
func (keyKind) prefix() string     { return "key" }
func (quoteKind) prefix() string   { return "quo" }
func (requestKind) prefix() string { return "req" }
func (sessionKind) prefix() string { return "ses" }

// The ids of the nouns. A session is one life of one agent process.
type (
	JobID     = ID[jobKind]
	HostID    = ID[hostKind]
	AccountID = ID[accountKind]
	KeyID     = ID[keyKind]
	QuoteID   = ID[quoteKind]
	RequestID = ID[requestKind]
	SessionID = ID[sessionKind]
)

// MakeID builds the id of a thing made at now; random must be 10 fresh random bytes (74 bits are used).
func MakeID[K Kind](now time.Time, random [10]byte) ID[K] {
	var id ID[K]
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16)
	copy(id[6:], random[:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// IsZero reports whether id names nothing.
func (id ID[K]) IsZero() bool { return id == ID[K]{} }

const letters = "0123456789abcdefghjkmnpqrstvwxyz"

func (id ID[K]) String() string {
	if id.IsZero() {
		return ""
	}
	var k K
	return k.prefix() + "_" + string(id.letters())
}

// Short is the form for people: the prefix and the last six letters (the first are time and alike).
func (id ID[K]) Short() string {
	if id.IsZero() {
		return ""
	}
	var k K
	return k.prefix() + "_" + string(id.letters()[20:])
}

func (id ID[K]) letters() []byte {
	hi, lo := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])
	b := make([]byte, 26)
	for i := 25; i >= 0; i-- {
		b[i] = letters[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return b
}

// ParseID reads the full text form.
func ParseID[K Kind](s string) (ID[K], error) {
	var id, zero ID[K]
	var k K
	rest, ok := strings.CutPrefix(s, k.prefix()+"_")
	if !ok || len(rest) != 26 || rest[0] > '7' {
		return zero, Errorf(Invalid, "", "wanted %s_ and 26 letters, found %q", k.prefix(), clip(s, 60))
	}
	var hi, lo uint64
	for i := range len(rest) {
		v := strings.IndexByte(letters, rest[i])
		if v < 0 {
			return zero, Errorf(Invalid, "", "%q has no place in an id", rest[i])
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	binary.BigEndian.PutUint64(id[:8], hi)
	binary.BigEndian.PutUint64(id[8:], lo)
	return id, nil
}

// MarshalText and UnmarshalText use the text form; the zero ID is "".
func (id ID[K]) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

func (id *ID[K]) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*id = ID[K]{}
		return nil
	}
	*id, err = ParseID[K](string(b))
	return err
}

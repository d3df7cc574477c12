package crowd

import (
	"encoding/binary"
	"math"
)

// Outcome is what an attempt returned: one UnitResult per unit of the chunk, in order. Its canonical manifest (Manifest) is what is
// hashed and voted on. The contents (stdout, stderr, files) stand in the body: the manifest, then the bytes of each unit's
// stdout, files in order, and stderr. Stderr is kept for people and never votes.
type Outcome struct {
	First uint64
	Units []UnitResult
}

// UnitResult is how one unit ended. Exit is the program's exit code; Reason is set instead when a limit or trap ended it.
type UnitResult struct {
	Exit   uint32       `json:"exit"`
	Reason Reason       `json:"reason,omitempty"` // guest.trap, guest.memory, guest.output, guest.fuel; "" if it exited by itself
	Fuel   uint64       `json:"fuel"`
	Stdout ContentRef   `json:"stdout"`
	Files  []OutputFile `json:"files,omitempty"` // sorted by path
	Stderr int64        `json:"stderr_bytes"`    // length in the body; not in the manifest
}

// Failed reports whether the unit counts as failed.
func (u UnitResult) Failed() bool { return u.Exit != 0 || u.Reason != "" }

// ContentRef is the size and digest of some content; the digest of nothing is zero.
type ContentRef struct {
	Size   int64  `json:"size_bytes"`
	Digest Digest `json:"digest,omitzero"`
}

// OutputFile is a file that a unit left in /out.
type OutputFile struct {
	Path string `json:"path"`
	ContentRef
}

// Fuel is the sum over the units, saturating.
func (o *Outcome) Fuel() uint64 {
	var sum uint64
	for _, u := range o.Units {
		if sum+u.Fuel < sum {
			return math.MaxUint64
		}
		sum += u.Fuel
	}
	return sum
}

// FailedUnits counts the units that failed.
func (o *Outcome) FailedUnits() (n uint64) {
	for _, u := range o.Units {
		if u.Failed() {
			n++
		}
	}
	return n
}

// Manifest is the canonical form: equal outcomes give equal bytes and only those. Stderr lengths are not part of it.
func (o *Outcome) Manifest() []byte {
	b := append(make([]byte, 0, 16+48*len(o.Units)), "crowd outcome 1\n"...)
	b = binary.AppendUvarint(b, o.First)
	b = binary.AppendUvarint(b, uint64(len(o.Units)))
	for _, u := range o.Units {
		b = binary.AppendUvarint(b, uint64(u.Exit))
		b = appendString(b, string(u.Reason))
		b = binary.AppendUvarint(b, u.Fuel)
		b = appendContent(b, u.Stdout)
		b = binary.AppendUvarint(b, uint64(len(u.Files)))
		for _, f := range u.Files {
			b = appendString(b, f.Path)
			b = appendContent(b, f.ContentRef)
		}
	}
	return b
}

// ParseManifest reads a manifest of exactly count units from first on, from the front of b (a whole body will do), and returns what follows it. It
// accepts the canonical form only; sizes are bounded by Limits. The bytes are a stranger's.
func ParseManifest(b []byte, first, count uint64) (o *Outcome, rest []byte, err error) {
	d := &decoder{b: b}
	if string(d.take(16)) != "crowd outcome 1\n" {
		return nil, nil, Errorf(Invalid, "", "not an outcome")
	}
	if f, n := d.uvarint(), d.uvarint(); d.bad || f != first || n != count || n > Limits.UnitsPerChunk {
		return nil, nil, Errorf(Invalid, "", "outcome is for units %d+%d, wanted %d+%d", f, n, first, count)
	}
	o = &Outcome{First: first, Units: make([]UnitResult, 0, min(count, uint64(len(b)/4+1)))}
	var total int64
	for range count {
		var u UnitResult
		exit := d.uvarint()
		u.Exit = uint32(exit)
		u.Reason = Reason(d.string(40))
		u.Fuel = d.uvarint()
		u.Stdout = d.content()
		total += u.Stdout.Size
		n := d.uvarint()
		if exit > math.MaxUint32 || n > uint64(len(d.b)) {
			d.bad = true
		}
		for range n {
			if d.bad {
				break
			}
			f := OutputFile{Path: d.string(Limits.PathBytes), ContentRef: d.content()}
			if k := len(u.Files); k > 0 && u.Files[k-1].Path >= f.Path {
				d.bad = true
			}
			total += f.Size
			u.Files = append(u.Files, f)
		}
		if d.bad || total > Limits.OutcomeBytes {
			return nil, nil, Errorf(Invalid, "", "outcome: unit %d is malformed or too large", first+uint64(len(o.Units)))
		}
		switch u.Reason {
		case "", GuestTrap, GuestMemory, GuestOutput, GuestFuel:
		default:
			return nil, nil, Errorf(Invalid, "", "outcome: %q is no end of a unit", u.Reason)
		}
		o.Units = append(o.Units, u)
	}
	return o, d.b, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendContent(b []byte, c ContentRef) []byte {
	b = binary.AppendUvarint(b, uint64(c.Size))
	if c.Size > 0 {
		b = append(b, c.Digest[:]...)
	}
	return b
}

// decoder reads canonical bytes with a sticky error.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // a trailing zero byte would be a second spelling
		d.bad = true
		return 0
	}
	d.take(n)
	return v
}

func (d *decoder) string(most int) string {
	n := d.uvarint()
	if n > uint64(most) {
		d.bad = true
		return ""
	}
	return string(d.take(int(n)))
}

func (d *decoder) content() (c ContentRef) {
	n := d.uvarint()
	if n > uint64(Limits.OutcomeBytes) {
		d.bad = true
		return c
	}
	c.Size = int64(n)
	if n > 0 {
		copy(c.Digest[:], d.take(len(c.Digest)))
	}
	return c
}

// UnitContent is what a unit left behind, in the order of its UnitResult.
type UnitContent struct {
	Stdout []byte
	Files  [][]byte // as UnitResult.Files
	Stderr []byte
}

// Body is the manifest followed, per unit, by its stdout, its files and its stderr with its length before it.
func (o *Outcome) Body(contents []UnitContent) []byte {
	b := o.Manifest()
	for _, c := range contents {
		b = append(b, c.Stdout...)
		for _, f := range c.Files {
			b = append(b, f...)
		}
		b = binary.AppendUvarint(b, uint64(len(c.Stderr)))
		b = append(b, c.Stderr...)
	}
	return b
}

// ParseBody takes a body apart; the contents alias b. It checks sizes, not the contents' digests. The bytes are a stranger's.
func ParseBody(b []byte, first, count uint64) (*Outcome, []UnitContent, error) {
	o, rest, err := ParseManifest(b, first, count)
	if err != nil {
		return nil, nil, err
	}
	d := &decoder{b: rest}
	contents := make([]UnitContent, len(o.Units))
	for i := range o.Units {
		u, c := &o.Units[i], &contents[i]
		c.Stdout = d.take(int(u.Stdout.Size))
		for _, f := range u.Files {
			c.Files = append(c.Files, d.take(int(f.Size)))
		}
		u.Stderr = int64(d.uvarint())
		if u.Stderr < 0 || u.Stderr > Limits.StdioBytes {
			d.bad = true
		}
		c.Stderr = d.take(int(u.Stderr))
	}
	if d.bad || len(d.b) > 0 {
		return nil, nil, Errorf(Invalid, "", "outcome: the body's contents don't match its manifest")
	}
	return o, contents, nil
}

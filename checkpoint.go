package crowd

import (
	"encoding/binary"
	"fmt"
	"time"
)

// CheckpointEvery is how often a unit's /state leaves its host; 0: never. Such a unit is leased by itself, and goes on at its next host from the
// newest checkpoint that was accepted. How much it burns then depends on where it was interrupted: the fuel of its manifest is 0, and what it is
// paid for is the middle of what those who agree reported, bounded by the time they took.
func (s *JobSpec) CheckpointEvery() time.Duration {
	d, _ := s.checkpointEvery()
	return d
}

func (s *JobSpec) checkpointEvery() (time.Duration, error) {
	if s.Checkpoint == "" || s.Checkpoint == "never" {
		return 0, nil
	}
	d, err := ParseSpan(s.Checkpoint)
	if err != nil || d < time.Second || d > 24*time.Hour {
		return 0, fmt.Errorf("wanted never, or a span from 1s to 24h, found %s", found(s.Checkpoint))
	}
	return d, nil
}

// Checkpoint is what a unit of a job with checkpoints leaves for its next start: its /state as it was at one instant, as a disk would be after a
// power cut (a program that replaces files writes another name and renames), and where its clocks and its random numbers stood, so
// that no time or number comes twice. Its canonical form (Bytes) is named by its digest, the root.
type Checkpoint struct {
	Fuel  uint64 // burnt by the unit so far, over all its lives
	Slept uint64 // ns
	Drawn uint64 // random bytes taken
	Files []StateFile
}

// StateFile is a file or folder below /state; folders come before what is in them.
type StateFile struct {
	Path string // slash-separated, relative to /state
	Dir  bool
	Data []byte
}

const checkpointMagic = "crowd checkpoint 1\n"

// Bytes is the canonical form. Files must be sorted by path.
func (c *Checkpoint) Bytes() []byte {
	b := []byte(checkpointMagic)
	for _, v := range []uint64{c.Fuel, c.Slept, c.Drawn, uint64(len(c.Files))} {
		b = binary.AppendUvarint(b, v)
	}
	for _, f := range c.Files {
		b = appendString(b, f.Path)
		if f.Dir {
			b = append(b, 1)
			continue
		}
		b = append(b, 0)
		b = appendString(b, string(f.Data))
	}
	return b
}

// CheckpointFuel reads the fuel at the front of a checkpoint, of which 64 bytes are enough.
func CheckpointFuel(b []byte) (uint64, bool) {
	d := &decoder{b: b}
	magic := string(d.take(len(checkpointMagic)))
	fuel := d.uvarint()
	return fuel, !d.bad && magic == checkpointMagic
}

// ParseCheckpoint reads the canonical form and nothing else; the bytes are a stranger's. Data aliases b.
func ParseCheckpoint(b []byte) (*Checkpoint, error) {
	bad := Errorf(Invalid, "", "not a checkpoint, or a damaged one")
	if int64(len(b)) > Limits.StateBytes {
		return nil, Errorf(Invalid, "", "a checkpoint of %d bytes, at most %d are taken", len(b), Limits.StateBytes)
	}
	d := &decoder{b: b}
	if string(d.take(len(checkpointMagic))) != checkpointMagic {
		return nil, bad
	}
	c := &Checkpoint{Fuel: d.uvarint(), Slept: d.uvarint(), Drawn: d.uvarint()}
	n := d.uvarint()
	if d.bad || n > uint64(len(d.b)) {
		return nil, bad
	}
	dirs := map[string]bool{"": true}
	for range n {
		f := StateFile{Path: d.string(Limits.PathBytes)}
		kind := d.take(1)
		if d.bad || kind[0] > 1 {
			return nil, bad
		}
		if k := len(c.Files); k > 0 && c.Files[k-1].Path >= f.Path {
			return nil, bad
		}
		if clean, err := CleanName(f.Path); err != nil || clean != f.Path || !dirs[parentOf(f.Path)] {
			return nil, bad
		}
		if f.Dir = kind[0] == 1; f.Dir {
			dirs[f.Path] = true
		} else {
			size := d.uvarint()
			if d.bad || size > uint64(len(d.b)) {
				return nil, bad
			}
			f.Data = d.take(int(size))
		}
		c.Files = append(c.Files, f)
	}
	if d.bad || len(d.b) > 0 {
		return nil, bad
	}
	return c, nil
}

func parentOf(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i]
		}
	}
	return ""
}

package wasm

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/crowdcloud/crowd"
)

// Parent and child talk in frames over the child's stdin and stdout: a type, the length of the payload (4 bytes, big
// endian), the payload. Either side refuses a longer frame than it expects, and reads a payload as it comes, never by
// the word of its length.
type frameType byte

// Frames to the child.
const (
	toTask   frameType = 'T' // JSON wireTask: load this program
	toUnit   frameType = 'U' // JSON crowd.Plan, sizes of inputs as they are: run it
	toState  frameType = 'S' // a piece of the state that the next unit begins with
	toBlob   frameType = 'B' // the bytes asked for
	toFreeze frameType = 'F' // stop at the next poll and say so
	toThaw   frameType = 'G'
	toDuty   frameType = 'D' // share of the time to run, in thousandths, 2 bytes
)

// Frames to the parent.
const (
	fromLayers  frameType = 'l' // layers of the cage; the child is ready for work
	fromReady   frameType = 'r' // the program is loaded
	fromFailed  frameType = 'e' // a text: the child can't go on
	fromRefuse  frameType = 'v' // the program itself is at fault: what, hint
	fromBlob    frameType = 'b' // digest, offset, length: wants these bytes
	fromState   frameType = 's' // a piece of a checkpoint
	fromSaved   frameType = 'k' // its end: its length, the fuel so far
	fromUnsaved frameType = 'n' // a text: why /state can't be kept as it is
	fromUnit    frameType = 'u' // how a unit ended, its contents follow
	fromData    frameType = 'd' // a piece of contents
	fromAlive   frameType = 'h' // running on
	fromFrozen  frameType = 'a' // stopped as asked
	fromReport  frameType = 'p' // JSON wasmprep.Report: a program was prepared
)

const (
	maxToChild  = 4 << 20   // a plan of the largest spec
	maxToParent = 256 << 10 // layers, a unit's head, a piece of contents
	dataPiece   = 128 << 10
	statePiece  = 1 << 20  // to the child
	blockSize   = 64 << 10 // of inputs in the child's memory
	maxAsk      = 4 * blockSize
	frameHead   = 5
)

func appendFrame(b []byte, t frameType, payload []byte) []byte {
	b = append(b, byte(t))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// readFrame reads one frame; its payload is the caller's.
func readFrame(r io.Reader, most int) (frameType, []byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > uint32(most) {
		return 0, nil, fmt.Errorf("a frame of %d bytes, at most %d are allowed", n, most)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return 0, nil, fmt.Errorf("a frame broke off: %w", io.ErrUnexpectedEOF)
	}
	return frameType(head[0]), p, nil
}

// wireTask is what a child must know before its first unit.
type wireTask struct {
	Entry     string        `json:"entry"` // folder of the program's cache entry
	Keep      []string      `json:"keep,omitempty"`
	Memory    int64         `json:"memory"`
	Output    int64         `json:"output"`
	Disk      int64         `json:"disk"`
	Fuel      uint64        `json:"fuel"`
	Every     time.Duration `json:"every_ns,omitempty"`  // between checkpoints; 0: none
	Interpret bool          `json:"interpret,omitempty"` // for tests: even where there is a compiler
}

// head is how a unit ended, without its contents. Digests are the parent's to compute.
type head struct {
	Exit   uint32
	Reason crowd.Reason
	Fuel   uint64
	Stdout int64
	Stderr int64
	Files  []fileHead
}

type fileHead struct {
	Path string
	Size int64
}

func (h *head) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(h.Exit))
	b = appendText(b, string(h.Reason))
	b = binary.AppendUvarint(b, h.Fuel)
	b = binary.AppendUvarint(b, uint64(h.Stdout))
	b = binary.AppendUvarint(b, uint64(h.Stderr))
	b = binary.AppendUvarint(b, uint64(len(h.Files)))
	for _, f := range h.Files {
		b = appendText(b, f.Path)
		b = binary.AppendUvarint(b, uint64(f.Size))
	}
	return b
}

// parseHead reads the words of a child, which may lie; most bounds the sum of the sizes.
func parseHead(b []byte, most int64) (*head, error) {
	d := decoder{b: b}
	h := &head{}
	exit := d.uvarint()
	h.Exit, h.Reason, h.Fuel = uint32(exit), crowd.Reason(d.text(40)), d.uvarint()
	total := int64(0)
	size := func(most int64) int64 {
		n := d.uvarint()
		if n > uint64(most) {
			d.bad = true
			return 0
		}
		return int64(n)
	}
	h.Stdout = size(most)
	h.Stderr = size(stderrCap)
	total = h.Stdout
	n := d.uvarint()
	if exit > math.MaxUint32 || n > maxNodes {
		d.bad = true
	}
	last := ""
	for i := uint64(0); i < n && !d.bad; i++ {
		f := fileHead{Path: d.text(uint64(crowd.Limits.PathBytes)), Size: size(most)}
		total += f.Size
		if f.Path <= last || checkName(f.Path) != nil || total > most {
			d.bad = true
		}
		last = f.Path
		h.Files = append(h.Files, f)
	}
	switch h.Reason {
	case "", crowd.GuestTrap, crowd.GuestMemory, crowd.GuestOutput, crowd.GuestFuel:
	default:
		d.bad = true
	}
	if d.bad || len(d.b) > 0 || h.Reason != "" && (h.Exit != 0 || len(h.Files) > 0) {
		return nil, fmt.Errorf("the end of a unit is malformed")
	}
	return h, nil
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder reads with a sticky error.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) text(most uint64) string { return string(d.bytes(most)) }

func (d *decoder) bytes(most uint64) []byte {
	n := d.uvarint()
	if d.bad || n > most || n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

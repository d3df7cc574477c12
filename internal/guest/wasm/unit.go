package wasm

import (
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/tetratelabs/wazero/sys"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/wasmprep"
)

// epoch is when every unit's clock starts: 2020-01-01T00:00:00Z, in ns since 1970.
const epoch = 1577836800e9

const stderrCap = 64 << 10

const stderrNote = "\n[stderr cut off here: it is kept up to 64 KiB]\n"

// The price of a call to the host, in fuel: hostBase and hostByte bytes read or written for one; random numbers and
// folders cost more.
const (
	hostBase   = 100
	hostByte   = 16
	randomByte = 2 // a byte
	nodeLooked = 20
)

// unit is one run of a program: everything that it can see and change, besides its linear memory. All of it is decided
// by the plan and the limits, none of it by the host.
//
// Clock: real time starts at epoch, monotonic time at 0; both advance by a nanosecond per unit of fuel and by the whole
// of every sleep, which takes no time. Random numbers: the concatenation of SHA-256(seed, n as 8 bytes big endian) for
// n = 0, 1, 2…, taken in order without gaps. Stdin is empty. /in holds the inputs and can't be changed, /out and /state
// start empty, there is nothing else. Folders are listed sorted by name. A unit that begins with a checkpoint finds that in /state;
// its fuel, clock and random numbers go on from there.
type unit struct {
	Plan   crowd.Plan
	Task   wireTask
	FS     *vfs
	Files  []*file // by descriptor
	Base   uint64  // fuel burnt in earlier lives
	Slept  uint64  // ns
	Drawn  uint64  // random bytes taken
	Stdout []byte
	Stderr []byte
	Cut    bool // stderr was longer
	Meter  wasmprep.Meter
	End    *ending // set once it can't go on
	Denied bool    // memory was refused because of the limit

	fuel   global            // the module's counter
	blobs  func(i int) blob  // content of input i
	breath func()            // lets whoever waits for a poll have it
	random [sha256.Size]byte // block of the stream that Drawn is in
}

// global is the module's fuel counter.
type global interface {
	Get() uint64
	Set(uint64)
}

// blob is the content of an input. It doesn't fail: an unreadable input ends the attempt.
type blob interface {
	readAt(p []byte, off int64)
}

// ending is why a unit ended before its program returned.
type ending struct {
	Exit   uint32
	Reason crowd.Reason
	Host   string // the host's own failure
}

// file is an open descriptor.
type file struct {
	Kind    fileKind
	Node    uint32
	Pos     int64
	Read    bool
	Write   bool
	Flags   uint16
	Base    uint64 // rights, kept only to be told
	Inherit uint64
	Preopen string
	Names   []string // of a folder, as it was when the listing began
}

type fileKind uint8

const (
	kindNode fileKind = iota
	kindStdin
	kindStdout
	kindStderr
)

func newUnit(p crowd.Plan, t wireTask, slice int64) (*unit, bool) {
	fs, ok := newVFS(p.Inputs)
	if !ok {
		return nil, false
	}
	u := &unit{Plan: p, Task: t, FS: fs, breath: func() {}}
	u.Meter = wasmprep.Meter{Limit: 1 << 62, Slice: slice}
	if t.Fuel > 0 {
		u.Meter.Limit = int64(min(t.Fuel, 1<<62))
	}
	u.Files = []*file{
		{Kind: kindStdin, Read: true, Base: rightsAll},
		{Kind: kindStdout, Write: true, Base: rightsAll},
		{Kind: kindStderr, Write: true, Base: rightsAll},
	}
	for i, name := range []string{"/", "/in", "/out", "/state"} {
		n := fs.Nodes[uint32(i+rootNode)]
		n.Opened++
		u.Files = append(u.Files, &file{Node: n.Num, Base: rightsAll, Inherit: rightsAll, Preopen: name})
	}
	return u, true
}

// stop ends the unit from within a call to the host.
func (u *unit) stop(e ending) {
	if u.End == nil {
		u.End = &e
	}
	panic(sys.NewExitError(u.End.Exit))
}

// poll is what the module calls when its counter is used up.
func (u *unit) poll() {
	refill, ok := u.Meter.Poll(int64(u.fuel.Get()))
	if !ok {
		u.stop(ending{Reason: crowd.GuestFuel})
	}
	u.fuel.Set(uint64(refill))
	u.breath()
}

// charge takes fuel for work of the host's.
func (u *unit) charge(n uint64) {
	g := int64(u.fuel.Get()) - int64(min(n, 1<<40))
	u.fuel.Set(uint64(g))
	if u.Meter.Spent(g) > u.Meter.Limit {
		u.stop(ending{Reason: crowd.GuestFuel})
	}
}

// spent is the fuel used, at most the limit.
func (u *unit) spent() uint64 {
	if u.fuel == nil {
		return u.Base
	}
	return u.Base + uint64(min(u.Meter.Spent(int64(u.fuel.Get())), u.Meter.Limit))
}

// monotonic is the unit's time in ns.
func (u *unit) monotonic() uint64 {
	t := u.spent() + u.Slept
	if t < u.Slept {
		return math.MaxUint64
	}
	return t
}

// now is the unit's real time.
func (u *unit) now() uint64 {
	t := u.monotonic()
	if t > math.MaxUint64-epoch {
		return math.MaxUint64
	}
	return epoch + t
}

func (u *unit) sleep(ns uint64) {
	if u.Slept+ns < u.Slept {
		u.Slept = math.MaxUint64
		return
	}
	u.Slept += ns
}

// draw fills p with the next random bytes.
func (u *unit) draw(p []byte) {
	for len(p) > 0 {
		in := u.Drawn % sha256.Size
		if in == 0 {
			u.block()
			if u.Drawn%(1<<20) == 0 {
				u.breath()
			}
		}
		n := copy(p, u.random[in:])
		u.Drawn += uint64(n)
		p = p[n:]
	}
}

// block makes the block of the stream that Drawn is in.
func (u *unit) block() {
	b := append(make([]byte, 0, 40), u.Plan.Seed[:]...)
	u.random = sha256.Sum256(binary.BigEndian.AppendUint64(b, u.Drawn/sha256.Size))
}

// room ends the unit if its files or output come to more than its limits with more bytes in t, or on stdout.
func (u *unit) room(t tree, stdout bool, more int64) {
	out, disk := int64(len(u.Stdout))+u.FS.Out, u.FS.Disk
	if stdout || t == treeOut {
		out += more
	}
	if !stdout {
		disk += more
	}
	if more > 0 && (out < 0 || disk < 0 || (stdout || t == treeOut) && out > u.Task.Output || !stdout && disk > u.Task.Disk) {
		u.stop(ending{Reason: crowd.GuestOutput})
	}
}

// resize gives a file in memory another size.
func (u *unit) resize(n *node, size int64) {
	u.room(n.Tree, false, size-n.Size)
	u.FS.account(n.Tree, size-n.Size)
	u.FS.touch(n.Tree)
	if size < n.Size {
		n.cut(size)
	}
	n.Size = size
}

func (u *unit) say(p []byte) {
	if u.Cut {
		return
	}
	if room := stderrCap - len(stderrNote) - len(u.Stderr); len(p) > room {
		u.Stderr = append(append(u.Stderr, p[:room]...), stderrNote...)
		u.Cut = true
		return
	}
	u.Stderr = append(u.Stderr, p...)
}

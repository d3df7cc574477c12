package wasm

import (
	"encoding/binary"
	"math"
)

// Rights as far as they mean something here; whatever a program asks for it is told to have.
const (
	rightRead  = 1 << 1
	rightWrite = 1 << 6
	rightsAll  = 1<<30 - 1
)

const (
	flagAppend = 1 << 0

	typeChar = 2
	typeDir  = 3
	typeFile = 4
)

func (u *unit) file(fd uint32) *file {
	if uint64(fd) >= uint64(len(u.Files)) {
		return nil
	}
	return u.Files[fd]
}

// open puts f at the lowest free descriptor.
func (u *unit) open(f *file) (uint32, errno) {
	for fd, old := range u.Files {
		if old == nil {
			u.Files[fd] = f
			return uint32(fd), 0
		}
	}
	if len(u.Files) >= maxOpen {
		return 0, errMfile
	}
	u.Files = append(u.Files, f)
	return uint32(len(u.Files) - 1), 0
}

func (u *unit) close(fd uint32) {
	f := u.Files[fd]
	u.Files[fd] = nil
	if n := u.node(f); n != nil {
		n.Opened--
		u.FS.drop(n)
	}
}

// node is what f is open on; nil for the standard streams.
func (u *unit) node(f *file) *node {
	if f == nil || f.Kind != kindNode {
		return nil
	}
	return u.FS.Nodes[f.Node]
}

// opened gives argument i's descriptor.
func (c *call) opened(i int) (*file, *node, errno) {
	f := c.u.file(c.u32(i))
	if f == nil {
		return nil, nil, errBadf
	}
	return f, c.u.node(f), 0
}

// regular gives argument i's descriptor if it is of a file, open for writing if so wanted.
func (c *call) regular(i int, write bool) (*file, *node, errno) {
	f, n, e := c.opened(i)
	switch {
	case e != 0:
		return nil, nil, e
	case n == nil:
		return nil, nil, errSpipe
	case n.Dir:
		return nil, nil, errIsdir
	case write && !f.Write:
		return nil, nil, errBadf
	}
	return f, n, 0
}

func (c *call) fdAdvise() errno {
	_, _, e := c.regular(0, false)
	return e
}

func (c *call) fdAllocate() errno {
	_, n, e := c.regular(0, true)
	if e != 0 {
		return e
	}
	end := c.a[1] + c.a[2]
	if c.a[2] == 0 {
		return errInval
	}
	if end < c.a[1] || end > math.MaxInt64 {
		return errFbig
	}
	if int64(end) > n.Size {
		c.u.resize(n, int64(end))
	}
	return 0
}

func (c *call) fdClose() errno {
	if _, _, e := c.opened(0); e != 0 {
		return e
	}
	c.u.close(c.u32(0))
	return 0
}

func (c *call) fdSync() errno {
	_, _, e := c.opened(0)
	return e
}

func (u *unit) typeOf(n *node) byte {
	switch {
	case n == nil:
		return typeChar
	case n.Dir:
		return typeDir
	}
	return typeFile
}

// fdStat tells standard streams to be character devices that can seek, which a C library takes for no terminal.
func (c *call) fdStat() errno {
	f, n, e := c.opened(0)
	if e != 0 {
		return e
	}
	p, ok := c.at(c.u32(1), 24)
	if !ok {
		return errFault
	}
	clear(p)
	p[0] = c.u.typeOf(n)
	binary.LittleEndian.PutUint16(p[2:], f.Flags)
	binary.LittleEndian.PutUint64(p[8:], f.Base)
	binary.LittleEndian.PutUint64(p[16:], f.Inherit)
	return 0
}

func (c *call) fdSetFlags() errno {
	f, _, e := c.opened(0)
	if e == 0 {
		f.Flags = uint16(c.a[1]) & 0x1f
	}
	return e
}

func (c *call) fdSetRights() errno {
	f, _, e := c.opened(0)
	if e != 0 {
		return e
	}
	if c.a[1]&^f.Base != 0 || c.a[2]&^f.Inherit != 0 {
		return errNotcapable
	}
	f.Base, f.Inherit = c.a[1], c.a[2]
	f.Read = f.Read && f.Base&rightRead != 0
	f.Write = f.Write && f.Base&rightWrite != 0
	return 0
}

func (c *call) fdFilestat() errno {
	_, n, e := c.opened(0)
	if e != 0 {
		return e
	}
	return c.putFilestat(1, n)
}

func (c *call) putFilestat(i int, n *node) errno {
	p, ok := c.at(c.u32(i), 64)
	if !ok {
		return errFault
	}
	clear(p)
	p[16] = c.u.typeOf(n)
	p[24] = 1
	if n == nil {
		return 0
	}
	p[0] = 1
	binary.LittleEndian.PutUint64(p[8:], uint64(n.Num))
	for i, v := range [4]uint64{uint64(n.Size), n.Access, n.Modify, n.Change} {
		binary.LittleEndian.PutUint64(p[32+8*i:], v)
	}
	return 0
}

func (c *call) fdSetSize() errno {
	_, n, e := c.regular(0, true)
	if e != 0 {
		return e
	}
	if c.a[1] > math.MaxInt64 {
		return errFbig
	}
	c.u.resize(n, int64(c.a[1]))
	n.Modify, n.Change = c.u.now(), c.u.now()
	return 0
}

func (c *call) fdSetTimes() errno {
	_, n, e := c.opened(0)
	if e != 0 || n == nil {
		return e
	}
	return c.setTimes(n, 1)
}

// setTimes sets access and modification time by arguments i, i+1 and the flags i+2.
func (c *call) setTimes(n *node, i int) errno {
	access, accessNow, modify, modifyNow := c.a[i+2]&1 != 0, c.a[i+2]&2 != 0, c.a[i+2]&4 != 0, c.a[i+2]&8 != 0
	if access && accessNow || modify && modifyNow {
		return errInval
	}
	if !n.Tree.writable() {
		return errRofs
	}
	now := c.u.now()
	switch {
	case access:
		n.Access = c.a[i]
	case accessNow:
		n.Access = now
	}
	switch {
	case modify:
		n.Modify = c.a[i+1]
	case modifyNow:
		n.Modify = now
	}
	n.Change = now
	return 0
}

func (c *call) fdPrestat() errno {
	f, _, e := c.opened(0)
	if e != 0 || f.Preopen == "" {
		return errBadf
	}
	return c.put64(1, uint64(len(f.Preopen))<<32)
}

func (c *call) fdPrestatName() errno {
	f, _, e := c.opened(0)
	if e != 0 || f.Preopen == "" {
		return errBadf
	}
	if uint64(c.u32(2)) < uint64(len(f.Preopen)) {
		return errNametoolong
	}
	p, ok := c.at(c.u32(1), uint64(len(f.Preopen)))
	if !ok {
		return errFault
	}
	copy(p, f.Preopen)
	return 0
}

// fdReaddir writes entries from a cookie on, the last one cut off if there is no more room. The listing is as the
// folder was when the reading began.
func (c *call) fdReaddir() errno {
	f, n, e := c.opened(0)
	switch {
	case e != 0:
		return e
	case n == nil || !n.Dir:
		return errNotdir
	}
	buf, ok := c.at(c.u32(1), uint64(c.u32(2)))
	if !ok {
		return errFault
	}
	if _, ok := c.at(c.u32(4), 4); !ok {
		return errFault
	}
	if c.a[3] == 0 || f.Names == nil {
		c.u.charge(uint64(len(n.Names)) * nodeLooked)
		f.Names = append([]string{".", ".."}, n.sorted()...)
	}
	used := 0
	for i := c.a[3]; i < uint64(len(f.Names)) && used < len(buf); i++ {
		name := f.Names[i]
		num := n.Names[name]
		switch i {
		case 0:
			num = n.Num
		case 1:
			num = n.Parent
		}
		entry := c.u.FS.Nodes[num]
		if entry == nil {
			continue // removed meanwhile
		}
		d := make([]byte, 24, 24+len(name))
		binary.LittleEndian.PutUint64(d, i+1)
		binary.LittleEndian.PutUint64(d[8:], uint64(num))
		binary.LittleEndian.PutUint32(d[16:], uint32(len(name)))
		d[20] = c.u.typeOf(entry)
		used += copy(buf[used:], append(d, name...))
	}
	c.u.charge(uint64(used) / hostByte)
	return c.put32(4, uint32(used))
}

func (c *call) fdRenumber() errno {
	from, _, e := c.opened(0)
	if e != 0 {
		return e
	}
	if _, _, e := c.opened(1); e != 0 {
		return e
	}
	if c.u32(0) == c.u32(1) {
		return 0
	}
	c.u.close(c.u32(1))
	c.u.Files[c.u32(1)] = from
	c.u.Files[c.u32(0)] = nil
	return 0
}

func (c *call) fdSeek() errno {
	f, n, e := c.opened(0)
	switch {
	case e != 0:
		return e
	case n == nil:
		return errSpipe
	case n.Dir:
		return errBadf
	}
	if _, ok := c.at(c.u32(3), 8); !ok {
		return errFault
	}
	base := int64(0)
	switch c.u32(2) {
	case 0:
	case 1:
		base = f.Pos
	case 2:
		base = n.Size
	default:
		return errInval
	}
	by := int64(c.a[1])
	if by > 0 && base > math.MaxInt64-by || base+by < 0 {
		return errInval
	}
	f.Pos = base + by
	return c.put64(3, uint64(f.Pos))
}

func (c *call) fdTell() errno {
	f, _, e := c.regular(0, false)
	if e != 0 {
		return e
	}
	return c.put64(1, uint64(f.Pos))
}

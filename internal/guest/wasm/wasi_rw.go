package wasm

import "math"

func (c *call) fdRead() errno {
	f, n, e := c.opened(0)
	if e != 0 {
		return e
	}
	list, total, e := c.slices(1)
	if e != 0 {
		return e
	}
	if _, ok := c.at(c.u32(3), 4); !ok {
		return errFault
	}
	got, e := c.read(f, n, list, total, f.Pos)
	if e != 0 {
		return e
	}
	f.Pos += int64(got)
	return c.put32(3, got)
}

func (c *call) fdPread() errno {
	f, n, e := c.regular(0, false)
	if e != 0 {
		return e
	}
	list, total, e := c.slices(1)
	if e != 0 {
		return e
	}
	if _, ok := c.at(c.u32(4), 4); !ok {
		return errFault
	}
	if c.a[3] > math.MaxInt64 {
		return errInval
	}
	got, e := c.read(f, n, list, total, int64(c.a[3]))
	if e != 0 {
		return e
	}
	return c.put32(4, got)
}

// read fills the buffers in turn from off on, up to the end of the file.
func (c *call) read(f *file, n *node, list [][]byte, total uint64, off int64) (uint32, errno) {
	switch {
	case !f.Read && (n == nil || !n.Dir):
		return 0, errBadf
	case n == nil: // stdin
		return 0, 0
	case n.Dir:
		return 0, errIsdir
	}
	left := max(0, n.Size-off)
	c.u.charge(min(total, uint64(left)) / hostByte)
	got := uint32(0)
	for _, p := range list {
		p = p[:min(int64(len(p)), left)]
		if n.Blob >= 0 {
			c.readBlob(n, p, off)
		} else {
			n.readAt(p, off)
		}
		got, off, left = got+uint32(len(p)), off+int64(len(p)), left-int64(len(p))
	}
	return got, 0
}

func (c *call) readBlob(n *node, p []byte, off int64) {
	b := c.u.blobs(n.Blob)
	for len(p) > 0 {
		part := p[:min(len(p), blockSize-int(off%blockSize))]
		b.readAt(part, off)
		p, off = p[len(part):], off+int64(len(part))
		c.u.breath()
	}
}

func (c *call) fdWrite() errno {
	f, n, e := c.opened(0)
	if e != 0 {
		return e
	}
	list, total, e := c.slices(1)
	if e != 0 {
		return e
	}
	if _, ok := c.at(c.u32(3), 4); !ok {
		return errFault
	}
	if n != nil && f.Flags&flagAppend != 0 {
		f.Pos = n.Size
	}
	if e := c.write(f, n, list, total, f.Pos); e != 0 {
		return e
	}
	f.Pos += int64(total)
	return c.put32(3, uint32(total))
}

func (c *call) fdPwrite() errno {
	f, n, e := c.regular(0, true)
	if e != 0 {
		return e
	}
	list, total, e := c.slices(1)
	if e != 0 {
		return e
	}
	if _, ok := c.at(c.u32(4), 4); !ok {
		return errFault
	}
	if c.a[3] > math.MaxInt64 {
		return errInval
	}
	if e := c.write(f, n, list, total, int64(c.a[3])); e != 0 {
		return e
	}
	return c.put32(4, uint32(total))
}

// write stores all the buffers, or ends the unit if they go beyond its limits.
func (c *call) write(f *file, n *node, list [][]byte, total uint64, off int64) errno {
	u := c.u
	switch {
	case n != nil && n.Dir:
		return errIsdir
	case !f.Write:
		return errBadf
	case off > math.MaxInt64-int64(total):
		return errFbig
	}
	u.charge(total / hostByte)
	switch f.Kind {
	case kindStdout:
		u.room(treeRoot, true, int64(total))
		for _, p := range list {
			u.Stdout = append(u.Stdout, p...)
		}
		return 0
	case kindStderr:
		for _, p := range list {
			u.say(p)
		}
		return 0
	}
	if total == 0 {
		return 0
	}
	if end := off + int64(total); end > n.Size {
		u.resize(n, end)
	}
	for _, p := range list {
		n.writeAt(p, off)
		off += int64(len(p))
	}
	n.Modify, n.Change = u.now(), u.now()
	u.FS.touch(n.Tree)
	return 0
}

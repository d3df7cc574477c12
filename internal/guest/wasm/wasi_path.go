package wasm

// folder gives the folder of descriptor argument i.
func (c *call) folder(i int) (*file, *node, errno) {
	f, n, e := c.opened(i)
	switch {
	case e != 0:
		return nil, nil, e
	case n == nil || !n.Dir:
		return nil, nil, errNotdir
	}
	return f, n, 0
}

// walk follows the path whose pointer and length are arguments p and p+1, from the folder of descriptor argument fd.
func (c *call) walk(fd, p int) (found, errno) {
	_, dir, e := c.folder(fd)
	if e != 0 {
		return found{}, e
	}
	text, e := c.text(p)
	if e != 0 {
		return found{}, e
	}
	return c.u.FS.walk(dir, text)
}

// existing is walk to something that must be there.
func (c *call) existing(fd, p int) (found, errno) {
	at, e := c.walk(fd, p)
	switch {
	case e != 0:
		return at, e
	case at.node == nil:
		return at, errNoent
	case at.must && !at.node.Dir:
		return at, errNotdir
	}
	return at, 0
}

// work pays for what the file system looked at.
func (c *call) work() {
	n := c.u.FS.Work
	c.u.FS.Work = 0
	c.u.charge(uint64(n) * nodeLooked)
}

func (c *call) pathCreateDirectory() errno {
	at, e := c.walk(0, 1)
	switch {
	case e != 0:
		return e
	case at.node != nil:
		return errExist
	}
	_, e = c.u.FS.create(at, true, c.u.now())
	c.work()
	return e
}

func (c *call) pathFilestat() errno {
	at, e := c.existing(0, 2)
	if e != 0 {
		return e
	}
	return c.putFilestat(4, at.node)
}

func (c *call) pathSetTimes() errno {
	at, e := c.existing(0, 2)
	if e != 0 {
		return e
	}
	return c.setTimes(at.node, 4)
}

func (c *call) pathReadlink() errno {
	if _, e := c.existing(0, 1); e != 0 {
		return e
	}
	return errInval // nothing is a link
}

func (c *call) pathOpen() errno {
	const create, directory, exclusive, truncate = 1, 2, 4, 8
	u, oflags := c.u, c.u32(4)
	at, e := c.walk(0, 2)
	if e != 0 {
		return e
	}
	if _, ok := c.at(c.u32(8), 4); !ok {
		return errFault
	}
	f := &file{Base: c.a[5] & rightsAll, Inherit: c.a[6] & rightsAll, Flags: uint16(c.a[7]) & 0x1f}
	n := at.node
	switch {
	case n == nil && oflags&create == 0:
		return errNoent
	case n == nil && (oflags&directory != 0 || at.must):
		return errInval
	case n != nil && oflags&create != 0 && oflags&exclusive != 0:
		return errExist
	case n != nil && !n.Dir && (oflags&directory != 0 || at.must):
		return errNotdir
	case n != nil && n.Dir && oflags&truncate != 0:
		return errIsdir
	case n != nil && n.Dir && oflags&create != 0 && f.Base&rightWrite != 0:
		return errIsdir
	case n != nil && !n.Dir && !n.Tree.writable() && (f.Base&rightWrite != 0 || oflags&truncate != 0):
		return errRofs
	}
	if u.full() {
		return errMfile
	}
	if n == nil {
		n, e = u.FS.create(at, false, u.now())
		c.work()
		if e != 0 {
			return e
		}
	} else if oflags&truncate != 0 {
		u.resize(n, 0)
		n.Modify, n.Change = u.now(), u.now()
	}
	f.Node = n.Num
	if !n.Dir {
		f.Read, f.Write = f.Base&rightRead != 0, f.Base&rightWrite != 0
	}
	n.Opened++
	fd, _ := u.open(f)
	return c.put32(8, fd)
}

// full tells whether no descriptor is free.
func (u *unit) full() bool {
	if len(u.Files) < maxOpen {
		return false
	}
	for _, f := range u.Files {
		if f == nil {
			return false
		}
	}
	return true
}

func (c *call) pathRemoveDirectory() errno {
	at, e := c.existing(0, 1)
	switch {
	case e != 0:
		return e
	case !at.node.Dir:
		return errNotdir
	case at.name == ".":
		return errInval
	case !at.dir.Tree.writable():
		return errRofs
	case len(at.node.Names) > 0:
		return errNotempty
	}
	c.u.FS.unlink(at, c.u.now())
	return 0
}

func (c *call) pathUnlink() errno {
	at, e := c.existing(0, 1)
	switch {
	case e != 0:
		return e
	case at.node.Dir:
		return errIsdir
	case !at.dir.Tree.writable():
		return errRofs
	}
	c.u.FS.unlink(at, c.u.now())
	return 0
}

func (c *call) pathRename() errno {
	old, e := c.walk(0, 1)
	if e != 0 {
		return e
	}
	to, e := c.walk(3, 4)
	if e != 0 {
		return e
	}
	e = c.u.FS.rename(old, to, c.u.now())
	c.work()
	return e
}

package wasm

import "encoding/binary"

// errno is a WASI preview 1 error number.
type errno uint32

const (
	errBadf        errno = 8
	errBusy        errno = 10
	errExist       errno = 20
	errFault       errno = 21
	errFbig        errno = 22
	errIlseq       errno = 25
	errInval       errno = 28
	errIsdir       errno = 31
	errMfile       errno = 33
	errNametoolong errno = 37
	errNoent       errno = 44
	errNospc       errno = 51
	errNotdir      errno = 54
	errNotempty    errno = 55
	errNotsup      errno = 58
	errPerm        errno = 63
	errRofs        errno = 69
	errSpipe       errno = 70
	errXdev        errno = 75
	errNotcapable  errno = 76
)

// call is one call of a WASI function: its arguments and the guest's memory.
type call struct {
	u   *unit
	mem []byte
	a   []uint64
}

// function is a WASI function: its parameters, i for i32 and I for i64, and what it does. All but proc_exit give an errno.
type function struct {
	name   string
	params string
	do     func(c *call) errno
}

// functions is all of WASI preview 1. What units can't have (links, sockets, signals) answers ENOTSUP.
var functions = []function{
	{"args_get", "ii", func(c *call) errno { return c.putList(c.u.Plan.Args) }},
	{"args_sizes_get", "ii", func(c *call) errno { return c.putListSize(c.u.Plan.Args) }},
	{"environ_get", "ii", func(c *call) errno { return c.putList(c.u.Plan.Env) }},
	{"environ_sizes_get", "ii", func(c *call) errno { return c.putListSize(c.u.Plan.Env) }},
	{"clock_res_get", "ii", (*call).clockRes},
	{"clock_time_get", "iIi", (*call).clockTime},
	{"fd_advise", "iIIi", (*call).fdAdvise},
	{"fd_allocate", "iII", (*call).fdAllocate},
	{"fd_close", "i", (*call).fdClose},
	{"fd_datasync", "i", (*call).fdSync},
	{"fd_fdstat_get", "ii", (*call).fdStat},
	{"fd_fdstat_set_flags", "ii", (*call).fdSetFlags},
	{"fd_fdstat_set_rights", "iII", (*call).fdSetRights},
	{"fd_filestat_get", "ii", (*call).fdFilestat},
	{"fd_filestat_set_size", "iI", (*call).fdSetSize},
	{"fd_filestat_set_times", "iIIi", (*call).fdSetTimes},
	{"fd_pread", "iiiIi", (*call).fdPread},
	{"fd_prestat_get", "ii", (*call).fdPrestat},
	{"fd_prestat_dir_name", "iii", (*call).fdPrestatName},
	{"fd_pwrite", "iiiIi", (*call).fdPwrite},
	{"fd_read", "iiii", (*call).fdRead},
	{"fd_readdir", "iiiIi", (*call).fdReaddir},
	{"fd_renumber", "ii", (*call).fdRenumber},
	{"fd_seek", "iIii", (*call).fdSeek},
	{"fd_sync", "i", (*call).fdSync},
	{"fd_tell", "ii", (*call).fdTell},
	{"fd_write", "iiii", (*call).fdWrite},
	{"path_create_directory", "iii", (*call).pathCreateDirectory},
	{"path_filestat_get", "iiiii", (*call).pathFilestat},
	{"path_filestat_set_times", "iiiiIIi", (*call).pathSetTimes},
	{"path_link", "iiiiiii", notSupported},
	{"path_open", "iiiiiIIii", (*call).pathOpen},
	{"path_readlink", "iiiiii", (*call).pathReadlink},
	{"path_remove_directory", "iii", (*call).pathRemoveDirectory},
	{"path_rename", "iiiiii", (*call).pathRename},
	{"path_symlink", "iiiii", notSupported},
	{"path_unlink_file", "iii", (*call).pathUnlink},
	{"poll_oneoff", "iiii", (*call).pollOneoff},
	{"proc_exit", "i", procExit},
	{"proc_raise", "i", notSupported},
	{"random_get", "ii", (*call).randomGet},
	{"sched_yield", "", func(*call) errno { return 0 }},
	{"sock_accept", "iii", notSupported},
	{"sock_recv", "iiiiii", notSupported},
	{"sock_send", "iiiii", notSupported},
	{"sock_shutdown", "ii", notSupported},
}

func notSupported(*call) errno { return errNotsup }

func procExit(c *call) errno {
	c.u.stop(ending{Exit: c.u32(0)})
	return 0
}

func (c *call) u32(i int) uint32 { return uint32(c.a[i]) }

// at gives n bytes of the guest's memory, nil and false where there are none.
func (c *call) at(ptr uint32, n uint64) ([]byte, bool) {
	if n > uint64(len(c.mem)) || uint64(ptr) > uint64(len(c.mem))-n {
		return nil, false
	}
	return c.mem[ptr : uint64(ptr)+n : uint64(ptr)+n], true
}

func (c *call) put32(i int, v uint32) errno {
	p, ok := c.at(c.u32(i), 4)
	if !ok {
		return errFault
	}
	binary.LittleEndian.PutUint32(p, v)
	return 0
}

func (c *call) put64(i int, v uint64) errno {
	p, ok := c.at(c.u32(i), 8)
	if !ok {
		return errFault
	}
	binary.LittleEndian.PutUint64(p, v)
	return 0
}

// text reads a string whose pointer and length are arguments i and i+1; it pays for it.
func (c *call) text(i int) (string, errno) {
	n := c.u32(i + 1)
	if n > 64<<10 {
		return "", errNametoolong
	}
	p, ok := c.at(c.u32(i), uint64(n))
	if !ok {
		return "", errFault
	}
	c.u.charge(uint64(n) / hostByte)
	return string(p), 0
}

// slices reads an array of buffers: pointer and count are arguments i and i+1. It pays for their bytes.
func (c *call) slices(i int) (list [][]byte, total uint64, e errno) {
	n := c.u32(i + 1)
	if n > 1024 {
		return nil, 0, errInval
	}
	table, ok := c.at(c.u32(i), 8*uint64(n))
	if !ok {
		return nil, 0, errFault
	}
	for ; len(table) > 0; table = table[8:] {
		ptr, n := binary.LittleEndian.Uint32(table), binary.LittleEndian.Uint32(table[4:])
		p, ok := c.at(ptr, uint64(n))
		if !ok {
			return nil, 0, errFault
		}
		list = append(list, p)
		total += uint64(n)
	}
	if total > 1<<32-1 {
		return nil, 0, errInval
	}
	return list, total, 0
}

func (c *call) putListSize(list []string) errno {
	n := 0
	for _, s := range list {
		n += len(s) + 1
	}
	if e := c.put32(0, uint32(len(list))); e != 0 {
		return e
	}
	return c.put32(1, uint32(n))
}

func (c *call) putList(list []string) errno {
	table, ok := c.at(c.u32(0), 4*uint64(len(list)))
	if !ok {
		return errFault
	}
	ptr := c.u32(1)
	for i, s := range list {
		p, ok := c.at(ptr, uint64(len(s))+1)
		if !ok {
			return errFault
		}
		copy(p, s)
		p[len(s)] = 0
		binary.LittleEndian.PutUint32(table[4*i:], ptr)
		ptr += uint32(len(p))
	}
	return 0
}

const (
	clockReal = iota
	clockMonotonic
	clockProcess
	clockThread
)

func (c *call) clockRes() errno {
	if c.u32(0) > clockThread {
		return errInval
	}
	return c.put64(1, 1)
}

func (c *call) clockTime() errno {
	t, ok := c.u.clock(c.u32(0))
	if !ok {
		return errInval
	}
	return c.put64(2, t)
}

func (u *unit) clock(id uint32) (uint64, bool) {
	switch id {
	case clockReal:
		return u.now(), true
	case clockMonotonic:
		return u.monotonic(), true
	case clockProcess, clockThread:
		return u.spent(), true
	}
	return 0, false
}

func (c *call) randomGet() errno {
	p, ok := c.at(c.u32(0), uint64(c.u32(1)))
	if !ok {
		return errFault
	}
	c.u.charge(uint64(len(p)) * randomByte)
	c.u.draw(p)
	return 0
}

// pollOneoff: what waits for a descriptor is ready at once; if only clocks are waited for, the unit's time jumps to the
// first of them.
func (c *call) pollOneoff() errno {
	const subSize, eventSize = 48, 32
	n := c.u32(2)
	if n == 0 || n > 4096 {
		return errInval
	}
	table, ok := c.at(c.u32(0), subSize*uint64(n))
	events, ok2 := c.at(c.u32(1), eventSize*uint64(n))
	if _, ok3 := c.at(c.u32(3), 4); !ok || !ok2 || !ok3 {
		return errFault
	}
	c.u.charge(uint64(n) * nodeLooked)
	subs := make([]subscription, n)
	first := ^uint64(0)
	for i := range subs {
		subs[i] = c.subscription(table[subSize*i:][:subSize])
		first = min(first, subs[i].left)
	}
	c.u.sleep(first)
	done := uint32(0)
	for _, s := range subs {
		if s.left > first {
			continue
		}
		e := events[eventSize*done:][:eventSize]
		clear(e)
		binary.LittleEndian.PutUint64(e, s.user)
		binary.LittleEndian.PutUint16(e[8:], uint16(s.err))
		e[10] = s.tag
		done++
	}
	return c.put32(3, done)
}

type subscription struct {
	user uint64
	tag  byte
	left uint64 // ns until it is due
	err  errno
}

func (c *call) subscription(b []byte) subscription {
	s := subscription{user: binary.LittleEndian.Uint64(b), tag: b[8]}
	switch s.tag {
	case 0:
		const absolute = 1
		now, ok := c.u.clock(binary.LittleEndian.Uint32(b[16:]))
		if !ok {
			s.err = errInval
			return s
		}
		s.left = binary.LittleEndian.Uint64(b[24:])
		if binary.LittleEndian.Uint16(b[40:])&absolute != 0 {
			s.left -= min(now, s.left)
		}
	case 1, 2:
		if c.u.file(binary.LittleEndian.Uint32(b[16:])) == nil {
			s.err = errBadf
		}
	default:
		s.err = errInval
	}
	return s
}

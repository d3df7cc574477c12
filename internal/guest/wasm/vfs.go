package wasm

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/crowdcloud/crowd"
)

// What a unit's files may come to, besides the bytes of its task's limits.
const (
	maxNodes = 16 << 10 // files and folders alive in /out and /state
	maxOpen  = 1024
	pageSize = 64 << 10
)

// tree says where a node stands and by that what may be done to it.
type tree uint8

const (
	treeRoot tree = iota
	treeIn
	treeOut
	treeState
)

func (t tree) writable() bool { return t == treeOut || t == treeState }

// vfs is a unit's file system in memory. It is plain data: nodes refer to one another by number, so that the state of
// a unit can be written down. Numbers are never used twice and serve as inode numbers.
type vfs struct {
	Nodes map[uint32]*node
	Next  uint32
	Live  int    // nodes in writable trees
	Out   int64  // bytes of the files of /out, also of those removed while open
	Disk  int64  // of /out and /state together
	Work  int    // nodes looked at by what looks at many; paid for in fuel
	Turn  uint64 // goes up whenever /state changes
}

type node struct {
	Num    uint32
	Parent uint32 // of a folder
	Tree   tree
	Dir    bool
	Names  map[string]uint32 // of a folder
	Size   int64
	Pages  [][]byte // a page may be shorter than pageSize: zeros follow
	Blob   int      // input by its place in the plan, -1: in memory
	Linked bool
	Opened int
	Access uint64 // times, ns since 1970
	Modify uint64
	Change uint64
}

const rootNode, inNode, outNode, stateNode = 1, 2, 3, 4

// newVFS makes /in, /out and /state. The inputs' names were checked by the parent.
func newVFS(inputs []crowd.Input) (*vfs, bool) {
	f := &vfs{Nodes: map[uint32]*node{}, Next: rootNode}
	f.add(nil, "", treeRoot, true, epoch)
	for i, name := range []string{"in", "out", "state"} {
		f.add(f.Nodes[rootNode], name, tree(i+1), true, epoch)
	}
	for i, in := range inputs {
		at := f.Nodes[inNode]
		elems := strings.Split(in.As, "/")
		for _, e := range elems[:len(elems)-1] {
			n, ok := at.Names[e]
			if !ok {
				n = f.add(at, e, treeIn, true, epoch).Num
			}
			if at = f.Nodes[n]; !at.Dir {
				return nil, false
			}
		}
		name := elems[len(elems)-1]
		if _, ok := at.Names[name]; ok {
			return nil, false
		}
		n := f.add(at, name, treeIn, false, epoch)
		n.Blob, n.Size = i, in.Size
	}
	return f, true
}

func (f *vfs) add(dir *node, name string, t tree, isDir bool, now uint64) *node {
	n := &node{Num: f.Next, Tree: t, Dir: isDir, Blob: -1, Linked: true, Access: now, Modify: now, Change: now}
	f.Next++
	f.Nodes[n.Num] = n
	if isDir {
		n.Names = map[string]uint32{}
		n.Parent = n.Num
	}
	if dir != nil {
		dir.Names[name] = n.Num
		n.Parent = dir.Num
		dir.Modify, dir.Change = now, now
	}
	if t.writable() {
		f.Live++
	}
	f.touch(t)
	return n
}

// touch notes a change of a file or name.
func (f *vfs) touch(t tree) {
	if t == treeState {
		f.Turn++
	}
}

// drop forgets a node that has neither a name nor an open descriptor.
func (f *vfs) drop(n *node) {
	if n.Linked || n.Opened > 0 {
		return
	}
	f.account(n.Tree, -n.Size)
	if n.Tree.writable() {
		f.Live--
	}
	delete(f.Nodes, n.Num)
}

func (f *vfs) account(t tree, delta int64) {
	switch t {
	case treeOut:
		f.Out += delta
		f.Disk += delta
	case treeState:
		f.Disk += delta
	}
}

// found is where a path leads: its folder, the last element, and the node, nil if there is none.
type found struct {
	dir  *node
	name string
	node *node
	must bool // a slash at the end: must be a folder
}

// walk follows a path from dir; it can't get above dir.
func (f *vfs) walk(dir *node, p string) (found, errno) {
	switch {
	case p == "":
		return found{}, errNoent
	case len(p) > crowd.Limits.PathBytes*2:
		return found{}, errNametoolong
	case p[0] == '/':
		return found{}, errNotcapable
	case !utf8.ValidString(p) || strings.IndexByte(p, 0) >= 0:
		return found{}, errIlseq
	}
	depth := 0
	at := found{dir: f.Nodes[dir.Parent], node: dir, name: "."}
	for elem := range strings.SplitSeq(p, "/") {
		if elem == "" || elem == "." {
			if at.node != nil && !at.node.Dir {
				return found{}, errNotdir
			}
			at.must = true
			continue
		}
		if at.node == nil {
			return found{}, errNoent
		}
		if !at.node.Dir {
			return found{}, errNotdir
		}
		if elem == ".." {
			if depth--; depth < 0 {
				return found{}, errNotcapable
			}
			up := f.Nodes[at.node.Parent]
			at = found{dir: f.Nodes[up.Parent], node: up, name: ".", must: true}
			continue
		}
		depth++
		if len(elem) > 255 {
			return found{}, errNametoolong
		}
		at = found{dir: at.node, name: elem, node: f.Nodes[at.node.Names[elem]]}
	}
	return at, 0
}

// create adds a file or folder where a walk found none.
func (f *vfs) create(at found, isDir bool, now uint64) (*node, errno) {
	if !at.dir.Tree.writable() {
		return nil, errRofs
	}
	if !at.dir.Linked {
		return nil, errNoent
	}
	if f.Live >= maxNodes {
		return nil, errNospc
	}
	path := at.name
	for d := at.dir; d.Num != outNode && d.Num != stateNode; d = f.Nodes[d.Parent] {
		path = f.nameOf(d) + "/" + path
	}
	if checkName(path) != nil {
		return nil, errNametoolong
	}
	return f.add(at.dir, at.name, at.dir.Tree, isDir, now), 0
}

// nameOf finds a folder's name in its parent.
func (f *vfs) nameOf(d *node) string {
	f.Work += len(f.Nodes[d.Parent].Names)
	for name, num := range f.Nodes[d.Parent].Names {
		if num == d.Num {
			return name
		}
	}
	return ""
}

func (f *vfs) unlink(at found, now uint64) {
	delete(at.dir.Names, at.name)
	at.dir.Modify, at.dir.Change = now, now
	at.node.Linked = false
	f.touch(at.node.Tree)
	f.drop(at.node)
}

// rename moves old to where a walk found new.
func (f *vfs) rename(old, to found, now uint64) errno {
	switch {
	case old.node == nil:
		return errNoent
	case to.dir == nil || old.dir == nil || old.name == "." || to.name == ".":
		return errBusy
	case !old.dir.Tree.writable() || !to.dir.Tree.writable():
		return errRofs
	case old.node.Num == outNode || old.node.Num == stateNode || to.node != nil && (to.node.Num == outNode || to.node.Num == stateNode):
		return errBusy
	case old.dir.Tree != to.dir.Tree:
		return errXdev
	case old.must && !old.node.Dir || to.must && !old.node.Dir:
		return errNotdir
	case !to.dir.Linked:
		return errNoent
	case old.node == to.node:
		return 0
	}
	for d := to.dir; ; d = f.Nodes[d.Parent] {
		if d == old.node {
			return errInval
		}
		if d.Parent == d.Num || d.Num == outNode || d.Num == stateNode {
			break
		}
	}
	if old.node.Dir && f.depthBelow(old.node)+f.depthOf(to.dir) >= crowd.Limits.PathDepth {
		return errNametoolong
	}
	if checkName(to.name) != nil {
		return errNametoolong
	}
	if to.node != nil {
		switch {
		case to.node.Dir && !old.node.Dir:
			return errIsdir
		case !to.node.Dir && old.node.Dir:
			return errNotdir
		case to.node.Dir && len(to.node.Names) > 0:
			return errNotempty
		}
		f.unlink(to, now)
	}
	delete(old.dir.Names, old.name)
	to.dir.Names[to.name] = old.node.Num
	old.node.Parent = to.dir.Num
	old.dir.Modify, old.dir.Change, to.dir.Modify, to.dir.Change, old.node.Change = now, now, now, now, now
	f.touch(old.node.Tree)
	return 0
}

func (f *vfs) depthOf(d *node) (n int) {
	for ; d.Num != outNode && d.Num != stateNode && d.Num != rootNode; d = f.Nodes[d.Parent] {
		n++
	}
	return n
}

func (f *vfs) depthBelow(n *node) (deepest int) {
	f.Work++
	for _, num := range n.Names {
		deepest = max(deepest, f.depthBelow(f.Nodes[num]))
	}
	return deepest + 1
}

// readAt copies from a file in memory; zeros where nothing was written.
func (n *node) readAt(p []byte, off int64) int {
	if off >= n.Size {
		return 0
	}
	p = p[:min(int64(len(p)), n.Size-off)]
	for done := 0; done < len(p); {
		i, in := int((off+int64(done))/pageSize), int((off+int64(done))%pageSize)
		part := p[done:min(len(p), done+pageSize-in)]
		got := 0
		if i < len(n.Pages) && in < len(n.Pages[i]) {
			got = copy(part, n.Pages[i][in:])
		}
		clear(part[got:])
		done += len(part)
	}
	return len(p)
}

// writeAt stores p; the size was set before.
func (n *node) writeAt(p []byte, off int64) {
	for len(p) > 0 {
		i, in := int(off/pageSize), int(off%pageSize)
		part := p[:min(len(p), pageSize-in)]
		for len(n.Pages) <= i {
			n.Pages = append(n.Pages, nil)
		}
		if short := in + len(part) - len(n.Pages[i]); short > 0 {
			n.Pages[i] = append(n.Pages[i], make([]byte, short)...)
		}
		copy(n.Pages[i][in:], part)
		p, off = p[len(part):], off+int64(len(part))
	}
}

// cut forgets what stands beyond size.
func (n *node) cut(size int64) {
	i, in := int(size/pageSize), int(size%pageSize)
	if i < len(n.Pages) {
		n.Pages[i] = n.Pages[i][:min(in, len(n.Pages[i]))]
		clear(n.Pages[i+1:])
		n.Pages = n.Pages[:i+1]
	}
}

// sorted gives a folder's names in order.
func (n *node) sorted() []string {
	names := make([]string, 0, len(n.Names))
	for name := range n.Names {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// outFiles lists the files of /out, sorted by path. One that got too long a path when its folder was renamed is left out.
func (f *vfs) outFiles() (paths []string, nodes []*node) {
	byPath := map[string]*node{}
	var visit func(prefix string, d *node)
	visit = func(prefix string, d *node) {
		for name, num := range d.Names {
			n := f.Nodes[num]
			if n.Dir {
				visit(prefix+name+"/", n)
			} else if checkName(prefix+name) == nil {
				byPath[prefix+name] = n
				paths = append(paths, prefix+name)
			}
		}
	}
	visit("", f.Nodes[outNode])
	slices.Sort(paths)
	for _, p := range paths {
		nodes = append(nodes, byPath[p])
	}
	return paths, nodes
}

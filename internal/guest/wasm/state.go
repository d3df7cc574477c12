package wasm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// maxGap is what the time between two polls counts at most: a child that its system stopped between them sees a longer one.
const maxGap = 50 * time.Millisecond

// restore lets the unit go on from a checkpoint. Bytes that no unit of this engine can have left are an error; a /state beyond the limit
// ends the unit as if it had written it.
func (u *unit) restore(b []byte) error {
	c, err := crowd.ParseCheckpoint(b)
	if err != nil {
		return err
	}
	u.Base = min(c.Fuel, uint64(u.Meter.Limit))
	u.Meter.Limit -= int64(u.Base)
	u.Slept, u.Drawn = c.Slept, c.Drawn
	u.block()
	dirs, now := map[string]*node{"": u.FS.Nodes[stateNode]}, u.now()
	for _, f := range c.Files {
		if checkName(f.Path) != nil || u.FS.Live >= maxNodes {
			return errors.New("it has names, or a number of files, that no unit can have")
		}
		dir, name := "", f.Path
		if i := strings.LastIndexByte(f.Path, '/'); i >= 0 {
			dir, name = f.Path[:i], f.Path[i+1:]
		}
		n := u.FS.add(dirs[dir], name, treeState, f.Dir, now)
		if f.Dir {
			dirs[f.Path] = n
			continue
		}
		if u.FS.Disk+int64(len(f.Data)) > u.Task.Disk {
			u.End = &ending{Reason: crowd.GuestOutput}
			return nil
		}
		n.Size = int64(len(f.Data))
		u.FS.account(treeState, n.Size)
		n.writeAt(f.Data, 0)
	}
	return nil
}

// checkpoint is the unit as it stands, breath being called between files. An error says why its /state can't be kept.
func (u *unit) checkpoint(breath func()) (*crowd.Checkpoint, error) {
	c := &crowd.Checkpoint{Fuel: u.spent(), Slept: u.Slept, Drawn: u.Drawn}
	paths, nodes := u.FS.stateFiles()
	size := int64(0)
	for i, n := range nodes {
		if clean, err := crowd.CleanName(paths[i]); err != nil || clean != paths[i] || checkName(paths[i]) != nil {
			return nil, fmt.Errorf("the name %q can't be kept", paths[i])
		}
		if size += n.Size; size > crowd.Limits.StateBytes {
			return nil, tooLarge(size)
		}
	}
	for i, n := range nodes {
		f := crowd.StateFile{Path: paths[i], Dir: n.Dir}
		if !n.Dir {
			f.Data = make([]byte, n.Size)
			n.readAt(f.Data, 0)
			breath()
		}
		c.Files = append(c.Files, f)
	}
	return c, nil
}

func tooLarge(size int64) error {
	return fmt.Errorf("it comes to %d bytes or more, at most %d are kept", size, crowd.Limits.StateBytes)
}

// stateFiles lists the files and folders of /state, sorted by path.
func (f *vfs) stateFiles() (paths []string, nodes []*node) {
	byPath := map[string]*node{}
	var visit func(prefix string, d *node)
	visit = func(prefix string, d *node) {
		for name, num := range d.Names {
			n := f.Nodes[num]
			paths = append(paths, prefix+name)
			byPath[prefix+name] = n
			visit(prefix+name+"/", n)
		}
	}
	visit("", f.Nodes[stateNode])
	slices.Sort(paths)
	for _, p := range paths {
		nodes = append(nodes, byPath[p])
	}
	return paths, nodes
}

// saver sends a unit's checkpoints to the parent: from polls, where the unit is at rest.
type saver struct {
	c     *child
	u     *unit
	ran   time.Duration // since the last one, not counting freezes and rests
	since time.Time     // of the poll before
	turn  uint64        // of the file system, at the last one
	files crowd.Digest  // of the last one
}

func newSaver(c *child, u *unit) *saver {
	s := &saver{c: c, u: u, since: time.Now(), turn: u.FS.Turn}
	if k, err := u.checkpoint(func() {}); err == nil {
		s.files = filesOf(k, k.Bytes())
	}
	return s
}

// breath is called by the guest at polls. A checkpoint is due when the unit has run for long enough and /state is another than it was.
func (s *saver) breath() {
	s.ran += min(time.Since(s.since), maxGap)
	s.c.gate.breath()
	if s.ran >= s.c.task.Every && s.u.FS.Turn != s.turn {
		s.ran, s.turn = 0, s.u.FS.Turn
		s.save()
	}
	s.since = time.Now()
}

func (s *saver) save() {
	k, err := s.u.checkpoint(s.c.gate.breath)
	if err != nil {
		s.c.send(fromUnsaved, []byte(err.Error()))
		return
	}
	b := k.Bytes()
	if int64(len(b)) > crowd.Limits.StateBytes {
		s.c.send(fromUnsaved, []byte(tooLarge(int64(len(b))).Error()))
		return
	}
	files := filesOf(k, b)
	if files == s.files {
		return
	}
	s.files = files
	for piece := range slices.Chunk(b, dataPiece) {
		s.c.send(fromState, piece)
		s.c.gate.breath()
	}
	s.c.send(fromSaved, binary.AppendUvarint(binary.AppendUvarint(nil, uint64(len(b))), k.Fuel))
}

// filesOf names what a checkpoint, whose bytes are b, holds besides its counters.
func filesOf(c *crowd.Checkpoint, b []byte) crowd.Digest {
	head := crowd.Checkpoint{Fuel: c.Fuel, Slept: c.Slept, Drawn: c.Drawn}
	return digest.Of(b[len(head.Bytes())-1:]) // without its own number of files, none
}

// saves tells whether a checkpoint may come now.
func (r *run) saves() bool {
	return r.ready && r.t.Every > 0 && r.t.Save != nil && r.head == nil && r.parts == nil && r.running()
}

// receiveState takes a frame of a checkpoint. The bytes stay what they are: they are a guest's.
func (r *run) receiveState(f frame) error {
	switch f.t {
	case fromUnsaved:
		if r.state != nil {
			return r.s.p.died(f)
		}
		if !r.unsaved {
			r.s.e.o.Log.Warn("a unit's /state can't be kept", "job", r.t.Job.Short(), "unit", r.t.First, "why", plain(f.p))
		}
		r.unsaved = true
		return nil
	case fromState:
		if len(f.p) == 0 || int64(len(r.state)+len(f.p)) > crowd.Limits.StateBytes {
			return failed("the guest's process sent a checkpoint that is too long, or nothing of it")
		}
		if r.states > 2+int(2*r.s.watch.running()/r.t.Every) {
			return failed("the guest's process sends checkpoints more often than every %v", r.t.Every)
		}
		r.state = append(r.state, f.p...)
		return nil
	}
	d := decoder{b: f.p}
	n, fuel := d.uvarint(), d.uvarint()
	if d.bad || len(d.b) > 0 || r.state == nil || n != uint64(len(r.state)) || fuel < r.burnt || r.t.Limits.Fuel > 0 && fuel > r.t.Limits.Fuel {
		return failed("the guest's process sent a checkpoint that is malformed")
	}
	state := r.state
	r.state, r.burnt = nil, fuel
	r.states++
	r.t.Save(state, fuel)
	return nil
}

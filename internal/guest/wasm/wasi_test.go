package wasm

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/tetratelabs/wazero/sys"

	"github.com/crowdcloud/crowd"
)

// fakeFuel is a module's counter without a module.
type fakeFuel struct{ v uint64 }

func (f *fakeFuel) Get() uint64  { return f.v }
func (f *fakeFuel) Set(v uint64) { f.v = v }

type patternBlob struct{}

func (patternBlob) readAt(p []byte, off int64) {
	for i := range p {
		p[i] = byte(off + int64(i))
	}
}

func testUnit() *unit {
	p := crowd.Plan{Args: []string{"a", "bc"}, Env: []string{"K=V"}, Inputs: []crowd.Input{{As: "f", Size: 100_000}, {As: "d/e/f", Size: 3}}}
	u, _ := newUnit(p, wireTask{Output: 1 << 20, Disk: 2 << 20, Memory: 1 << 20}, 1000)
	u.fuel = &fakeFuel{}
	u.blobs = func(int) blob { return patternBlob{} }
	u.poll()
	return u
}

// invoke calls a function as the engine does and tells whether the unit ended.
func invoke(t testing.TB, u *unit, mem []byte, name string, args ...uint64) (e errno, ended bool) {
	t.Helper()
	for _, f := range functions {
		if f.name != name {
			continue
		}
		defer func() {
			switch r := recover().(type) {
			case nil:
			case *sys.ExitError:
				ended = true
			default:
				t.Fatalf("%s(%v): %v", name, args, r)
			}
		}()
		u.charge(hostBase)
		return f.do(&call{u: u, mem: mem, a: append([]uint64(nil), args...)}), false
	}
	t.Fatalf("no function %s", name)
	return 0, false
}

// Whatever arguments a guest gives, the host's functions answer or end the unit; accounts of bytes stay true.
func TestGarbage(t *testing.T) {
	edge := []uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 24, 64, 100, 1 << 15, 1<<16 - 1, 1 << 16, 1<<16 + 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1<<32 - 8, 1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	paths := []string{"out", "out/a", "out/a/b", "state/x", "in/f", "in/d/e", ".", "..", "a/../..", "/", "", "out/../in/d", "x\x00y", "\xff", "a", "b"}
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(wide bool) uint64 {
		switch rng.IntN(4) {
		case 0:
			v := rng.Uint64()
			if !wide {
				v &= 1<<32 - 1
			}
			return v
		case 1:
			return rng.Uint64N(40_000)
		}
		v := edge[rng.IntN(len(edge))]
		if !wide {
			v &= 1<<32 - 1
		}
		return v
	}
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	for range rounds {
		u := testUnit()
		mem := make([]byte, 1<<16)
		for i := range 2000 {
			binary.LittleEndian.PutUint32(mem[rng.IntN(len(mem)-4):], uint32(pick(false)))
			f := functions[rng.IntN(len(functions))]
			if f.name == "proc_exit" {
				continue
			}
			var args []uint64
			for _, p := range f.params {
				args = append(args, pick(p == 'I'))
			}
			// half of the time a path and a descriptor that exist
			if i%2 == 0 && len(args) > 0 {
				p := paths[rng.IntN(len(paths))]
				copy(mem[100:], p)
				args[0] = rng.Uint64N(12)
				for k := 1; k+1 < len(args) && f.name[:4] == "path"; k++ {
					if f.params[k] == 'i' && f.params[k+1] == 'i' && rng.IntN(2) == 0 {
						args[k], args[k+1] = 100, uint64(len(p))
						break
					}
				}
			}
			e, ended := invoke(t, u, mem, f.name, args...)
			if e > 76 {
				t.Fatalf("%s: errno %d", f.name, e)
			}
			checkAccounts(t, u)
			if ended {
				break
			}
		}
	}
}

// checkAccounts compares what the file system counts with what there is.
func checkAccounts(t *testing.T, u *unit) {
	t.Helper()
	out, disk, live := int64(0), int64(0), 0
	for _, n := range u.FS.Nodes {
		if n.Tree == treeOut {
			out += n.Size
		}
		if n.Tree.writable() {
			disk += n.Size
			live++
		}
	}
	if out != u.FS.Out || disk != u.FS.Disk || live != u.FS.Live {
		t.Fatalf("counted %d %d %d, there are %d %d %d", u.FS.Out, u.FS.Disk, u.FS.Live, out, disk, live)
	}
	if out+int64(len(u.Stdout)) > u.Task.Output || disk > u.Task.Disk {
		t.Fatalf("beyond the limits: %d %d", out, disk)
	}
}

// Faults and bounds, one by one.
func TestFaults(t *testing.T) {
	const bad = 1<<16 - 2
	for _, tc := range []struct {
		name string
		args []uint64
		want errno
	}{
		{"args_get", []uint64{bad, 0}, errFault},
		{"args_get", []uint64{0, bad}, errFault},
		{"args_sizes_get", []uint64{0, bad}, errFault},
		{"environ_get", []uint64{1<<32 - 1, 0}, errFault},
		{"clock_time_get", []uint64{0, 0, bad}, errFault},
		{"clock_time_get", []uint64{4, 0, 0}, errInval},
		{"random_get", []uint64{bad, 3}, errFault},
		{"random_get", []uint64{0, 1<<32 - 1}, errFault},
		{"fd_read", []uint64{0, 0, 1025, 0}, errInval},
		{"fd_read", []uint64{0, bad, 1, 0}, errFault},
		{"fd_read", []uint64{99, 0, 0, 0}, errBadf},
		{"fd_read", []uint64{1<<32 - 1, 0, 0, 0}, errBadf},
		{"fd_write", []uint64{0, 0, 0, 0}, errBadf},
		{"fd_write", []uint64{1, 0, 0, bad}, errFault},
		{"fd_prestat_get", []uint64{7, 0}, errBadf},
		{"fd_prestat_dir_name", []uint64{4, 0, 2}, errNametoolong},
		{"fd_seek", []uint64{1, 0, 0, 0}, errSpipe},
		{"fd_readdir", []uint64{1, 0, 0, 0, 0}, errNotdir},
		{"path_open", []uint64{3, 0, bad, 10, 0, 0, 0, 0, 0}, errFault},
		{"path_open", []uint64{3, 0, 0, 1 << 20, 0, 0, 0, 0, 0}, errNametoolong},
		{"path_open", []uint64{1, 0, 0, 1, 0, 0, 0, 0, 0}, errNotdir},
		{"path_open", []uint64{3, 0, 0, 0, 0, 0, 0, 0, 0}, errNoent},
		{"poll_oneoff", []uint64{0, 0, 0, 0}, errInval},
		{"poll_oneoff", []uint64{0, bad, 1, 0}, errFault},
		{"poll_oneoff", []uint64{0, 0, 5000, 0}, errInval},
		{"sock_accept", []uint64{0, 0, 0}, errNotsup},
		{"path_symlink", []uint64{0, 0, 0, 0, 0}, errNotsup},
		{"proc_raise", []uint64{9}, errNotsup},
	} {
		if e, ended := invoke(t, testUnit(), make([]byte, 1<<16), tc.name, tc.args...); e != tc.want || ended {
			t.Errorf("%s(%v) = %d, want %d", tc.name, tc.args, e, tc.want)
		}
	}
}

// Files and folders are limited in number, and what is removed makes room.
func TestManyFiles(t *testing.T) {
	u := testUnit()
	mem := make([]byte, 1<<16)
	made := 0
	for ; ; made++ {
		path := []byte("out/" + string(rune('a'+made%26)) + string(rune('a'+made/26%26)) + string(rune('a'+made/676)))
		copy(mem, path)
		e, _ := invoke(t, u, mem, "path_create_directory", 3, 0, uint64(len(path)))
		if e == errNospc {
			break
		}
		if e != 0 {
			t.Fatalf("%s: %d", path, e)
		}
	}
	if made != maxNodes-2 {
		t.Errorf("%d folders", made)
	}
	copy(mem, "out/aaaout/zzzz")
	if e, _ := invoke(t, u, mem, "path_remove_directory", 3, 0, 7); e != 0 {
		t.Fatal(e)
	}
	if e, _ := invoke(t, u, mem, "path_create_directory", 3, 7, 8); e != 0 {
		t.Fatal(e)
	}
	checkAccounts(t, u)
}

// Random numbers are the stream that the documentation describes, however they are drawn.
func TestRandom(t *testing.T) {
	a, b := testUnit(), testUnit()
	whole, pieces := make([]byte, 100), make([]byte, 100)
	a.draw(whole)
	for i := 0; i < 100; i += 7 {
		b.draw(pieces[i:min(i+7, 100)])
	}
	if string(whole) != string(pieces) {
		t.Error("the stream depends on the sizes drawn")
	}
}

// Sleeps take no time but pass; the unit's clock can't overflow.
func TestSleep(t *testing.T) {
	u := testUnit()
	mem := make([]byte, 1<<16)
	sub := func(at int, user, timeout uint64, flags uint16) {
		b := mem[at : at+48]
		clear(b)
		binary.LittleEndian.PutUint64(b, user)
		binary.LittleEndian.PutUint32(b[16:], clockMonotonic)
		binary.LittleEndian.PutUint64(b[24:], timeout)
		binary.LittleEndian.PutUint16(b[40:], flags)
	}
	before := u.monotonic()
	sub(0, 7, 5e9, 0)
	sub(48, 8, 3e9, 0)
	if e, _ := invoke(t, u, mem, "poll_oneoff", 0, 1000, 2, 2000); e != 0 {
		t.Fatal(e)
	}
	if n := binary.LittleEndian.Uint32(mem[2000:]); n != 1 || mem[1000] != 8 {
		t.Errorf("%d events, the first of %d", n, mem[1000])
	}
	if d := u.monotonic() - before; d < 3e9 || d > 3.1e9 {
		t.Errorf("%d ns passed", d)
	}
	for range 3 {
		sub(0, 7, 1<<63, 0)
		if e, _ := invoke(t, u, mem, "poll_oneoff", 0, 1000, 1, 2000); e != 0 {
			t.Fatal(e)
		}
	}
	if e, _ := invoke(t, u, mem, "clock_time_get", clockReal, 0, 0); e != 0 {
		t.Fatal(e)
	}
	if got := binary.LittleEndian.Uint64(mem); got != 1<<64-1 {
		t.Errorf("real time %d at the end of time", got)
	}
}

func TestTwoInputsOfOneName(t *testing.T) {
	for _, in := range [][]crowd.Input{{{As: "a"}, {As: "a"}}, {{As: "a"}, {As: "a/b"}}, {{As: "a/b"}, {As: "a"}}} {
		if _, ok := newUnit(crowd.Plan{Inputs: in}, wireTask{}, 0); ok {
			t.Errorf("%v accepted", in)
		}
	}
}

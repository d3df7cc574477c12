package wasmprep

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

const plenty = 1 << 62

// A prepared module says what the unprepared one said, and spends the same on both engines, however often it is polled.
func TestSameOutputSameFuel(t *testing.T) {
	c := clang(t, "testdata/spin.c")
	simd := clang(t, "testdata/spin.c", "-O3", "-msimd128", "-mbulk-memory", "-mnontrapping-fptoint", "-msign-ext")
	for name, wasm := range map[string][]byte{"c": c, "c with simd and bulk memory": simd} {
		t.Run(name, func(t *testing.T) {
			g := guest{wasm: wasm, args: []string{"500"}, stdin: "hello"}
			want := engines[0].run(g)
			if want.err != nil || !strings.Contains(want.stdout, "144") {
				t.Fatalf("unprepared: %+v", want)
			}
			p := prepareWith(t, wasm, Limits{CanonicalNaN: true})
			fast := prepare(t, wasm)
			if bytes.Equal(fast.Module, p.Module) || !reflect.DeepEqual(fast.Report, p.Report) {
				t.Error("CanonicalNaN changes nothing, or the report")
			}
			plain := engines[0].run(guest{wasm: fast.Module, args: g.args, stdin: g.stdin, meter: &Meter{Limit: plenty}})
			if plain.stdout != want.stdout {
				t.Errorf("output %q, unprepared %q", plain.stdout, want.stdout)
			}
			spent := plain.spent
			for _, e := range engines {
				for _, slice := range []int64{0, 1, 999, 1 << 20} {
					g := g
					g.wasm, g.meter = p.Module, &Meter{Limit: plenty, Slice: slice}
					got := e.run(g)
					if got.err != nil {
						t.Fatalf("%s, slice %d: %v", e.name, slice, got.err)
					}
					if fixNaN(got.stdout) != fixNaN(want.stdout) {
						t.Errorf("%s, slice %d: output %q, unprepared %q", e.name, slice, got.stdout, want.stdout)
					}
					if !strings.Contains(got.stdout, "7ff8000000000000") {
						t.Errorf("%s: the NaN is not canonical in %q", e.name, got.stdout)
					}
					if got.spent != spent || spent < 1000 {
						t.Errorf("%s, slice %d: spent %d, elsewhere %d", e.name, slice, got.spent, spent)
					}
				}
			}
		})
	}
}

func fixNaN(s string) string { return strings.ReplaceAll(s, "fff8000000000000", "7ff8000000000000") }

func TestGoGuest(t *testing.T) {
	wasm, err := goGuest()
	if err != nil {
		t.Skipf("no go build for wasip1 here: %v", err)
	}
	p := prepare(t, wasm)
	got := engines[0].run(guest{wasm: p.Module, meter: &Meter{Limit: plenty, Slice: 1 << 20}, args: []string{"x"}})
	if got.err != nil || got.stdout != "300 be [x] 300.1\n" {
		t.Fatalf("%+v", got)
	}
	if got.polls < 2 {
		t.Errorf("%d polls", got.polls)
	}
	if p.Report.Language != "Go" || len(p.Report.Needs) == 0 || p.Report.MemoryMinPages == 0 {
		t.Errorf("report %+v", p.Report)
	}
}

// A run that spends L passes under a limit of L and is stopped under L-1, at the same charge on both engines.
func TestLimitIsExact(t *testing.T) {
	p := prepare(t, clang(t, "testdata/spin.c", "-mbulk-memory"))
	run := func(e engine, limit, slice int64) result {
		return e.run(guest{wasm: p.Module, meter: &Meter{Limit: limit, Slice: slice}, args: []string{"300"}})
	}
	full := run(engines[0], plenty, 0)
	if full.err != nil {
		t.Fatal(full.err)
	}
	for _, e := range engines {
		for _, slice := range []int64{0, 777, 1 << 16} {
			if got := run(e, full.spent, slice); got.err != nil || got.stdout != full.stdout {
				t.Errorf("%s, limit %d, slice %d: %+v", e.name, full.spent, slice, got)
			}
			if got := run(e, full.spent-1, slice); !errors.Is(got.err, errFuel) || got.spent != full.spent {
				t.Errorf("%s, limit %d, slice %d: %+v", e.name, full.spent-1, slice, got)
			}
			early := run(e, full.spent/2, slice)
			if want := run(engines[0], full.spent/2, 0); !errors.Is(early.err, errFuel) || early.spent != want.spent {
				t.Errorf("%s, half the limit, slice %d: %+v, want %+v", e.name, slice, early, want)
			}
		}
	}
}

func TestRunawayIsStopped(t *testing.T) {
	for _, tc := range []struct{ name, body string }{
		{"endless loop", "03 40 0c 00 0b 0b"},
		{"endless loop around a block", "03 40 02 40 0c 01 0b 0b 0b"},
		{"endless recursion", "10 00 0b"},
		{"endless fill", "03 40 41 00 41 00 41 80 80 04 fc 0b 00 0c 00 0b 0b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := prepare(t, tiny{body: hx(tc.body)}.wasm())
			var spent int64
			for _, e := range engines {
				got := e.run(guest{wasm: p.Module, meter: &Meter{Limit: 1500, Slice: 100}})
				if !errors.Is(got.err, errFuel) {
					t.Fatalf("%s: %+v", e.name, got)
				}
				if spent == 0 {
					spent = got.spent
				}
				if got.spent != spent {
					t.Errorf("%s: stopped after %d, elsewhere %d", e.name, got.spent, spent)
				}
			}
		})
	}
}

// Fuel is counted as documented.
func TestCharges(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		want       int64
	}{
		{"nothing", "0b", 1},
		{"straight", "01 01 01 01 0b", 4},
		// loop (1 outside); inside: local.get const add tee const lt_u br_if = 7, ten times round
		{"loop", "03 40 20 00 41 01 6a 22 00 41 0a 49 0d 00 0b 0b", 1 + 7*10},
		// 4 outside, 4096/16 for the bytes
		{"fill", "41 00 41 00 41 80 20 fc 0b 00 0b", 4 + 256},
		{"copy", "41 00 41 00 41 80 20 fc 0a 00 00 0b", 4 + 256},
		{"grow", "41 02 40 00 1a 0b", 3 + 2*4096},
		{"grow too far", "41 7f 40 00 1a 0b", 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, e := range engines {
				p := prepare(t, tiny{locals: hx("01 01 7f"), body: hx(tc.body)}.wasm())
				got := e.run(guest{wasm: p.Module, meter: &Meter{Limit: plenty}})
				if got.err != nil || got.spent != tc.want {
					t.Errorf("%s: spent %d (%v), want %d", e.name, got.spent, got.err, tc.want)
				}
			}
		})
	}
}

// A poll that leaves the fuel below zero traps, so a host that forgets to decide stops the guest.
func TestPollMustRefill(t *testing.T) {
	p := prepare(t, tiny{}.wasm())
	for _, e := range engines {
		if _, err := e.peek(t, p.Module, 0); err != nil {
			t.Errorf("%s: refilled to 0: %v", e.name, err)
		}
		if _, err := e.peek(t, p.Module, -1); err == nil || !strings.Contains(err.Error(), wrapName) {
			t.Errorf("%s: not refilled: %v", e.name, err)
		}
	}
}

// A NaN that a program made itself keeps its bits through moves, as wasm demands; one that arithmetic made has the
// canonical bits, wherever it shows.
func TestNaN(t *testing.T) {
	zero64, zero32 := "44 0000000000000000", "43 00000000"
	inf32 := "43 0000807f"
	odd := "44 010000000000f47f" // a signalling NaN with a payload
	zeros := "fd 0c 00000000000000000000000000000000"
	for _, tc := range []struct{ name, code, want string }{
		{"f64.div", zero64 + zero64 + "a3 bd", "7ff8000000000000"},
		{"f64.div then neg", zero64 + zero64 + "a3 9a bd", "fff8000000000000"},
		{"f64.sqrt of a sum", zero64 + zero64 + "a3" + zero64 + "a0 9f bd", "7ff8000000000000"},
		{"f64.add of an odd NaN", odd + zero64 + "a0 bd", "7ff8000000000000"},
		{"f64.min with an odd NaN", odd + zero64 + "a4 bd", "7ff8000000000000"},
		{"odd NaN moved", odd + "bd", "7ff4000000000001"},
		{"odd NaN demoted and promoted", odd + "b6 bb bd", "7ff8000000000000"},
		{"copysign takes the sign of a made NaN", "44 000000000000f03f" + zero64 + zero64 + "a3 a6 bd", "3ff0000000000000"},
		{"f64 through a block", "02 7c" + zero64 + zero64 + "a3 0b bd", "7ff8000000000000"},
		{"f64 left operand waits below", zero64 + zero64 + "a3" + odd + "bd 1a bd", "7ff8000000000000"},
		{"f32.mul", zero32 + inf32 + "94 bc ad", "000000007fc00000"},
		{"f32.sub through a local", inf32 + inf32 + "93 21 01 20 01 bc ad", "000000007fc00000"},
		{"f64 through a local over a loop head", zero64 + zero64 + "a3 21 02 03 40 0b 20 02 bd", "7ff8000000000000"},
		{"f64 through a local past a br_if", "02 40" + zero64 + zero64 + "a3 22 02 1a 41 00 0d 00 20 02 1a 0b 20 02 bd", "7ff8000000000000"},
		{"f64 through two locals", zero64 + zero64 + "a3 22 02 21 03 20 03 bd", "7ff8000000000000"},
		{"f64x2.div", zeros + zeros + "fd f301 fd 1d 01", "7ff8000000000000"},
		{"f32x4.div", zeros + zeros + "fd e701 fd 1d 01", "7fc000007fc00000"},
		{"f32x4.div read as f64x2", zeros + zeros + "fd e701 fd ed01 fd 1d 00", "ffc000007fc00000"},
		{"f64x2 NaN demoted", zeros + zeros + "fd f301 fd 5e fd 1d 00", "7fc000007fc00000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// i64.store at 0
			body := hx("41 00" + tc.code + "37 03 00 0b")
			p := prepareWith(t, tiny{locals: hx("03 01 7f 01 7d 02 7c"), body: body}.wasm(), Limits{CanonicalNaN: true})
			for _, e := range engines {
				if got, err := e.peek(t, p.Module, plenty); err != nil || got != tc.want {
					t.Errorf("%s: %s (%v), want %s", e.name, got, err, tc.want)
				}
			}
		})
	}
}

package wasmprep

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
)

func imports(entries ...string) []byte {
	b := []byte{byte(len(entries))}
	for _, e := range entries {
		mod, rest, _ := strings.Cut(e, ".")
		name, kind, _ := strings.Cut(rest, " ")
		b = append(putBytes(putBytes(b, mod), name), hx(kind)...)
	}
	return b
}

func sec(id int, content []byte) map[int][]byte { return map[int][]byte{id: content} }

func code(s string) tiny { return tiny{body: hx(s)} }

// Every refusal has its kind and tells its reason.
func TestRefused(t *testing.T) {
	export := func(name string, kind, index byte) []byte {
		return append(putBytes([]byte{1}, name), kind, index)
	}
	for _, tc := range []struct {
		name string
		mod  tiny
		kind error
		says string
	}{
		{"atomics", code("fe 03 00 0b"), ErrUnsupported, "threads (atomic instruction 0xfe) are not supported; build without -pthread"},
		{"shared memory", tiny{sections: sec(secMemory, hx("01 03 01 02"))}, ErrUnsupported, "threads"},
		{"memory64", tiny{sections: sec(secMemory, hx("01 04 01"))}, ErrUnsupported, "memory64"},
		{"two memories", tiny{sections: sec(secMemory, hx("02 00 01 00 01"))}, ErrUnsupported, "more than one memory"},
		{"memory.size 1", code("3f 01 1a 0b"), ErrUnsupported, "more than one memory"},
		{"load from memory 1", code("41 00 28 42 01 00 1a 0b"), ErrUnsupported, "more than one memory"},
		{"relaxed simd", code("fd 80 02 0b"), ErrUnsupported, "relaxed SIMD"},
		{"tail call", code("12 00 0b"), ErrUnsupported, "tail calls"},
		{"try", code("06 40 0b 0b"), ErrUnsupported, "exceptions"},
		{"tag section", tiny{sections: sec(secTag, hx("01 00 00"))}, ErrUnsupported, "exceptions"},
		{"gc instruction", code("fb 00 00 0b"), ErrUnsupported, "garbage"},
		{"gc type", tiny{sections: sec(secType, hx("01 5f 00"))}, ErrUnsupported, "garbage"},
		{"typed reference", tiny{locals: hx("01 01 64 00")}, ErrUnsupported, "typed references"},
		{"call_ref", code("14 00 0b"), ErrUnsupported, "typed references"},
		{"table initializer", tiny{sections: sec(secTable, hx("01 40 00 70 00 01 d0 70 0b"))}, ErrUnsupported, "initializer"},
		{"extended constant", tiny{sections: sec(secGlobal, hx("01 7f 00 41 01 41 01 6a 0b"))}, ErrUnsupported, "extended constants"},
		{"unknown section", tiny{extra: hx("0e 00")}, ErrUnsupported, "unknown section 14"},
		{"component", tiny{head: hx("00 61 73 6d 0d 00 01 00")}, ErrNotWasm, "this is a component; build for wasm32-wasip1"},
		{"elf", tiny{head: []byte("\x7fELF\x02\x01\x01\x00")}, ErrNotWasm, "not wasm"},
		{"version 2", tiny{head: hx("00 61 73 6d 02 00 00 00")}, ErrNotWasm, "unknown version"},
		{"foreign imports", tiny{sections: sec(secImport, imports("env.f 00 00", "wasi:cli/x@0.2.0 00 00"))}, ErrImport, "env, wasi:cli/x@0"},
		{"imported memory", tiny{sections: sec(secImport, imports("env.memory 02 00 01"))}, ErrImport, "imports the memory env.memory"},
		{"imported table", tiny{sections: sec(secImport, imports("env.t 01 70 00 01"))}, ErrImport, "imports the table"},
		{"imported global", tiny{sections: sec(secImport, imports("env.g 03 7f 00"))}, ErrImport, "imports the global"},
		{"no exports", tiny{sections: sec(secExport, hx("00"))}, ErrImport, "memory"},
		{"no _start", tiny{sections: sec(secExport, export("memory", kindMemory, 0))}, ErrImport, "_start"},
		{"reserved export", tiny{sections: sec(secExport, export(FuelGlobal, kindFunc, 0))}, ErrImport, "reserved"},
		{"export twice", tiny{sections: sec(secExport, append(append(hx("02"), export("a", 0, 0)[1:]...), export("a", 0, 0)[1:]...))}, ErrInvalid, "two exports"},
		{"_start with a result", tiny{sections: sec(secType, hx("01 60 00 01 7f"))}, ErrInvalid, "_start"},
		// what the module would reach if it counted on what is added to it
		{"the fuel global", code("23 00 1a 0b"), ErrInvalid, "global 0 of 0"},
		{"the wrapper", code("10 01 0b"), ErrInvalid, "function 1 of 1"},
		{"an added type", code("41 00 11 01 00 0b"), ErrInvalid, "type 1 of 1"},
		{"an added local", code("20 00 1a 0b"), ErrInvalid, "local 0 of 0"},
		{"ref of the wrapper", code("d2 01 1a 0b"), ErrInvalid, "function 1 of 1"},
		{"element of the wrapper", tiny{sections: map[int][]byte{secTable: hx("01 70 00 01"), secElement: hx("01 00 41 00 0b 01 01")}}, ErrInvalid, "function 1 of 1"},
		{"label", code("0c 01 0b"), ErrInvalid, "label 1 of 1"},
		{"else without if", code("05 0b"), ErrInvalid, "else without if"},
		{"code after the end", code("0b 01 0b"), ErrInvalid, "left over"},
		{"no end", code("01 01"), ErrTruncated, "lacks its end"},
		{"unknown instruction", code("27 0b"), ErrInvalid, "unknown instruction 0x27"},
		{"long number", code("41 80 80 80 80 80 00 1a 0b"), ErrInvalid, "32 bits"},
		{"number with stray bits", code("41 ff ff ff ff 1f 1a 0b"), ErrInvalid, "32 bits"},
		{"section twice", tiny{extra: hx("01 01 00")}, ErrInvalid, "out of order"},
		{"section too long", tiny{extra: hx("00 05 01")}, ErrTruncated, "5 more bytes"},
		{"bodies missing", tiny{sections: sec(secCode, hx("00"))}, ErrInvalid, "1 functions are declared, 0"},
		{"bad utf-8", tiny{sections: sec(secExport, hx("01 01 ff 00 00"))}, ErrInvalid, "UTF-8"},
		// bombs
		{"many types", tiny{sections: sec(secType, hx("ff ff ff ff 0f"))}, ErrTooBig, "4294967295 types"},
		{"types without bytes", tiny{sections: sec(secType, hx("90 4e"))}, ErrTruncated, "types declared in 0 bytes"},
		{"many locals", tiny{locals: hx("01 ff ff ff ff 0f 7f")}, ErrTooBig, "locals"},
		{"locals in parts", tiny{locals: hx("02 b0 ea 01 7f b0 ea 01 7e")}, ErrTooBig, "locals"},
		{"huge table", tiny{sections: sec(secTable, hx("01 70 00 ff ff ff ff 0f"))}, ErrTooBig, "table"},
		{"huge memory", tiny{sections: sec(secMemory, hx("01 00 81 80 04"))}, ErrInvalid, "65536"},
		{"many labels", code("41 00 0e ff ff ff ff 0f 00 0b"), ErrTooBig, "labels"},
		{"many elements", tiny{sections: map[int][]byte{secTable: hx("01 70 00 01"), secElement: hx("01 00 41 00 0b ff ff ff 7f")}}, ErrTooBig, "elements"},
		{"many data", tiny{sections: sec(secData, hx("ff ff ff 7f"))}, ErrTooBig, "data segments"},
		{"deep blocks", tiny{body: bytes.Repeat(hx("02 40"), 30_000)}, ErrTooBig, "nested"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Prepare(tc.mod.wasm(), Limits{})
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %v saying %q", err, tc.kind, tc.says)
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	_, err := Prepare(code("fe 03 00 0b").wasm(), Limits{})
	const want = "offset 0x31: threads (atomic instruction 0xfe) are not supported; build without -pthread"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %v", err, want)
	}
}

// Limits are what the caller says, and cutting a module anywhere refuses it.
func TestLimitsAndCuts(t *testing.T) {
	wasm := everything()
	for _, lim := range []Limits{{ModuleBytes: 10}, {OutputBytes: 100}, {Types: 1}, {Functions: 1}, {Imports: 1}, {Tables: 1},
		{TableElems: 1}, {Globals: 1}, {Exports: 1}, {Segments: 1}, {Elems: 1}, {BodyBytes: 1}, {Locals: 1}, {LocalsTotal: 1}, {Depth: 1}} {
		if _, err := Prepare(wasm, lim); !errors.Is(err, ErrTooBig) {
			t.Errorf("%+v: %v", lim, err)
		}
	}
	for n := range bytes.LastIndex(wasm, []byte("\x0b\x01!")) + 3 { // up to the data section, custom ones may go
		if p, err := Prepare(wasm[:n], Limits{}); err == nil {
			t.Errorf("cut to %d bytes: accepted, %+v", n, p.Report)
		}
	}
}

// everything is a module with all kinds of entries, among them the eight forms of element segments.
func everything() []byte {
	elem := hx(`08
		00 41 00 0b 02 00 02
		01 00 01 03
		02 01 41 00 0b 00 01 02
		03 00 02 02 03
		04 41 01 0b 01 d2 02 0b
		05 70 02 d2 03 0b d0 70 0b
		06 01 41 01 0b 70 01 d2 02 0b
		07 70 01 d2 03 0b`)
	body := hx(`02 02 7f 01 7e
		41 00 11 00 00
		d2 03 1a d0 6f 1a
		41 00 25 01 1a
		41 01 d2 02 26 01
		41 00 41 00 41 01 fc 0c 01 00
		fc 0d 01
		41 00 41 00 41 01 fc 0e 01 00
		d0 70 41 02 fc 0f 00 1a
		fc 10 00 1a
		41 00 d0 70 41 01 fc 11 00
		41 00 41 00 41 01 fc 08 00 00
		fc 09 00
		41 01 41 02 41 00 1c 01 7f 1a
		02 40 03 40 41 00 04 40 0c 01 05 0c 02 0b 0b 0b
		41 01 0e 01 00 00
		0b`)
	names := putBytes(nil, "name")
	names = append(names, 0, 2, 1, 'm', 1)
	names = putBytes(names, putBytes(putU32(putBytes(putU32(hx("02"), 2), "main"), 3), "other"))
	names = append(names, 2, 1, 0)
	prod := append(putBytes(nil, "producers"), 2)
	prod = append(putBytes(prod, "language"), 1)
	prod = putBytes(putBytes(prod, "Rust"), "")
	prod = append(putBytes(prod, "processed-by"), 1)
	prod = putBytes(putBytes(prod, "rustc"), "1.90")
	exp := append([]byte{5}, append(putBytes(nil, "memory"), 2, 0)...)
	exp = append(append(exp, putBytes(nil, "_start")...), 0, 2)
	exp = append(append(exp, putBytes(nil, "t")...), 1, 1)
	exp = append(append(exp, putBytes(nil, "g")...), 3, 1)
	exp = append(append(exp, putBytes(nil, "i")...), 0, 0)
	m := tiny{sections: map[int][]byte{
		secType:      hx("02 60 00 00 60 01 7f 00"),
		secImport:    imports(wasiModule+".proc_exit 00 01", wasiModule+".sched_yield 00 00"),
		secFunction:  hx("02 00 00"),
		secTable:     hx("02 70 01 03 05 70 00 03"),
		secMemory:    hx("01 01 01 03"),
		secGlobal:    hx("03 7f 01 41 05 0b 70 00 d2 03 0b 7b 00 fd 0c 00000000000000000000000000000000 0b"),
		secExport:    exp,
		secStart:     hx("03"),
		secElement:   elem,
		secDataCount: hx("02"),
		secCode:      append(putBytes([]byte{2}, body), hx("02 00 0b")...),
		secData:      hx("02 01 02 6869 02 00 41 00 0b 01 21"),
	}}
	m.extra = append(putBytes([]byte{secCustom}, names), putBytes([]byte{secCustom}, prod)...)
	return m.wasm()
}

func TestEverything(t *testing.T) {
	wasm := everything()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer rt.Close(ctx)
	if _, err := rt.CompileModule(ctx, wasm); err != nil {
		t.Fatalf("the input is invalid: %v", err)
	}
	p := prepare(t, wasm)
	code, err := rt.CompileModule(ctx, p.Module)
	if err != nil {
		t.Fatal(err)
	}
	for name, fn := range map[string]string{"_start": "main", "i": ""} {
		if def := code.ExportedFunctions()[name]; def == nil || def.Name() != fn {
			t.Errorf("export %s is %v, want %q", name, def, fn)
		}
	}
	r := p.Report
	if strings.Join(r.Needs, " ") != "proc_exit sched_yield" || r.MemoryMinPages != 1 || r.MemoryMaxPages != 3 ||
		r.Language != "Rust" || strings.Join(r.ProcessedBy, ",") != "rustc 1.90" || r.Functions != 2 || r.Loops != 1 {
		t.Errorf("report %+v", r)
	}
	if again := prepare(t, wasm); !bytes.Equal(again.Module, p.Module) {
		t.Error("two outputs for one input")
	}
	if _, err := Prepare(p.Module, Limits{}); !errors.Is(err, ErrImport) {
		t.Errorf("prepared twice: %v", err)
	}
}

// A module made to be slow is not: time is linear in its bytes.
func TestLinear(t *testing.T) {
	body := bytes.Repeat(hx("03 40 0b"), 1<<20)
	start := time.Now()
	p := prepareWith(t, tiny{body: append(body, opEnd)}.wasm(), Limits{})
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v for %d loops", d, p.Report.Loops)
	}
}

// FuzzPrepare wants no panic, and that what is valid stays valid.
func FuzzPrepare(f *testing.F) {
	f.Add(everything())
	f.Add(tiny{}.wasm())
	for _, body := range []string{"03 40 0c 00 0b 0b", "41 00 41 00 41 01 fc 0b 00 0b", "44 0000000000000000 44 0000000000000000 a3 1a 0b", "fe 00"} {
		f.Add(code(body).wasm())
	}
	small := Limits{Functions: 100, Locals: 100, Types: 100, Tables: 4, TableElems: 100, MemoryPages: 10, Elems: 100, Globals: 100}
	f.Fuzz(func(t *testing.T, wasm []byte) {
		for _, nan := range []bool{false, true} {
			small.CanonicalNaN = nan
			p, err := Prepare(wasm, small)
			if err != nil {
				if e := (*Error)(nil); !errors.As(err, &e) || e.Kind == nil || e.Offset > len(wasm) {
					t.Fatalf("untyped error %v", err)
				}
				continue
			}
			ctx := context.Background()
			rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
			if _, err := rt.CompileModule(ctx, wasm); err == nil {
				if _, err := rt.CompileModule(ctx, p.Module); err != nil {
					t.Errorf("valid before, not after: %v", err)
				}
			}
			rt.Close(ctx)
		}
	})
}

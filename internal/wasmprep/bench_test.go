package wasmprep

import "testing"

// BenchmarkRun tells what preparation costs at run time, under wazero's compiler; time/op includes compiling, which is
// small. Compare plain with fuel, and fuel with nan.
func BenchmarkRun(b *testing.B) {
	for _, file := range []struct{ name, arg string }{{"spin", "200000"}, {"float", "2000000"}} {
		wasm := clang(b, "testdata/"+file.name+".c", "-O3")
		fuel, nan := prepareWith(b, wasm, Limits{}), prepareWith(b, wasm, Limits{CanonicalNaN: true})
		for _, v := range []struct {
			name  string
			wasm  []byte
			meter bool
		}{{"plain", wasm, false}, {"fuel", fuel.Module, true}, {"nan", nan.Module, true}} {
			b.Run(file.name+"/"+v.name, func(b *testing.B) {
				for b.Loop() {
					g := guest{wasm: v.wasm, args: []string{file.arg}}
					if v.meter {
						g.meter = &Meter{Limit: plenty, Slice: 10_000_000}
					}
					if res := engines[0].run(g); res.err != nil {
						b.Fatal(res.err)
					}
				}
			})
		}
	}
}

// BenchmarkPrepare tells how fast preparation is, in bytes of input.
func BenchmarkPrepare(b *testing.B) {
	wasm, err := goGuest()
	if err != nil {
		b.Skip(err)
	}
	b.SetBytes(int64(len(wasm)))
	for b.Loop() {
		if _, err := Prepare(wasm, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

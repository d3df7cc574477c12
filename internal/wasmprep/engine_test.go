package wasmprep

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
)

var errFuel = errors.New("fuel limit reached")

type engine struct {
	name   string
	config wazero.RuntimeConfig
}

// engines are the two of wazero: unlike in everything but the meaning of wasm.
var engines = []engine{
	{"compiler", wazero.NewRuntimeConfig()},
	{"interpreter", wazero.NewRuntimeConfigInterpreter()},
}

// guest is one run of a module: prepared if it has a meter, else as it was.
type guest struct {
	wasm  []byte
	meter *Meter
	args  []string
	stdin string
	dir   string // mounted at /
}

type result struct {
	stdout string
	spent  int64
	polls  int
	err    error
}

func (e engine) run(g guest) (res result) {
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, e.config.WithCoreFeatures(api.CoreFeaturesV2))
	defer rt.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	var last int64
	poll := func(_ context.Context, mod api.Module, _ []uint64) {
		fuel := mod.ExportedGlobal(FuelGlobal).(api.MutableGlobal)
		refill, ok := g.meter.Poll(int64(fuel.Get()))
		res.polls++
		last = int64(fuel.Get())
		if !ok {
			panic(errFuel)
		}
		fuel.Set(uint64(refill))
	}
	if g.meter != nil {
		if _, err := rt.NewHostModuleBuilder(PollModule).NewFunctionBuilder().
			WithGoModuleFunction(api.GoModuleFunc(poll), nil, nil).Export(PollName).Instantiate(ctx); err != nil {
			return result{err: err}
		}
	}
	code, err := rt.CompileModule(ctx, g.wasm)
	if err != nil {
		return result{err: err}
	}
	var out bytes.Buffer
	conf := wazero.NewModuleConfig().WithName("").WithArgs(append([]string{"guest"}, g.args...)...).
		WithStdin(strings.NewReader(g.stdin)).WithStdout(&out).WithStartFunctions()
	if g.dir != "" {
		conf = conf.WithFSConfig(wazero.NewFSConfig().WithDirMount(g.dir, "/"))
	}
	mod, err := rt.InstantiateModule(ctx, code, conf)
	if err == nil {
		_, err = mod.ExportedFunction("_start").Call(ctx)
		if exit := (*sys.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 0 {
			err = nil
		}
		if g.meter != nil && !errors.Is(err, errFuel) {
			last = int64(mod.ExportedGlobal(FuelGlobal).Get())
		}
	}
	res.stdout, res.err = out.String(), err
	if g.meter != nil {
		res.spent = g.meter.Spent(last)
	}
	return res
}

// clang builds a C file for WASI, or skips the test where that is impossible.
func clang(t testing.TB, file string, flags ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "guest.wasm")
	args := append([]string{"--target=wasm32-wasi", "-O2", "-o", out, file, "-lm"}, flags...)
	msg, err := exec.Command("clang", args...).CombinedOutput()
	if err != nil {
		t.Skipf("no clang for wasm32-wasi here: %v %s", err, msg)
	}
	return read(t, out)
}

// goGuest is a Go program for WASI, built once.
var goGuest = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "wasmprep")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	src := `package main
import ("fmt"; "os"; "sort"; "strings")
func main() {
	words := strings.Fields(strings.Repeat("to be or not to be ", 50))
	sort.Strings(words)
	fmt.Println(len(words), words[0], os.Args[1:], 0.1+float64(len(words)))
}`
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(src), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "build", "-o", "guest.wasm", "main.go")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.New(string(msg))
	}
	return os.ReadFile(filepath.Join(dir, "guest.wasm"))
})

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func prepare(t testing.TB, wasm []byte) Prepared {
	t.Helper()
	return prepareWith(t, wasm, Limits{})
}

func prepareWith(t testing.TB, wasm []byte, limits Limits) Prepared {
	t.Helper()
	p, err := Prepare(wasm, limits)
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	return p
}

package wasm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/sys"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/wasmprep"
)

const wasiModule = "wasi_snapshot_preview1"

// wasmPage is a page of linear memory; maxPages is one less than wasm has, so that a size fits 32 bits.
const (
	wasmPage = 64 << 10
	maxPages = 1<<16 - 1
)

// What a guest may run between two polls: well under a millisecond of compiled code.
const (
	sliceCompiled    = 1 << 20
	sliceInterpreted = 20_000
)

// prepLimits are the rules by which programs are prepared here. NaNs are made canonical always: a quorum may span processors.
func prepLimits() wasmprep.Limits {
	return wasmprep.Limits{CanonicalNaN: true, ModuleBytes: int(crowd.Limits.ProgramBytes)}
}

// machine runs one program's units, one at a time.
type machine struct {
	rt       wazero.Runtime
	cache    wazero.CompilationCache
	code     wazero.CompiledModule
	compiled bool // by the compiler, not interpreted
	cur      *unit
	breath   func()
}

// files of a cache entry.
const (
	moduleFile = "module.wasm"
	codeDir    = "code"
)

// newMachine loads prepared code; dir is a folder of compiled code to read or to fill, empty for none.
func newMachine(ctx context.Context, prepared []byte, dir string, interpret bool) (*machine, error) {
	m := &machine{breath: func() {}}
	conf := wazero.NewRuntimeConfig()
	m.compiled = compilerWorks()
	if interpret {
		conf, m.compiled = wazero.NewRuntimeConfigInterpreter(), false
	}
	conf = conf.WithCoreFeatures(api.CoreFeaturesV2).WithMemoryLimitPages(maxPages).WithDebugInfoEnabled(false)
	if dir != "" && m.compiled {
		var err error
		if m.cache, err = wazero.NewCompilationCacheWithDir(dir); err != nil {
			return nil, err
		}
		conf = conf.WithCompilationCache(m.cache)
	}
	m.rt = wazero.NewRuntimeWithConfig(ctx, conf)
	if err := m.host(ctx); err != nil {
		return nil, errors.Join(err, m.close(ctx))
	}
	var err error
	if m.code, err = m.rt.CompileModule(ctx, prepared); err != nil {
		return nil, errors.Join(err, m.close(ctx))
	}
	return m, nil
}

func (m *machine) close(ctx context.Context) error {
	err := m.rt.Close(ctx)
	if m.cache != nil {
		err = errors.Join(err, m.cache.Close(ctx))
	}
	return err
}

// compilerWorks tells whether wazero compiles here: it takes the interpreter otherwise, without a word.
func compilerWorks() (yes bool) {
	defer func() { yes = recover() == nil }()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
	_ = rt.Close(ctx)
	return true
}

// host makes the functions that guests call.
func (m *machine) host(ctx context.Context) error {
	poll := func(_ context.Context, mod api.Module, _ []uint64) {
		if m.cur.fuel == nil { // the first thing that a run does
			m.cur.fuel = mod.ExportedGlobal(wasmprep.FuelGlobal).(api.MutableGlobal)
		}
		m.cur.poll()
	}
	_, err := m.rt.NewHostModuleBuilder(wasmprep.PollModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(poll), nil, nil).Export(wasmprep.PollName).Instantiate(ctx)
	if err != nil {
		return err
	}
	b := m.rt.NewHostModuleBuilder(wasiModule)
	for _, f := range functions {
		results := []api.ValueType{api.ValueTypeI32}
		if f.name == "proc_exit" {
			results = nil
		}
		b = b.NewFunctionBuilder().WithGoModuleFunction(m.wasi(f), types(f.params), results).Export(f.name)
	}
	_, err = b.Instantiate(ctx)
	return err
}

func (m *machine) wasi(f function) api.GoModuleFunction {
	return api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
		mem := mod.Memory()
		all, _ := mem.Read(0, mem.Size())
		var args [9]uint64
		c := call{u: m.cur, mem: all, a: args[:copy(args[:], stack)]}
		c.u.charge(hostBase)
		e := f.do(&c)
		if len(stack) > 0 {
			stack[0] = uint64(e)
		}
	})
}

func types(params string) (list []api.ValueType) {
	for _, p := range params {
		if p == 'I' {
			list = append(list, api.ValueTypeI64)
		} else {
			list = append(list, api.ValueTypeI32)
		}
	}
	return list
}

// checkImports tells a program that wants a WASI function that there isn't, or in another form.
func checkImports(code wazero.CompiledModule) error {
	for _, def := range code.ImportedFunctions() {
		module, name, _ := def.Import()
		if module != wasiModule {
			continue
		}
		i := slices.IndexFunc(functions, func(f function) bool { return f.name == name })
		if i < 0 {
			return fmt.Errorf("it imports %s.%s, which doesn't exist", module, name)
		}
		if want := types(functions[i].params); !slices.Equal(def.ParamTypes(), want) || len(def.ResultTypes()) > 1 ||
			(len(def.ResultTypes()) == 0) != (name == "proc_exit") {
			return fmt.Errorf("it imports %s.%s with other parameters than it has", module, name)
		}
	}
	return nil
}

// run runs one unit to its end. An error means that the host failed, not the unit.
//
// How a unit ends: by returning from _start or by proc_exit: its exit code. By a trap of the engine: guest.trap. By
// more bytes of output or files than allowed: guest.output. By more fuel than allowed: guest.fuel. If the program's
// memory at the start is larger than allowed: guest.memory, without running. If the program was refused memory.grow
// because of its limit (not because of a maximum of its own) and then traps or exits with another code than 0:
// guest.memory too. Files are kept only of units that exited by themselves.
//
// How deep calls may nest is the engine's business and differs between processors, so a stack overflow leaves nothing that
// depends on when it happened: guest.trap with no fuel, stdout or files. The interpreter's stack is too small to
// tell anything: there it is the host's failure.
func (m *machine) run(ctx context.Context, u *unit) error {
	m.cur, u.breath = u, m.breath
	defer func() { m.cur = nil }()
	limit := uint64(min(u.Task.Memory, maxPages*wasmPage)) / wasmPage * wasmPage
	mem := &memory{
		limit:   limit,
		refused: func() { u.Denied = true },
		failed:  func(err error) { u.stop(ending{Host: fmt.Sprintf("no memory for the guest: %v", err)}) },
	}
	defer mem.Free()
	if need := m.minimum(); need > limit {
		u.End = &ending{Reason: crowd.GuestMemory}
		u.say(fmt.Appendf(nil, "the program needs %d bytes of memory to start, the limit is %d\n", need, limit))
		return nil
	}
	err := m.call(experimental.WithMemoryAllocator(ctx, mem))
	var exit *sys.ExitError
	switch {
	case u.End != nil:
		if u.End.Host != "" {
			return errors.New(u.End.Host)
		}
	case err == nil:
		u.End = &ending{}
	case errors.As(err, &exit):
		return fmt.Errorf("an exit that nobody called: %w", err)
	case strings.Contains(err.Error(), "(recovered by wazero)"):
		return fmt.Errorf("a failure of the host's functions: %w", err)
	case strings.Contains(firstLine(err.Error()), "stack overflow"):
		if !m.compiled {
			return errors.New("calls nest too deep for this machine's interpreter")
		}
		u.End = &ending{Reason: crowd.GuestTrap}
		u.Stdout, u.Stderr, u.Cut, u.Meter, u.fuel = nil, nil, false, wasmprep.Meter{}, nil
		u.say([]byte("stack overflow: calls nest too deep; what the unit had written was dropped\n"))
		return nil
	default:
		u.End = &ending{Reason: crowd.GuestTrap}
		u.say([]byte("\n" + err.Error() + "\n"))
	}
	if u.Denied && (u.End.Reason == crowd.GuestTrap || u.End.Exit != 0) {
		u.End = &ending{Reason: crowd.GuestMemory}
	}
	if u.End.Reason == crowd.GuestFuel {
		u.say([]byte("\nthe unit used up its fuel\n"))
	}
	return nil
}

func firstLine(s string) string { s, _, _ = strings.Cut(s, "\n"); return s }

// call instantiates the program and calls _start; panics are wazero's and become errors as its own.
func (m *machine) call(ctx context.Context) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *sys.ExitError: // from an allocator
			err = r
		default:
			err = fmt.Errorf("%v (recovered by wazero) %s", r, debug.Stack())
		}
	}()
	// without a source of its own the engine seeds one for every instance, which nobody can reach
	conf := wazero.NewModuleConfig().WithName("").WithStartFunctions().WithRandSource(strings.NewReader(""))
	mod, err := m.rt.InstantiateModule(ctx, m.code, conf)
	if err != nil {
		return err
	}
	defer mod.Close(ctx)
	_, err = mod.ExportedFunction("_start").Call(ctx)
	return err
}

// minimum is the program's memory at the start, in bytes.
func (m *machine) minimum() uint64 {
	for _, def := range m.code.ExportedMemories() {
		return uint64(def.Min()) * wasmPage
	}
	return 0
}

// loadMachine makes a machine of a cache entry: with its compiled code if that can be had, else it compiles here.
func loadMachine(ctx context.Context, entry string, interpret bool) (*machine, error) {
	prepared, err := os.ReadFile(filepath.Join(entry, moduleFile))
	if err != nil {
		return nil, err
	}
	code := filepath.Join(entry, codeDir)
	if found, _ := filepath.Glob(filepath.Join(code, "*", "*")); len(found) > 0 && !interpret {
		if m, err := newMachine(ctx, prepared, code, false); err == nil {
			return m, nil
		}
	}
	return newMachine(ctx, prepared, "", interpret)
}

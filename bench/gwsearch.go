package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/guest/wasm"
)

const searchUnits = 24

// gwsearch: the example's units in a real slot, against the native program and against wazero without our fuel.
func gwsearch(ctx context.Context) ([]Row, error) {
	const dir = "examples/gwsearch"
	tmp, err := os.MkdirTemp("", "crowd-bench-gw-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	native := filepath.Join(tmp, "search")
	if out, err := exec.Command("cc", "-O3", "-o", native, filepath.Join(dir, "search.c"), "-lm").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cc: %w: %s", err, out)
	}
	args := func(in string, u int) []string {
		return []string{"--h1", in + "/H1.f64", "--l1", in + "/L1.f64", "--meta", in + "/meta.json", "--unit", fmt.Sprint(u), "--of", "1024"}
	}
	t0 := time.Now()
	for u := range searchUnits {
		if out, err := exec.CommandContext(ctx, native, args(dir+"/data", u*40)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("native: %w: %s", err, out)
		}
	}
	nativeTook := time.Since(t0)
	module, err := os.ReadFile(dir + "/search.wasm")
	if err != nil {
		return nil, err
	}
	plain, err := plainWazero(ctx, module, dir+"/data", args)
	if err != nil {
		return nil, err
	}
	ours, err := inSlot(ctx, tmp, module, dir+"/data", args)
	if err != nil {
		return nil, err
	}
	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / searchUnits }
	return []Row{
		row("gwsearch, one unit, against native", per(ours), "ms", "native, a process a unit", per(nativeTook), 2.2, true, "lower"),
		row("gwsearch, one unit, against wazero", per(ours), "ms", "wazero without fuel and canonical NaNs", per(plain), 1.5, true, "lower"),
	}, nil
}

func plainWazero(ctx context.Context, module []byte, data string, args func(string, int) []string) (time.Duration, error) {
	r := wazero.NewRuntime(ctx)
	defer r.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	compiled, err := r.CompileModule(ctx, module)
	if err != nil {
		return 0, err
	}
	fs := wazero.NewFSConfig().WithReadOnlyDirMount(data, "/in")
	t0 := time.Now()
	for u := range searchUnits {
		m, err := r.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName("").WithFSConfig(fs).WithArgs(append([]string{"search"}, args("/in", u*40)...)...))
		if err != nil {
			return 0, err
		}
		_ = m.Close(ctx)
	}
	return time.Since(t0), nil
}

func inSlot(ctx context.Context, tmp string, module []byte, data string, args func(string, int) []string) (time.Duration, error) {
	engine, err := wasm.New(wasm.Options{Pool: 1, CacheDir: filepath.Join(tmp, "cache"), CacheBytes: 1 << 30})
	if err != nil {
		return 0, err
	}
	defer engine.Close()
	blobs := files{}
	program := blobs.add(module)
	var inputs []crowd.Input
	for _, name := range []string{"H1.f64", "L1.f64", "meta.json"} {
		b, err := os.ReadFile(filepath.Join(data, name))
		if err != nil {
			return 0, err
		}
		inputs = append(inputs, crowd.Input{As: name, Digest: blobs.add(b), Size: int64(len(b))})
	}
	task := guest.Task{Job: newJob(), Program: program, Limits: guest.Limits{Memory: 64 << 20, Output: 1 << 20, Disk: 1 << 20, Time: time.Minute}}
	for u := range searchUnits + 1 {
		p := crowd.Plan{Unit: uint64(u), Args: append([]string{"search"}, args("/in", u*40)...), Inputs: inputs}
		_, _ = rand.Read(p.Seed[:])
		task.Plans = append(task.Plans, p)
	}
	s, err := engine.Slot(ctx, task.Job)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	var began time.Time
	o, _, err := s.Run(ctx, task, blobs, func(done, _ uint64) {
		if done == 1 { // the first compiles
			began = time.Now()
		}
	})
	if err != nil {
		return 0, err
	}
	if n := o.FailedUnits(); n > 0 {
		return 0, fmt.Errorf("%d units failed", n)
	}
	return time.Since(began), nil
}

// files are blobs in memory: guest.Blobs.
type files map[crowd.Digest][]byte

func (f files) add(b []byte) crowd.Digest {
	d := digest.Of(b)
	f[d] = b
	return d
}

func (f files) Open(_ context.Context, d crowd.Digest) (guest.Blob, error) {
	b, ok := f[d]
	if !ok {
		return nil, crowd.Errorf(crowd.NotFound, "", "no content %s", d)
	}
	return file{bytes.NewReader(b)}, nil
}

type file struct{ *bytes.Reader }

func (file) Close() error { return nil }

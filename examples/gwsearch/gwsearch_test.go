package gwsearch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"math/cmplx"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/crowdcloud/crowd/examples/gwsearch/gw"
)

// bank is how many templates a case runs. CROWD_SOAK=1 runs the job's own bank everywhere, which takes a
// quarter of an hour of one core.
func bank(coarse int) int {
	if os.Getenv("CROWD_SOAK") != "" {
		return 1024
	}
	return coarse
}

func TestFindsGW150914(t *testing.T) {
	e, found := search(t, load(t), bank(64))
	if !found {
		t.Fatalf("nothing found; loudest: %v", e)
	}
	within(t, "gps", e.GPS, 1126259462.39, 1126259462.45)
	within(t, "chirp mass", e.ChirpMass, 27, 34)
	within(t, "network snr", e.SNR.Network, 17, 28)
}

// The reference filter in Go, which shares no code with the program, agrees with it: on the ratios, and that the wave
// crossed from one detector to the other no faster than light.
func TestReferenceFilterAgrees(t *testing.T) {
	s := load(t)
	e, _ := gw.Pick(read(t, units(t, s, 64, 48)))
	series := s.Filter(e.ChirpMass, e.MassRatio)
	h, l := loudest(series.H1), loudest(series.L1)
	within(t, "H1 snr", series.H1[h], e.SNR.H1*0.98, e.SNR.H1*1.02)
	within(t, "L1 snr", series.L1[l], e.SNR.L1*0.98, e.SNR.L1*1.02)
	within(t, "H1 time", series.Start+float64(h)/series.Rate, e.GPS-0.001, e.GPS+0.001)
	within(t, "travel", math.Abs(float64(h-l))/series.Rate, 0, 0.010)
}

func TestFindsInjection(t *testing.T) {
	s := load(t)
	const at, chirpMass, ratio, later = 23.25, 14.0, 1.5, 0.004
	inject(s.H1, s.Rate, at, chirpMass, ratio, 20)
	inject(s.L1, s.Rate, at+later, chirpMass, ratio, -15)
	e, found := search(t, blanked(s), bank(128))
	if !found {
		t.Fatalf("nothing found; loudest: %v", e)
	}
	within(t, "gps", e.GPS, s.Start+at-0.03, s.Start+at+0.03)
	within(t, "chirp mass", e.ChirpMass, 12.5, 15.5)
	within(t, "network snr", e.SNR.Network, 14, 28)
}

func TestNothingInBlankedStrain(t *testing.T) {
	nothing(t, blanked(load(t)), bank(64))
}

func TestNothingWhenDetectorsDisagree(t *testing.T) {
	s := load(t)
	shift := int(4 * s.Rate)
	s.H1, s.L1 = s.H1[:len(s.H1)-shift], s.L1[shift:]
	nothing(t, s, bank(64))
}

func TestNothingInGaussianNoise(t *testing.T) {
	s := load(t)
	h, l := gw.Spectrum(s.H1, s.Rate), gw.Spectrum(s.L1, s.Rate)
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 150914))
		s.H1 = noise(random, h, s.Rate, len(s.H1))
		s.L1 = noise(random, l, s.Rate, len(s.L1))
		nothing(t, s, bank(16))
	}
}

// Strain of other lengths and rates, and of a length that is no power of two.
func TestOtherShapes(t *testing.T) {
	s := load(t)
	for _, c := range []struct {
		from, seconds float64
		every         int
	}{{10, 12.3, 1}, {12, 8, 1}, {3, 27.7, 2}} {
		part := gw.Strain{Rate: s.Rate / float64(c.every), Start: s.Start + c.from}
		first := int(c.from * s.Rate)
		for i := first; i < first+int(c.seconds*s.Rate); i += c.every {
			part.H1 = append(part.H1, s.H1[i])
			part.L1 = append(part.L1, s.L1[i])
		}
		e, found := gw.Pick(read(t, units(t, part, 64, 48, 51)))
		if !found {
			t.Fatalf("%+v: nothing found; loudest: %v", c, e)
		}
		within(t, "gps", e.GPS, 1126259462.39, 1126259462.45)
	}
}

func TestRefusals(t *testing.T) {
	files := inputs(t, load(t))
	short := inputs(t, load(t))
	short["L1.f64"] = &fstest.MapFile{Data: short["L1.f64"].Data[:1000]}
	rate := inputs(t, load(t))
	rate["meta.json"] = &fstest.MapFile{Data: []byte(`{"sample_rate_hz": 4000, "gps_start": 1}`)}
	meta := inputs(t, load(t))
	meta["meta.json"] = &fstest.MapFile{Data: []byte(`{"gps_start": 1}`)}
	for _, c := range []struct {
		files fstest.MapFS
		unit  string
		says  string
	}{
		{files, "64", "0 <= U < N"},
		{files, "x", "--unit: wanted a whole number"},
		{short, "0", "at least 8 s"},
		{rate, "0", "sample_rate_hz: wanted"},
		{meta, "0", "no number called sample_rate_hz"},
		{fstest.MapFS{"meta.json": files["meta.json"]}, "0", "cannot open /in/H1.f64"},
	} {
		_, err := engine(t).unit(c.files, c.unit, "64")
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("unit %s: wanted %q, got %v", c.unit, c.says, err)
		}
	}
}

func TestPlot(t *testing.T) {
	s := load(t)
	path := filepath.Join(t.TempDir(), "snr.png")
	if err := gw.Plot(s, gw.Event{GPS: 1126259462.428, ChirpMass: 31.8, SNR: gw.SNR{H1: 19.2, L1: 13}}, path); err != nil {
		t.Fatal(err)
	}
	png, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Fatalf("no PNG: %d bytes, %v", len(png), err)
	}
}

// The committed program is what its source compiles to.
func TestProgramIsBuiltFromSource(t *testing.T) {
	version, err := exec.Command("clang", "--version").Output()
	if err != nil || !strings.HasPrefix(string(version), "Debian clang version 14.0.6\n") {
		t.Skipf("needs Debian clang version 14.0.6, found %.40q, %v", version, err)
	}
	built := filepath.Join(t.TempDir(), "search.wasm")
	if out, err := exec.Command("./build.sh", built).CombinedOutput(); err != nil {
		t.Skipf("needs lld, wasi-libc and libclang-rt-dev-wasm32: %v\n%s", err, out)
	}
	got, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("search.wasm")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("search.wasm is stale: run ./build.sh")
	}
}

func BenchmarkWasm(b *testing.B) {
	e, files := engine(b), inputs(b, load(b))
	for b.Loop() {
		if _, err := e.unit(files, "800", "1024"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNative(b *testing.B) {
	program := filepath.Join(b.TempDir(), "search")
	if out, err := exec.Command("cc", "-O3", "search.c", "-o", program, "-lm").CombinedOutput(); err != nil {
		b.Skipf("needs a C compiler: %v\n%s", err, out)
	}
	for b.Loop() {
		cmd := exec.Command(program, "--h1", "data/H1.f64", "--l1", "data/L1.f64", "--meta", "data/meta.json",
			"--unit", "800", "--of", "1024")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
}

// ---- strain ----

func load(t testing.TB) gw.Strain {
	t.Helper()
	s, err := gw.Load("data")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// blanked takes out the second around the event, as if nothing had been measured.
func blanked(s gw.Strain) gw.Strain {
	from, to := int(15.8*s.Rate), int(16.8*s.Rate)
	clear(s.H1[from:to])
	clear(s.L1[from:to])
	return s
}

// inject adds an inspiral that merges at a time within x, at a signal-to-noise ratio: TaylorF2 to order 3.5, cut at
// twice the frequency of the last stable orbit. It is not the model that the search looks for.
// A. Buonanno et al., Phys. Rev. D 80, 084043 (2009), equation 3.18.
func inject(x []float64, rate, at, chirpMass, ratio, snr float64) {
	const sun, gamma = 4.925490947641267e-6, 0.5772156649015329
	eta := ratio / ((1 + ratio) * (1 + ratio))
	mass := chirpMass * sun / math.Pow(eta, 0.6)
	last := 1 / (math.Pi * mass * math.Pow(6, 1.5))
	density := gw.Spectrum(x, rate)
	n := len(x)
	df := rate / float64(n)
	wave := make([]complex128, n)
	var norm float64
	for k := int(25 / df); float64(k)*df < 2*last; k++ {
		f := float64(k) * df
		v := math.Cbrt(math.Pi * mass * f)
		psi := 1 + (3715./756+55./9*eta)*v*v - 16*math.Pi*v*v*v +
			(15293365./508032+27145./504*eta+3085./72*eta*eta)*math.Pow(v, 4) +
			math.Pi*(38645./756-65./9*eta)*(1+3*math.Log(v*math.Sqrt(6)))*math.Pow(v, 5) +
			(11583231236531./4694215680-640./3*math.Pi*math.Pi-6848./21*(gamma+math.Log(4*v))+
				(-15737765635./3048192+2255./12*math.Pi*math.Pi)*eta+76055./1728*eta*eta-
				127825./1296*eta*eta*eta)*math.Pow(v, 6) +
			math.Pi*(77096675./254016+378515./1512*eta-74045./756*eta*eta)*math.Pow(v, 7)
		psi *= 3 / (128 * eta) * math.Pow(v, -5)
		amp := math.Pow(f, -7./6)
		norm += 4 * df * amp * amp / density[int(f*4)]
		wave[k] = cmplx.Conj(cmplx.Rect(amp, -psi-2*math.Pi*f*at)) // conjugate in, conjugate out: an inverse
	}
	gw.FFT(wave)
	for i := range x {
		x[i] += snr / math.Sqrt(norm) * 2 * df * real(wave[i])
	}
}

// noise makes n samples of Gaussian noise of a density given every 1/4 Hz.
func noise(random *rand.Rand, density []float64, rate float64, n int) []float64 {
	x := make([]complex128, n)
	for k := 1; k < n/2; k++ {
		at := float64(k) / float64(n) * rate * 4
		i := int(at)
		d := density[i] + (at-float64(i))*(density[i+1]-density[i])
		scale := math.Sqrt(d * rate / float64(n))
		x[k] = complex(scale*random.NormFloat64(), scale*random.NormFloat64())
	}
	gw.FFT(x)
	out := make([]float64, n)
	for i := range out {
		out[i] = real(x[i])
	}
	return out
}

func loudest(x []float64) int {
	best := len(x) / 4
	for i := best; i < len(x)*3/4; i++ {
		if x[i] > x[best] {
			best = i
		}
	}
	return best
}

// ---- checks ----

func within(t *testing.T, what string, got, low, high float64) {
	t.Helper()
	if !(got >= low && got <= high) {
		t.Errorf("%s: %.3f, wanted %.3f to %.3f", what, got, low, high)
	}
}

func nothing(t *testing.T, s gw.Strain, of int) {
	t.Helper()
	if e, found := search(t, s, of); found {
		t.Errorf("found %v", e)
	}
}

// search runs a whole bank over s.
func search(t *testing.T, s gw.Strain, of int) (gw.Event, bool) {
	t.Helper()
	every := make([]int, of)
	for i := range every {
		every[i] = i
	}
	peaks := read(t, units(t, s, of, every...))
	if len(peaks) != of {
		t.Fatalf("%d lines of %d units", len(peaks), of)
	}
	e, found := gw.Pick(peaks)
	var loudest gw.SNR
	for _, p := range peaks {
		if p.SNR.Network > loudest.Network {
			loudest = p.SNR
		}
	}
	t.Logf("%d templates, found %v: %v; loudest of any kind %.3f", of, found, e, loudest)
	return e, found
}

func read(t *testing.T, lines string) []gw.Peak {
	t.Helper()
	peaks, err := gw.ReadPeaks(strings.NewReader(lines))
	if err != nil {
		t.Fatal(err)
	}
	return peaks
}

// units runs some units of a bank on two processors and returns their lines.
func units(t *testing.T, s gw.Strain, of int, which ...int) string {
	t.Helper()
	e, files := engine(t), inputs(t, s)
	lines, errs := make([]string, len(which)), make([]error, len(which))
	var all sync.WaitGroup
	for worker := range 2 {
		all.Go(func() {
			for i := worker; i < len(which); i += 2 {
				lines[i], errs[i] = e.unit(files, fmt.Sprint(which[i]), fmt.Sprint(of))
			}
		})
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("unit %d: %v", which[i], err)
		}
	}
	return strings.Join(lines, "")
}

// inputs are the files that a unit sees under /in.
func inputs(t testing.TB, s gw.Strain) fstest.MapFS {
	t.Helper()
	meta, err := json.Marshal(gw.Meta{SampleRate: s.Rate, GPSStart: s.Start})
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"meta.json": {Data: meta}}
	for name, x := range map[string][]float64{"H1.f64": s.H1, "L1.f64": s.L1} {
		raw, err := binary.Append(nil, binary.LittleEndian, x)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: raw}
	}
	return files
}

// ---- engine ----

// compiled is search.wasm, compiled once for all tests.
type compiled struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
}

var compile = sync.OnceValues(func() (compiled, error) {
	ctx := context.Background()
	raw, err := os.ReadFile("search.wasm")
	if err != nil {
		return compiled{}, err
	}
	r := wazero.NewRuntime(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	m, err := r.CompileModule(ctx, raw)
	return compiled{r, m}, err
})

func engine(t testing.TB) compiled {
	t.Helper()
	c, err := compile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// unit runs one unit in a fresh instance and returns its line; the error holds what it said on stderr.
func (c compiled) unit(files fs.FS, unit, of string) (string, error) {
	ctx := context.Background()
	var stdout, stderr bytes.Buffer
	m, err := c.runtime.InstantiateModule(ctx, c.module, wazero.NewModuleConfig().WithName("").
		WithArgs("search", "--h1", "/in/H1.f64", "--l1", "/in/L1.f64", "--meta", "/in/meta.json", "--unit", unit, "--of", of).
		WithFSConfig(wazero.NewFSConfig().WithFSMount(files, "/in")).WithStdout(&stdout).WithStderr(&stderr))
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String(), m.Close(ctx)
}

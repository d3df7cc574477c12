// Package wasmprep checks a stranger's core wasm module and rewrites it so that its host can meter, pause and stop it.
//
// Check: the module is parsed under hard caps and against a fixed list of features, so that it means the same to every
// engine. Rewrite: every function entry and every loop head pays for the instructions that follow it out of a counter,
// the fuel, and calls the host when the counter runs out (see [Meter] for that contract). On demand, NaNs get one
// fixed bit pattern, because processors differ in which one they give.
//
// Features accepted: the MVP, sign extension, non-trapping float-to-int, multi-value, bulk memory, reference types
// (funcref and externref), SIMD without its relaxed part, mutable globals. Everything else is refused by name.
//
// What is checked is what the rewrite and the host rely on: structure, bounds of every index, features, caps. Types on
// the operand stack are left to the engine, which validates the rewritten module as it would any other.
package wasmprep

import (
	"fmt"
	"slices"
	"strings"
)

// Version names the rewrite: for one version the output is a function of the input bytes and CanonicalNaN alone, so a
// cache may be keyed by (digest of the input, Version, CanonicalNaN). It grows with any change that alters an output byte
// or the fuel a program uses.
const Version = 1

// Names by which a prepared module and its host know each other.
const (
	PollModule = "crowd"      // module of the one added import
	PollName   = "poll"       // its function, without parameters and results
	FuelGlobal = "crowd_fuel" // the added export: a mutable i64 global
	wasiModule = "wasi_snapshot_preview1"
	wrapName   = "crowd.poll"   // names of the added functions in traces
	chargeName = "crowd.charge" //
	growName   = "crowd.grow"   //
)

// Limits caps what a module may declare. The numbers decide whether a module is accepted, never what comes out, so they
// are no part of a cache key. One that is zero means its value in [DefaultLimits].
type Limits struct {
	// CanonicalNaN gives every NaN that float arithmetic makes one fixed bit pattern wherever the bits can show, so that
	// amd64 and arm64 hosts agree bit for bit. It changes the output and belongs into the cache key; the fuel stays the
	// same. Off by default, since it costs loops of float arithmetic 10 to 50 % of their time under wazero's compiler,
	// other code nothing (BenchmarkRun). Report.NaNs says whether a module can need it at all.
	CanonicalNaN bool

	ModuleBytes int // the input
	OutputBytes int // the rewritten module
	Types       int
	Params      int // of one function type, also its results
	Imports     int
	Functions   int
	Tables      int
	TableElems  int // initial size of one table
	MemoryPages int // initial size, pages of 64 KiB
	Globals     int
	Exports     int
	Segments    int // element segments, also data segments
	Elems       int // entries of all element segments together
	BodyBytes   int // code of one function
	Locals      int // declared by one function
	LocalsTotal int // declared by all functions together
	Depth       int // nested blocks in one function
}

// DefaultLimits are the caps that a zero Limits stands for.
var DefaultLimits = Limits{
	ModuleBytes: 64 << 20,
	OutputBytes: 256 << 20,
	Types:       100_000,
	Params:      1_000,
	Imports:     1_000,
	Functions:   200_000,
	Tables:      16,
	TableElems:  tableCap,
	MemoryPages: 1 << 16,
	Globals:     100_000,
	Exports:     100_000,
	Segments:    100_000,
	Elems:       1 << 20,
	BodyBytes:   4 << 20,
	Locals:      50_000,
	LocalsTotal: 8 << 20,
	Depth:       20_000,
}

// tableCap is the size to which a table may grow: a larger or absent maximum is replaced by it, so that table.grow
// fails at the same size everywhere. Part of Version.
const tableCap = 1 << 20

// Prepared is a module that passed, rewritten.
type Prepared struct {
	Module []byte // a valid module exactly when the input was one
	Report Report
}

// Report says what a module is and needs, as far as its bytes tell.
type Report struct {
	Needs          []string // WASI preview 1 functions imported, sorted, each once
	MemoryMinPages uint32   // initial memory, pages of 64 KiB
	MemoryMaxPages uint32   // declared maximum; 65536 when it declares none
	Language       string   // as the producers section claims, such as "Rust" or "C11"; may be empty
	ProcessedBy    []string // tools as the producers section claims, "name version"
	Functions      int      // defined by the module
	Loops          int      // loops found, each of which is metered
	NaNs           int      // places where a NaN can show its bits; 0: the same on every processor
}

// Prepare checks module and rewrites it. The error is an [*Error]; its kind, found with errors.Is, is ErrNotWasm,
// ErrTruncated, ErrInvalid, ErrTooBig, ErrUnsupported or ErrImport. Prepare keeps no reference to module, uses time and
// memory linear in its length, and may be called concurrently.
//
// The module must be a WASI command: it exports its only memory as "memory" and a function "_start", and imports nothing
// but functions of wasi_snapshot_preview1. A start section is fine: its function is metered as any other.
//
// Custom sections are dropped, but for the names of functions, which traps show.
func Prepare(module []byte, limits Limits) (Prepared, error) {
	limits = limits.withDefaults()
	m, err := parse(module, limits)
	if err != nil {
		return Prepared{}, err
	}
	out, stats, err := m.rewrite(limits)
	if err != nil {
		return Prepared{}, err
	}
	rep := Report{
		Needs:          m.needs,
		MemoryMinPages: m.memMin,
		MemoryMaxPages: m.memMax,
		Functions:      len(m.funcs),
		Loops:          stats.loops,
		NaNs:           stats.nans,
	}
	rep.Language, rep.ProcessedBy = producers(m.producers)
	return Prepared{Module: out, Report: rep}, nil
}

func (l Limits) withDefaults() Limits {
	def := DefaultLimits
	for _, f := range []struct{ have, want *int }{
		{&l.ModuleBytes, &def.ModuleBytes}, {&l.OutputBytes, &def.OutputBytes}, {&l.Types, &def.Types},
		{&l.Params, &def.Params}, {&l.Imports, &def.Imports}, {&l.Functions, &def.Functions}, {&l.Tables, &def.Tables},
		{&l.TableElems, &def.TableElems}, {&l.MemoryPages, &def.MemoryPages}, {&l.Globals, &def.Globals},
		{&l.Exports, &def.Exports}, {&l.Segments, &def.Segments}, {&l.Elems, &def.Elems}, {&l.BodyBytes, &def.BodyBytes},
		{&l.Locals, &def.Locals}, {&l.LocalsTotal, &def.LocalsTotal}, {&l.Depth, &def.Depth},
	} {
		if *f.have <= 0 {
			*f.have = *f.want
		}
	}
	return l
}

// importError lists everything imported from elsewhere than WASI preview 1, at most a handful.
func importError(at int, foreign []string) *Error {
	slices.Sort(foreign)
	foreign = slices.Compact(foreign)
	more := ""
	if n := len(foreign); n > 8 {
		foreign, more = foreign[:8], fmt.Sprintf(" and %d more", n-8)
	}
	return &Error{
		Offset: at,
		Kind:   ErrImport,
		What:   "imports from unknown modules: " + strings.Join(foreign, ", ") + more,
		Hint:   "only functions of " + wasiModule + " are there; build for wasm32-wasip1",
	}
}

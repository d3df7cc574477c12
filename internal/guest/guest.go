// Package guest is what every kind of batch guest has in common: a slot runs the units of an attempt and can be frozen,
// thawed and closed at any time. Engines are drivers (guest/wasm); hosts use them through these interfaces.
package guest

import (
	"context"
	"io"
	"time"

	"github.com/crowdcloud/crowd"
)

// Task is the work of one attempt.
type Task struct {
	Job     crowd.JobID
	Program crowd.Digest // of the wasm module as uploaded; the engine prepares and caches it
	First   uint64
	Plans   []crowd.Plan // one per unit, in order
	Limits  Limits
	Keep    []string // patterns under /out; none: everything

	// A task with checkpoints has one unit. Every so much running time, if /state changed since, Save gets it as a crowd.Checkpoint's bytes (at
	// most crowd.Limits.StateBytes; a larger one isn't saved), with the unit's fuel so far; it must not keep the slot
	// waiting. State is what the unit begins with: the bytes of an earlier one, nil for an empty /state.
	Every time.Duration // 0: no checkpoints
	Save  func(state []byte, fuel uint64)
	State []byte
}

// Limits bound each unit. Memory, output and fuel end a unit the same way on every host; time does not vote: beyond it Run
// fails with an error of reason guest.time.
type Limits struct {
	Memory int64 // bytes of linear memory
	Output int64 // bytes of stdout and /out together
	Disk   int64 // bytes of files in memory
	Fuel   uint64
	Time   time.Duration // of running, not counting freezes
}

// LimitsOf are the limits that an order sets for each unit, the page's defaults filled in.
func LimitsOf(spec *crowd.JobSpec) Limits {
	r := spec.Resources
	l := Limits{Memory: r.Memory, Output: spec.Outputs.Max, Disk: r.Disk, Fuel: r.Fuel, Time: time.Duration(r.Time) * time.Second}
	if l.Memory == 0 {
		l.Memory = crowd.DefaultMemory
	}
	if l.Output == 0 {
		l.Output = crowd.DefaultOutput
	}
	if l.Disk == 0 {
		l.Disk = crowd.DefaultDisk
	}
	if l.Time == 0 {
		l.Time = crowd.DefaultTime
	}
	return l
}

// Blobs gives content by digest, whole or in ranges. A missing one is an error of kind NotFound. Safe for concurrent use.
type Blobs interface {
	Open(ctx context.Context, d crowd.Digest) (Blob, error)
}

// Blob is open content of a known size.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Slot runs one task at a time in a process of its own. Freeze, Thaw and Close may be called at any time from any goroutine.
type Slot interface {
	// Run executes the task's units in order, each from a fresh state, and returns the outcome with its contents. progress is called
	// after each unit with the units done and the fuel so far. What a unit does wrong is in its UnitResult; an error means that
	// the attempt as a whole failed on this host: guest.time, host.failed, or ctx ended. After an error the slot is closed. The fuel of a unit that
	// began with a State counts what was burnt before.
	Run(ctx context.Context, t Task, blobs Blobs, progress func(done, fuel uint64)) (*crowd.Outcome, []crowd.UnitContent, error)
	// Freeze stops the guest from using the processor, at once and for as long as it takes; time does not count meanwhile.
	Freeze() error
	Thaw() error
	// Close kills the guest and returns when it is gone. Closing twice is fine.
	Close() error
}

// Engine makes slots. Safe for concurrent use.
type Engine interface {
	// Slot takes a warm child from the pool, or starts one. job tells which: a child only ever serves one job.
	Slot(ctx context.Context, job crowd.JobID) (Slot, error)
	// Bench measures one slot's speed with a small program that is always the same, in billions of fuel a second.
	Bench(ctx context.Context) (float64, error)
	// Layers says which layers of the cage hold here, each in a plain sentence, for the owner.
	Layers() []Layer
	// Close ends the pool; slots in use are closed too.
	Close() error
}

// Layer is one layer of protection between a guest and its host.
type Layer struct {
	Name string `json:"name"`
	Held bool   `json:"held"`
	Why  string `json:"why,omitempty"` // what is missing, if not held
}

// Package cage runs a stranger's code in a child process that can do nothing but compute and talk over its two pipes.
//
// The parent calls [Start], which runs the same binary again with an empty environment, no descriptor but the pipes, and
// idle priority. The child calls [Enter] first thing in main, before it reads a byte from the pipes: it gives up, for
// good and on all its threads, what a guest has no use for. Each means is a layer; [Report] says which of them the
// system has, so that a hoster can be told what holds on this machine.
//
// Where a layer is missing, Enter goes on with the others: the caller decides, with [Rules].Require or by the report,
// which layers a guest of which trust needs.
package cage

import (
	"fmt"
	"os"
	"strings"
)

// Names of layers. A system reports all of them, those it lacks as not held.
const (
	Descriptors  = "descriptors"   // nothing inherited is open but stdin, stdout and stderr
	Environment  = "environment"   // empty, but for what Windows needs to start a process
	Rlimits      = "rlimits"       // core dumps, files, memory
	Priority     = "idle priority" // processor and disk only when nobody else wants them
	NoNewPrivs   = "no_new_privs"  // no program run can gain rights
	Capabilities = "capabilities"  // none, even as root
	Landlock     = "landlock"      // no path but the allowed folders, no ports, no signals out
	NonDumpable  = "non-dumpable"  // no core dumps, no attaching by others of the same user
	Seccomp      = "seccomp"       // system calls: a short list of allowed ones
)

// Rules says what a child may still do. The zero value allows nothing.
type Rules struct {
	ReadDirs  []string // absolute folders to read in; they must exist
	WriteDirs []string // absolute folders to read and write in; they must exist
	FileBytes int64    // size to which a file may be written, 0: no byte
	Require   []string // layers without which Enter fails

	// DataBytes limits the private writable memory of the process, where the system can; 0 does not. It becomes
	// RLIMIT_DATA. A limit on the address space would not do: Go and wasm engines reserve far more than they use, and
	// reservations do not count as data. Go maps its heap 64 MiB at a time and an idle child has 75 MB of data, so leave
	// 256 MiB over the memory of the guest. At the limit the child's runtime ends the process.
	DataBytes int64
}

// Layer is one means of confinement on this system.
type Layer struct {
	Name string
	Held bool
	Why  string // one sentence: what holds, or why it does not
}

// Report lists the layers in the order in which they were applied.
type Report struct{ Layers []Layer }

// Held tells whether a layer holds.
func (r Report) Held(name string) bool {
	for _, l := range r.Layers {
		if l.Name == name {
			return l.Held
		}
	}
	return false
}

// String has a line for each layer.
func (r Report) String() string {
	var b strings.Builder
	for _, l := range r.Layers {
		mark := "held    "
		if !l.Held {
			mark = "NOT HELD"
		}
		fmt.Fprintf(&b, "%-14s %s %s\n", l.Name, mark, l.Why)
	}
	return b.String()
}

func (r *Report) add(name, why string, err error) {
	if err != nil {
		r.Layers = append(r.Layers, Layer{Name: name, Why: err.Error()})
		return
	}
	r.Layers = append(r.Layers, Layer{Name: name, Held: true, Why: why})
}

func (r *Report) lacks(why string, names ...string) {
	for _, name := range names {
		r.Layers = append(r.Layers, Layer{Name: name, Why: why})
	}
}

// Enter confines the calling process and all its threads, for good. Call it first thing in main, once, before any
// goroutine of yours opens anything. A layer that the system lacks is reported and no error, unless the rules require
// it. After an error the process is confined in part: say so and exit.
func Enter(rules Rules) (Report, error) {
	var r Report
	r.add(Environment, "the environment is empty", emptyEnvironment())
	if err := enter(&r, rules); err != nil {
		return r, fmt.Errorf("enter the cage: %w", err)
	}
	for _, name := range rules.Require {
		if !r.Held(name) {
			return r, fmt.Errorf("enter the cage: %s is required and does not hold: %s", name, r.why(name))
		}
	}
	return r, nil
}

func (r Report) why(name string) string {
	for _, l := range r.Layers {
		if l.Name == name {
			return l.Why
		}
	}
	return "no such layer"
}

func emptyEnvironment() error {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); !strings.EqualFold(name, "SYSTEMROOT") {
			return fmt.Errorf("the environment holds %s", name)
		}
	}
	return nil
}

// Harden protects a process that holds secrets, such as the agent: no core dumps and, where the system can, no attaching
// and no reading of its memory by other processes of the same user. Call it before secrets are read.
func Harden() Report {
	var r Report
	harden(&r)
	return r
}

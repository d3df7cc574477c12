// Package sim plays the crowd in a box: one goroutine, virtual time, a seed. It drives the real laws and plans (lease, quorum, ledger, price,
// sched) with a model broker over a model of the durable store, hosts of all sorts and a network that loses, repeats, delays and
// reorders, and holds what comes of it against the invariants after every step.
//
// The same Options give the same run, event by event. There is no I/O, no clock and no randomness but the seed's.
//
// What is modelled: leases and their renewal, expiry and suspicion; reports, checkpoints and returns; verdicts, pay, settlement and
// refund; conviction and what it takes back; crashes between commit and word; backups and restores. What isn't: the bytes of programs and
// outcomes (a digest stands for them), signatures, quotas, events, several brokers.
package sim

import (
	"fmt"
	"strings"
	"time"
)

// Options say what is played. Without Hosts, whatever is nil is drawn from the seed; with Hosts nothing is, but for delays and ids.
type Options struct {
	Seed  uint64
	Hosts []Host
	Jobs  []Job
	Acts  []Act    // what befalls them
	Net   *Net     // nil, and Hosts given: a steady one
	Break Mutation // a rule to break on purpose
	Trace bool     // keep Result.Trace; it costs several times the run
}

// Host is a machine of the crowd.
type Host struct {
	Name  string
	Owner string
	Group string  // of owners that may be one person; "": the owner's own
	Speed float64 // Gfuel/s
	Slots int
	Lies  float64 // part of its answers that are wrong, 0 to 1
	Alike bool    // its lies are the same as those of the others of its group
	Drift float64 // of its boot clock: 0.001 is a millisecond a second fast
	Blind bool    // its boot clock stands still while it sleeps
}

// Job is an order. Its customer deposits what it may cost, orders, and asks until it has the result.
type Job struct {
	Name   string
	Units  uint64
	Chunk  uint64 // units per chunk; 0: auto
	Quorum int
	Gfuel  float64       // of a unit
	At     time.Duration // when it is ordered
}

// Net is how a message fares. Chances are 0 to 1 and end with Calm; delays stay.
type Net struct {
	Least, Most          time.Duration // of a message's way
	Drop, Repeat, Delay  float64       // Delay: it takes up to 3 s and may be overtaken
	Kill                 float64       // a broker's commit is its last act: before it, or after it and before the word
	Fails                float64       // an attempt fails by the host's own fault
	Calm                 time.Duration // no chance, and no act, from then on
	HearBreak, HearLater time.Duration // when an end learns that its connection broke: the first one, the other at most
}

// Deed is what an Act does.
type Deed int

// The deeds.
const (
	Sleep   Deed = iota // a machine's processes stop for For; its clocks go on
	Crash               // its process dies, memory lost, outbox kept; another starts after For
	Clone               // a second process goes on from a copy of its memory and disk
	Pause               // its owner takes it back for For: it returns what it holds
	Cut                 // its link loses everything for For
	Mute                // only what it says is lost for For
	Deaf                // only what it hears is lost for For
	Break               // its connection breaks
	Forge               // it reports on an attempt of another's
	Turn                // its wall clock jumps by For
	Kill                // the broker dies and starts again after For
	Backup              // a copy of the store is made
	Restore             // the broker stops; a store from the backup starts after For
	Haunt               // as Restore, but the old broker goes on as a ghost for a minute beside it
	Cancel              // the customer cancels job number Host
	numDeeds
)

func (d Deed) String() string {
	return [...]string{"sleep", "crash", "clone", "pause", "cut", "mute", "deaf", "break", "forge", "turn", "kill", "backup", "restore", "haunt", "cancel"}[d]
}

// Act is one thing that happens from outside.
type Act struct {
	At   time.Duration
	Deed Deed
	Host int // index
	For  time.Duration
}

// Result is what a run was like.
type Result struct {
	Steps   int           // events handled
	Virtual time.Duration // time played
	Commits int
	Leases  int
	Reports map[string]int // by answer
	Kills   int            // the broker's deaths
	Late    int            // reports of expired attempts that were paid
	Unpaid  int            // reports of decided chunks
	Forks   int            // dials that were found to be a clone's
	Convict int            // hosts proved wrong
	Reopen  int            // verdicts taken back
	Refused int            // greetings of a broker of the past that a host refused
	Lost    int            // things told that a restore undid
	States  int            // checkpoints accepted
	Trace   []string
}

// Failure is a broken invariant.
type Failure struct {
	Seed  uint64
	Step  int
	At    time.Duration
	What  string
	Trace []string // the last lines before it
}

func (f *Failure) Error() string {
	return fmt.Sprintf("seed %d, step %d, %s: %s\n  %s", f.Seed, f.Step, stamp(f.At), f.What, strings.Join(f.Trace, "\n  "))
}

// lastLines is how much of the trace a Failure shows.
const lastLines = 60

// Run plays one world to its end: every job ended, every fault over, every report answered. The error is a *Failure: an invariant broke,
// or the end wasn't reached within the time that it may take once the faults are over.
func Run(o Options) (Result, error) {
	w := play(o)
	if w.failed == nil {
		return w.res, nil
	}
	if !o.Trace { // the same again, in words
		o.Trace = true
		w = play(o)
	}
	f := w.failed
	f.Trace = w.res.Trace[max(0, len(w.res.Trace)-lastLines):]
	return w.res, f
}

// play runs a world until it ends or breaks.
func play(o Options) *world {
	w := newWorld(o)
	for w.failed == nil && !w.over {
		e, ok := w.queue.pop()
		if !ok {
			w.fail("nothing happens any more, and it isn't over")
			break
		}
		w.now = e.at
		w.res.Steps++
		e.run()
		w.judge.after()
	}
	w.res.Virtual = w.now
	return w
}

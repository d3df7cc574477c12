package broker

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// Hosts that report garbage at full speed are paused, each for a reason that its owner can see; honest ones do the work meanwhile and are blamed for
// nothing.
func TestGarbage(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		time.Sleep(crowd.Adopt) // no backup was restored just now
		n := 12
		if os.Getenv("CROWD_SOAK") != "" {
			n = 100
		}
		honest := w.owners("alice", "bob", "carol")
		for _, f := range honest {
			f.run()
		}
		s := w.spec(60)
		s.Chunk = 2
		j := w.submit(s)
		w.await(j, time.Minute, func(j crowd.Job) bool { return j.Progress.Attempts > 0 })
		time.Sleep(100 * time.Millisecond)
		theirs := crowd.AttemptRef{}
		for _, f := range honest {
			f.set(func() {
				for _, ref := range f.leases {
					theirs = ref
				}
			})
		}

		sorts := []struct {
			name string
			what string // the owner reads
			make func(f *fake, i int) *crowd.Report
		}{
			{"forged", "the signature", func(f *fake, i int) *crowd.Report {
				return &crowd.Report{AttemptRef: crowd.AttemptRef{Job: j.ID, First: uint64(i), N: 1}, Sig: make([]byte, ed25519.SignatureSize)}
			}},
			{"unsigned", "the signature", func(f *fake, i int) *crowd.Report {
				return &crowd.Report{AttemptRef: crowd.AttemptRef{Job: j.ID, First: uint64(i), N: 1}}
			}},
			{"others", "another machine's work", func(f *fake, i int) *crowd.Report {
				r := &crowd.Report{AttemptRef: theirs, Fuel: uint64(i)}
				r.Sig = ed25519.Sign(f.key, crowd.ReportBytes(f.host.ID, r.AttemptRef, r.Digest, r.Fuel))
				return r
			}},
			{"unknown", "never given", func(f *fake, i int) *crowd.Report {
				r := &crowd.Report{AttemptRef: crowd.AttemptRef{Job: j.ID, First: 1 << 30, N: i + 1}}
				r.Sig = ed25519.Sign(f.key, crowd.ReportBytes(f.host.ID, r.AttemptRef, r.Digest, r.Fuel))
				return r
			}},
		}
		var evil []*fake
		for i := range n {
			f := w.owners(fmt.Sprintf("%s-%d", sorts[i%len(sorts)].name, i))[0]
			f.slots = 0
			f.run()
			evil = append(evil, f)
			go func() {
				for k := range 2000 {
					f.say(&crowd.Message{Report: sorts[i%len(sorts)].make(f, k)})
					time.Sleep(time.Millisecond) // one that says the same again while it is looked at isn't heard
				}
			}()
		}
		if end := w.done(j, 10*time.Minute); end.State != crowd.JobDone || end.Progress.UnitsDone != 60 {
			t.Errorf("%s, %d of 60 units done", end.State, end.Progress.UnitsDone)
		}
		for i, f := range evil {
			sort := sorts[i%len(sorts)]
			if err := w.b.letIn(f.host.ID); err == nil || !strings.Contains(err.Error(), sort.what) {
				t.Errorf("%s: %v; %d void, %d conflict", sort.name, err, f.count(crowd.ReportVoid), f.count(crowd.ReportConflict))
				continue
			}
			f.mu.Lock()
			told := f.problem
			f.mu.Unlock()
			if told == nil || told.Reason != crowd.HostGarbage || told.Final {
				t.Errorf("%s was told %+v", sort.name, told)
			}
			why, err := w.b.Why(ctx, f.owner, f.host.Name)
			must(t, err)
			events := 0
			for _, e := range why.Events {
				if e.What == "host.paused" && e.Reason == crowd.HostGarbage && strings.Contains(e.Text, sort.what) {
					events++
				}
			}
			if why.Reason != crowd.HostGarbage || events != 1 {
				t.Errorf("its owner sees %s %q and %d events", why.Reason, why.Text, events)
			}
			if n := f.count(crowd.ReportVoid) + f.count(crowd.ReportConflict); n > 2*garbageMost+workers {
				t.Errorf("%s: %d of its reports were looked at", sort.name, n)
			}
			if n := f.count(crowd.ReportAccepted); n > 0 {
				t.Errorf("%s: %d accepted", sort.name, n)
			}
		}
		for _, f := range honest {
			w.b.mu.Lock()
			r := w.b.hosts[f.host.ID].Record
			w.b.mu.Unlock()
			if r.Differed+r.Failed+r.Lost > 0 || w.b.letIn(f.host.ID) != nil {
				t.Errorf("%s is blamed: %+v", f.host.Name, r)
			}
		}
		time.Sleep(pausedAtOnce)
		f := evil[0]
		if err := w.b.letIn(f.host.ID); err != nil {
			t.Errorf("after a minute: %v", err)
		}
		f.run() // it doesn't change: the next pause is longer
		for k := range 100 {
			f.say(&crowd.Message{Report: sorts[0].make(f, k)})
		}
		time.Sleep(pausedAtOnce + time.Second)
		wantErr(t, w.b.letIn(f.host.ID), crowd.Exhausted, crowd.HostGarbage)
		time.Sleep(pausedAtOnce)
		must(t, w.b.letIn(f.host.ID))
	})
}

// Malformed bodies: the chunk goes to others, who aren't blamed; its author is paused when it goes on.
func TestMalformedBodies(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		mallory := w.owners("mallory")[0]
		mallory.slots = 8
		mallory.takes = 24 * time.Hour // it doesn't answer by itself
		mallory.run()
		s := w.spec(40)
		s.Chunk, s.Verify = 1, crowd.Verify{None: true}
		j := w.submit(s)
		for range 20 {
			time.Sleep(time.Second)
			mallory.mu.Lock()
			var all []crowd.AttemptRef
			for ref := range mallory.held {
				all = append(all, ref)
			}
			mallory.mu.Unlock()
			for _, ref := range all {
				r := &crowd.Report{AttemptRef: ref, Digest: digest.Of([]byte("x")), Body: []byte("garbage")}
				r.Sig = ed25519.Sign(mallory.key, crowd.ReportBytes(mallory.host.ID, ref, r.Digest, r.Fuel))
				mallory.say(&crowd.Message{Report: r})
			}
			w.b.mu.Lock()
			delete(w.b.hosts[mallory.host.ID].avoid, j.ID) // it would get others' jobs
			w.b.mu.Unlock()
			w.b.rouseAll()
		}
		wantErr(t, w.b.letIn(mallory.host.ID), crowd.Exhausted, crowd.HostGarbage, "malformed")
		alice := w.owners("alice")[0].run()
		if end := w.done(j, 24*time.Hour); end.State != crowd.JobDone {
			t.Errorf("%s (%s)", end.State, end.Reason)
		}
		w.b.mu.Lock()
		r := w.b.hosts[alice.host.ID].Record
		w.b.mu.Unlock()
		if r.Failed+r.Differed+r.Lost > 0 {
			t.Errorf("alice is blamed: %+v", r)
		}
	})
}

// A restored broker gave away what its hosts had already: what they say about that is no garbage.
func TestNoGarbageAfterRestore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.owners("alice")[0].run()
		j := w.submit(func() crowd.JobSpec { s := w.spec(1); s.Verify.None = true; return s }())
		w.done(j, time.Minute)
		for k := range 1000 {
			r := &crowd.Report{AttemptRef: crowd.AttemptRef{Job: j.ID, First: 1 << 30, N: k + 1}}
			r.Sig = ed25519.Sign(f.key, crowd.ReportBytes(f.host.ID, r.AttemptRef, r.Digest, r.Fuel))
			f.say(&crowd.Message{Report: r})
		}
		time.Sleep(time.Minute)
		if err := w.b.letIn(f.host.ID); err != nil || f.count(crowd.ReportConflict) != 1000 {
			t.Errorf("%v, %d answers", err, f.count(crowd.ReportConflict))
		}
	})
}

func TestOffenders(t *testing.T) {
	var o offenders
	now := time.Unix(1e9, 0)
	id := crowd.HostID{1}
	for range 1000 { // one thing a minute is no flood
		now = now.Add(time.Minute)
		if _, paused := o.add(id, garbageForged, "x", now); paused {
			t.Fatal("paused for one thing a minute")
		}
	}
	last := time.Duration(0)
	for range 12 {
		paused := false
		var x *offender
		for range garbageMost {
			if x, paused = o.add(id, garbageContent, "x", now); paused {
				break
			}
		}
		if !paused || x.pause < last || x.pause > pausedAtMost || last > 0 && last < pausedAtMost && x.pause <= last {
			t.Fatalf("paused %v for %v after %v", paused, x.pause, last)
		}
		last = x.pause
		if until, _ := o.paused(id, now.Add(last-1)); until.IsZero() {
			t.Error("not paused")
		}
		if until, _ := o.paused(crowd.HostID{2}, now); !until.IsZero() {
			t.Error("another is paused")
		}
		now = now.Add(last)
	}
	if last != pausedAtMost {
		t.Errorf("the last pause was %v", last)
	}
}

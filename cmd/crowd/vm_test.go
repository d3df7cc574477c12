//go:build linux

package main

import (
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/host"
)

// These tests run a real agent in a virtual machine of its own, without hardware help: 5 to 20 times slower than this machine.
// CROWD_SOAK=1 go test -run 'TestSleep|TestPausedMachine|TestRestoredTwice' -v ./cmd/crowd

const (
	napRounds   = 40_000_000_000 // a unit that takes a quarter of a minute here and a minute or more in there
	aloneRounds = 2_000_000_000
	nap         = 40 * time.Second
)

// hostIn joins a machine as somebody's and starts its agent.
func (w *spinTown) hostIn(v *vm, name string) {
	w.t.Helper()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(w.Local, "https://"))
	must(w.t, err)
	began := time.Now()
	v.ask("run", "/crowd", "join", w.link(name, "10.0.2.2:"+port), "--name", name, "--place", "DE", "--device", "laptop", "--no-run", "--state-dir", "/state")
	v.ask("start", "/crowd", "host", "run", "--state-dir", "/state")
	w.until(name+" ready", 2*time.Minute, func() bool { return w.ready(name) })
	w.t.Logf("%s: joined and ready in %s", name, time.Since(began).Round(100*time.Millisecond))
}

// log is the agent's own.
func (v *vm) log(what string) (all []host.Entry) {
	v.t.Helper()
	d := json.NewDecoder(strings.NewReader(v.ask("read", "/state/host.log")))
	for d.More() {
		var e host.Entry
		must(v.t, d.Decode(&e))
		if what == "" || e.What == what {
			all = append(all, e)
		}
	}
	return all
}

// forgot are the words by which it was told of a chunk that it was another's.
func (v *vm) forgot() (told []host.Entry) {
	v.t.Helper()
	for _, e := range v.log("") {
		if e.What == "chunk.dropped" || e.What == "chunk.cancelled" || e.What == "chunk.done" && e.Answer == crowd.ReportDecided {
			told = append(told, e)
		}
	}
	return told
}

// absent takes a machine away while its agent holds a chunk, and brings it back when the chunk has been computed elsewhere and the nap is over.
// It checks what the job and the host's record say of that, and that the host works again. It returns what the agent's log says of sleep.
func absent(t *testing.T, away, back func(*vm)) []host.Entry {
	l := newLab(t)
	w := newSpinTown(t)
	v := l.boot(t, "sleeper")
	w.hostIn(v, "sleeper")
	j := w.order("nap", 1, napRounds, 1)
	w.until("at work", time.Minute, func() bool { return w.holds("sleeper") })
	runHost(t, w.join("hal", ""))
	w.until("hal ready", time.Minute, func() bool { return w.ready("hal") })

	id := w.host("sleeper").ID
	away(v)
	gone := time.Now()
	var again crowd.Attempt
	w.until("leased again", 30*time.Second, func() bool {
		for _, a := range w.attempts(j) {
			if a.N == 2 && a.Host != id {
				again = a
				return true
			}
		}
		return false
	})
	if after := again.LeasedAt.Sub(gone); after > 20*time.Second {
		t.Errorf("its chunk went to another host after %s", after)
	} else {
		t.Logf("its chunk went to another host after %s", after.Round(10*time.Millisecond))
	}
	w.done(j, napRounds, 5*time.Minute)
	time.Sleep(time.Until(gone.Add(nap))) // the nap itself
	back(v)
	woken := time.Now()

	// it connects or is still connected, and learns that its chunk is another's
	w.until("rid of its chunk", time.Minute, func() bool { return v.forgot() != nil })
	t.Logf("awake, it knew after %s: %s", time.Since(woken).Round(10*time.Millisecond), v.forgot()[0].What)
	if h := w.host("sleeper"); h.State != crowd.HostActive || h.Record.Failed != 0 || h.Record.Differed != 0 || h.Record.Lost != 1 {
		t.Errorf("its record: %s %+v", h.State, h.Record)
	}
	for _, a := range w.attempts(j) {
		if a.Host == id && (a.State != crowd.AttemptExpired || a.Reason != crowd.HostLost || a.Paid != 0) {
			t.Errorf("%+v", a)
		}
	}
	must(t, w.RemoveHost(t.Context(), w.caller("hal"), "hal"))
	w.done(w.order("after", 1, aloneRounds, 1), aloneRounds, 5*time.Minute)
	if h := w.host("sleeper"); h.Record.Counted != 1 {
		t.Errorf("its record: %+v", h.Record)
	}
	if n := len(v.forgot()); n != 1 {
		t.Errorf("told %d times that a chunk isn't its own", n)
	}
	return v.log("machine.slept")
}

// TestSleep has a laptop fall asleep over its work (ACPI S3) and wake up.
func TestSleep(t *testing.T) {
	slept := absent(t, func(v *vm) {
		v.say("sleep")
		must(t, v.qmp.event("SUSPEND", time.Minute))
	}, func(v *vm) {
		_, err := v.qmp.do("system_wakeup", nil)
		must(t, err)
		must(t, v.qmp.event("WAKEUP", time.Minute))
		if a := v.answer(askWait); a.Code != 0 {
			t.Errorf("sleep: %+v", a)
		}
	})
	if len(slept) != 1 || slept[0].Ms < float64((nap-3*time.Second).Milliseconds()) || slept[0].Ms > float64((nap+20*time.Second).Milliseconds()) {
		t.Errorf("the agent's log says of its sleep: %+v", slept)
	} else {
		t.Logf("the agent counted %.1f s of sleep", slept[0].Ms/1000)
	}
}

// TestPausedMachine has a hypervisor stop a machine and let it go on. That moves no clock in there: the agent can't know, the broker does.
func TestPausedMachine(t *testing.T) {
	do := func(command string) func(*vm) {
		return func(v *vm) {
			_, err := v.qmp.do(command, nil)
			must(t, err)
		}
	}
	if slept := absent(t, do("stop"), do("cont")); slept != nil {
		t.Errorf("the agent's log says of its sleep: %+v", slept)
	}
}

// TestRestoredTwice saves a machine with a working agent. Then there are two with one key, session and dial number: both restored from the same
// state, or one restored beside the original.
func TestRestoredTwice(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		name     string
		original bool // goes on
	}{{"two", false}, {"beside", true}} {
		t.Run(c.name, func(t *testing.T) { restored(t, l, c.name, c.original) })
	}
}

func restored(t *testing.T, l *lab, name string, original bool) {
	const units, rounds = 5, 10_000_000_000
	w := newSpinTown(t)
	w.run("hal", "127.1.0.1")
	w.run("ida", "127.2.0.1")
	w.done(w.order("undisturbed", units, rounds, 2), rounds, 5*time.Minute)

	v := l.boot(t, name)
	w.hostIn(v, "twin")
	j := w.order("disturbed", units, rounds, 2)
	w.until("at work", time.Minute, func() bool { return w.holds("twin") })
	_, err := v.qmp.do("stop", nil)
	must(t, err)
	saved := filepath.Join(l.dir, name+".saved")
	must(t, v.qmp.save(saved))
	twins := []*vm{l.start(t, name+"1", saved)}
	if !original {
		v.kill()
		twins = append(twins, l.start(t, name+"2", saved))
	}
	for _, v := range twins {
		must(t, v.qmp.await("query-status", "paused"))
	}
	if original {
		twins = append(twins, v)
	}
	for _, v := range twins {
		_, err := v.qmp.do("cont", nil)
		must(t, err)
	}

	began := time.Now()
	w.until("known as two", 30*time.Second, func() bool { return len(w.clonedEvents("twin")) > 0 })
	t.Logf("the broker knew after %s: %s", time.Since(began).Round(10*time.Millisecond), w.clonedEvents("twin")[0].Text)
	for _, v := range twins {
		w.until(v.name+" over", 2*time.Minute, func() bool { return strings.Contains(v.said(), "vminit: /crowd has ended with") })
		if !strings.Contains(v.said(), "(host.cloned)") {
			t.Errorf("%s wasn't told why", v.name)
		}
	}
	t.Logf("both agents had ended after %s", time.Since(began).Round(10*time.Millisecond))
	all := w.done(j, rounds, 5*time.Minute)
	id := w.host("twin").ID
	for _, a := range all {
		if a.Host == id && (a.State != crowd.AttemptVoid || a.Paid != 0) {
			t.Errorf("%+v", a)
		}
	}
	if h := w.host("twin"); h.Online || h.Record.Differed != 0 || h.Record.Earned != 0 {
		t.Errorf("%s, online %v: %+v", h.State, h.Online, h.Record)
	}
}

// clonedEvents are what the broker said of a host's two machines.
func (w *spinTown) clonedEvents(name string) (all []crowd.Event) {
	w.t.Helper()
	events, err := w.Events(w.t.Context(), w.operator, w.host(name).ID.String(), 0, 1000, false)
	must(w.t, err)
	for _, e := range events {
		if e.What == "host.cloned" {
			all = append(all, e)
		}
	}
	return all
}

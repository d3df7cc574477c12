package wasm

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch()
		check := func(what string, wantLeft time.Duration, wantLate bool) {
			t.Helper()
			left, late, _ := w.left(10*time.Second, time.Hour)
			if left != wantLeft || late != wantLate {
				t.Errorf("%s: %v %v", what, left, late)
			}
		}
		poked := func(what string) {
			t.Helper()
			select {
			case <-w.changed:
			default:
				t.Errorf("%s: whoever waits isn't told", what)
			}
		}
		time.Sleep(time.Minute)
		check("nothing to do", time.Hour, false)
		w.work(true, true)
		poked("work")
		time.Sleep(4 * time.Second)
		check("running", 6*time.Second, false)
		w.freeze(true)
		poked("freeze")
		time.Sleep(time.Minute)
		check("frozen", time.Hour, false)
		w.freeze(false)
		w.setShare(0.5)
		time.Sleep(2 * time.Second)
		check("at half speed", 10*time.Second, false)
		time.Sleep(10 * time.Second)
		check("late", time.Millisecond, true)
		if spent := w.work(true, true); spent != 10*time.Second {
			t.Errorf("spent %v", spent)
		}
		check("again", 20*time.Second, false)
		if _, _, silent := w.left(time.Hour, 0); !silent {
			t.Error("not silent")
		}
	})
}

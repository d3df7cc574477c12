package broker

import (
	"context"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

func TestStraightLine(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, f := range w.owners("alice", "bob") {
			f.run()
		}
		j := w.done(w.submit(w.spec(20)), time.Minute)
		if j.State != crowd.JobDone || j.Progress.UnitsDone != 20 || j.Progress.UnitsFailed != 0 {
			t.Fatalf("%s, %+v", j.State, j.Progress)
		}
		// 20 units of a Gfuel, each paid to two owners at 1000 µcr
		if j.Paid != 40*1000 || j.Returned != 10*crowd.Credit-40*1000 {
			t.Errorf("paid %d, returned %d", j.Paid, j.Returned)
		}
		if m := w.balances(w.ada); m.Free != 1000*crowd.Credit-j.Paid || m.Held != 0 {
			t.Errorf("ada has %+v", m)
		}
		for _, f := range w.fakes {
			if m := w.balances(f.owner); m.Free != 20*900 || m.Pending != 0 {
				t.Errorf("%s has %+v", f.host.Name, m)
			}
		}
		for u := range uint64(20) {
			_, c, err := w.b.UnitContent(context.Background(), w.ada, j.Name, u)
			must(t, err)
			if got, want := string(c.Stdout), "unit "+itoa(u)+"\n"; got != want {
				t.Errorf("%q, wanted %q", got, want)
			}
		}
	})
}

func itoa(u uint64) string {
	if u < 10 {
		return string(rune('0' + u))
	}
	return itoa(u/10) + string(rune('0'+u%10))
}

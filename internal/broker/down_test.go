package broker

import (
	"fmt"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/lease"
)

// A broker that is down for a minute under a thousand hosts takes none of their work from them: what they hold counts as held until Term+Skew after the
// start, what they computed meanwhile is taken, and nothing is paid twice.
func TestBrokerDownUnderAThousandHosts(t *testing.T) {
	hosts := 1000
	if testing.Short() {
		hosts = 100
	}
	inWorld(t, func(t *testing.T, w *world) {
		for i := range hosts {
			f := w.host(w.account(fmt.Sprintf("o%d", i), 0), fmt.Sprintf("h%d", i), "DE")
			f.slots, f.takes = 1, 40*time.Second
			f.run()
		}
		s := w.spec(uint64(hosts) * 2)
		s.Chunk, s.Price.Max = 4, 100*crowd.Credit
		j := w.submit(s)
		time.Sleep(20 * time.Second)
		held := 0
		for _, f := range w.fakes {
			f.mu.Lock()
			held += len(f.held)
			f.mu.Unlock()
		}
		if held < hosts*9/10 {
			t.Fatalf("only %d of %d hosts are at work", held, hosts)
		}
		w.stop()
		down := time.Now()
		time.Sleep(time.Minute)
		w.start()
		up := time.Now()
		for i, f := range w.fakes {
			if i%10 != 0 { // a tenth never comes back
				f.run()
			}
		}
		j = w.done(j, time.Hour)
		if j.State != crowd.JobDone || j.Progress.Differed != 0 {
			t.Fatalf("%s (%s), %+v", j.State, j.Reason, j.Progress)
		}
		rows := w.attempts(j)
		late, lost, votes := 0, 0, map[uint64]int{}
		of := map[uint64][]crowd.Attempt{}
		for _, a := range rows {
			of[a.First] = append(of[a.First], a)
		}
		for first, as := range of {
			for _, a := range as {
				if a.State == crowd.AttemptReported && a.Paid > 0 {
					votes[first]++
				}
				if a.LeasedAt.Before(down) && a.State == crowd.AttemptReported && !a.EndedAt.Before(up) {
					late++ // computed while the broker was down
				}
				if a.Reason == crowd.HostLost {
					lost++
					if a.EndedAt.Before(lease.AfterStart(up)) {
						t.Errorf("attempt %d.%d was given up %v after the start", a.First, a.N, a.EndedAt.Sub(up))
					}
				}
			}
			if len(as) > 2 { // a third one only after somebody was lost
				if got := as[2].LeasedAt; got.After(down) && got.Before(lease.AfterStart(up)) {
					t.Errorf("chunk %d was leased again %v after the start", first, got.Sub(up))
				}
			}
			if votes[first] != 2 {
				t.Errorf("chunk %d: %d attempts are paid: %+v", first, votes[first], as)
			}
		}
		if late < held/2 || lost == 0 {
			t.Errorf("%d of %d attempts reported what they computed meanwhile, %d lost", late, held, lost)
		}
		t.Logf("%d hosts, %d attempts held, %d reported after the restart, %d lost", hosts, held, late, lost)
	})
}

package broker

import (
	"context"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// An order by a held quote costs what the quote said, and a running one what it said when it was ordered, whatever the broker's price becomes.
func TestSubmitQuoted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		all := w.owners("alice", "bob")
		s := w.spec(4)
		q, err := w.b.Quote(ctx, w.ada, s)
		must(t, err)
		running := w.submit(s)
		w.price = 5000
		w.restart()
		j, err := w.b.SubmitQuoted(ctx, w.ada, s, q.ID.String())
		must(t, err)
		dear := w.submit(s)
		for _, f := range all {
			f.run()
		}
		for _, want := range []struct {
			crowd.Job
			perGfuel crowd.UCR
		}{{running, 1000}, {j, 1000}, {dear, 5000}} {
			got := w.done(want.Job, time.Minute)
			if got.PerGfuel != want.perGfuel || got.Paid != 8*want.perGfuel {
				t.Errorf("%s at %d paid %d, wanted at %d", got.Name, got.PerGfuel, got.Paid, want.perGfuel)
			}
		}

		other := s
		other.Args = []string{"x"}
		_, err = w.b.SubmitQuoted(ctx, w.ada, other, q.ID.String())
		wantErr(t, err, crowd.Conflict, "", "another order")
		eve := w.account("eve", 100)
		_, err = w.b.SubmitQuoted(ctx, eve, s, q.ID.String())
		wantErr(t, err, crowd.NotFound, "", "quote")
		_, err = w.b.SubmitQuoted(ctx, w.ada, s, "quote_nonsense")
		wantErr(t, err, crowd.NotFound, "", "quote")
		time.Sleep(16 * time.Minute)
		_, err = w.b.SubmitQuoted(ctx, w.ada, s, q.ID.String())
		wantErr(t, err, crowd.Conflict, "", "was held until")
	})
}

// A lease says whose job it is.
func TestLeaseNamesTheAccount(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.owners("alice", "bob")[0]
		f.takes = time.Hour
		f.run()
		w.submit(w.spec(1))
		time.Sleep(time.Second)
		f.set(func() {
			if len(f.held) != 1 {
				t.Errorf("%d leases", len(f.held))
			}
			for _, l := range f.held {
				if l.Account != w.ada.Account.ID {
					t.Errorf("for %s", l.Account)
				}
			}
		})
	})
}

// A chunk fails with the attempt that has no retry left; the other vote that it wants may be at work then.
func TestRetries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, f := range w.owners("alice", "bob", "carol") {
			f.refuse = crowd.GuestTime
			f.run()
		}
		three, none, many := 3, 0, 8
		for _, c := range []struct {
			retries *int
			want    int64
		}{{nil, 8}, {&three, 4}, {&none, 1}, {&many, 8}} {
			s := w.spec(1)
			s.Retries = c.retries
			j := w.done(w.submit(s), time.Hour)
			if j.State != crowd.JobDone || j.Progress.UnitsFailed != 1 || j.Progress.Attempts < c.want || j.Progress.Attempts > c.want+1 {
				t.Errorf("%s after %d attempts, wanted %d: %+v", j.State, j.Progress.Attempts, c.want, j.Progress)
			}
		}
	})
}

package store

import (
	"testing"

	"github.com/crowdcloud/crowd"
)

// A host that was copied before it was quarantined or left, and is saved after, keeps its new state.
func TestStaleHost(t *testing.T) {
	s := open(t, t.TempDir())
	h := crowd.Host{ID: newID[crowd.HostID](), State: crowd.HostActive}
	for i, step := range []struct {
		put, want crowd.HostState
		reason    crowd.Reason
	}{
		{crowd.HostActive, crowd.HostActive, ""},
		{crowd.HostQuarantined, crowd.HostQuarantined, crowd.HostCheated},
		{crowd.HostActive, crowd.HostQuarantined, crowd.HostCheated},
		{crowd.HostLeft, crowd.HostLeft, crowd.OwnerLeft},
		{crowd.HostQuarantined, crowd.HostLeft, crowd.OwnerLeft},
		{crowd.HostActive, crowd.HostLeft, crowd.OwnerLeft},
	} {
		h.State, h.Reason, h.Record.Counted = step.put, "", int64(i)
		if step.put == step.want {
			h.Reason = step.reason
		}
		must(t, s.Apply(ctx, PutHost{h}))
		got := must1(s.Host(ctx, h.ID))(t)
		if got.State != step.want || got.Reason != step.reason || got.Record.Counted != int64(i) {
			t.Errorf("step %d: %+v", i, got)
		}
	}
}

func TestOverdrawnBooks(t *testing.T) {
	s := open(t, t.TempDir())
	job, acc := newID[crowd.JobID](), newID[crowd.AccountID]()
	for _, b := range []crowd.Book{crowd.EscrowBook(job), crowd.PendingBook(acc)} {
		must(t, s.Apply(ctx, legs("in "+string(b), crowd.BookMint, -5, b, 5)))
		wantKind(t, s.Apply(ctx, legs("out "+string(b), b, -6, crowd.BookFee, 6)), crowd.Internal)
		must(t, s.Apply(ctx, legs("out "+string(b), b, -5, crowd.BookFee, 5)))
	}
}

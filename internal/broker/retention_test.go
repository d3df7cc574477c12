package broker

import (
	"context"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// A while after its end a job's results are gone; who did what is in the archive, and the money stays.
func TestKeep(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		w.keep = 48 * time.Hour // synctest's time
		w.restart()
		for _, f := range w.owners("alice", "bob") {
			f.result = long
			f.run()
		}
		j := w.done(w.submit(w.spec(20)), time.Hour)
		time.Sleep(47 * time.Hour)
		_, _, err := w.b.UnitContent(ctx, w.ada, j.ID.String(), 3)
		must(t, err)
		s := w.spec(10)
		s.Name = "young"
		young := w.done(w.submit(s), time.Hour)
		time.Sleep(3 * time.Hour)

		hint := "results are kept 2 days; the operator's archive has who did what"
		_, _, err = w.b.UnitContent(ctx, w.ada, j.ID.String(), 3)
		wantErr(t, err, crowd.NotFound, "", "no longer kept", hint)
		_, err = w.b.Units(ctx, w.ada, j.ID.String(), 0, 10)
		wantErr(t, err, crowd.NotFound, "", hint)
		_, err = w.b.JobChunks(ctx, w.ada, j.ID.String(), 0, 10)
		wantErr(t, err, crowd.NotFound, "", hint)
		_, err = w.b.JobAttempts(ctx, w.ada, j.ID.String(), crowd.AttemptRef{}, 10)
		wantErr(t, err, crowd.NotFound, "", hint)
		d, err := w.b.Job(ctx, w.ada, j.ID.String())
		must(t, err)
		if d.State != crowd.JobDone || d.Paid != j.Paid || d.Progress.UnitsDone != 20 {
			t.Errorf("%+v", d)
		}
		why, err := w.b.Why(ctx, w.ada, j.ID.String())
		must(t, err)
		if len(why.Events) == 0 || why.Events[0].What != "job.done" {
			t.Errorf("why: %+v", why)
		}
		_, _, err = w.b.UnitContent(ctx, w.ada, young.ID.String(), 3)
		must(t, err)
		if !w.st.HasArchive(j.ID) || w.st.HasArchive(young.ID) {
			t.Error("the wrong job is in the archive")
		}
		w.restart()
		r, err := Audit(ctx, w.st, BodiesAll, w.b.now())
		must(t, err)
		clean(t, r)
		if _, err := w.b.OpenBlob(ctx, w.ada, w.program); err != nil {
			t.Error(err)
		}
	})
}

package broker

import (
	"context"
	"strconv"
	"time"

	"github.com/crowdcloud/crowd"
)

// Results are kept for a while after a job's end (Config.Keep). Then who did what goes to the archive and the rest is deleted; the job's row, its
// money and its last event stay. What an account uploaded is its own and stays too.
const (
	keepDefault = 30 * 24 * time.Hour
	keepEvery   = time.Hour
)

// keeps is how long results are kept.
func (b *Broker) keeps() time.Duration {
	if b.cfg.Keep > 0 {
		return b.cfg.Keep
	}
	return keepDefault
}

// keepLoop archives and prunes once an hour.
func (b *Broker) keepLoop(ctx context.Context) {
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	var seen int64 // events up to here were looked at in this life
	for {
		b.retire(ctx, &seen)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// retire archives the jobs that ended long ago and prunes what nobody asks for any more. What fails is tried again the next time.
func (b *Broker) retire(ctx context.Context, seen *int64) {
	before := b.now().Add(-b.keeps())
	failed := func(what string, err error) {
		if ctx.Err() == nil {
			b.log.Error(what, "err", err)
		}
	}
	for archived := true; archived; {
		archived = false
		jobs, err := b.st.EndedBefore(ctx, before, 0)
		if err != nil {
			failed("can't look for jobs to archive", err)
		}
		for _, id := range jobs {
			if err := b.st.Archive(ctx, id); err != nil {
				failed("can't archive "+id.Short(), err)
				continue
			}
			archived = true
		}
	}
	last, err := b.st.Prune(ctx, before, *seen)
	if err != nil {
		failed("can't prune", err)
	}
	*seen = last
}

// kept refuses to tell what went to the archive.
func (b *Broker) kept(ctx context.Context, j crowd.Job) error {
	if !j.State.Ended() {
		return nil
	}
	gone, err := b.st.Archived(ctx, j.ID)
	if err != nil || !gone {
		return err
	}
	long := b.keeps().String()
	if days := b.keeps() / (24 * time.Hour); days > 1 {
		long = strconv.Itoa(int(days)) + " days"
	}
	return (&crowd.Error{Kind: crowd.NotFound, Status: 410, Message: "the results of " + j.Name + " (" + j.ID.Short() + ") are no longer kept: it ended on " + j.Ended.UTC().Format(time.DateOnly)}).
		WithHint("results are kept %s; the operator's archive has who did what", long)
}

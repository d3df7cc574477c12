package broker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

const (
	whyEvents = 20
	lookEvery = 100 * time.Millisecond // at events, of one that waits
)

// Why explains a job, a host, or an attempt (JOB/CHUNK).
func (b *Broker) Why(ctx context.Context, c Caller, ref string) (crowd.Why, error) {
	if m, ok := crowd.Reasons[crowd.Reason(ref)]; ok {
		return crowd.Why{Subject: ref, Reason: crowd.Reason(ref), Text: m.Means, WayOut: m.WayOut}, nil
	}
	if job, chunk, ok := strings.Cut(ref, "/"); ok {
		return b.whyChunk(ctx, c, job, chunk)
	}
	if !strings.HasPrefix(ref, "host_") {
		row, err := b.findJob(ctx, c, ref)
		if err == nil {
			return b.whyJob(ctx, c, row)
		}
		if !crowd.KindIs(err, crowd.NotFound) || strings.HasPrefix(ref, "job_") {
			return crowd.Why{}, err
		}
	}
	return b.whyHost(ctx, c, ref)
}

func (b *Broker) whyJob(ctx context.Context, c Caller, row crowd.Job) (crowd.Why, error) {
	w := crowd.Why{Subject: row.ID.String(), State: string(row.State), Since: since(row), Reason: row.Reason}
	var err error
	if w.Events, err = b.lastEvents(ctx, c, row.ID.String()); err != nil {
		return w, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	j := b.jobs[row.ID]
	switch {
	case j == nil:
		w.Text = fmt.Sprintf("%d of %d units done, %d failed", row.Progress.UnitsDone, row.Units, row.Progress.UnitsFailed)
		if row.Reason != "" {
			w.Text = crowd.Reasons[row.Reason].Means + "; " + w.Text
			w.WayOut = crowd.Reasons[row.Reason].WayOut
		}
		return w, nil
	case j.State == crowd.JobWaiting:
		w.Text, w.WayOut = crowd.Reasons[j.Reason].Means, crowd.Reasons[j.Reason].WayOut
	}
	hosts := b.candidates()
	w.Hosts = len(hosts)
	var fits, owners int
	fits, owners, w.Excluded = sched.Tally(hosts, j.order.Now)
	if w.Text != "" {
		return w, nil
	}
	_, ever, _ := sched.Tally(hosts, j.order.Never)
	switch {
	case len(j.atWork) > 0:
		w.Text = fmt.Sprintf("%d hosts are at work, %d of %d units done", len(j.atWork), j.Progress.UnitsDone, j.Units)
	case fits == 0:
		w.Text = "no host fits; 1 is enrolled"
		if len(hosts) != 1 {
			w.Text = fmt.Sprintf("none of %d hosts fits", len(hosts))
		}
	case ever < j.order.Need || j.Progress.Differed > 0 || len(j.open) > 0 && owners < j.order.Need:
		w.Reason = crowd.CustomerQuorum
		w.Text = fmt.Sprintf("quorum %d wants more different owners; hosts of %d fit now", j.order.Need, owners)
	default:
		w.Text = fmt.Sprintf("%d of %d hosts fit", fits, len(hosts))
	}
	if w.Reason == "" && fits == 0 && len(w.Excluded) > 0 {
		w.Reason = w.Excluded[0].Reason
	}
	w.WayOut = crowd.Reasons[w.Reason].WayOut
	return w, nil
}

func since(row crowd.Job) time.Time {
	switch {
	case !row.Ended.IsZero():
		return row.Ended
	case !row.Started.IsZero():
		return row.Started
	}
	return row.Created
}

func (b *Broker) whyHost(ctx context.Context, c Caller, ref string) (crowd.Why, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return crowd.Why{}, err
	}
	b.mu.Lock()
	h, err := b.findHost(c, ref)
	if err != nil {
		// a customer may ask about a host that worked for it; the events say what it may know
		for _, x := range b.hosts {
			if x.ID.String() == ref || x.ID.Short() == ref {
				h = x
			}
		}
	}
	var w crowd.Why
	if h != nil {
		w = crowd.Why{Subject: h.ID.String(), State: string(h.State), Reason: h.Reason, Since: h.Created}
		b.hostNow(h, &w)
	}
	b.mu.Unlock()
	if h == nil {
		return crowd.Why{}, notFound("thing", ref)
	}
	var evErr error
	if w.Events, evErr = b.lastEvents(ctx, c, w.Subject); evErr != nil {
		return w, evErr
	}
	if err != nil && len(w.Events) == 0 { // neither its owner nor touched by it
		return crowd.Why{}, notFound("thing", ref)
	}
	w.WayOut = crowd.Reasons[w.Reason].WayOut
	for _, e := range w.Events {
		if w.Reason != "" && e.Reason == w.Reason && (e.Subject == w.Subject || e.What == "chunk.differed") {
			w.Text, w.Since = e.Text, e.At
		}
	}
	return w, nil
}

// hostNow says how an active host is at this moment. Called with b.mu held.
func (b *Broker) hostNow(h *host, w *crowd.Why) {
	w.Text = fmt.Sprintf("the host is %s", w.State)
	switch {
	case h.State != crowd.HostActive:
	case h.conn == nil && h.void:
		w.Reason = crowd.HostCloned
		w.Text = "two machines used its key: the session is void"
	case h.conn == nil && b.letIn(h.ID) != nil:
		w.Reason, w.Text = crowd.HostGarbage, crowd.AsError(b.letIn(h.ID)).Message
	case h.conn == nil:
		w.Reason, w.Text = crowd.HostOffline, "the host isn't connected"
	case h.ready != crowd.Ready && h.why != "":
		w.Reason, w.Text = h.why, fmt.Sprintf("the host is %s: %s", h.ready, crowd.Reasons[h.why].Means)
	case h.ready == crowd.Ready:
		w.Text = fmt.Sprintf("the host is connected and ready, %d attempts at work", len(h.live))
	}
}

func (b *Broker) whyChunk(ctx context.Context, c Caller, ref, chunk string) (crowd.Why, error) {
	row, err := b.findJob(ctx, c, ref)
	if err != nil {
		return crowd.Why{}, err
	}
	var unit uint64
	if unit, err = strconv.ParseUint(chunk, 10, 64); err != nil || unit >= row.Units {
		return crowd.Why{}, notFound("chunk", chunk)
	}
	ch, err := b.st.ChunkOf(ctx, row.ID, unit)
	if crowd.KindIs(err, crowd.NotFound) {
		return crowd.Why{Subject: row.ID.String() + "/" + chunk, State: string(crowd.ChunkOpen), Text: "it was not leased yet"}, nil
	}
	if err != nil {
		return crowd.Why{}, err
	}
	rows, err := b.st.Attempts(ctx, row.ID, ch.First)
	if err != nil {
		return crowd.Why{}, err
	}
	w := crowd.Why{Subject: fmt.Sprintf("%s/%d", row.ID, ch.First), State: string(ch.State), Since: ch.Decided}
	w.Text = fmt.Sprintf("units %d to %d, %d attempts", ch.First, ch.First+ch.Count-1, len(rows))
	all, err := b.lastEvents(ctx, c, row.ID.String())
	for _, e := range all {
		if e.Data.First != nil && *e.Data.First == ch.First {
			w.Events = append(w.Events, e)
		}
	}
	return w, err
}

// lastEvents are the newest events that the caller may see of a thing, oldest first.
func (b *Broker) lastEvents(ctx context.Context, c Caller, subject string) ([]crowd.Event, error) {
	f := store.EventFilter{Subject: subject, Account: c.Account.ID, Newest: true, Limit: whyEvents}
	if operates(c) {
		f.Account = crowd.AccountID{}
	}
	all, err := b.st.Events(ctx, f)
	slices.Reverse(all)
	return all, err
}

// Events returns what happened after a sequence number, of one thing or of all that the caller may see; with wait it blocks until there is something.
func (b *Broker) Events(ctx context.Context, c Caller, subject string, after int64, limit int, wait bool) ([]crowd.Event, error) {
	if err := need(c, crowd.ScopeRead); err != nil {
		return nil, err
	}
	f := store.EventFilter{Subject: subject, Account: c.Account.ID, After: after, Limit: PageLimit(limit)}
	if operates(c) {
		f.Account = crowd.AccountID{}
	}
	if strings.HasPrefix(subject, "job_") || subject != "" && !strings.Contains(subject, "_") {
		row, err := b.findJob(ctx, c, subject)
		switch {
		case err == nil:
			f.Subject = row.ID.String()
		case strings.HasPrefix(subject, "job_") || !crowd.KindIs(err, crowd.NotFound):
			return nil, err
		}
	}
	if strings.HasPrefix(f.Subject, "host_") || f.Subject != "" && !strings.Contains(f.Subject, "_") {
		b.mu.Lock()
		if h, err := b.findHost(c, subject); err == nil {
			f.Subject = h.ID.String()
		}
		b.mu.Unlock()
	}
	for {
		rung := b.events.listen(f.Account)
		all, err := b.st.Events(ctx, f)
		if err != nil && ctx.Err() != nil && wait {
			return []crowd.Event{}, nil
		}
		if err != nil || len(all) > 0 || !wait {
			if all == nil {
				all = []crowd.Event{}
			}
			return all, err
		}
		looked := b.now()
		select {
		case <-ctx.Done():
			return []crowd.Event{}, nil
		case <-rung:
		}
		if d := lookEvery - b.now().Sub(looked); d > 0 { // a busy broker rings for everybody: who waits looks now and then
			select {
			case <-ctx.Done():
				return []crowd.Event{}, nil
			case <-time.After(d):
			}
		}
	}
}

// Status is the operator's view.
func (b *Broker) Status(ctx context.Context, c Caller) (crowd.Status, error) {
	if err := need(c, crowd.ScopeOperate); err != nil {
		return crowd.Status{}, err
	}
	sum, err := b.st.LedgerSum(ctx)
	if err != nil {
		return crowd.Status{}, err
	}
	s := crowd.Status{Version: b.cfg.Version, Started: b.started, LedgerSum: sum}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.hosts {
		if h.State != crowd.HostLeft {
			s.HostsTotal++
		}
		if h.conn != nil {
			s.HostsOn++
		}
	}
	s.JobsOpen, s.Attempts = len(b.jobs), b.live
	return s, nil
}

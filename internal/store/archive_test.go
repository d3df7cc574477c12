package store

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// ended makes a job of so many chunks that has ended.
func ended(t *testing.T, s *Store, name string, chunks uint64, at time.Time) crowd.Job {
	t.Helper()
	j := addJob(t, s, name)
	host := newID[crowd.HostID]()
	ops := []Op{legs("order:"+j.ID.String(), crowd.BookMint, -6000, crowd.EscrowBook(j.ID), 6000), AddEvent{crowd.Event{At: at, Subject: j.ID.String(), What: "job.queued"}},
		AddEvent{crowd.Event{At: at, Subject: host.String(), What: "host.quarantined", Data: crowd.EventData{Job: j.ID, Host: host}}}}
	for i := range chunks {
		b := crashBody(i)
		d := decided(chunk(j.ID, i*10, 10), 1)
		d.Body = digest.Of(b)
		ops = append(ops, lease(j.ID, i*10, 10, 1), PutBody{j.ID, digest.Of(b), b}, d,
			legs(fmt.Sprintf("chunk:%s:%d:1", j.ID, i*10), crowd.EscrowBook(j.ID), -3, crowd.PendingBook(j.Account), 2, crowd.BookFee, 1),
			AddEvent{crowd.Event{At: at, Subject: j.ID.String(), What: "lease.ended", Data: crowd.EventData{Job: j.ID, Host: host}}})
	}
	j.State, j.Ended = crowd.JobDone, at
	must(t, s.Apply(ctx, append(ops, SetJob{j}, Done{j.ID, chunks * 10, []Run{{0, chunks * 10}}}, AddEvent{crowd.Event{At: at, Subject: j.ID.String(), What: "job.done"}})...))
	return j
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	const n = 1700 // more than are deleted at once
	j := ended(t, s, "old", n, t0.Add(-40*24*time.Hour))
	young := ended(t, s, "young", 3, t0)
	living := addJob(t, s, "living")
	due := must1(s.EndedBefore(ctx, t0.Add(-30*24*time.Hour), 0))(t)
	if len(due) != 1 || due[0] != j.ID {
		t.Fatalf("due %v", due)
	}
	wantKind(t, s.Archive(ctx, living.ID), crowd.Conflict)
	wantKind(t, s.Archive(ctx, newID[crowd.JobID]()), crowd.NotFound)

	// killed when the file was written, and half way
	must(t, s.writeArchive(ctx, j.ID))
	must(t, s.Apply(ctx, setArchived{j.ID, 1}, &deleteOld{job: j.ID, table: "attempts"}))
	must(t, s.Close())
	s = open(t, dir)
	must(t, s.Archive(ctx, j.ID))
	must(t, s.Archive(ctx, j.ID))

	if is := must1(s.Archived(ctx, j.ID))(t); !is {
		t.Error("it isn't said to be archived")
	}
	for _, table := range []string{"chunks", "attempts", "bodies", "job_done", "job_since"} {
		row, err := s.w.one("SELECT count(*) FROM "+table+" WHERE job = (SELECT num FROM jobs WHERE id = ?)", j.ID[:])
		if err != nil || row[0] != int64(0) {
			t.Errorf("%s: %v rows, %v", table, row, err)
		}
	}
	if _, err := os.Stat(logPath(s.logDir, j.ID)); err == nil {
		t.Error("its body log is there")
	}
	if row := must1(s.Job(ctx, j.ID))(t); row.State != crowd.JobDone {
		t.Errorf("%+v", row)
	}
	if legs := must1(s.Txn(ctx, fmt.Sprintf("chunk:%s:0:1", j.ID)))(t); len(legs) != 3 {
		t.Errorf("its postings are %v", legs)
	}
	ev := must1(s.Events(ctx, EventFilter{Subject: j.ID.String()}))(t)
	if len(ev) != 2 || ev[0].What != "host.quarantined" || ev[1].What != "job.done" {
		t.Errorf("events %+v", ev)
	}
	if c := must1(s.Chunks(ctx, young.ID, 0, 0))(t); len(c) != 3 {
		t.Errorf("another's chunks: %v", c)
	}
	if got := must1(s.EndedBefore(ctx, t0.Add(time.Hour), 0))(t); len(got) != 1 || got[0] != young.ID {
		t.Errorf("due then: %v", got)
	}

	var file struct {
		Format   int
		Job      crowd.Job
		Chunks   []crowd.Chunk
		Attempts []crowd.Attempt
		Events   []crowd.Event
		Postings []crowd.Posting
	}
	raw := must1(os.ReadFile(s.archivePath(j.ID)))(t)
	z := must1(zstd.NewReader(nil))(t)
	defer z.Close()
	must(t, json.Unmarshal(must1(z.DecodeAll(raw, nil))(t), &file))
	if file.Format != archiveFormat || file.Job.ID != j.ID || len(file.Chunks) != n || len(file.Attempts) != n || len(file.Events) != n+3 || len(file.Postings) != 2+3*n {
		t.Errorf("format %d, %d chunks, %d attempts, %d events, %d postings", file.Format, len(file.Chunks), len(file.Attempts), len(file.Events), len(file.Postings))
	}

	b := must1(WriteBackup(ctx, dir, dir+"-backup", false, nil))(t)
	if len(b.Missing) != 1 { // the key
		t.Errorf("%+v", b)
	}
	defer os.Remove(dir + "-backup")
	to := t.TempDir()
	must1(Restore(ctx, dir+"-backup", to, RestoreOptions{}))(t)
	r := open(t, to)
	if !r.HasArchive(j.ID) {
		t.Error("the archive isn't in the backup")
	}
}

func TestPrune(t *testing.T) {
	s := open(t, t.TempDir())
	living := addJob(t, s, "living")
	done := ended(t, s, "done", 1, t0.Add(-40*24*time.Hour))
	host, acc := newID[crowd.HostID]().String(), newID[crowd.AccountID]().String()
	old, young := t0.Add(-40*24*time.Hour), t0
	event := func(at time.Time, subject, text string, job crowd.JobID) Op {
		return AddEvent{crowd.Event{At: at, Subject: subject, What: "x.y", Text: text, Data: crowd.EventData{Job: job}}}
	}
	must(t, s.Apply(ctx,
		event(old, host, "goes", crowd.JobID{}), event(old, host, "names a living job", living.ID), event(old, host, "names one that ended: goes", done.ID),
		event(old, living.ID.String(), "of a living job", crowd.JobID{}), event(old, done.ID.String(), "of one that isn't archived", crowd.JobID{}),
		event(old, acc, "goes", crowd.JobID{}), event(old, acc, "the last of its thing", crowd.JobID{}), event(young, host, "young", crowd.JobID{}),
		PutQuote{crowd.Quote{ID: newID[crowd.QuoteID](), Until: old}}, PutQuote{crowd.Quote{ID: newID[crowd.QuoteID](), Until: young}},
		PutToken{crowd.JoinToken{Hash: [32]byte{1}, Expires: young.Add(time.Hour)}}, PutToken{crowd.JoinToken{Hash: [32]byte{2}, Expires: old}},
		PutToken{crowd.JoinToken{Hash: [32]byte{3}, Expires: young.Add(time.Hour), UsedAt: old}}))
	before := len(must1(s.Events(ctx, EventFilter{Limit: 1000}))(t))
	last := must1(s.Prune(ctx, t0.Add(-30*24*time.Hour), 0))(t)
	again := must1(s.Prune(ctx, t0.Add(-30*24*time.Hour), 0))(t)
	after := must1(s.Events(ctx, EventFilter{Limit: 1000}))(t)
	if len(after) != before-3 || last == 0 || again != last {
		t.Errorf("%d events of %d are left, up to %d, %d", len(after), before, last, again)
	}
	for _, e := range after {
		if e.Text == "goes" {
			t.Errorf("%+v is there", e)
		}
	}
	for q, want := range map[string]int64{"SELECT count(*) FROM quotes": 1, "SELECT count(*) FROM tokens": 1,
		"SELECT count(*) FROM event_names x WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.seq = x.seq)": 0} {
		if row, err := s.w.one(q); err != nil || row[0] != want {
			t.Errorf("%s: %v, %v", q, row, err)
		}
	}
}

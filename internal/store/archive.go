package store

import (
	"bufio"
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
)

// An archive file, archive/JOB.json.zst, is one JSON object: format, archived_at, job with its spec, then chunks, attempts, events and postings, one
// a line.
const archiveFormat = 1

// deleteAtOnce is how many rows one transaction deletes: others' changes go between.
const deleteAtOnce = 500

func archiveName(job crowd.JobID) string { return "archive/" + job.String() + ".json.zst" }

func (s *Store) archivePath(job crowd.JobID) string {
	return filepath.Join(filepath.Dir(s.logDir), filepath.FromSlash(archiveName(job)))
}

// Archived reports whether a job's chunks, attempts and bodies went to the archive, or are going.
func (s *Store) Archived(ctx context.Context, job crowd.JobID) (is bool, err error) {
	err = s.first(ctx, "job", []any{&is}, "SELECT archived > 0 FROM jobs WHERE id = ?", job[:])
	return is, err
}

// EndedBefore are jobs that ended before a time and aren't wholly in the archive yet, oldest first; limit 0: 100.
func (s *Store) EndedBefore(ctx context.Context, t time.Time, limit int) (jobs []crowd.JobID, err error) {
	most := int(limitOr(limit, 100))
	stop := errors.New("enough")
	err = s.each(ctx, func(scan func(...any) error) error {
		var id []byte
		var js string
		if err := scan(&id, &js); err != nil {
			return err
		}
		var r jobRest
		if err := unmarshal(js, &r); err != nil {
			return err
		}
		if !r.Ended.IsZero() && r.Ended.Before(t) {
			if jobs = append(jobs, crowd.JobID(id)); len(jobs) == most {
				return stop
			}
		}
		return nil
	}, "SELECT id, json FROM jobs INDEXED BY jobs_ended WHERE living = 0 AND archived < 2 ORDER BY num")
	if errors.Is(err, stop) {
		err = nil
	}
	return jobs, wrap("read ended jobs", err)
}

// Archive writes an ended job to DIR/archive/JOB.json.zst and then deletes, a few rows at a time, its chunks, attempts, bodies, checkpoints, map of
// decided units and all its events but the last. The job's row and its postings stay. Called again after a crash it goes on; of a job that is
// archived it changes nothing. Conflict: the job lives.
func (s *Store) Archive(ctx context.Context, job crowd.JobID) error {
	var stage, living int64
	if err := s.first(ctx, "job", []any{&stage, &living}, "SELECT archived, living FROM jobs WHERE id = ?", job[:]); err != nil {
		return err
	}
	if living != 0 {
		return crowd.Errorf(crowd.Conflict, "", "job %s hasn't ended: it can't go to the archive", job.Short())
	}
	if stage == 0 {
		if err := s.writeArchive(ctx, job); err != nil {
			return wrap("archive "+job.Short(), err)
		}
		crash.Point("archive.before")
		if err := s.Apply(ctx, setArchived{job, 1}); err != nil {
			return err
		}
	}
	if stage < 2 {
		for _, table := range []string{"attempts", "chunks", "states", "job_since", "job_done", "revisits", "bodies", "events"} {
			for {
				o := &deleteOld{job: job, table: table}
				if err := s.Apply(ctx, o); err != nil {
					return err
				}
				if !o.more {
					break
				}
			}
		}
		crash.Point("archive.after")
		return s.Apply(ctx, dropLog{job}, setArchived{job, 2})
	}
	return nil
}

type setArchived struct {
	job   crowd.JobID
	stage int64
}

func (setArchived) op() {}

func (o setArchived) step(w *writer) error {
	num, err := w.jobNum(o.job)
	if err == nil {
		_, _, err = w.change("UPDATE jobs SET archived = max(archived, ?) WHERE num = ? AND living = 0", o.stage, num)
	}
	return err
}

// dropLog removes a job's body log, whose rows are gone for good.
type dropLog struct{ job crowd.JobID }

func (dropLog) op() {}

func (o dropLog) step(w *writer) error {
	if l := w.logs.open[o.job]; l != nil {
		if l.touched {
			return crowd.Errorf(crowd.Conflict, "", "job %s still gets bodies", o.job.Short())
		}
		_ = l.f.Close()
		delete(w.logs.open, o.job)
	}
	if err := os.Remove(logPath(w.logs.dir, o.job)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return crowd.Errorf(crowd.Internal, "", "store: remove the body log of job %s: %w", o.job.Short(), err)
	}
	return nil
}

// deleteOld deletes some of an archived job's rows of one table; more says whether there are others.
type deleteOld struct {
	job   crowd.JobID
	table string
	more  bool
}

func (*deleteOld) op() {}

func (o *deleteOld) step(w *writer) error {
	num, err := w.jobNum(o.job)
	if err != nil {
		return err
	}
	row, err := w.one("SELECT archived FROM jobs WHERE num = ?", num)
	if err != nil || row[0].(int64) == 0 {
		return err
	}
	o.more = false
	switch o.table {
	case "job_done", "revisits":
		_, _, err = w.change("DELETE FROM "+o.table+" WHERE job = ?", num)
		return err
	case "events":
		return o.events(w)
	}
	key := "first"
	if o.table == "bodies" {
		key = "num"
	}
	below := int64(1)<<62 + 1<<61
	if row, err = w.one("SELECT "+key+" FROM "+o.table+" WHERE job = ? ORDER BY "+key+" LIMIT 1 OFFSET ?", num, int64(deleteAtOnce)); err != nil {
		return err
	}
	if row != nil {
		below, o.more = row[0].(int64), true
	}
	n, _, err := w.change("DELETE FROM "+o.table+" WHERE job = ? AND "+key+" < ?", num, below)
	if err == nil && n == 0 && o.more { // more attempts at one chunk than that: all of them
		_, _, err = w.change("DELETE FROM "+o.table+" WHERE job = ? AND "+key+" <= ?", num, below)
	}
	return err
}

// events deletes a job's own events but the last; those of other things that name it stay.
func (o *deleteOld) events(w *writer) error {
	name := o.job.String()
	var seqs []int64
	err := w.each(func(row []driver.Value) error {
		seqs = append(seqs, row[0].(int64))
		return nil
	}, `SELECT x.seq FROM event_names x CROSS JOIN events e ON e.seq = x.seq WHERE x.name = ?1 AND e.subject = ?1
		AND x.seq < (SELECT max(y.seq) FROM event_names y CROSS JOIN events f ON f.seq = y.seq WHERE y.name = ?1 AND f.subject = ?1) ORDER BY x.seq LIMIT ?2`, name, int64(deleteAtOnce))
	o.more = len(seqs) == deleteAtOnce
	return errors.Join(err, w.deleteEvents(seqs))
}

// deleteEvents deletes events with the names that they are found by.
func (w *writer) deleteEvents(seqs []int64) error {
	for _, seq := range seqs {
		row, err := w.one("SELECT subject, data FROM events WHERE seq = ?", seq)
		if err != nil {
			return err
		}
		if row == nil {
			continue
		}
		e := crowd.Event{Subject: row[0].(string)}
		if js, ok := row[1].(string); ok {
			if err := unmarshal(js, &e.Data); err != nil {
				return err
			}
		}
		for _, name := range namesOf(e) {
			if _, _, err := w.change("DELETE FROM event_names WHERE name = ? AND seq = ?", name, seq); err != nil {
				return err
			}
		}
		if _, _, err := w.change("DELETE FROM events WHERE seq = ?", seq); err != nil {
			return err
		}
	}
	return nil
}

// namesOf is every id that an event names.
func namesOf(e crowd.Event) []string {
	names := []string{e.Subject}
	for _, n := range []string{e.Data.Job.String(), e.Data.Host.String()} {
		if n != "" && n != e.Subject {
			names = append(names, n)
		}
	}
	return names
}

// writeArchive writes the file, whole or not at all.
func (s *Store) writeArchive(ctx context.Context, job crowd.JobID) (err error) {
	path := s.archivePath(job)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // one broker has the store: nobody else writes it
	if err != nil {
		return err
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(path + ".part")
	}()
	v, err := s.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer v.Close()
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(z, 1<<16)
	if err := v.archive(ctx, job, &jsonLines{w: buf}, s.now()); err != nil {
		_ = z.Close()
		return err
	}
	for _, step := range []func() error{buf.Flush, z.Close, f.Sync, f.Close, func() error { return os.Rename(path+".part", path) }, func() error { return syncDir(dir) }} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// archive tells all about a job.
func (v *Snapshot) archive(ctx context.Context, job crowd.JobID, w *jsonLines, now time.Time) error {
	j, _, err := v.Job(ctx, job)
	if err != nil {
		return err
	}
	w.field("{\"format\":", archiveFormat)
	w.field(",\n\"archived_at\":", now.UTC())
	w.field(",\n\"job\":", j)
	w.list(",\n\"chunks\":[")
	err = v.Chunks(ctx, job, func(c ChunkRow, _ []AttemptRow) error {
		if c.Count > 0 {
			w.item(struct {
				crowd.Chunk
				Body crowd.Digest `json:"body,omitzero"`
			}{c.Chunk, c.Body})
		}
		return w.err
	})
	if err != nil {
		return err
	}
	w.list("],\n\"attempts\":[")
	err = v.Chunks(ctx, job, func(_ ChunkRow, all []AttemptRow) error {
		for _, a := range all {
			w.item(struct {
				crowd.Attempt
				Group  string `json:"group,omitempty"`
				Counts bool   `json:"counts"`
			}{a.Attempt, a.Group, a.Counts})
		}
		return w.err
	})
	if err != nil {
		return err
	}
	w.list("],\n\"events\":[")
	err = v.each(ctx, func(scan func(...any) error) error {
		e, err := scanEvent(scan)
		if err == nil {
			w.item(e)
			err = w.err
		}
		return err
	}, eventColumns+"FROM event_names x CROSS JOIN events e ON e.seq = x.seq WHERE x.name = ? ORDER BY x.seq", job.String())
	if err != nil {
		return err
	}
	w.list("],\n\"postings\":[")
	for _, name := range []string{"order:" + job.String(), "settle:" + job.String(), "refund:" + job.String()} {
		if err := v.archiveTxn(ctx, w, name); err != nil {
			return err
		}
	}
	for _, prefix := range []string{"chunk:" + job.String() + ":", "reverse:chunk:" + job.String() + ":"} {
		err := v.TxnNames(ctx, prefix, func(name string) error { return v.archiveTxn(ctx, w, name) })
		if err != nil {
			return err
		}
	}
	w.text("]}\n")
	return w.err
}

func (v *Snapshot) archiveTxn(ctx context.Context, w *jsonLines, name string) error {
	legs, err := v.Txn(ctx, name)
	for _, p := range legs {
		w.item(p)
	}
	return errors.Join(err, w.err)
}

// jsonLines writes a JSON object bit by bit; the first error stays.
type jsonLines struct {
	w     io.Writer
	first bool
	err   error
}

func (w *jsonLines) text(s string) {
	if w.err == nil {
		_, w.err = io.WriteString(w.w, s)
	}
}

func (w *jsonLines) field(name string, v any) {
	w.text(name)
	b, err := json.Marshal(v)
	if w.err == nil {
		w.err = err
	}
	w.text(string(b))
}

func (w *jsonLines) list(name string) {
	w.text(name)
	w.first = true
}

func (w *jsonLines) item(v any) {
	sep := ",\n"
	if w.first {
		sep, w.first = "\n", false
	}
	w.field(sep, v)
}

// Prune deletes what nobody asks for any more: events before a time that name no living job, but the last of each thing; quotes that are
// held no more and join tokens that are used or over, both for a day. After is the event to begin behind, and what it returns where to go on another time: later
// events are newer than the time. Some rows at a time, so that it may be called beside the work.
func (s *Store) Prune(ctx context.Context, before time.Time, after int64) (int64, error) {
	day := nanos(s.now().Add(-24 * time.Hour))
	for _, q := range []struct{ find, drop string }{
		{"SELECT id FROM quotes WHERE until < ? LIMIT ?", "DELETE FROM quotes WHERE id = ?"},
		{"SELECT hash FROM tokens WHERE iif(used_at > 0, used_at, expires) < ? LIMIT ?", "DELETE FROM tokens WHERE hash = ?"},
	} {
		for more := true; more; {
			var keys [][]byte
			err := s.each(ctx, func(scan func(...any) error) error {
				var k []byte
				err := scan(&k)
				keys = append(keys, k)
				return err
			}, q.find, day, int64(deleteAtOnce))
			if err != nil {
				return after, wrap("prune", err)
			}
			if more = len(keys) == deleteAtOnce; len(keys) > 0 {
				if err := s.Apply(ctx, deleteKeys{q.drop, keys}); err != nil {
					return after, err
				}
			}
		}
	}
	for {
		old, last, err := s.oldEvents(ctx, before, after)
		if err != nil || last == after {
			return after, err
		}
		if len(old) > 0 {
			if err := s.Apply(ctx, pruneEvents{old}); err != nil {
				return after, err
			}
		}
		after = last
	}
}

type deleteKeys struct {
	q    string
	keys [][]byte
}

func (deleteKeys) op() {}

func (o deleteKeys) step(w *writer) error {
	for _, k := range o.keys {
		if _, _, err := w.change(o.q, k); err != nil {
			return err
		}
	}
	return nil
}

type pruneEvents struct{ seqs []int64 }

func (pruneEvents) op() {}

func (o pruneEvents) step(w *writer) error { return w.deleteEvents(o.seqs) }

// oldEvents looks at some events behind one: which of them may go, and the last that it looked at.
func (s *Store) oldEvents(ctx context.Context, before time.Time, after int64) (old []int64, last int64, err error) {
	type seen struct {
		seq int64
		e   crowd.Event
	}
	var page []seen
	err = s.each(ctx, func(scan func(...any) error) error {
		e, err := scanEvent(scan)
		page = append(page, seen{e.Seq, e})
		return err
	}, eventColumns+"FROM events e WHERE e.seq > ? ORDER BY e.seq LIMIT ?", after, int64(deleteAtOnce))
	if err != nil {
		return nil, after, wrap("prune events", err)
	}
	last = after
	for _, x := range page {
		if !x.e.At.Before(before) {
			break
		}
		last = x.seq
		keep, err := s.keepsEvent(ctx, x.e)
		if err != nil {
			return nil, after, wrap("prune events", err)
		}
		if !keep {
			old = append(old, x.seq)
		}
	}
	return old, last, nil
}

// keepsEvent reports whether an old event stays: it names a job that lives or whose turn it is to be archived, or it is the last of its thing.
func (s *Store) keepsEvent(ctx context.Context, e crowd.Event) (keep bool, err error) {
	jobs := []crowd.JobID{e.Data.Job}
	if strings.HasPrefix(e.Subject, "job_") {
		var id crowd.JobID
		if id.UnmarshalText([]byte(e.Subject)) == nil {
			jobs = append(jobs, id)
		}
	}
	for _, id := range slices.Compact(jobs) {
		if id.IsZero() {
			continue
		}
		q := "SELECT 1 FROM jobs WHERE id = ? AND living = 1"
		if e.Subject == id.String() {
			q = "SELECT 1 FROM jobs WHERE id = ? AND archived < 2"
		}
		err := s.each(ctx, func(func(...any) error) error { keep = true; return nil }, q, id[:])
		if err != nil || keep {
			return keep, err
		}
	}
	keep = true
	err = s.each(ctx, func(func(...any) error) error { keep = false; return nil },
		"SELECT 1 FROM event_names x CROSS JOIN events e ON e.seq = x.seq WHERE x.name = ?1 AND x.seq > ?2 AND e.subject = ?1 LIMIT 1", e.Subject, e.Seq)
	return keep, err
}

// CheckArchive reads a job's file in the archive to its end. NotFound: it isn't there. Failed: it is damaged, cut, or another job's.
func (s *Store) CheckArchive(ctx context.Context, job crowd.JobID) error {
	return checkArchive(ctx, s.archivePath(job), job)
}

func checkArchive(ctx context.Context, path string, job crowd.JobID) error {
	f, _, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return crowd.Errorf(crowd.NotFound, "", "job %s has no file in the archive", job.Short())
	}
	damaged := func(what string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return crowd.Errorf(crowd.Failed, "", "%s is damaged: %s", archiveName(job), what)
	}
	if err != nil {
		return damaged(err.Error())
	}
	defer f.Close()
	z, err := zstd.NewReader(&ctxReader{ctx, f}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return damaged(err.Error())
	}
	defer z.Close()
	dec := json.NewDecoder(z)
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return damaged("it doesn't begin as an archive")
	}
	for {
		name, err := dec.Token()
		if err != nil || name == json.Delim('}') {
			return damaged("no job is in it")
		}
		var j struct {
			ID crowd.JobID `json:"id"`
		}
		if name != "job" {
			var skip json.RawMessage
			if err := dec.Decode(&skip); err != nil {
				return damaged(err.Error())
			}
			continue
		}
		if err := dec.Decode(&j); err != nil {
			return damaged(err.Error())
		}
		if j.ID != job {
			return damaged("it is of " + j.ID.String())
		}
		break
	}
	var end tail
	if _, err := io.Copy(&end, io.MultiReader(dec.Buffered(), z)); err != nil {
		return damaged(err.Error())
	}
	if !strings.HasSuffix(string(end.last), "]}\n") {
		return damaged("it is cut")
	}
	return nil
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// tail keeps the last bytes of what is written to it.
type tail struct{ last []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p[max(0, len(p)-4):]...)
	t.last = append(t.last[:0], t.last[max(0, len(t.last)-4):]...)
	return len(p), nil
}

// HasArchive reports whether a job's file is in the archive.
func (s *Store) HasArchive(job crowd.JobID) bool {
	_, err := os.Stat(s.archivePath(job))
	return err == nil
}

package store

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
)

// Group commit: how much one transaction takes.
const (
	maxLists = 512
	maxSteps = 16384
	maxBytes = 16 << 20 // of bodies
)

// step is an op made ready by the goroutine that calls Apply (encoded, compressed, checked by itself), so that the writer does only what
// needs the database.
type step func(*writer) error

// list is one call of Apply on its way through the writer.
type list struct {
	steps []step
	bytes int // of bodies in it
	taken atomic.Int32
	reply chan error
}

// The states of list.taken.
const (
	listWaits int32 = iota
	listTaken
	listLeft // its caller has gone
)

// Apply makes all changes or none and returns when they are durable. Lists that wait at the same time share a commit; each succeeds or is refused by
// itself. If ctx ends before the commit has begun, nothing is applied (Unavailable, and errors.Is its cause); after that Apply
// waits for the result. Ops of a list see what the ones before them did. Safe for concurrent use.
func (s *Store) Apply(ctx context.Context, ops ...Op) error {
	l := &list{steps: make([]step, 0, len(ops)), reply: make(chan error, 1)}
	for _, op := range ops {
		st, err := s.plan(op)
		if err != nil {
			return err
		}
		if b, ok := op.(PutBody); ok {
			l.bytes += len(b.Body)
		}
		l.steps = append(l.steps, st)
	}
	return s.submit(ctx, l)
}

func (s *Store) submit(ctx context.Context, l *list) error {
	if err := ctx.Err(); err != nil {
		return wrap("not applied", err)
	}
	select {
	case <-s.closing:
		return errClosed
	default:
	}
	select {
	case s.queue <- l:
	case <-ctx.Done():
		return wrap("not applied", ctx.Err())
	case <-s.closing:
		return errClosed
	}
	select {
	case err := <-l.reply:
		return err
	case <-ctx.Done():
		if l.taken.CompareAndSwap(listWaits, listLeft) {
			return wrap("not applied", ctx.Err())
		}
	case <-s.stopped:
		if l.taken.CompareAndSwap(listWaits, listLeft) {
			return errClosed
		}
	}
	return <-l.reply
}

var errClosed = crowd.Errorf(crowd.Unavailable, "", "store: closed")

// write is the writer goroutine. It ends when the store closes, after the lists that wait.
func (s *Store) write() {
	defer close(s.stopped)
	var batch []*list
	for {
		batch = batch[:0]
		select {
		case l := <-s.queue:
			batch = append(batch, l)
		case <-s.closing:
			select {
			case l := <-s.queue:
				batch = append(batch, l)
			default:
				return
			}
		}
		batch = s.gather(batch)
		s.w.commit(batch)
	}
}

// gather adds what else waits. It lets others run once when nothing does: those who were just answered are about to come back.
func (s *Store) gather(batch []*list) []*list {
	steps, bytes := len(batch[0].steps), batch[0].bytes
	for yielded := false; len(batch) < maxLists && steps < maxSteps && bytes < maxBytes; {
		select {
		case l := <-s.queue:
			batch, steps, bytes = append(batch, l), steps+len(l.steps), bytes+l.bytes
			continue
		default:
		}
		if yielded {
			break
		}
		yielded = true
		runtime.Gosched()
	}
	return batch
}

// writer owns the one connection that writes. Everything in it belongs to the writer goroutine.
type writer struct {
	*conn
	logs    *logs
	jobs    map[crowd.JobID]int64 // numbers
	books   map[crowd.Book]*book
	dirty   []*book // to be written before the commit
	undo    []undo  // of this transaction's postings
	changed bool    // the list at hand has changed something
	commits int64   // made
	again   int64   // batches that were made a second time
}

// change is exec for a statement that changes rows.
func (w *writer) change(q string, args ...any) (rows, last int64, err error) {
	rows, last, err = w.exec(q, args...)
	w.changed = w.changed || rows > 0
	return rows, last, err
}

// commit applies a batch in one transaction and answers every list.
//
// Refusals are rare and mostly come before the list has changed anything, so that there is nothing to undo. If one comes later, the whole
// transaction is rolled back and made again with a savepoint around each list. A savepoint for every list from the start would copy each page
// that it touches.
func (w *writer) commit(batch []*list) {
	live := batch[:0]
	for _, l := range batch {
		if l.taken.CompareAndSwap(listWaits, listTaken) {
			live = append(live, l)
		}
	}
	if len(live) == 0 {
		return
	}
	errs := make([]error, len(live))
	err := w.transact(live, errs, false)
	if errors.Is(err, errAgain) {
		w.again++
		clear(errs)
		err = w.transact(live, errs, true)
	}
	for i, l := range live {
		if errs[i] == nil {
			errs[i] = err
		}
		l.reply <- errs[i]
	}
}

var errAgain = errors.New("store: a list has to be undone by itself")

// transact runs the lists; errs gets their refusals. An error means that nothing was committed.
func (w *writer) transact(lists []*list, errs []error, savepoints bool) (err error) {
	if _, _, err = w.exec("BEGIN IMMEDIATE"); err != nil {
		return wrap("begin", err)
	}
	crash.Point("store.begin")
	defer func() {
		if err != nil {
			_, _, _ = w.exec("ROLLBACK")
			w.forget(0)
			w.logs.rollback()
		}
		w.undo = w.undo[:0]
	}()
	for i, l := range lists {
		if savepoints {
			if _, _, err = w.exec("SAVEPOINT list"); err != nil {
				return wrap("savepoint", err)
			}
		}
		mark := len(w.undo)
		w.changed = false
		for _, st := range l.steps {
			if errs[i] = st(w); errs[i] != nil {
				break
			}
		}
		if errs[i] != nil && !refusal(errs[i]) {
			return wrap("apply", errs[i]) // the engine may have rolled back by itself
		}
		if errs[i] != nil && !savepoints && w.changed {
			return errAgain
		}
		if errs[i] != nil {
			errs[i] = wrap("apply", errs[i])
			w.forget(mark)
		}
		if savepoints {
			if errs[i] != nil {
				if _, _, err = w.exec("ROLLBACK TO list"); err != nil {
					return wrap("undo", err)
				}
			}
			if _, _, err = w.exec("RELEASE list"); err != nil {
				return wrap("savepoint", err)
			}
		}
	}
	if err = w.saveBooks(); err != nil {
		return wrap("balances", err)
	}
	if err = w.logs.flush(); err != nil {
		return wrap("body log", err)
	}
	crash.Point("store.body.before")
	if err = w.logs.sync(); err != nil {
		w.logs.distrust()
		return wrap("body log", err)
	}
	crash.Point("store.body.after")
	if _, _, err = w.exec("COMMIT"); err != nil {
		return wrap("commit", err)
	}
	crash.Point("store.commit.after")
	w.commits++
	w.logs.committed()
	if len(w.jobs) > 1<<16 {
		clear(w.jobs)
	}
	if len(w.books) > 1<<16 {
		clear(w.books)
	}
	return nil
}

// refusal reports whether an error concerns its list only.
func refusal(err error) bool {
	var e *crowd.Error
	return errors.As(err, &e) || isConstraint(err)
}

// forget takes back what the writer remembers of the postings after a mark, and every job number, which may have been new.
func (w *writer) forget(mark int) {
	for i := len(w.undo) - 1; i >= mark; i-- {
		u := w.undo[i]
		if u.created {
			delete(w.books, u.book.name)
			u.book.gone = true
		}
		u.book.balance = u.balance
	}
	w.undo = w.undo[:mark]
	clear(w.jobs)
}

// jobNum is a job's number: NotFound.
func (w *writer) jobNum(id crowd.JobID) (int64, error) {
	if n, ok := w.jobs[id]; ok {
		return n, nil
	}
	row, err := w.one("SELECT num FROM jobs WHERE id = ?", id[:])
	if err != nil {
		return 0, err
	}
	if row == nil {
		return 0, crowd.Errorf(crowd.NotFound, "", "no such job: %s", id)
	}
	n := row[0].(int64)
	w.jobs[id] = n
	return n, nil
}

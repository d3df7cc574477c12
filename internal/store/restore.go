package store

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
)

// RestoreOptions of Restore.
type RestoreOptions struct {
	Replace          bool  // a store that is there is moved aside
	LeastIncarnation int64 // the new one is above it
	Now              func() time.Time
}

// Restored says what a restore did.
type Restored struct {
	Backup
	NewIncarnation int64  `json:"new_incarnation"`
	Dir            string `json:"dir"`
	Old            string `json:"old,omitempty"` // where the old store is now
}

// unfinished marks a folder that a restore unpacks into: if it stands there without a restore at work, it is worth nothing.
const unfinished = "restore.unfinished"

// Restore makes dir what it was at the time of a backup, with a higher incarnation than any before, so that hosts know it from the store that they
// saw; join tokens that weren't used are void. All is unpacked and checked beside dir before anything takes dir's place, in one step where the
// system can exchange folders (Linux, macOS); elsewhere a crash between two renames leaves no dir, the old store as DIR.old-… and the
// new one as DIR.restore-…. Conflict: a broker has dir, or there is something in it and Replace isn't set, or no incarnation is left. Invalid: the
// backup is damaged or no file, dir is no folder, or LeastIncarnation is none that a host can have seen.
func Restore(ctx context.Context, file, dir string, o RestoreOptions) (r Restored, err error) {
	defer func() { err = wrap("restore "+dir, err) }()
	if o.Now == nil {
		o.Now = time.Now
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return r, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	r.Dir = dir
	if o.LeastIncarnation < 0 || o.LeastIncarnation > maxIncarnation {
		return r, crowd.Errorf(crowd.Invalid, "", "--least-incarnation %d: there are only those from 1 to %d", o.LeastIncarnation, maxIncarnation).
			WithHint("say the highest that a host has seen")
	}
	if o.LeastIncarnation == maxIncarnation {
		return r, crowd.Errorf(crowd.Invalid, "", "--least-incarnation %d is the last one: none is left above it", o.LeastIncarnation).
			WithHint("start a new broker, with a new key, and let its hosts join that")
	}
	f, _, err := openBackup(file)
	if err != nil {
		return r, err
	}
	if err := f.Close(); err != nil {
		return r, err
	}
	old, err := takeOld(ctx, dir, o)
	if err != nil {
		return r, err
	}
	defer old.release()
	if err := incarnationLeft(old.incarnation, "the store in "+dir); err != nil {
		return r, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return r, pathFault(filepath.Dir(dir), err)
	}
	tmp, err := newUnfinished(dir)
	if err != nil {
		return r, pathFault(filepath.Dir(dir), err)
	}
	defer tmp.remove()
	if r.Backup, err = unpack(ctx, file, tmp.dir); err != nil {
		return r, err
	}
	if err := incarnationLeft(r.Incarnation, "the backup"); err != nil {
		return r, err
	}
	crash.Point("restore.whole")
	r.NewIncarnation = max(r.Incarnation, o.LeastIncarnation, old.incarnation) + 1
	if err := renew(ctx, tmp.dir, r, o.Now); err != nil {
		return r, err
	}
	if err := tmp.finish(); err != nil {
		return r, err
	}
	if r.Old, err = old.giveWay(tmp.dir, o.Now()); err != nil && r.Old == "" {
		_ = os.RemoveAll(tmp.dir) // it took nobody's place
	}
	return r, err
}

// maxIncarnation is the last that there is: an epoch is the incarnation times 2^40 and more, and must stay a whole number to every reader, below 2^53.
const maxIncarnation = 1<<13 - 1

func incarnationLeft(n int64, of string) error {
	if n < maxIncarnation {
		return nil
	}
	return crowd.Errorf(crowd.Conflict, "", "%s has incarnation %d; the last is %d, so none is left above it", of, n, maxIncarnation).
		WithHint("crowd broker audit says whether that number is damage")
}

// oldDir is what stands where a store is to be restored.
type oldDir struct {
	dir         string
	there       bool     // something is in it
	lock        *os.File // of its store
	incarnation int64
}

func (d *oldDir) release() {
	if d.lock != nil {
		_ = d.lock.Close()
		d.lock = nil
	}
}

// takeOld refuses a folder that a broker has, or that isn't empty and mustn't be replaced.
func takeOld(ctx context.Context, dir string, o RestoreOptions) (*oldDir, error) {
	d := &oldDir{dir: dir}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, pathFault(dir, err)
	}
	store, locked := false, false
	for _, e := range entries {
		store = store || e.Name() == dbName
		locked = locked || e.Name() == "crowd.lock"
		d.there = d.there || e.Name() != "crowd.lock"
	}
	if store || locked {
		if d.lock, err = takeLock(dir); err != nil {
			return nil, err
		}
	}
	if !d.there || o.Replace {
		if store {
			d.incarnation, err = incarnationOf(ctx, filepath.Join(dir, dbName))
			if err != nil && o.LeastIncarnation <= 0 {
				err = crowd.Errorf(crowd.Conflict, "", "the old store in %s can't be read, so its incarnation isn't known: %w", dir, err).
					WithHint("--least-incarnation N, at least the highest that a host has seen")
			} else {
				err = nil
			}
		}
		if err != nil {
			d.release()
		}
		return d, err
	}
	d.release()
	what := "isn't empty"
	if store {
		what = "holds a store already"
	}
	return nil, crowd.Errorf(crowd.Conflict, "", "%s %s", dir, what).WithHint("--data names another folder · --replace moves this one aside")
}

func incarnationOf(ctx context.Context, file string) (n int64, err error) {
	db, err := sql.Open("sqlite", readDSN(file, ""))
	if err != nil {
		return 0, err
	}
	defer func() { _ = db.Close() }()
	err = db.QueryRowContext(ctx, "SELECT incarnation FROM meta").Scan(&n)
	return n, err
}

// giveWay puts the new folder in the old one's place; it returns what the old one is called now, "" if there was nothing in it.
func (d *oldDir) giveWay(dir string, now time.Time) (aside string, err error) {
	if runtime.GOOS == "windows" { // an open file holds its folder
		d.release()
	}
	parent := filepath.Dir(d.dir)
	if !d.there {
		if err := os.Remove(filepath.Join(d.dir, "crowd.lock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := os.Remove(d.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", crowd.Errorf(crowd.Conflict, "", "%s can't be replaced: %w", d.dir, err).WithHint("a folder that is mounted can't: name one inside it")
		}
		return "", errors.Join(os.Rename(dir, d.dir), syncDir(parent))
	}
	aside = d.dir + ".old-" + now.UTC().Format("20060102T150405Z")
	for i, name := 2, aside; ; i++ {
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
		aside = name + "-" + strconv.Itoa(i)
	}
	if swapDirs(dir, d.dir) == nil {
		return aside, errors.Join(syncDir(parent), os.Rename(dir, aside), syncDir(parent))
	}
	if err := os.Rename(d.dir, aside); err != nil {
		return "", crowd.Errorf(crowd.Conflict, "", "%s can't be moved aside: %w", d.dir, err).WithHint("a folder that is mounted can't: name one inside it")
	}
	if err := os.Rename(dir, d.dir); err != nil {
		return "", errors.Join(err, os.Rename(aside, d.dir))
	}
	return aside, syncDir(parent)
}

// newDir is a folder that a restore unpacks into.
type newDir struct {
	dir  string
	mark *os.File // locked; nil: it is finished
}

// newUnfinished makes one beside dir, and removes those of restores that were killed.
func newUnfinished(dir string) (*newDir, error) {
	left, _ := filepath.Glob(globQuote(dir) + ".restore-*")
	for _, path := range left {
		if f, err := os.OpenFile(filepath.Join(path, unfinished), os.O_RDWR, 0); err == nil {
			if _, err := lockFile(f); err == nil {
				_ = os.RemoveAll(path)
			}
			_ = f.Close()
		}
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".restore-")
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(tmp, unfinished), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		_, err = lockFile(f)
	}
	if err != nil {
		_ = os.RemoveAll(tmp)
		return nil, err
	}
	return &newDir{tmp, f}, nil
}

func (n *newDir) remove() {
	if n.mark != nil {
		_ = n.mark.Close()
		_ = os.RemoveAll(n.dir)
	}
}

// finish takes the mark away: from here on nobody removes the folder.
func (n *newDir) finish() error {
	if err := errors.Join(n.mark.Close(), os.Remove(n.mark.Name())); err != nil {
		return err
	}
	n.mark = nil
	return errors.Join(syncDir(n.dir), syncDir(filepath.Dir(n.dir)))
}

// unpack writes a backup's members into a folder, durably, and checks the whole.
func unpack(ctx context.Context, file, dir string) (Backup, error) {
	var syncs syncer
	made := map[string]bool{dir: true}
	b, err := readBackup(ctx, file, func(b Backup, name string, r io.Reader) error {
		if b.Schema > newestSchema() {
			return crowd.Errorf(crowd.Conflict, "", "%s is of a store with schema %d; this crowd knows %d", file, b.Schema, newestSchema()).WithHint("use the version of crowd that wrote it, or a newer one")
		}
		path := filepath.Join(dir, filepath.FromSlash(name))
		if parent := filepath.Dir(path); !made[parent] {
			if err := os.MkdirAll(parent, 0o700); err != nil {
				return err
			}
			made[parent], made[filepath.Dir(parent)] = true, true
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			_ = f.Close()
			return err
		}
		syncs.add(f)
		if name == dbName {
			crash.Point("restore.part")
		}
		return nil
	})
	err = errors.Join(err, syncs.wait())
	for d := range made {
		if err == nil {
			err = syncDir(d)
		}
	}
	return b, err
}

// syncer brings files to the disk, some at a time, and closes them.
type syncer struct {
	wg   sync.WaitGroup
	room chan struct{}
	mu   sync.Mutex
	err  error
}

func (s *syncer) add(f *os.File) {
	if s.room == nil {
		s.room = make(chan struct{}, 16)
	}
	s.room <- struct{}{}
	s.wg.Go(func() {
		err := errors.Join(f.Sync(), f.Close())
		s.mu.Lock()
		s.err = errors.Join(s.err, err)
		s.mu.Unlock()
		<-s.room
	})
}

func (s *syncer) wait() error {
	s.wg.Wait()
	return s.err
}

// renew makes what was unpacked a store of its own time.
func renew(ctx context.Context, dir string, r Restored, now func() time.Time) error {
	s, err := Open(ctx, dir, Options{Now: now})
	if err != nil {
		return err
	}
	op := restored{now: now(), incarnation: r.NewIncarnation}
	err = eachState(ctx, s.rd, func(name string, key []any) error {
		if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			op.lost = append(op.lost, key)
		}
		return nil
	})
	if err == nil {
		err = s.Apply(ctx, op, AddEvent{crowd.Event{At: op.now, Subject: "broker", Actor: "operator", What: "broker.restored", Reason: crowd.BrokerRestored,
			Text: "restored from the backup of " + r.At.UTC().Format(time.RFC3339) + ": what was told after it is gone"}})
	}
	return errors.Join(err, s.Close())
}

// restored raises the incarnation, voids join tokens and forgets checkpoints whose bytes aren't there.
type restored struct {
	now         time.Time
	incarnation int64
	lost        [][]any
}

func (restored) op() {}

func (o restored) step(w *writer) error {
	if _, _, err := w.change("UPDATE meta SET incarnation = ?", o.incarnation); err != nil {
		return err
	}
	if _, _, err := w.change("UPDATE tokens SET used_at = ? WHERE used_at = 0", nanos(o.now)); err != nil {
		return err
	}
	for _, key := range o.lost {
		if _, _, err := w.change("DELETE FROM states WHERE job = ? AND first = ? AND lineage = ?", key...); err != nil {
			return err
		}
	}
	return nil
}

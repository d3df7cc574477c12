package store

import (
	"context"
	"database/sql"
	"embed"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is an open store. Its methods are safe for concurrent use.
type Store struct {
	now    func() time.Time
	lock   *os.File
	logDir string
	coder  coder
	rd     *sql.DB // readers
	query  querier // rd
	w      *writer

	queue   chan *list
	closing chan struct{} // closed by Close
	stopped chan struct{} // closed by the writer goroutine
	close   func() error  // once

	sum struct { // what LedgerSum has added up so far
		sync.Mutex
		txn int64
		sum crowd.UCR
	}
}

// Open opens the store in dir, making it if there is none (with incarnation 1) and bringing an older one up to date. Only one
// process at a time can have a store open: Conflict. Close it when done.
func Open(ctx context.Context, dir string, o Options) (_ *Store, err error) {
	s := &Store{now: o.Now, queue: make(chan *list, 2*maxLists), closing: make(chan struct{}), stopped: make(chan struct{})}
	if s.now == nil {
		s.now = time.Now
	}
	var undo []func()
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			undo[i]()
		}
		err = wrap("open "+dir, err)
	}()
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	s.logDir = filepath.Join(dir, "bodies")
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if s.lock, err = takeLock(dir); err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = s.lock.Close() })
	file := filepath.Join(dir, "crowd.db")
	if err = migrate(ctx, file); err != nil {
		return nil, err
	}
	if s.coder, err = newCoder(); err != nil {
		return nil, err
	}
	undo = append(undo, s.coder.close)
	s.w = &writer{jobs: map[crowd.JobID]int64{}, books: map[crowd.Book]*book{}}
	if s.w.logs, err = newLogs(s.logDir); err != nil {
		return nil, err
	}
	if err = syncDir(dir); err != nil {
		return nil, err
	}
	if s.w.conn, err = dial(ctx, dsn(file, "synchronous(FULL)", "cache_size(-131072)", "wal_autocheckpoint(8000)", "temp_store(MEMORY)", "cell_size_check(ON)")); err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = s.w.conn.close() })
	if s.rd, err = sql.Open("sqlite", dsn(file, "query_only(ON)", "cache_size(-16384)", "temp_store(MEMORY)")); err != nil {
		return nil, err
	}
	s.query = s.rd
	n := max(4, 2*runtime.NumCPU())
	s.rd.SetMaxOpenConns(n)
	s.rd.SetMaxIdleConns(n)
	s.close = sync.OnceValue(s.shut)
	go s.write() // ends in shut
	return s, nil
}

// Close applies what waits, ends the writer and gives the store free. Calls after the first one change nothing.
func (s *Store) Close() error { return s.close() }

func (s *Store) shut() error {
	close(s.closing)
	<-s.stopped
	err := s.rd.Close()
	_, _, _ = s.w.exec("PRAGMA wal_checkpoint(TRUNCATE)")
	s.w.logs.close()
	if e := s.w.conn.close(); err == nil {
		err = e
	}
	s.coder.close()
	if e := s.lock.Close(); err == nil {
		err = e
	}
	return wrap("close", err)
}

// dsn names the database file with pragmas for each connection.
func dsn(file string, pragmas ...string) string {
	path := filepath.ToSlash(file)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a drive letter
	}
	q := url.Values{"_pragma": append([]string{"busy_timeout(10000)"}, pragmas...)}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "crowd.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	held, err := lockFile(f)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if held {
		return nil, crowd.Errorf(crowd.Conflict, "", "another broker has the store in %s", dir).WithHint("stop that broker, or give this one another data folder")
	}
	return nil, err
}

// migrate makes the file or brings it up to date.
func migrate(ctx context.Context, file string) error {
	db, err := sql.Open("sqlite", dsn(file, "synchronous(FULL)"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1)
	for _, pragma := range []string{"page_size = 8192", "journal_mode = WAL"} { // in this order
		if _, err := db.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return err
		}
	}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	crash.Point("migrate.before")
	if _, err = p.Up(ctx); err != nil {
		return err
	}
	crash.Point("migrate.after")
	return nil
}

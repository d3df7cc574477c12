package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
)

const (
	logName   = "host.log"
	oldSuffix = ".1"
	logBytes  = 16 << 20 // then it becomes host.log.1, whose predecessor goes
)

// Entry is one line of the owner's log: what happened on the machine and why.
type Entry struct {
	At      time.Time          `json:"at"`
	What    string             `json:"event"` // host.frozen, chunk.started, …
	Reason  crowd.Reason       `json:"reason,omitempty"`
	Ms      float64            `json:"ms,omitempty"` // how long it took
	Guests  int                `json:"guests,omitempty"`
	Job     crowd.JobID        `json:"job,omitzero"`
	Name    string             `json:"name,omitempty"` // of the job
	First   *uint64            `json:"chunk,omitempty"`
	N       int                `json:"attempt,omitempty"`
	Program crowd.Digest       `json:"program,omitzero"`
	Account crowd.AccountID    `json:"account,omitzero"`
	Bytes   int64              `json:"bytes,omitempty"` // of the outcome
	Fuel    uint64             `json:"fuel,omitempty"`
	Seconds float64            `json:"seconds,omitempty"`
	Answer  crowd.ReportAnswer `json:"answer,omitempty"`
	Text    string             `json:"text,omitempty"`
}

// about fills in an attempt.
func (e Entry) about(at *attempt) Entry {
	first := at.First
	e.Job, e.First, e.N, e.Account, e.Program, e.Bytes, e.Fuel = at.Job, &first, at.N, at.account, at.program, at.body, at.fuel.Load()
	if at.spec != nil {
		e.Name = at.spec.Name
	}
	if !at.since.IsZero() && e.What != "chunk.started" {
		e.Seconds = time.Since(at.since).Round(time.Millisecond).Seconds()
	}
	return e
}

// logbook appends to the owner's log. Safe for concurrent use.
type logbook struct {
	mu   sync.Mutex
	path string
	f    *os.File
	size int64
}

func openLogbook(path string) (*logbook, error) {
	b := &logbook{path: path}
	if err := b.open(); err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "open the log: %w", err)
	}
	return b, nil
}

func (b *logbook) open() (err error) {
	if b.f, err = os.OpenFile(b.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	b.size, err = b.f.Seek(0, io.SeekEnd)
	return err
}

// add writes a line; a full disk loses it, never the agent.
func (b *logbook) add(e Entry) {
	if b == nil {
		return // Run hasn't opened it
	}
	e.At = time.Now().UTC()
	e.Text = oneLine(e.Text)
	j, err := json.Marshal(e)
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f == nil {
		return
	}
	n, _ := b.f.Write(append(j, '\n'))
	if b.size += int64(n); b.size > logBytes {
		b.f.Close()
		_ = os.Rename(b.path, b.path+oldSuffix)
		if b.open() != nil {
			b.f = nil
		}
	}
}

func (b *logbook) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f != nil {
		b.f.Close()
		b.f = nil
	}
}

// ReadLog calls f with each entry of a folder's log since a time, oldest first, and stops with f's error; with follow it goes on until ctx
// ends. Lines that are no entry are left out. The agent need not run.
func ReadLog(ctx context.Context, dir string, since time.Time, follow bool, f func(Entry) error) error {
	path := filepath.Join(dir, logName)
	var pos int64
	each := func(p string, from int64) (int64, error) {
		file, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return from, crowd.Errorf(crowd.Internal, "", "read the log: %w", err)
		}
		defer file.Close()
		if st, err := file.Stat(); err == nil && st.Size() < from {
			from = 0 // turned over
		}
		if _, err := file.Seek(from, io.SeekStart); err != nil {
			return from, crowd.Errorf(crowd.Internal, "", "read the log: %w", err)
		}
		r := bufio.NewReader(file)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return from, nil //nolint:nilerr // a line still being written is read next time
			}
			from += int64(len(line))
			var e Entry
			if json.Unmarshal(bytes.TrimSpace(line), &e) != nil || e.At.Before(since) {
				continue
			}
			if err := f(e); err != nil {
				return from, err
			}
		}
	}
	if _, err := each(path+oldSuffix, 0); err != nil {
		return err
	}
	for {
		var err error
		if pos, err = each(path, pos); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}

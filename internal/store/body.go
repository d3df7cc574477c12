package store

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// Bodies up to inlineBody bytes, as encoded, stand in the database; larger ones in their job's log, bodies/JOB.log, which only grows:
//
//	record = length uint32, crc uint32 (Castagnoli, of what follows), codec uint8, digest [32]byte, data [length]byte   little-endian
//
// The row of a body names its record. Records that no row names (a crash came before the commit) are skipped over and harmless.
const (
	inlineBody = 4 << 10
	recordHead = 4 + 4 + 1 + 32
	openLogs   = 64      // files that the writer keeps open
	flushAt    = 1 << 20 // bytes that wait in memory for the commit, per log
)

// Codecs of a body.
const (
	codecRaw  = 0
	codecZstd = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// coder compresses and expands bodies; safe for concurrent use.
type coder struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCoder() (coder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(1<<18),
		zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return coder{}, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(1<<28), zstd.WithDecoderLowmem(true))
	return coder{enc, dec}, err
}

func (c coder) close() {
	_ = c.enc.Close()
	c.dec.Close()
}

// pack returns the shorter of the body itself and its compressed form, if that saves an eighth.
func (c coder) pack(b []byte) (codec byte, data []byte) {
	if len(b) >= 256 {
		if z := c.enc.EncodeAll(b, make([]byte, 0, len(b))); len(z) < len(b)-len(b)/8 {
			return codecZstd, z
		}
	}
	return codecRaw, b
}

// unpack gives the body back and checks it.
func (c coder) unpack(codec byte, data []byte, size int64, d crowd.Digest) ([]byte, error) {
	b := data
	if codec == codecZstd {
		var err error
		if b, err = c.dec.DecodeAll(data, make([]byte, 0, size)); err != nil {
			return nil, crowd.Errorf(crowd.Internal, "", "store: body %s is damaged: %w", d.Short(), err)
		}
	}
	if digest.Of(b) != d {
		return nil, crowd.Errorf(crowd.Internal, "", "store: body %s is damaged: its bytes have another digest", d.Short())
	}
	return b, nil
}

func (s *Store) planBody(o PutBody) (step, error) {
	if len(o.Body) > 1<<28 {
		return nil, crowd.Errorf(crowd.Invalid, "", "store: a body of %d bytes is too large", len(o.Body))
	}
	codec, data := s.coder.pack(o.Body)
	mark := int64(binary.LittleEndian.Uint64(o.Digest[:8]))
	return func(w *writer) error {
		num, err := w.jobNum(o.Job)
		if err != nil {
			return err
		}
		has := false
		err = w.each(func(row []driver.Value) error {
			has = has || string(row[0].([]byte)) == string(o.Digest[:])
			return nil
		}, "SELECT digest FROM bodies WHERE job = ? AND mark = ?", num, mark)
		if err != nil || has {
			return err
		}
		var off int64
		var inline any
		if len(data) <= inlineBody {
			inline = data
			if data == nil {
				inline = []byte{}
			}
		} else if off, err = w.logs.add(o.Job, codec, o.Digest, data); err != nil {
			return err // not this list's fault: the whole commit fails
		}
		_, _, err = w.change("INSERT INTO bodies (job, mark, digest, size, codec, off, stored, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			num, mark, o.Digest[:], int64(len(o.Body)), int64(codec), off, int64(len(data)), inline)
		return err
	}, nil
}

// logs are the body logs as the writer appends to them.
type logs struct {
	dir     string
	open    map[crowd.JobID]*bodyLog
	touched []*bodyLog // in this transaction
}

type bodyLog struct {
	f       *os.File
	start   int64 // size at the last commit
	size    int64 // what is written
	wait    []byte
	touched bool
	fresh   bool // just made: the folder must be synced too
}

func newLogs(dir string) (*logs, error) {
	return &logs{dir: dir, open: map[crowd.JobID]*bodyLog{}}, os.MkdirAll(dir, 0o700)
}

func logPath(dir string, job crowd.JobID) string { return filepath.Join(dir, job.String()+".log") }

// add appends a record and returns its offset. It is on disk after sync.
func (ls *logs) add(job crowd.JobID, codec byte, d crowd.Digest, data []byte) (off int64, err error) {
	l := ls.open[job]
	if l == nil {
		if l, err = ls.openLog(job); err != nil {
			return 0, err
		}
	}
	if !l.touched {
		l.touched = true
		ls.touched = append(ls.touched, l)
	}
	off = l.size + int64(len(l.wait))
	at := len(l.wait)
	l.wait = binary.LittleEndian.AppendUint32(l.wait, uint32(len(data)))
	l.wait = append(l.wait, 0, 0, 0, 0, codec)
	l.wait = append(l.wait, d[:]...)
	l.wait = append(l.wait, data...)
	binary.LittleEndian.PutUint32(l.wait[at+4:], crc32.Checksum(l.wait[at+8:], castagnoli))
	if len(l.wait) >= flushAt {
		return off, l.flush()
	}
	return off, nil
}

func (ls *logs) openLog(job crowd.JobID) (*bodyLog, error) {
	for id, l := range ls.open { // any that isn't in use makes room
		if len(ls.open) < openLogs {
			break
		}
		if !l.touched {
			_ = l.f.Close()
			delete(ls.open, id)
		}
	}
	f, err := os.OpenFile(logPath(ls.dir, job), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	l := &bodyLog{f: f, start: st.Size(), size: st.Size(), fresh: st.Size() == 0}
	ls.open[job] = l
	return l, nil
}

func (l *bodyLog) flush() error {
	if len(l.wait) == 0 {
		return nil
	}
	if _, err := l.f.WriteAt(l.wait, l.size); err != nil {
		return err
	}
	l.size += int64(len(l.wait))
	l.wait = l.wait[:0]
	return nil
}

// flush writes everything that was added. If it fails, the transaction can be rolled back and others may succeed.
func (ls *logs) flush() error {
	for _, l := range ls.touched {
		if err := l.flush(); err != nil {
			return err
		}
	}
	return nil
}

// sync brings what was flushed to the disk, several logs at a time. If it fails, nobody knows what the disk has of it: distrust.
func (ls *logs) sync() error {
	if len(ls.touched) == 0 {
		return nil
	}
	errs := make([]error, len(ls.touched)+1)
	var wg sync.WaitGroup
	room := make(chan struct{}, 8)
	fresh := false
	for i, l := range ls.touched {
		fresh = fresh || l.fresh
		if len(ls.touched) == 1 {
			errs[i] = l.f.Sync()
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			errs[i] = l.f.Sync()
			<-room
		})
	}
	wg.Wait()
	if fresh {
		errs[len(errs)-1] = syncDir(ls.dir)
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// committed and rollback end a transaction; after a rollback the next record takes the place of what was added.
func (ls *logs) committed() {
	for _, l := range ls.touched {
		l.start, l.touched, l.fresh = l.size, false, false
		if cap(l.wait) > 2*flushAt {
			l.wait = nil
		}
	}
	ls.touched = ls.touched[:0]
}

func (ls *logs) rollback() {
	for _, l := range ls.touched {
		l.size, l.wait, l.touched = l.start, l.wait[:0], false
	}
	ls.touched = ls.touched[:0]
}

// distrust follows a sync that failed: what was added since the last commit is cut off, and the file is opened anew for the next, so that nothing
// that the system may hold for written is taken for it.
func (ls *logs) distrust() {
	for _, l := range ls.touched {
		_ = l.f.Truncate(l.start) // else the next one overwrites it
		_ = l.f.Close()
	}
	for id, l := range ls.open {
		if l.touched {
			delete(ls.open, id)
		}
	}
	ls.touched = ls.touched[:0]
}

func (ls *logs) close() {
	for _, l := range ls.open {
		_ = l.f.Close()
	}
}

// Body reads an outcome's body and checks that it is the one named: NotFound, or Internal if it was damaged.
func (s *Store) Body(ctx context.Context, job crowd.JobID, d crowd.Digest) ([]byte, error) {
	return s.body(ctx, s.query, job, d)
}

func (s *Store) body(ctx context.Context, db querier, job crowd.JobID, d crowd.Digest) ([]byte, error) {
	var b bodyRow
	found := false
	err := each(ctx, db, func(scan func(...any) error) error {
		var r bodyRow
		if err := scan(&r.digest, &r.size, &r.codec, &r.off, &r.stored, &r.data, &r.inline); err != nil {
			return err
		}
		if string(r.digest) == string(d[:]) {
			b, found = r, true
		}
		return nil
	}, `SELECT digest, size, codec, off, stored, data, data IS NOT NULL FROM bodies
		WHERE job = (SELECT num FROM jobs WHERE id = ?) AND mark = ?`, job[:], int64(binary.LittleEndian.Uint64(d[:8])))
	if err != nil {
		return nil, wrap("read a body", err)
	}
	if !found {
		return nil, crowd.Errorf(crowd.NotFound, "", "job %s has no body %s", job.Short(), d.Short())
	}
	if !b.inline {
		if b.data, err = readRecord(logPath(s.logDir, job), b, d); err != nil {
			return nil, err
		}
	}
	return s.coder.unpack(b.codec, b.data, b.size, d)
}

type bodyRow struct {
	digest, data []byte
	size         int64
	codec        byte
	off, stored  int64
	inline       bool
}

func readRecord(path string, b bodyRow, d crowd.Digest) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "store: body %s: %w", d.Short(), err)
	}
	defer f.Close()
	rec := make([]byte, recordHead+b.stored)
	if _, err := f.ReadAt(rec, b.off); err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "store: body %s: %w", d.Short(), err)
	}
	if int64(binary.LittleEndian.Uint32(rec)) != b.stored || crc32.Checksum(rec[8:], castagnoli) != binary.LittleEndian.Uint32(rec[4:]) {
		return nil, crowd.Errorf(crowd.Internal, "", "store: body %s is damaged on disk", d.Short())
	}
	return rec[recordHead:], nil
}

package store

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
)

// A backup is one file, which holds a broker's whole data folder but for half-done uploads:
//
//	file    = "CROWDBAK" version uint32, length uint32, header JSON [length]byte, zstd stream of members, trailer
//	member  = length uint16, name [length]byte, size uint64, data [size]byte, BLAKE3 of data [32]byte; a length of 0 ends them
//	          and length uint32, JSON [length]byte follow: the names of what the store lacked
//	trailer = "CROWDEND", BLAKE3 of everything before it [32]byte                                          little-endian
//
// Members are named as in the folder, with slashes; the first is the database.
const (
	backupMagic   = "CROWDBAK"
	backupEnd     = "CROWDEND"
	backupVersion = 2
	trailerSize   = len(backupEnd) + 32
	dbName        = "crowd.db"
	keyName       = "broker.key"
)

// Backup says what a backup holds. Everything that was told before At is in it.
type Backup struct {
	At          time.Time `json:"at"`
	Incarnation int64     `json:"incarnation"`
	Schema      int64     `json:"schema"`
	Jobs        int64     `json:"jobs"`
	Chunks      int64     `json:"chunks"`

	Files   int64    `json:"files"`      // members
	Bytes   int64    `json:"bytes"`      // of them
	Size    int64    `json:"size_bytes"` // of the file
	Missing []string `json:"missing"`    // what the database names and the folder didn't have whole
}

// header is what stands in a backup's head: what is known before its members are read.
type header struct {
	At          time.Time `json:"at"`
	Incarnation int64     `json:"incarnation"`
	Schema      int64     `json:"schema"`
	Jobs        int64     `json:"jobs"`
	Chunks      int64     `json:"chunks"`
}

// WriteBackup writes a backup of the store in dir to a file, readable by its owner only: it holds the broker's key. A broker may run meanwhile, in
// this process or another: the database is copied as of one instant, then what that refers to; bodies, blobs, outcomes and checkpoints never change
// once they are named. The file appears whole or not at all. NotFound: dir holds no store, or the file's folder isn't there. Conflict: there is such
// a file, and force isn't set. Invalid: the file is inside dir, or what is there is neither a backup nor empty, force or not.
func WriteBackup(ctx context.Context, dir, file string, force bool, now func() time.Time) (b Backup, err error) {
	defer func() { err = wrap("back up "+dir, err) }()
	if now == nil {
		now = time.Now
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return b, err
	}
	if err := hasStore(dir); err != nil {
		return b, err
	}
	if file, err = backupPlace(dir, file); err != nil {
		return b, err
	}
	if err := mayReplace(file, force); err != nil {
		return b, err
	}
	part, err := newPart(file)
	if err != nil {
		return b, pathFault(filepath.Dir(file), err)
	}
	defer part.remove()
	for try := 1; ; try++ {
		b, err = part.write(ctx, dir, now, try == backupTries)
		if !errors.Is(err, errVanished) {
			break
		}
	}
	if err != nil {
		return b, err
	}
	crash.Point("backup.whole")
	if err := mayReplace(file, force); err != nil {
		return b, err
	}
	return b, errors.Join(part.name(file), syncDir(filepath.Dir(file)))
}

// backupPlace is where a backup goes, its folder without symbolic links: anywhere but into the store.
func backupPlace(dir, file string) (string, error) {
	if err := fileName(file); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err == nil {
		var st fs.FileInfo
		if st, err = os.Stat(parent); err == nil && !st.IsDir() {
			err = syscall.ENOTDIR
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", crowd.Errorf(crowd.NotFound, "", "there is no folder %s", filepath.Dir(abs)).WithHint("make it first, or name another place for the backup")
	}
	if err != nil {
		return "", pathFault(filepath.Dir(abs), err)
	}
	var own []fs.FileInfo // the store's folders: some may be links to elsewhere
	for _, name := range []string{"", "bodies", "blobs", "uploads", "outcomes", "states", "archive"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil {
			own = append(own, st)
		}
	}
	for p := parent; ; p = filepath.Dir(p) {
		if st, err := os.Stat(p); err == nil && slices.ContainsFunc(own, func(o fs.FileInfo) bool { return os.SameFile(o, st) }) {
			return "", crowd.Errorf(crowd.Invalid, "", "%s is inside the store in %s", file, dir).WithHint("a backup belongs elsewhere, best on another disk")
		}
		if p == filepath.Dir(p) {
			return filepath.Join(parent, filepath.Base(abs)), nil
		}
	}
}

// fileName refuses what can't be meant as a file's name.
func fileName(file string) error {
	if file == "" || file == "-" || strings.HasSuffix(file, "/") || strings.HasSuffix(file, string(filepath.Separator)) || strings.ContainsRune(file, 0) {
		return crowd.Errorf(crowd.Invalid, "", "%q is no file's name", file).WithHint("a backup is a file: name it")
	}
	return nil
}

// mayReplace refuses to replace a file that is there: any without force, and with it all but a backup or an empty one.
func mayReplace(file string, force bool) error {
	st, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return pathFault(file, err)
	case !st.Mode().IsRegular():
		return crowd.Errorf(crowd.Invalid, "", "%s is no file", file).WithHint("choose another name")
	case !force:
		return crowd.Errorf(crowd.Conflict, "", "there is a file %s already", file).WithHint("choose another name, or --force replaces it")
	case st.Size() == 0:
		return nil
	}
	f, _, err := openRegular(file)
	if err != nil {
		return pathFault(file, err)
	}
	defer f.Close()
	head := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(f, head); err != nil || string(head) != backupMagic {
		return crowd.Errorf(crowd.Invalid, "", "%s is no backup: it isn't replaced, not with --force either", file).WithHint("choose another name")
	}
	return nil
}

var errNoFile = errors.New("it is no file")

// openRegular opens a file for reading. errNoFile: it is something else, like a pipe, which could make its reader wait for ever.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, errNoFile
	}
	f, err := os.Open(path)
	return f, st, err
}

// pathFault says in words why a path can't be used.
func pathFault(path string, err error) error {
	switch {
	case errors.Is(err, errNoFile):
		return crowd.Errorf(crowd.Invalid, "", "%s is no file", path).WithHint("name a file")
	case errors.Is(err, fs.ErrNotExist):
		return crowd.Errorf(crowd.NotFound, "", "there is no %s", path).WithHint("look for a slip in the name")
	case errors.Is(err, syscall.ENOTDIR):
		return crowd.Errorf(crowd.Invalid, "", "%s is no folder, nor can it be in one", path).WithHint("a part of that path is a file: name another place")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return crowd.Errorf(crowd.Denied, "", "%s may not be used by this user", path).WithHint("run it as the user that the broker runs as, or name another place")
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP):
		return crowd.Errorf(crowd.Invalid, "", "%s is no usable name", path).WithHint("name another place")
	}
	return err
}

// backupTries is how often a backup begins: what the database names may be archived or dropped before it is copied.
const backupTries = 4

var errVanished = errors.New("store: a file is gone")

// hasStore refuses a folder without a store.
func hasStore(dir string) error {
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return crowd.Errorf(crowd.Invalid, "", "%s is no folder", dir).WithHint("--data names the folder that crowd broker run keeps everything in")
	}
	if _, err := os.Stat(filepath.Join(dir, dbName)); err != nil {
		return crowd.Errorf(crowd.NotFound, "", "there is no store in %s", dir).WithHint("--data names the folder that crowd broker run keeps everything in")
	}
	return nil
}

// part is a backup under another name, beside where it is to be.
type part struct {
	f  *os.File // locked while its writer lives
	db string   // the database's copy
}

func newPart(file string) (*part, error) {
	dir, base := filepath.Split(file)
	pattern := "." + base + ".part-"
	old, _ := filepath.Glob(filepath.Join(dir, "."+globQuote(base)+".part-*"))
	for _, path := range old { // of writers that were killed
		if left, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), pattern), ".db"); !abandoned(filepath.Join(dir, pattern+left)) {
			continue
		}
		_ = os.Remove(path)
	}
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return nil, err
	}
	if _, err := lockFile(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return &part{f, f.Name() + ".db"}, nil
}

// abandoned reports whether nobody has the lock of a file, or it isn't there.
func abandoned(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	_, err = lockFile(f)
	return err == nil
}

func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

func (p *part) remove() {
	_ = p.f.Close()
	_ = os.Remove(p.f.Name())
	p.removeDB()
}

func (p *part) removeDB() {
	for _, end := range []string{"", "-journal", "-wal", "-shm"} {
		_ = os.Remove(p.db + end)
	}
}

// name gives the file its name.
func (p *part) name(file string) error {
	if err := p.f.Close(); err != nil {
		return err
	}
	return os.Rename(p.f.Name(), file)
}

// write makes the backup. errVanished: start over, unless last is set; then what isn't there is noted as missing.
func (p *part) write(ctx context.Context, dir string, now func() time.Time, last bool) (b Backup, err error) {
	if err := p.f.Truncate(0); err != nil {
		return b, err
	}
	if _, err := p.f.Seek(0, io.SeekStart); err != nil {
		return b, err
	}
	b.At, b.Missing = now().UTC(), []string{}
	p.removeDB()
	defer p.removeDB()
	if err := copyDB(ctx, filepath.Join(dir, dbName), p.db); err != nil {
		return b, err
	}
	db, err := sql.Open("sqlite", readDSN(p.db, "immutable=1"))
	if err != nil {
		return b, err
	}
	defer func() { _ = db.Close() }()
	if err := count(ctx, db, &b); err != nil {
		return b, err
	}
	js, err := json.Marshal(header{b.At, b.Incarnation, b.Schema, b.Jobs, b.Chunks})
	if err != nil {
		return b, err
	}
	sum := digest.New()
	buf := bufio.NewWriterSize(p.f, 1<<20)
	out := io.MultiWriter(buf, sum)
	head := binary.LittleEndian.AppendUint32([]byte(backupMagic), backupVersion)
	head = append(binary.LittleEndian.AppendUint32(head, uint32(len(js))), js...)
	if _, err := out.Write(head); err != nil {
		return b, err
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return b, err
	}
	w := &memberWriter{ctx: ctx, z: z, b: &b, dir: dir, last: last}
	if err := w.all(db, p.db); err != nil {
		_ = z.Close()
		return b, err
	}
	if err := z.Close(); err != nil {
		return b, err
	}
	all := sum.Sum()
	if _, err := buf.Write(append([]byte(backupEnd), all[:]...)); err != nil {
		return b, err
	}
	if err := errors.Join(buf.Flush(), p.f.Sync()); err != nil {
		return b, err
	}
	st, err := p.f.Stat()
	if err == nil {
		b.Size = st.Size()
	}
	return b, err
}

// readDSN names a database file for reading only.
func readDSN(file, more string) string {
	return dsn(file, "cache_size(-16384)") + "&mode=ro&" + more
}

// copyDB copies the database as of one instant into a file that only its owner can read.
func copyDB(ctx context.Context, from, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", readDSN(from, ""))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", to)
	return err
}

// count fills in what the database says about itself.
func count(ctx context.Context, db *sql.DB, b *Backup) error {
	err := db.QueryRowContext(ctx, "SELECT incarnation, (SELECT max(version_id) FROM goose_db_version WHERE is_applied), (SELECT count(*) FROM jobs), (SELECT count(*) FROM chunks) FROM meta").
		Scan(&b.Incarnation, &b.Schema, &b.Jobs, &b.Chunks)
	if err == nil && b.Schema > newestSchema() {
		return crowd.Errorf(crowd.Conflict, "", "the store has schema %d; this crowd knows %d", b.Schema, newestSchema()).WithHint("use the version of crowd that the broker has")
	}
	return err
}

// newestSchema is the version of the last migration.
func newestSchema() (n int64) {
	names, _ := fs.Glob(migrations, "migrations/*.sql")
	for _, name := range names {
		digits, _, _ := strings.Cut(strings.TrimPrefix(name, "migrations/"), "_")
		v, _ := strconv.ParseInt(digits, 10, 64)
		n = max(n, v)
	}
	return n
}

// memberWriter writes what a database refers to.
type memberWriter struct {
	ctx  context.Context
	z    io.Writer
	b    *Backup
	dir  string
	last bool
}

func (w *memberWriter) all(db *sql.DB, copied string) error {
	if _, err := w.file(dbName, copied, -1); err != nil {
		return err
	}
	crash.Point("backup.part")
	steps := []func(*sql.DB) error{w.key, w.bodyLogs, w.blobs, w.outcomes}
	if w.b.Schema >= 2 {
		steps = append(steps, w.states)
	}
	if w.b.Schema >= 3 {
		steps = append(steps, w.archives)
	}
	for _, step := range steps {
		if err := step(db); err != nil {
			return err
		}
	}
	js, err := json.Marshal(w.b.Missing)
	if err != nil {
		return err
	}
	_, err = w.z.Write(append(binary.LittleEndian.AppendUint32([]byte{0, 0}, uint32(len(js))), js...))
	return err
}

// file writes one member: size bytes of a file, or the whole of it if size is below 0. false: it isn't there, or is shorter.
func (w *memberWriter) file(name, path string, size int64) (bool, error) {
	if err := w.ctx.Err(); err != nil {
		return false, err
	}
	f, st, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, errNoFile) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if size < 0 {
		size = st.Size()
	}
	if st.Size() < size {
		return false, nil
	}
	head := binary.LittleEndian.AppendUint16(nil, uint16(len(name)))
	head = binary.LittleEndian.AppendUint64(append(head, name...), uint64(size))
	if _, err := w.z.Write(head); err != nil {
		return false, err
	}
	h := digest.New()
	if _, err := io.CopyN(io.MultiWriter(w.z, h), f, size); err != nil {
		return false, crowd.Errorf(crowd.Internal, "", "store: read %s: %w", path, err)
	}
	d := h.Sum()
	w.b.Files++
	w.b.Bytes += size
	if name != blobName(d) && strings.HasPrefix(name, "blobs/") {
		w.b.Missing = append(w.b.Missing, name+" (damaged)")
	}
	_, err = w.z.Write(d[:])
	return true, err
}

func blobName(d crowd.Digest) string { return fmt.Sprintf("blobs/%02x/%x", d[0], d[:]) }

// here writes the member that stands in the folder under its own name.
func (w *memberWriter) here(name string, size int64) (bool, error) {
	return w.file(name, filepath.Join(w.dir, filepath.FromSlash(name)), size)
}

// must is here for what can't be done without: errVanished, unless this is the last try.
func (w *memberWriter) must(name string, size int64) error {
	ok, err := w.here(name, size)
	if err == nil && !ok {
		if !w.last {
			return errVanished
		}
		w.b.Missing = append(w.b.Missing, name)
	}
	return err
}

func (w *memberWriter) key(*sql.DB) error { return w.must(keyName, -1) }

// bodyLogs are copied up to their last record that a row names.
func (w *memberWriter) bodyLogs(db *sql.DB) error {
	return each(w.ctx, db, func(scan func(...any) error) error {
		var id []byte
		var end int64
		if err := scan(&id, &end); err != nil {
			return err
		}
		return w.must("bodies/"+crowd.JobID(id).String()+".log", end+recordHead)
	}, "SELECT j.id, max(b.off + b.stored) FROM bodies b JOIN jobs j ON j.num = b.job WHERE b.data IS NULL GROUP BY b.job")
}

func (w *memberWriter) blobs(db *sql.DB) error {
	return each(w.ctx, db, func(scan func(...any) error) error {
		var d sql.RawBytes
		if err := scan(&d); err != nil {
			return err
		}
		return w.must(blobName(toDigest(d)), -1)
	}, "SELECT DISTINCT digest FROM blobs")
}

// outcomes are what hosts uploaded and haven't reported yet: those of attempts that could still count. One that is gone was reported since, or its
// attempt has ended: its host says the whole again.
func (w *memberWriter) outcomes(db *sql.DB) error {
	return each(w.ctx, db, func(scan func(...any) error) error {
		var job, host []byte
		var first, n int64
		if err := scan(&host, &job, &first, &n); err != nil {
			return err
		}
		_, err := w.here(fmt.Sprintf("outcomes/%s-%s-%d-%d", crowd.HostID(host), crowd.JobID(job), first, n), -1)
		return err
	}, `SELECT a.host, j.id, a.first, a.n FROM chunks c INDEXED BY chunks_open CROSS JOIN attempts a ON a.job = c.job AND a.first = c.first
		JOIN jobs j ON j.num = c.job WHERE c.state = 0 AND a.state < 2 AND j.living = 1`)
}

// states are the newest checkpoints. One that is gone has a successor, or its chunk is decided: the unit starts over.
func (w *memberWriter) states(db *sql.DB) error {
	return eachState(w.ctx, db, func(name string, _ []any) error {
		_, err := w.here(name, -1)
		return err
	})
}

// eachState calls f with the name of each checkpoint's file and the key of its row.
func eachState(ctx context.Context, db querier, f func(name string, key []any) error) error {
	return each(ctx, db, func(scan func(...any) error) error {
		var id, root []byte
		var job, first, lineage, seq int64
		if err := scan(&id, &job, &first, &lineage, &seq, &root); err != nil {
			return err
		}
		if len(id) != 16 || len(root) != 32 {
			return nil
		}
		return f(fmt.Sprintf("states/%s-%d-%d-%d-%x", crowd.JobID(id), first, lineage, seq, root[:8]), []any{job, first, lineage})
	}, "SELECT j.id, s.job, s.first, s.lineage, s.seq, s.root FROM states s JOIN jobs j ON j.num = s.job")
}

func (w *memberWriter) archives(db *sql.DB) error {
	return each(w.ctx, db, func(scan func(...any) error) error {
		var id []byte
		if err := scan(&id); err != nil {
			return err
		}
		if len(id) != 16 {
			return nil
		}
		job := crowd.JobID(id)
		name := archiveName(job)
		if err := checkArchive(w.ctx, filepath.Join(w.dir, filepath.FromSlash(name)), job); crowd.KindIs(err, crowd.Failed) {
			w.b.Missing = append(w.b.Missing, name+" (damaged)")
		}
		return w.must(name, -1)
	}, "SELECT id FROM jobs WHERE archived > 0")
}

// CheckBackup reads a whole backup and checks every digest: Invalid, if it is cut, damaged or none.
func CheckBackup(ctx context.Context, file string) (Backup, error) {
	b, err := readBackup(ctx, file, func(Backup, string, io.Reader) error { return nil })
	return b, wrap("check "+file, err)
}

// memberName is what a member may be called: nothing that leads out of the folder.
var memberName = regexp.MustCompile(`^(crowd\.db|broker\.key|bodies/[a-z0-9_]+\.log|blobs/[0-9a-f]{2}/[0-9a-f]{64}|(outcomes|states)/[a-z0-9_-]+|archive/[a-z0-9_]+\.json\.zst)$`)

// openBackup opens a backup for reading, if it is a file.
func openBackup(file string) (*os.File, fs.FileInfo, error) {
	if err := fileName(file); err != nil {
		return nil, nil, err
	}
	f, st, err := openRegular(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil, crowd.Errorf(crowd.NotFound, "", "there is no file %s", file).WithHint("look for a slip in the name")
	}
	if err != nil {
		return nil, nil, pathFault(file, err)
	}
	return f, st, nil
}

// readBackup calls take with every member; what take leaves of it is read for its digest. All is checked when it returns without an error.
func readBackup(ctx context.Context, file string, take func(b Backup, name string, r io.Reader) error) (b Backup, err error) {
	f, st, err := openBackup(file)
	if err != nil {
		return b, err
	}
	defer f.Close()
	b.Size, b.Missing = st.Size(), []string{}
	bad := func(what string) error {
		return crowd.Errorf(crowd.Invalid, "", "%s: %s", file, what).WithHint("take another backup: this one can't be trusted")
	}
	fixed := int64(len(backupMagic) + 8)
	sum := digest.New()
	in := io.TeeReader(io.LimitReader(bufio.NewReaderSize(f, 1<<20), b.Size-int64(trailerSize)), sum)
	head := make([]byte, fixed)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:8]) != backupMagic {
		return b, bad("this is no backup of a broker")
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != backupVersion {
		return b, crowd.Errorf(crowd.Invalid, "", "%s is a backup of format %d; this crowd knows %d", file, v, backupVersion).WithHint("use the version of crowd that wrote it")
	}
	n := binary.LittleEndian.Uint32(head[12:])
	if n > 1<<16 {
		return b, bad("its header is damaged")
	}
	var h header
	js := make([]byte, n)
	if _, err := io.ReadFull(in, js); err != nil || json.Unmarshal(js, &h) != nil {
		return b, bad("its header is damaged, or cut")
	}
	b.At, b.Incarnation, b.Schema, b.Jobs, b.Chunks = h.At, h.Incarnation, h.Schema, h.Jobs, h.Chunks
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return b, bad("it is damaged, or cut: " + err.Error())
	}
	defer z.Close()
	for {
		name, err := readMember(ctx, z, &b, take)
		if errors.Is(err, errDamaged) {
			return b, bad("it is damaged, or cut, after " + plain(b.Files) + " files")
		}
		if err != nil {
			return b, err
		}
		if name == "" {
			break
		}
	}
	if err := readMissing(z, &b); err != nil {
		return b, bad("it is damaged, or cut, in the list of what it lacks")
	}
	if n, err := io.Copy(io.Discard, z); err != nil || n > 0 {
		return b, bad("there is something behind its end")
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return b, bad("it can't be read: " + err.Error())
	}
	all := sum.Sum()
	tail := make([]byte, trailerSize)
	if _, err := f.ReadAt(tail, b.Size-int64(trailerSize)); err != nil || !bytes.Equal(tail, append([]byte(backupEnd), all[:]...)) {
		return b, bad("it is damaged, or cut: its digest is another")
	}
	if b.Files == 0 {
		return b, bad("it holds no database")
	}
	return b, nil
}

// readMissing reads the names of what the store lacked.
func readMissing(z io.Reader, b *Backup) error {
	var n [4]byte
	if _, err := io.ReadFull(z, n[:]); err != nil {
		return err
	}
	js, err := io.ReadAll(io.LimitReader(z, int64(binary.LittleEndian.Uint32(n[:]))))
	if err == nil {
		err = json.Unmarshal(js, &b.Missing)
	}
	if b.Missing == nil {
		b.Missing = []string{}
	}
	return err
}

func plain(n int64) string { return strconv.FormatInt(n, 10) }

var errDamaged = errors.New("store: a damaged backup")

// readMember reads one member, "" at the end: errDamaged, ctx's error or take's own.
func readMember(ctx context.Context, z io.Reader, b *Backup, take func(Backup, string, io.Reader) error) (name string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	var short [2]byte
	if _, err := io.ReadFull(z, short[:]); err != nil {
		return "", errDamaged
	}
	n := binary.LittleEndian.Uint16(short[:])
	if n == 0 {
		return "", nil
	}
	buf := make([]byte, int(n)+8)
	if _, err := io.ReadFull(z, buf); err != nil {
		return "", errDamaged
	}
	name = string(buf[:n])
	size := int64(binary.LittleEndian.Uint64(buf[n:]))
	if size < 0 || !memberName.MatchString(name) || (b.Files == 0) != (name == dbName) {
		return "", errDamaged
	}
	h := digest.New()
	r := &countReader{r: io.TeeReader(io.LimitReader(z, size), h)}
	if err := take(*b, name, r); err != nil && r.bad == nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, r); err != nil || r.n != size {
		return "", errDamaged
	}
	var said crowd.Digest
	if _, err := io.ReadFull(z, said[:]); err != nil || said != h.Sum() {
		return "", errDamaged
	}
	b.Files++
	b.Bytes += size
	return name, nil
}

// countReader counts, and remembers that its source failed.
type countReader struct {
	r   io.Reader
	n   int64
	bad error
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.bad = err
	}
	return n, err
}

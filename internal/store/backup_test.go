package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// furnished is a store with one of everything that a backup takes.
func furnished(t *testing.T, dir string) (*Store, crowd.Job) {
	s := open(t, dir)
	j := addJob(t, s, "j")
	acc := j.Account
	file := func(name, content string) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(content), 0o600))
	}
	d := digest.Of([]byte("a blob"))
	file(blobName(d), "a blob")
	file(blobName(digest.Of([]byte("nobody's"))), "nobody's")
	file("uploads/half", "half")
	file(keyName, "the key")
	small, large := crashBody(1), crashBody(3)
	ops := []Op{PutAccount{crowd.Account{ID: acc, Name: "ann"}}, PutBlob{d, acc, 6, t0}, legs("deposit:1", crowd.BookMint, -50, crowd.BalanceBook(acc), 50),
		PutToken{crowd.JoinToken{Hash: [32]byte{9}, Account: acc, Expires: t0.Add(time.Hour)}},
		PutBody{j.ID, digest.Of(small), small}, PutBody{j.ID, digest.Of(large), large}}
	open1, open2 := lease(j.ID, 0, 10, 1), lease(j.ID, 10, 10, 1)
	ops = append(ops, open1, open2, lease(j.ID, 20, 10, 1), decided(chunk(j.ID, 20, 10), 1))
	u := crowd.UnitState{AttemptRef: open1.Attempt.Ref(), Lineage: 1, Seq: 1, Root: crowd.Digest{7, 7, 7, 7, 7, 7, 7, 7, 7}, Size: 3, At: t0}
	gone := u
	gone.AttemptRef = open2.Attempt.Ref()
	must(t, s.Apply(ctx, append(ops, PutState{u}, PutState{gone})...))
	must(t, s.Apply(ctx, Done{j.ID, 30, []Run{{20, 10}}}))
	file(fmt.Sprintf("states/%s-0-1-1-%x", j.ID, u.Root[:8]), "ram")
	file(fmt.Sprintf("outcomes/%s-%s-0-1", open1.Attempt.Host, j.ID), "an outcome")
	file("outcomes/.in-123", "torn")
	return s, j
}

func TestBackup(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	s, j := furnished(t, dir)
	file := filepath.Join(to, "b")
	before := time.Now()
	b := must1(WriteBackup(ctx, dir, file, false, nil))(t) // beside the open store
	if b.Jobs != 1 || b.Chunks != 3 || b.Incarnation != 1 || len(b.Missing) != 0 || b.Files != 6 || b.At.Before(before) {
		t.Errorf("%+v", b)
	}
	if st, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && st.Mode().Perm() != 0o600 || st.Size() != b.Size {
		t.Errorf("%v %v", st, err)
	}
	_, err := WriteBackup(ctx, dir, file, false, nil)
	wantKind(t, err, crowd.Conflict)
	must1(WriteBackup(ctx, dir, file, true, nil))(t)
	_, err = WriteBackup(ctx, t.TempDir(), file, true, nil)
	wantKind(t, err, crowd.NotFound)
	if c := must1(CheckBackup(ctx, file))(t); c.Files != 6 || c.Bytes != b.Bytes {
		t.Errorf("%+v, wrote %+v", c, b)
	}
	if names := namesIn(t, to); fmt.Sprint(names) != "[b]" {
		t.Errorf("left behind: %v", names)
	}

	// the store goes on; what comes then is gone
	must(t, s.Apply(ctx, legs("deposit:2", crowd.BookMint, -5, crowd.BalanceBook(j.Account), 5)))
	_, err = Restore(ctx, file, dir, RestoreOptions{Replace: true})
	wantKind(t, err, crowd.Conflict) // it is open
	must(t, s.Close())
	_, err = Restore(ctx, file, dir, RestoreOptions{})
	wantKind(t, err, crowd.Conflict)
	if h := crowd.AsError(err).Hint; !strings.Contains(h, "--replace") {
		t.Error(h)
	}
	r := must1(Restore(ctx, file, dir, RestoreOptions{Replace: true, LeastIncarnation: 6, Now: func() time.Time { return t0 }}))(t)
	if r.NewIncarnation != 7 || r.Old != dir+".old-20260301T120000Z" {
		t.Errorf("%+v", r)
	}
	old := open(t, r.Old)
	if n := must1(old.Balance(ctx, crowd.BalanceBook(j.Account)))(t); n != 55 {
		t.Errorf("the old store has %d", n)
	}
	must(t, old.Close())
	checkFurnished(t, dir, j, 7)
	r = must1(Restore(ctx, file, dir, RestoreOptions{Replace: true, Now: func() time.Time { return t0 }}))(t)
	if r.NewIncarnation != 8 || r.Old != dir+".old-20260301T120000Z-2" { // above the one it replaces
		t.Errorf("%+v", r)
	}
	for _, fresh := range []string{filepath.Join(to, "x", "new"), t.TempDir()} {
		r = must1(Restore(ctx, file, fresh, RestoreOptions{}))(t)
		if r.NewIncarnation != 2 || r.Old != "" {
			t.Errorf("%+v", r)
		}
		checkFurnished(t, fresh, j, 2)
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	for _, e := range must1(os.ReadDir(dir))(t) {
		names = append(names, e.Name())
	}
	return names
}

func checkFurnished(t *testing.T, dir string, j crowd.Job, incarnation int64) {
	t.Helper()
	for name, want := range map[string]string{keyName: "the key", blobName(digest.Of([]byte("a blob"))): "a blob"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]int{"states": 1, "outcomes": 1, "bodies": 1, "blobs": 1} {
		if names := namesIn(t, filepath.Join(dir, name)); len(names) != want {
			t.Errorf("%s has %v", name, names)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "uploads")); err == nil {
		t.Error("half an upload was restored")
	}
	s := open(t, dir)
	defer s.Close()
	if m := must1(s.Meta(ctx))(t); m.Incarnation != incarnation {
		t.Errorf("incarnation %d, want %d", m.Incarnation, incarnation)
	}
	for _, i := range []uint64{1, 3} {
		want := crashBody(i)
		if got := must1(s.Body(ctx, j.ID, digest.Of(want)))(t); !bytes.Equal(got, want) {
			t.Errorf("body %d differs", i)
		}
	}
	if n := must1(s.Balance(ctx, crowd.BalanceBook(j.Account)))(t); n != 50 {
		t.Errorf("balance %d", n)
	}
	p := must1(s.JobProgress(ctx, j.ID))(t)
	if len(p.Open) != 2 || len(p.Open[0].States) != 1 || len(p.Open[1].States) != 0 { // the second's bytes weren't there
		t.Errorf("%+v", p)
	}
	wantKind(t, s.Apply(ctx, UseToken{[32]byte{9}, t0}), crowd.Denied)
	ev := must1(s.Events(ctx, EventFilter{Newest: true}))(t)
	if ev[0].What != "broker.restored" || ev[0].Reason != crowd.BrokerRestored || !strings.Contains(ev[0].Text, "2026-") {
		t.Errorf("%+v", ev[0])
	}
	if _, err := os.Stat(filepath.Join(dir, unfinished)); err == nil {
		t.Error("it is marked as unfinished")
	}
}

// A backup with any byte changed, or cut anywhere, is refused, and a restore of it leaves nothing.
func TestDamagedBackup(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	s, _ := furnished(t, dir)
	must(t, s.Close())
	file := filepath.Join(to, "b")
	must1(WriteBackup(ctx, dir, file, false, nil))(t)
	whole := must1(os.ReadFile(file))(t)
	bad := filepath.Join(to, "bad")
	try := func(what string, content []byte) {
		must(t, os.WriteFile(bad, content, 0o600))
		if _, err := CheckBackup(ctx, bad); !crowd.KindIs(err, crowd.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	step := max(1, len(whole)/200)
	for i := 0; i < len(whole); i += step {
		at := min(i, len(whole)-1)
		c := bytes.Clone(whole)
		c[at] ^= 0x10
		try(fmt.Sprint("byte ", at), c)
		try(fmt.Sprint("cut at ", at), whole[:at])
	}
	for _, at := range []int{8, len(whole) - 1, len(whole) - 33, len(whole) - trailerSize - 1} {
		c := bytes.Clone(whole)
		c[at]++
		try(fmt.Sprint("byte ", at), c)
	}
	try("cut by one", whole[:len(whole)-1])
	try("longer by one", append(bytes.Clone(whole), 0))
	must(t, os.WriteFile(bad, whole[:len(whole)-100], 0o600))
	target := filepath.Join(to, "target")
	_, err := Restore(ctx, bad, target, RestoreOptions{})
	wantKind(t, err, crowd.Invalid)
	if names := namesIn(t, to); fmt.Sprint(names) != "[b bad]" {
		t.Errorf("left behind: %v", names)
	}
	_, err = Restore(ctx, filepath.Join(to, "none"), target, RestoreOptions{})
	wantKind(t, err, crowd.NotFound)
}

// What a killed backup or restore left goes with the next one; what is no leftover stays.
func TestLeftovers(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	s, _ := furnished(t, dir)
	must(t, s.Close())
	file, target := filepath.Join(to, "b"), filepath.Join(to, "target")
	must(t, os.WriteFile(filepath.Join(to, ".b.part-123"), []byte("x"), 0o600))
	must(t, os.WriteFile(filepath.Join(to, ".b.part-123.db"), []byte("x"), 0o600))
	live := must1(newPart(file))(t)
	must(t, os.WriteFile(live.db, nil, 0o600))
	must1(WriteBackup(ctx, dir, file, false, nil))(t)
	for _, path := range []string{live.f.Name(), live.db} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("another backup's file was removed: %v", err)
		}
	}
	live.remove()
	for _, name := range []string{".restore-1", ".restore-2"} {
		must(t, os.MkdirAll(target+name, 0o700))
	}
	must(t, os.WriteFile(filepath.Join(target+".restore-1", unfinished), nil, 0o600))
	must1(Restore(ctx, file, target, RestoreOptions{}))(t)
	if names := namesIn(t, to); fmt.Sprint(names) != "[b target target.restore-2]" {
		t.Errorf("there are %v", names)
	}
}

// A store without some of its files can be backed up; what is missing is said.
func TestBackupMissing(t *testing.T) {
	dir := t.TempDir()
	s, j := furnished(t, dir)
	must(t, os.Remove(logPath(s.logDir, j.ID)))
	must(t, os.Remove(filepath.Join(dir, blobName(digest.Of([]byte("a blob"))))))
	must(t, os.Remove(filepath.Join(dir, keyName)))
	ended := addJob(t, s, "ended")
	must(t, s.Apply(ctx, SetJob{end(ended)}))
	must(t, s.Archive(ctx, ended.ID))
	file := filepath.Join(t.TempDir(), "b")
	b := must1(WriteBackup(ctx, dir, file, false, nil))(t)
	if len(b.Missing) != 3 {
		t.Errorf("%+v", b)
	}
	must(t, s.CheckArchive(ctx, ended.ID))
	archived := filepath.Join(dir, archiveName(ended.ID))
	whole := must1(os.ReadFile(archived))(t)
	flipped := bytes.Clone(whole)
	flipped[len(whole)/2] ^= 1
	for _, content := range [][]byte{nil, whole[:len(whole)/2], flipped} {
		must(t, os.WriteFile(archived, content, 0o600))
		wantKind(t, s.CheckArchive(ctx, ended.ID), crowd.Failed)
	}
	b = must1(WriteBackup(ctx, dir, file, true, nil))(t)
	if len(b.Missing) != 4 || b.Missing[3] != archiveName(ended.ID)+" (damaged)" {
		t.Errorf("%+v", b)
	}
	other := addJob(t, s, "other")
	must(t, os.WriteFile(filepath.Join(dir, archiveName(other.ID)), whole, 0o600))
	wantKind(t, s.CheckArchive(ctx, other.ID), crowd.Failed)

	// the list goes with the file
	if c := must1(CheckBackup(ctx, file))(t); fmt.Sprint(c.Missing) != fmt.Sprint(b.Missing) || c.Files != b.Files {
		t.Errorf("%+v, wrote %+v", c, b)
	}
	if r := must1(Restore(ctx, file, filepath.Join(t.TempDir(), "r"), RestoreOptions{}))(t); fmt.Sprint(r.Missing) != fmt.Sprint(b.Missing) {
		t.Errorf("%+v, wrote %+v", r, b)
	}
}

func end(j crowd.Job) crowd.Job {
	j.State = crowd.JobCancelled
	j.Ended = t0
	return j
}

// A backup goes nowhere where it would destroy something, and is read from a file only.
func TestBackupPlace(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	s, _ := furnished(t, dir)
	must(t, s.Close())
	before := must1(os.ReadFile(filepath.Join(dir, dbName)))(t)
	link, blobs := filepath.Join(to, "link"), filepath.Join(to, "blobs")
	must(t, os.Symlink(dir, link))
	must(t, os.Rename(filepath.Join(dir, "blobs"), blobs))
	must(t, os.Symlink(blobs, filepath.Join(dir, "blobs")))
	rel := must1(filepath.Rel(must1(os.Getwd())(t), filepath.Join(dir, keyName)))(t)
	other := filepath.Join(to, "other")
	must(t, os.WriteFile(other, []byte("a letter to a friend"), 0o600))
	must(t, os.Symlink(other, filepath.Join(to, "alias")))
	must(t, os.Mkdir(filepath.Join(to, "folder"), 0o700))
	for _, file := range []string{
		"", "-", to + "/", filepath.Join(to, "folder"), other + "/b", filepath.Join(to, "alias"), filepath.Join(to, strings.Repeat("n", 300)), os.DevNull,
		filepath.Join(dir, dbName), filepath.Join(dir, keyName), filepath.Join(dir, "new"), filepath.Join(dir, "bodies", "new"), rel,
		filepath.Join(link, dbName), filepath.Join(link, "new"), filepath.Join(blobs, "new"), to + "/folder/../link/new",
	} {
		for _, force := range []bool{false, true} {
			if _, err := WriteBackup(ctx, dir, file, force, nil); !crowd.KindIs(err, crowd.Invalid) {
				t.Errorf("%q: %v", file, err)
			}
		}
	}
	_, err := WriteBackup(ctx, dir, other, true, nil)
	wantKind(t, err, crowd.Invalid)
	_, err = WriteBackup(ctx, dir, other, false, nil)
	wantKind(t, err, crowd.Conflict)
	if !bytes.Equal(before, must1(os.ReadFile(filepath.Join(dir, dbName)))(t)) || string(must1(os.ReadFile(other))(t)) != "a letter to a friend" {
		t.Error("something was replaced")
	}
	_, err = WriteBackup(ctx, dir, filepath.Join(to, "no", "b"), false, nil)
	wantKind(t, err, crowd.NotFound)
	if e := crowd.AsError(err); e.Hint == "" || strings.Contains(e.Message, "no such file") {
		t.Errorf("%+v", e)
	}
	file := filepath.Join(to, "b")
	must(t, os.WriteFile(file, nil, 0o600))
	must1(WriteBackup(ctx, dir, file, true, nil))(t) // an empty one
	must1(WriteBackup(ctx, dir, file, true, nil))(t) // and a backup

	for _, bad := range []string{"", "-", to, os.DevNull} {
		_, err := CheckBackup(ctx, bad)
		wantKind(t, err, crowd.Invalid)
		_, err = Restore(ctx, bad, filepath.Join(to, "r"), RestoreOptions{})
		wantKind(t, err, crowd.Invalid)
	}
	for _, none := range []string{filepath.Join(to, "none"), other + "/b"} {
		_, err := CheckBackup(ctx, none)
		wantKind(t, err, crowd.NotFound)
	}
	_, err = WriteBackup(ctx, other, filepath.Join(to, "c"), false, nil)
	wantKind(t, err, crowd.Invalid)
	_, err = View(ctx, other)
	wantKind(t, err, crowd.Invalid)
	for _, dir := range []string{other, other + "/x", other + "/x/y"} {
		if _, err := Restore(ctx, file, dir, RestoreOptions{Replace: true}); !crowd.KindIs(err, crowd.Invalid) || strings.Contains(err.Error(), "not a directory") || crowd.AsError(err).Hint == "" {
			t.Errorf("restore to %s: %v", dir, err)
		}
	}
}

// There is no incarnation above the last.
func TestLastIncarnation(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	s, j := furnished(t, dir)
	must(t, s.Close())
	file := filepath.Join(to, "b")
	must1(WriteBackup(ctx, dir, file, false, nil))(t)
	target := filepath.Join(to, "target")
	for _, n := range []int64{-1, 8191, 8192, 1 << 62} {
		_, err := Restore(ctx, file, target, RestoreOptions{LeastIncarnation: n})
		wantKind(t, err, crowd.Invalid)
	}
	if names := namesIn(t, to); fmt.Sprint(names) != "[b]" {
		t.Errorf("left behind: %v", names)
	}
	r := must1(Restore(ctx, file, target, RestoreOptions{LeastIncarnation: 8190}))(t)
	checkFurnished(t, target, j, 8191)
	_, err := Restore(ctx, file, r.Dir, RestoreOptions{Replace: true})
	wantKind(t, err, crowd.Conflict)
	must1(WriteBackup(ctx, target, filepath.Join(to, "last"), false, nil))(t)
	_, err = Restore(ctx, filepath.Join(to, "last"), filepath.Join(to, "new"), RestoreOptions{})
	wantKind(t, err, crowd.Conflict)
	checkFurnished(t, target, j, 8191)
}

// A store whose incarnation nobody can read is replaced only when told which is the highest.
func TestRestoreOverRubble(t *testing.T) {
	dir := t.TempDir()
	s, j := furnished(t, dir)
	must(t, s.Close())
	file := filepath.Join(t.TempDir(), "b")
	must1(WriteBackup(ctx, dir, file, false, nil))(t)
	must(t, os.WriteFile(filepath.Join(dir, dbName), bytes.Repeat([]byte("rubble"), 10_000), 0o600))
	_, err := Restore(ctx, file, dir, RestoreOptions{Replace: true})
	wantKind(t, err, crowd.Conflict)
	r := must1(Restore(ctx, file, dir, RestoreOptions{Replace: true, LeastIncarnation: 3}))(t)
	checkFurnished(t, dir, j, r.NewIncarnation)
}

// A damaged map of decided units is made anew from the chunks.
func TestRebuildDone(t *testing.T) {
	s := open(t, t.TempDir())
	j := addJob(t, s, "j")
	var ops []Op
	for first := uint64(0); first < 100; first += 10 {
		ops = append(ops, lease(j.ID, first, 10, 1))
		if first != 30 {
			ops = append(ops, decided(chunk(j.ID, first, 10), 1))
		}
	}
	must(t, s.Apply(ctx, ops...))
	want := must1(s.JobProgress(ctx, j.ID))(t)
	must(t, s.Apply(ctx, Done{j.ID, want.Next, want.Runs}))
	for _, damage := range [][]byte{{0x80}, {0, 0}, {0, 30, 0, 5}, {0, 101}, bytes.Repeat([]byte{0xff}, 30)} {
		must1(s.w.exec2(t, "UPDATE job_done SET runs = ?", damage))(t)
		got, err := s.JobProgress(ctx, j.ID)
		if err != nil || fmt.Sprint(got.Next, got.Runs, len(got.Open)) != fmt.Sprint(want.Next, want.Runs, len(want.Open)) {
			t.Errorf("%x: %v %v, %v; want %v %v", damage, got.Next, got.Runs, err, want.Next, want.Runs)
		}
		must(t, s.Apply(ctx, Done{j.ID, want.Next, want.Runs})) // the stored one is whole again
	}
	wantKind(t, s.RebuildDone(ctx, newID[crowd.JobID]()), crowd.NotFound)
}

// exec2 changes rows behind the store's back, by its own writer.
func (w *writer) exec2(t *testing.T, q string, args ...any) (int64, error) {
	d, err := dial(ctx, dsn(filepath.Join(filepath.Dir(w.logs.dir), dbName)))
	if err != nil {
		return 0, err
	}
	n, _, err := d.exec(q, args...)
	return n, errors.Join(err, d.close())
}

// A view reads beside the store and without it, and changes nothing.
func TestView(t *testing.T) {
	dir := t.TempDir()
	s, j := furnished(t, dir)
	for _, running := range []bool{true, false} {
		if !running {
			must(t, s.Close())
		}
		v := must1(View(ctx, dir))(t)
		if got := must1(v.Job(ctx, j.ID))(t); got.Name != "j" {
			t.Errorf("%+v", got)
		}
		wantKind(t, v.Apply(ctx, AddJob{j}), crowd.Unavailable)
		if _, err := v.rd.Exec("DELETE FROM jobs"); err == nil {
			t.Error("a view may write")
		}
		must(t, v.Close())
	}
	_, err := View(ctx, t.TempDir())
	wantKind(t, err, crowd.NotFound)

	// after a power cut: what was committed stands in the log beside the database
	s = open(t, dir)
	must(t, s.Apply(ctx, PutAccount{crowd.Account{ID: newID[crowd.AccountID](), Name: "late"}}))
	cut := t.TempDir()
	for _, name := range []string{dbName, dbName + "-wal"} {
		must(t, os.WriteFile(filepath.Join(cut, name), must1(os.ReadFile(filepath.Join(dir, name)))(t), 0o600))
	}
	v := must1(View(ctx, cut))(t)
	defer v.Close()
	must1(v.AccountByName(ctx, "late"))(t)
	file, to := filepath.Join(t.TempDir(), "b"), t.TempDir()
	b := must1(WriteBackup(ctx, cut, file, false, nil))(t)
	if b.Jobs != 1 {
		t.Errorf("%+v", b)
	}
	must1(Restore(ctx, file, to, RestoreOptions{}))(t)
	must1(open(t, to).AccountByName(ctx, "late"))(t)
}

// BenchmarkBackup is a backup of a store of 1000 chunks with bodies of 9 KB for each b.N, and its way back.
func BenchmarkBackup(b *testing.B) {
	dir, to := b.TempDir(), b.TempDir()
	s := open(b, dir)
	j := addJob(b, s, "j")
	for first := uint64(0); first < uint64(1000*b.N); first += 250 {
		var ops []Op
		for i := first; i < first+250; i++ {
			body := crashBody(i * 3)
			d := decided(chunk(j.ID, i, 1), 1)
			d.Body = digest.Of(body)
			ops = append(ops, lease(j.ID, i, 1, 1), PutBody{j.ID, d.Body, body}, d, legs(fmt.Sprint("c", i), crowd.BookMint, -3, crowd.BookFee, 3))
		}
		must(b, s.Apply(ctx, ops...))
	}
	b.ResetTimer()
	began := time.Now()
	x := must1(WriteBackup(ctx, dir, filepath.Join(to, "b"), false, nil))(b)
	wrote := time.Since(began)
	began = time.Now()
	must1(Restore(ctx, filepath.Join(to, "b"), filepath.Join(to, "r"), RestoreOptions{}))(b)
	b.ReportMetric(float64(x.Bytes)/1e6/wrote.Seconds(), "write-MB/s")
	b.ReportMetric(float64(x.Bytes)/1e6/time.Since(began).Seconds(), "restore-MB/s")
	b.Logf("%d chunks, %d MB, a file of %d MB: written in %s, restored in %s", x.Chunks, x.Bytes/1e6, x.Size/1e6, wrote, time.Since(began))
}

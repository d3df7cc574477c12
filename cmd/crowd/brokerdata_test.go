package main

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/store"
)

// An audit that finds something says what and where, and ends with 1.
func TestAuditFails(t *testing.T) {
	emptyHome(t)
	dir := t.TempDir()
	b, err := startBroker(context.Background(), brokerConfig{Data: dir, Listen: "127.0.0.1:0", Plain: true, PerGfuel: crowd.Credit})
	must(t, err)
	w := &town{runningBroker: b}
	w.operator, err = b.Authenticate(t.Context(), b.OwnerKey, true)
	must(t, err)
	w.account(t, "ada", 10*crowd.Credit)
	must(t, b.Close())
	if code, out, errs := crowdRun(t, t.Context(), "broker", "audit", "--data", dir); code != 0 || strings.Contains(out, "WRONG") {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "crowd.db"))
	must(t, err)
	_, err = db.Exec("UPDATE books SET balance = balance + 5 WHERE name = 'mint'")
	must(t, err)
	must(t, db.Close())
	code, out, errs := crowdRun(t, t.Context(), "broker", "audit", "--data", dir)
	if code != 1 || !strings.Contains(out, "WRONG\tbooks\t2\t1\t") || !strings.Contains(out, "WRONG\tledger\t2\t1\t") || !strings.Contains(out, "books\t\t\tmint holds -9999995; its postings sum to -10000000\n") ||
		strings.Count(out, "WRONG") != 2 || !strings.Contains(errs, "is wrong in 2 places\n") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	code, out, _ = crowdRun(t, t.Context(), "broker", "audit", "--data", dir, "--json")
	if code != 1 || !strings.Contains(out, `{"check":"books","text":"mint holds`) {
		t.Errorf("%d\n%s", code, out)
	}
}

// A backup of a store that lacks a file is written, and says so by its exit code.
func TestBackupOfRubble(t *testing.T) {
	emptyHome(t)
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir, store.Options{}) // no broker: there is no key
	must(t, err)
	must(t, s.Close())
	file := filepath.Join(t.TempDir(), "b")
	code, out, errs := crowdRun(t, t.Context(), "broker", "backup", file, "--data", dir)
	if code != 8 || !strings.Contains(out, "holds") || !strings.Contains(errs, "the backup is whole, but the store isn't: broker.key\n") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	if code, out, errs = crowdRun(t, t.Context(), "broker", "backup", "--check", file); code != 8 || !strings.Contains(out, "lacks        broker.key\n") ||
		!strings.Contains(errs, "the backup is whole, but the store wasn't: broker.key\n") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	if code, out, _ = crowdRun(t, t.Context(), "broker", "backup", "--check", file, "--json"); code != 8 || !strings.Contains(out, `"missing":["broker.key"]`) {
		t.Errorf("%d\n%s", code, out)
	}
	to := filepath.Join(t.TempDir(), "restored")
	if code, out, errs = crowdRun(t, t.Context(), "broker", "restore", file, "--data", to); code != 0 || !strings.Contains(out, "lacks        broker.key\n") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	if code, out, _ = crowdRun(t, t.Context(), "broker", "restore", file, "--data", to, "--replace", "--json"); code != 0 || !strings.Contains(out, `"missing":["broker.key"]`) {
		t.Errorf("%d\n%s", code, out)
	}
}

// What a backup or a restore can't do, it refuses by its exit code and says the way out.
func TestBackupRefuses(t *testing.T) {
	emptyHome(t)
	dir, to := t.TempDir(), t.TempDir()
	s, err := store.Open(t.Context(), dir, store.Options{})
	must(t, err)
	must(t, s.Close())
	letter, good := filepath.Join(to, "letter"), filepath.Join(to, "good")
	must(t, os.WriteFile(letter, []byte("a letter to a friend"), 0o600))
	if code, _, errs := crowdRun(t, t.Context(), "broker", "backup", good, "--data", dir); code != 8 {
		t.Fatalf("%d %s", code, errs)
	}
	for _, c := range []struct {
		code int
		args []string
	}{
		{2, []string{"backup", filepath.Join(dir, "crowd.db"), "--force", "--data", dir}},
		{2, []string{"backup", filepath.Join(dir, "b"), "--data", dir}},
		{2, []string{"backup", "", "--data", dir}},
		{2, []string{"backup", "-", "--data", dir}},
		{2, []string{"backup", letter, "--force", "--data", dir}},
		{2, []string{"backup", os.DevNull, "--force", "--data", dir}},
		{2, []string{"backup", to, "--force", "--data", dir}},
		{3, []string{"backup", filepath.Join(to, "no", "b"), "--data", dir}},
		{2, []string{"backup", filepath.Join(to, "b"), "--data", letter}},
		{2, []string{"backup", "--check", os.DevNull}},
		{3, []string{"backup", "--check", filepath.Join(to, "none")}},
		{2, []string{"restore", os.DevNull, "--data", filepath.Join(to, "r")}},
		{2, []string{"restore", good, "--data", letter}},
		{2, []string{"restore", good, "--data", filepath.Join(to, "r"), "--least-incarnation", "8191"}},
		{2, []string{"restore", good, "--data", filepath.Join(to, "r"), "--least-incarnation", "-1"}},
		{2, []string{"audit", "--data", letter}},
	} {
		code, out, errs := crowdRun(t, t.Context(), append([]string{"broker"}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errs, "hint: ") {
			t.Errorf("%q: %d, wanted %d\n%s%s", c.args, code, c.code, out, errs)
		}
	}
}

package crowd

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestIDs(t *testing.T) {
	at := time.UnixMilli(1_790_000_000_123)
	a := MakeID[jobKind](at, [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	b := MakeID[jobKind](at.Add(time.Millisecond), [10]byte{})
	if got, err := ParseID[jobKind](a.String()); err != nil || got != a {
		t.Fatalf("%s came back as %s, %v", a, got, err)
	}
	if a.String() >= b.String() {
		t.Errorf("ids don't sort by time: %s, %s", a, b)
	}
	if !strings.HasSuffix(a.String(), a.Short()[4:]) || len(a.Short()) != 10 {
		t.Errorf("short form %s of %s", a.Short(), a)
	}
	if a[6]>>4 != 7 || a[8]>>6 != 2 {
		t.Errorf("%x is no UUIDv7", a)
	}
	for _, bad := range []string{"", "job_", "host_" + a.String()[4:], a.String() + "0", "job_8zzzzzzzzzzzzzzzzzzzzzzzzz", "job_01jdu" + a.String()[9:]} {
		if _, err := ParseID[jobKind](bad); !KindIs(err, Invalid) {
			t.Errorf("%q was taken: %v", bad, err)
		}
	}
}

func TestErrorTable(t *testing.T) {
	for _, e := range errKinds[1:] {
		if got := KindOf(e.name, 0); got != e.kind {
			t.Errorf("code %s reads back as %v", e.name, got)
		}
		for _, s := range e.status {
			if got := KindOf("", s); got != e.kind && s != 422 {
				t.Errorf("status %d reads back as %v, not %v", s, got, e.kind)
			}
		}
	}
	base := errors.New("disk full")
	err := fmt.Errorf("saving: %w", Errorf(Exhausted, CustomerQuota, "no room: %w", base))
	if e := AsError(err); e.Kind != Exhausted || !errors.Is(err, base) || e.Kind.Exit() != 6 {
		t.Errorf("wrapped error reads as %+v", e)
	}
}

func TestStateTables(t *testing.T) {
	if !JobQueued.May(JobRunning) || JobDone.May(JobRunning) || !JobDone.Ended() || JobWaiting.Ended() {
		t.Error("job moves")
	}
	if AttemptVoid.May(AttemptReported) || !AttemptExpired.May(AttemptReported) {
		t.Error("attempt moves")
	}
	if ChunkDecided.May(ChunkDecided) || !ChunkDecided.May(ChunkOpen) || HostLeft.May(HostActive) {
		t.Error("chunk or host moves")
	}
}

var reasonForm = regexp.MustCompile(`^(owner|host|customer|guest|network|broker|policy)\.[a-z_]+$`)

// TestReasonsRegistered finds reasons used anywhere in the tree that the registry doesn't explain.
func TestReasonsRegistered(t *testing.T) {
	for r, e := range Reasons {
		if !reasonForm.MatchString(string(r)) || e.Means == "" || e.WayOut == "" {
			t.Errorf("reason %q: %+v", r, e)
		}
	}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != "." {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			s, _ := strconv.Unquote(lit.Value)
			if reasonForm.MatchString(s) {
				if _, ok := Reasons[Reason(s)]; !ok && !eventName(s) {
					t.Errorf("%s uses reason %q, which the registry doesn't have", path, s)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// eventName reports whether s is the name of an event ("host.joined"), which look like reasons.
func eventName(s string) bool {
	_, verb, _ := strings.Cut(s, ".")
	switch verb {
	case "left", "frozen", "silent", "running", "waiting", "done": // events
		return true
	case "yaml", "json", "log", "key", "db", "lock": // files
		return true
	}
	return strings.HasSuffix(verb, "ed")
}

func sampleOutcome() (*Outcome, []UnitContent) {
	o := &Outcome{First: 10, Units: []UnitResult{
		{Exit: 0, Fuel: 12345, Stdout: ContentRef{Size: 3, Digest: Digest{1}}, Stderr: 2},
		{Exit: 3, Fuel: 1, Files: []OutputFile{{"a/b.txt", ContentRef{Size: 1, Digest: Digest{2}}}, {"c", ContentRef{}}}},
		{Reason: GuestTrap},
	}}
	return o, []UnitContent{{Stdout: []byte("abc"), Stderr: []byte("hm")}, {Files: [][]byte{{'x'}, {}}}, {}}
}

func TestOutcomeRoundTrip(t *testing.T) {
	o, c := sampleOutcome()
	body := o.Body(c)
	got, gc, err := ParseBody(body, 10, 3)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Manifest(), o.Manifest()) || string(gc[0].Stderr) != "hm" || string(gc[1].Files[0]) != "x" || got.Units[0].Stderr != 2 {
		t.Errorf("came back as %+v, %q", got, gc)
	}
	if got.Fuel() != 12346 || got.FailedUnits() != 2 {
		t.Errorf("fuel %d, failed %d", got.Fuel(), got.FailedUnits())
	}
	for n := range body {
		if _, _, err := ParseBody(body[:n], 10, 3); !KindIs(err, Invalid) {
			t.Fatalf("a body cut at %d was taken: %v", n, err)
		}
	}
	if _, _, err := ParseBody(body, 10, 2); err == nil {
		t.Error("a body of another chunk was taken")
	}
}

// FuzzParseBody: a stranger's bytes never panic, and what is taken is canonical.
func FuzzParseBody(f *testing.F) {
	o, c := sampleOutcome()
	f.Add(o.Body(c), uint64(10), uint64(3))
	f.Add([]byte("crowd outcome 1\n"), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, first, count uint64) {
		o, _, err := ParseBody(b, first, count)
		if err == nil && !bytes.HasPrefix(b, o.Manifest()) {
			t.Error("two spellings of one outcome")
		}
	})
}

func TestProofBytesAreUnambiguous(t *testing.T) {
	h := &Hello{Nonce: []byte{1, 2}}
	a := ProofBytes("x", h, &Challenge{Nonce: []byte{3}, BrokerKey: []byte{4}}, nil)
	b := ProofBytes("x", &Hello{Nonce: []byte{2}}, &Challenge{Nonce: []byte{3, 1}, BrokerKey: []byte{4}}, nil)
	if bytes.Equal(a, b) {
		t.Error("two inputs give the same bytes to sign")
	}
}

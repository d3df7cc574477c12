package crowd

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestCheckpointForm(t *testing.T) {
	c := &Checkpoint{Fuel: 7, Slept: 1 << 40, Drawn: 3, Files: []StateFile{{Path: "a", Dir: true}, {Path: "a-b", Data: []byte("x")}, {Path: "a/b", Data: bytes.Repeat([]byte("y"), 300)}, {Path: "n"}}}
	b := c.Bytes()
	got, err := ParseCheckpoint(b)
	if err != nil || !bytes.Equal(got.Bytes(), b) || len(got.Files) != 4 || got.Fuel != 7 || got.Slept != 1<<40 || got.Drawn != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		if _, err := ParseCheckpoint(b[:i]); err == nil {
			t.Errorf("cut at %d it is still one", i)
		}
	}
	for name, files := range map[string][]StateFile{
		"out of order":    {{Path: "b"}, {Path: "a"}},
		"twice":           {{Path: "a"}, {Path: "a"}},
		"above":           {{Path: "../a"}},
		"absolute":        {{Path: "/a"}},
		"without folder":  {{Path: "a/b"}},
		"in a file":       {{Path: "a"}, {Path: "a/b"}},
		"an empty name":   {{Path: ""}},
		"a reserved name": {{Path: "a\x00b"}},
	} {
		if _, err := ParseCheckpoint((&Checkpoint{Files: files}).Bytes()); !KindIs(err, Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseCheckpoint(append(b, 0)); err == nil {
		t.Error("something follows it")
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add((&Checkpoint{Files: []StateFile{{Path: "a", Dir: true}, {Path: "a/b", Data: []byte("x")}}}).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCheckpoint(b); err == nil && !bytes.Equal(c.Bytes(), b) {
			t.Errorf("another form: %x", b)
		}
	})
}

func TestCheckpointEvery(t *testing.T) {
	for s, want := range map[string]time.Duration{"": 0, "never": 0, "30s": 30 * time.Second, "1.5s": 1500 * time.Millisecond, "24h": 24 * time.Hour} {
		if got, err := (&JobSpec{Checkpoint: s}).checkpointEvery(); got != want || err != nil {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"0s", "500ms", "0.5s", "25h", "often"} {
		if _, err := (&JobSpec{Checkpoint: s}).checkpointEvery(); err == nil || !strings.Contains(err.Error(), "wanted") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

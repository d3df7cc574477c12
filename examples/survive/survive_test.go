package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// TestSurvive runs the whole story with the real binary and holds its report against what it promises.
func TestSurvive(t *testing.T) {
	if os.Getenv("CROWD_SOAK") == "" {
		t.Skip("about two minutes: make soak runs it")
	}
	bin := filepath.Join(t.TempDir(), "crowd")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/crowd").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out := t.TempDir()
	if err := run(t.Context(), bin, out, "../..", uint64(time.Now().UnixNano())%1_000_000, 40); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "survive.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if r.Kills < 40 || !r.ResultsEqual || r.LostUnits != 0 || r.PaidTwice != 0 || r.Ledger != 0 || r.LatePaid < 1 || r.OldRefused < 1 || !r.Restored || r.Audit != "ok" {
		t.Errorf("%+v", r)
	}
	if least := (crowd.Term + crowd.Skew - crowd.RenewEvery).Seconds() - 1; r.Releases.P50 < least || r.Releases.Max < r.Releases.P50 {
		t.Errorf("released after %+v", r.Releases)
	}
}

func TestReleases(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(first uint64, n int, owner byte, s float64) crowd.Attempt {
		return crowd.Attempt{First: first, N: n, Owner: crowd.AccountID{owner}, LeasedAt: t0.Add(time.Duration(s * float64(time.Second)))}
	}
	all := []crowd.Attempt{at(0, 1, 1, -1), at(1, 1, 2, -1), at(2, 1, 3, -1), at(0, 2, 4, 12), at(0, 3, 5, 20), at(1, 2, 5, 14)}
	took := releases(all, map[uint64]time.Time{0: t0, 1: t0.Add(time.Second), 2: t0})
	slices.Sort(took)
	if !slices.Equal(took, []time.Duration{12 * time.Second, 13 * time.Second}) {
		t.Error(took)
	}
	if !released(all, all[0]) || released(all, all[2]) {
		t.Error("released")
	}
	if got := spread([]time.Duration{5 * time.Second, time.Second, 2 * time.Second}); got != (times{2, 5}) || spread(nil) != (times{}) {
		t.Error(got)
	}
}

func TestTwice(t *testing.T) {
	pay := func(first uint64, owner byte, paid crowd.UCR) crowd.Attempt {
		return crowd.Attempt{First: first, Owner: crowd.AccountID{owner}, Paid: paid}
	}
	n, sums := twice([]crowd.Attempt{pay(0, 1, 5), pay(0, 2, 5), pay(0, 1, 0), pay(1, 1, 7), pay(1, 1, 7)})
	if n != 1 || sums[crowd.AccountID{1}] != 19 || sums[crowd.AccountID{2}] != 5 {
		t.Error(n, sums)
	}
}

func TestRefusals(t *testing.T) {
	log := filepath.Join(t.TempDir(), "host.log")
	if refs, err := refusals(log); refs != nil || err != nil {
		t.Error(refs, err)
	}
	text := `{"event":"chunk.done","chunk":3,"attempt":1,"answer":"accepted"}
{"event":"chunk.done","chunk":4,"attempt":2,"answer":"decided"}
{"event":"chunk.refused","chunk":5,"attempt":3,"answer":"conflict"}
{"event":"chunk.dropped","chunk":6,"attempt":1}
{"event":"cut sho`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	refs, err := refusals(log)
	if err != nil || !slices.Equal(refs, []crowd.AttemptRef{{First: 4, N: 2}, {First: 5, N: 3}}) {
		t.Error(refs, err)
	}
}

// TestKeys: who reads survive.json finds these first, by these names.
func TestKeys(t *testing.T) {
	b, err := json.Marshal(result{ResultsEqual: true})
	want := `{"kills":0,"results_equal":true,"lost_units":0,"paid_twice":0,"ledger_sum_ucr":0,"releases_s":{"p50":0,"max":0},"late_paid":0,"old_refused":0,"restored":false,`
	if err != nil || len(b) < len(want) || string(b[:len(want)]) != want {
		t.Errorf("%s %v", b, err)
	}
}

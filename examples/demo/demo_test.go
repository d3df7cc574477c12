package main

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestDemo runs the whole story with the real binary and holds its report against what is known of the event.
func TestDemo(t *testing.T) {
	if os.Getenv("CROWD_SOAK") == "" {
		t.Skip("about two minutes: make soak runs it")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "crowd")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/crowd").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out := filepath.Join(dir, "out")
	if err := run(t.Context(), bin, out, "../gwsearch"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	e := r.Event
	if e == nil || math.Abs(e.GPS-1126259462.42) > 0.03 || e.ChirpMass < 27 || e.ChirpMass > 34 || e.SNR.Network < 17 || e.SNR.Network > 28 {
		t.Errorf("event %+v", e)
	}
	if r.Ledger != 0 || r.Money.Held != r.Money.Paid+r.Money.Returned || r.Money.Paid <= 0 {
		t.Errorf("money %+v, ledger sums to %d", r.Money, r.Ledger)
	}
	earned, counted := int64(0), int64(0)
	for _, h := range r.Hosts {
		earned, counted = earned+h.Earned, counted+h.Counted
		if h.Name == "mallory" && (h.Counted != 0 || h.Earned != 0 || h.Note == "") {
			t.Errorf("the liar: %+v", h)
		}
	}
	if earned != r.Money.Paid || counted != 128 {
		t.Errorf("%d votes counted, %d earned of %d paid", counted, earned, r.Money.Paid)
	}
	if st, err := os.Stat(filepath.Join(out, "gwsearch-snr.png")); err != nil || st.Size() < 10_000 {
		t.Errorf("the plot: %v, %v", st, err)
	}
}

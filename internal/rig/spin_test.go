package rig

import "testing"

func TestSpun(t *testing.T) {
	for _, units := range []uint64{0, 1, 77} {
		x := units
		for range 1000 {
			x = x*6364136223846793005 + 1442695040888963407
		}
		if got, want := Spun(units, 1000), Spun(x, 0); got != want {
			t.Errorf("unit %d: %q, wanted %q", units, got, want)
		}
	}
	if got := Spun(255, 0); got != "00000000000000ff\n" {
		t.Error(got)
	}
}

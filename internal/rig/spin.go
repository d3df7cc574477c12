package rig

import "fmt"

// Spun is what cmd/crowd/testdata/spin.wasm prints for a unit after so many rounds, by squaring its step.
func Spun(unit, rounds uint64) string {
	a, c := uint64(6364136223846793005), uint64(1442695040888963407)
	x := unit
	for ; rounds > 0; rounds >>= 1 {
		if rounds&1 == 1 {
			x = x*a + c
		}
		a, c = a*a, a*c+c
	}
	return fmt.Sprintf("%016x\n", x)
}

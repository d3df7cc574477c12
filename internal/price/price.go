// Package price is the arithmetic of cost: fuel to credit and back, estimates, and credit as people write it. It is law: pure,
// checked, and each amount is rounded once, where it is made.
//
// Fuel counts executed instructions (weighted); a Gfuel is 1e9 of it. A speed is in Gfuel per second of one slot.
package price

import (
	"math"
	"math/big"
	"math/bits"

	"github.com/crowdcloud/crowd"
)

// gfuel is the fuel in a Gfuel.
const gfuel = 1_000_000_000

// Pay is what burnt fuel costs, rounded to the nearest micro-credit (half up). A negative price or a sum that can't be represented is Invalid.
func Pay(fuel uint64, perGfuel crowd.UCR) (crowd.UCR, error) {
	if perGfuel < 0 {
		return 0, crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "a price of %d per Gfuel is negative", perGfuel)
	}
	hi, lo := bits.Mul64(fuel, uint64(perGfuel))
	lo, carry := bits.Add64(lo, gfuel/2, 0)
	hi += carry // fuel*price < 2^127: no carry out
	if hi >= gfuel {
		return 0, tooMuch(fuel)
	}
	q, _ := bits.Div64(hi, lo, gfuel)
	if q > math.MaxInt64 {
		return 0, tooMuch(fuel)
	}
	return crowd.UCR(q), nil
}

func tooMuch(fuel uint64) error {
	return crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "%d fuel at this price costs more than can be counted", fuel)
}

// FeeWhole is a fee of everything, in basis points.
const FeeWhole = 10_000

// SplitFee divides what an order pays into the hoster's part and the operator's fee of so many basis points, rounded down in the hoster's favour;
// the parts sum to pay. Invalid: a negative pay, a fee outside 0 to FeeWhole.
func SplitFee(pay crowd.UCR, feeBP int) (hoster, fee crowd.UCR, err error) {
	if pay < 0 || feeBP < 0 || feeBP > FeeWhole {
		return 0, 0, crowd.Errorf(crowd.Invalid, "", "can't take a fee of %d basis points from %d", feeBP, pay)
	}
	hi, lo := bits.Mul64(uint64(pay), uint64(feeBP))
	q, _ := bits.Div64(hi, lo, FeeWhole)
	return pay - crowd.UCR(q), crowd.UCR(q), nil
}

// How far an estimate may be off: its fuel is what a few units burnt.
const (
	lowPercent  = 70
	highPercent = 200
)

// Estimate is what a job may cost: units, each burning about fuelPerUnit, each paid to need owners. Likely is that product; low and high are 0.7 and 2 times it,
// for units that turn out lighter or heavier. Invalid as Pay.
func Estimate(units, fuelPerUnit uint64, need int, perGfuel crowd.UCR) (low, likely, high crowd.UCR, err error) {
	if perGfuel < 0 || need < 0 {
		return 0, 0, 0, crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "can't estimate %d votes at %d per Gfuel", need, perGfuel)
	}
	all := new(big.Int).SetUint64(units)
	for _, f := range []uint64{fuelPerUnit, uint64(need), uint64(perGfuel)} {
		all.Mul(all, new(big.Int).SetUint64(f))
	}
	part := func(percent int64) crowd.UCR {
		v := new(big.Int).Mul(all, big.NewInt(percent))
		v.Add(v, big.NewInt(100*gfuel/2)).Quo(v, big.NewInt(100*gfuel))
		if !v.IsInt64() {
			err = crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "%d units cost more than can be counted", units)
			return 0
		}
		return crowd.UCR(v.Int64())
	}
	low, likely, high = part(lowPercent), part(100), part(highPercent)
	if err != nil {
		return 0, 0, 0, err
	}
	return low, likely, high, nil
}

// WitnessedFuel is the fuel that is paid when nobody checks it: what the host claims, but no more than the broker saw it take seconds for, at the speed
// that checked work of it showed. A speed or time of zero, less or no number gives nothing.
func WitnessedFuel(fuel uint64, seconds, speed float64) uint64 {
	if !(seconds > 0) || !(speed > 0) {
		return 0
	}
	most := seconds * speed * gfuel
	if most >= float64(fuel) { // also +Inf
		return fuel
	}
	return uint64(most)
}

// PerHour converts a price per Gfuel into one per core and hour at a speed, PerGfuel the other way; both round to the nearest. A speed that isn't
// above zero, a negative price or a result that can't be represented is Invalid.
func PerHour(perGfuel crowd.UCR, speed float64) (crowd.UCR, error) {
	return scale(perGfuel, speed*3600, speed)
}

func PerGfuel(perHour crowd.UCR, speed float64) (crowd.UCR, error) {
	return scale(perHour, 1/(speed*3600), speed)
}

func scale(p crowd.UCR, by, speed float64) (crowd.UCR, error) {
	v := math.Round(float64(p) * by)
	if !(speed > 0) || p < 0 || !(v < 1<<63) {
		return 0, crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "can't convert a price of %d at %g Gfuel/s", p, speed)
	}
	return crowd.UCR(v), nil
}

package price

import (
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/crowdcloud/crowd"
)

func TestPay(t *testing.T) {
	for _, c := range []struct {
		fuel uint64
		per  crowd.UCR
		want crowd.UCR
		bad  bool
	}{
		{0, 400, 0, false},
		{1e9, 400, 400, false},
		{1_500_000_000, 1, 2, false}, // half up
		{1_499_999_999, 1, 1, false},
		{1, 1, 0, false},
		{math.MaxUint64, 400, 7_378_697_629_484, false},
		{math.MaxUint64, math.MaxInt64, 0, true},
		{math.MaxUint64, 500_000_000, 9_223_372_036_854_775_807, true}, // 2^63, just too much
		{1, -1, 0, true},
	} {
		got, err := Pay(c.fuel, c.per)
		if (err != nil) != c.bad || err == nil && got != c.want {
			t.Errorf("Pay(%d, %d) = %d, %v; want %d, error %v", c.fuel, c.per, got, err, c.want, c.bad)
		}
		if err != nil && !crowd.KindIs(err, crowd.Invalid) {
			t.Errorf("Pay(%d, %d): kind of %v", c.fuel, c.per, err)
		}
	}
}

func TestPayIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fuel, per := rapid.Uint64().Draw(t, "fuel"), rapid.Int64Min(0).Draw(t, "per")
		want := new(big.Int).Mul(new(big.Int).SetUint64(fuel), big.NewInt(per))
		want.Add(want, big.NewInt(gfuel/2)).Quo(want, big.NewInt(gfuel))
		got, err := Pay(fuel, crowd.UCR(per))
		if want.IsInt64() != (err == nil) || err == nil && int64(got) != want.Int64() {
			t.Fatalf("Pay = %d, %v; want %s", got, err, want)
		}
	})
}

func TestSplitFee(t *testing.T) {
	for _, c := range []struct {
		pay         crowd.UCR
		bp          int
		hoster, fee crowd.UCR
		bad         bool
	}{
		{1000, 0, 1000, 0, false},
		{1000, 500, 950, 50, false},
		{999, 500, 950, 49, false},
		{1, 9999, 1, 0, false},
		{math.MaxInt64, FeeWhole, 0, math.MaxInt64, false},
		{-1, 0, 0, 0, true},
		{1, FeeWhole + 1, 0, 0, true},
		{1, -1, 0, 0, true},
	} {
		h, f, err := SplitFee(c.pay, c.bp)
		if (err != nil) != c.bad || h != c.hoster || f != c.fee {
			t.Errorf("SplitFee(%d, %d) = %d, %d, %v", c.pay, c.bp, h, f, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		pay, bp := rapid.Int64Min(0).Draw(t, "pay"), rapid.IntRange(0, FeeWhole).Draw(t, "bp")
		h, f, err := SplitFee(crowd.UCR(pay), bp)
		if err != nil || h < 0 || f < 0 || h+f != crowd.UCR(pay) {
			t.Fatal(h, f, err)
		}
	})
}

func TestEstimate(t *testing.T) {
	low, likely, high, err := Estimate(1000, 2e9, 2, 400)
	if low != 1_120_000 || likely != 1_600_000 || high != 3_200_000 || err != nil {
		t.Fatal(low, likely, high, err)
	}
	if _, _, _, err := Estimate(1<<40, math.MaxUint64, 9, 400); !crowd.KindIs(err, crowd.Invalid) {
		t.Fatal(err)
	}
	if _, _, _, err := Estimate(1, 1, 1, -1); err == nil {
		t.Fatal("negative price")
	}
	rapid.Check(t, func(t *rapid.T) {
		l, m, h, err := Estimate(rapid.Uint64Max(1<<40).Draw(t, "units"), rapid.Uint64().Draw(t, "fuel"), rapid.IntRange(1, 9).Draw(t, "need"),
			crowd.UCR(rapid.Int64Range(0, 1e9).Draw(t, "per")))
		if err == nil && (l < 0 || l > m || m > h) {
			t.Fatal(l, m, h)
		}
	})
}

func TestWitnessedFuel(t *testing.T) {
	for _, c := range []struct {
		fuel           uint64
		seconds, speed float64
		want           uint64
	}{
		{5e9, 10, 1, 5e9},
		{50e9, 10, 1, 10e9},
		{50e9, 10, 0, 0},
		{50e9, -1, 2, 0},
		{50e9, math.NaN(), 2, 0},
		{50e9, math.Inf(1), 2, 50e9},
		{math.MaxUint64, 1, 1, 1e9},
		{math.MaxUint64, 1e300, 1e300, math.MaxUint64},
	} {
		if got := WitnessedFuel(c.fuel, c.seconds, c.speed); got != c.want {
			t.Errorf("WitnessedFuel(%d, %g, %g) = %d, want %d", c.fuel, c.seconds, c.speed, got, c.want)
		}
	}
}

func TestRates(t *testing.T) {
	if v, err := PerHour(400, 2); v != 2_880_000 || err != nil {
		t.Fatal(v, err)
	}
	if v, err := PerGfuel(2_880_000, 2); v != 400 || err != nil {
		t.Fatal(v, err)
	}
	for _, speed := range []float64{0, -1, math.NaN()} {
		if _, err := PerHour(400, speed); err == nil {
			t.Error("speed", speed)
		}
	}
	if _, err := PerHour(math.MaxInt64, 1); err == nil {
		t.Error("overflow")
	}
	if _, err := PerGfuel(math.MaxInt64, 1e-9); err == nil {
		t.Error("overflow")
	}
}

func TestCreditText(t *testing.T) {
	for _, c := range []struct {
		in   string
		want crowd.UCR
		out  string
	}{
		{"250cr", 250e6, "250 cr"},
		{" 0.78 cr ", 780_000, "0.78 cr"},
		{"1.5", 1_500_000, "1.5 cr"},
		{"0", 0, "0 cr"},
		{"0.000001cr", 1, "0.000001 cr"},
		{"0.001234cr", 1234, "0.0012 cr"},
		{"0.099999cr", 99_999, "0.1 cr"},
		{"0.05cr", 50_000, "0.05 cr"},
		{"1.006cr", 1_006_000, "1.01 cr"},
		{"1.004999cr", 1_004_999, "1 cr"},
		{"9223372036854.775807cr", math.MaxInt64, "9223372036854.78 cr"},
	} {
		v, err := ParseCredit(c.in)
		if v != c.want || err != nil || FormatCredit(v) != c.out {
			t.Errorf("%q: %d, %v, %q", c.in, v, err, FormatCredit(v))
		}
	}
	if s := FormatCredit(math.MinInt64); s != "-9223372036854.78 cr" {
		t.Error(s)
	}
	for _, bad := range []string{"", "cr", "x", "-1cr", "+1cr", "1,5cr", "1.cr", ".5cr", "1.2345678cr", "1e3cr", "9223372036854.775808cr", "1cr/h", "1 2cr", "١cr", strings.Repeat("9", 100)} {
		if _, err := ParseCredit(bad); !crowd.KindIs(err, crowd.Invalid) {
			t.Errorf("ParseCredit(%q): %v", bad, err)
		}
	}
	for _, s := range []string{"1.5cr/h", "1.5 cr/h"} {
		if v, err := ParseRate(s); v != 1_500_000 || err != nil || FormatRate(v) != "1.5 cr/h" {
			t.Error(s, v, err)
		}
	}
	if _, err := ParseRate("1.5cr"); err == nil {
		t.Error("a rate without /h")
	}
}

// What is printed reads back, within half a hundredth of a credit or, below a tenth, of its second digit.
func TestFormatReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := crowd.UCR(rapid.Int64Range(0, 1<<62).Draw(t, "v") >> rapid.IntRange(0, 62).Draw(t, "shift"))
		back, err := ParseCredit(FormatCredit(v))
		if err != nil {
			t.Fatal(err)
		}
		if d := max(back-v, v-back); d > 5000 || v < 100_000 && d*20 > v {
			t.Fatalf("%d prints as %s, which is %d", v, FormatCredit(v), back)
		}
	})
}

func FuzzParseCredit(f *testing.F) {
	f.Add("250cr")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := ParseCredit(s); err == nil && v < 0 {
			t.Fatal(v)
		}
	})
}

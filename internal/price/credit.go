package price

import (
	"math"
	"strconv"
	"strings"

	"github.com/crowdcloud/crowd"
)

const decimals = 6 // of a credit

// ParseCredit reads an amount as people write it: "250cr", "0.78 cr", "250". Invalid: anything else, more than six decimals, a sign,
// or more than can be counted.
func ParseCredit(s string) (crowd.UCR, error) {
	n := strings.TrimSpace(s)
	if n, found := strings.CutSuffix(n, "cr"); found {
		return parse(s, strings.TrimRight(n, " "), "250cr")
	}
	return parse(s, n, "250cr")
}

// ParseRate reads a price per core and hour: "1.5cr/h", "1.5 cr/h".
func ParseRate(s string) (crowd.UCR, error) {
	n, found := strings.CutSuffix(strings.TrimSpace(s), "cr/h")
	if !found {
		return 0, malformed(s, "1.5cr/h")
	}
	return parse(s, strings.TrimRight(n, " "), "1.5cr/h")
}

func parse(s, n, like string) (crowd.UCR, error) {
	whole, part, dot := strings.Cut(n, ".")
	if whole == "" || dot && part == "" || len(part) > decimals || !digits(whole) || !digits(part) {
		return 0, malformed(s, like)
	}
	v, err := strconv.ParseUint(whole+part+strings.Repeat("0", decimals-len(part)), 10, 64)
	if err != nil || v > math.MaxInt64 {
		return 0, crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "%s is more than can be counted", quote(s))
	}
	return crowd.UCR(v), nil
}

func malformed(s, like string) error {
	return crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "wanted an amount like %s, found %s", like, quote(s))
}

func quote(s string) string {
	if len(s) > 40 {
		s = s[:40] + "…"
	}
	return strconv.Quote(s)
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// FormatCredit writes an amount for people: "250 cr", "1.5 cr", "0.78 cr", "0.0012 cr". Two decimals, or as many as it takes to show two digits of a
// smaller amount; rounded half away from zero, so read the exact amount elsewhere.
func FormatCredit(v crowd.UCR) string { return format(v) + " cr" }

// FormatRate writes a price per core and hour: "1.5 cr/h".
func FormatRate(v crowd.UCR) string { return format(v) + " cr/h" }

func format(v crowd.UCR) string {
	sign, n := "", uint64(v)
	if v < 0 {
		sign, n = "-", -n
	}
	unit := uint64(10_000) // what is shown at least: a hundredth of a credit
	for unit > 1 && n < 10*unit {
		unit /= 10
	}
	n = (n + unit/2) / unit * unit
	whole, part := n/uint64(crowd.Credit), n%uint64(crowd.Credit)
	s := sign + strconv.FormatUint(whole, 10)
	if part > 0 {
		p := strconv.FormatUint(part, 10)
		s += "." + strings.TrimRight(strings.Repeat("0", decimals-len(p))+p, "0")
	}
	return s
}

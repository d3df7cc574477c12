package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
)

// How numbers look to people and how people write them.

// credits is "54.10".
func credits(u crowd.UCR) string {
	sign := ""
	if u < 0 {
		sign, u = "-", -u
	}
	cents := (u + 5000) / 10000
	return fmt.Sprintf("%s%d.%02d", sign, cents/100, cents%100)
}

// price is "250 cr", or "2.56 cr".
func price(u crowd.UCR) string {
	if u%crowd.Credit == 0 {
		return fmt.Sprintf("%s cr", thousands(int64(u/crowd.Credit)))
	}
	return credits(u) + " cr"
}

// thousands is "4,096".
func thousands[N int | int64 | uint64](n N) string {
	s := fmt.Sprint(n)
	digits := strings.TrimPrefix(s, "-")
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	if s[0] == '-' {
		return "-" + digits
	}
	return digits
}

// size is "1.8 MiB".
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 || f == math.Trunc(f) || f >= 100 {
		return fmt.Sprintf("%.0f %s", f, units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// span is "1m39s", "3d 4h", "0.4s".
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d < time.Second:
		return strconv.FormatFloat(math.Round(d.Seconds()*10)/10, 'f', -1, 64) + "s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		d = d.Round(time.Second)
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd %dh", int(d.Hours())/24, int(d.Hours())%24)
}

// parseSince reads a span before now, a clock time of today, or RFC 3339.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if t, err := time.ParseInLocation("15:04", s, now.Location()); err == nil {
		y, m, d := now.Date()
		return time.Date(y, m, d, t.Hour(), t.Minute(), 0, 0, now.Location()), nil
	}
	d, err := crowd.ParseSpan(s)
	if err != nil {
		return time.Time{}, crowd.Errorf(crowd.Invalid, "", "wanted a time like 2h, 7d, 14:00 or 2026-01-31T14:00:00Z, found %q", s)
	}
	return now.Add(-d), nil
}

// clock is local time, with the day if it isn't today's.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	t = t.Local()
	if y, m, d := time.Now().Date(); t.Year() == y && t.Month() == m && t.Day() == d {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04")
}

// ago is how long ago something was.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(time.Since(t).Round(time.Second)) + " ago"
}

// shortID is "job_x7kq2m" of a full id; anything else stays as it is.
func shortID(id string) string {
	kind, rest, ok := strings.Cut(id, "_")
	if !ok || len(rest) != 26 {
		return id
	}
	return kind + "_" + rest[20:]
}

// plural is "1 host", "2 hosts".
func plural[N int | int64 | uint64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(n) + " " + one + "s"
}

// place is "DE declared".
func place(p crowd.Place) string {
	if p.Jurisdiction == "" {
		return "nowhere said"
	}
	names := []string{"declared", "not refuted", "contracted", "hardware-bound", "audited"}
	if int(p.Evidence) < 0 || int(p.Evidence) >= len(names) {
		return p.Jurisdiction
	}
	return p.Jurisdiction + " " + names[p.Evidence]
}

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		credits(54_104_999): "54.10", credits(-1_000_000): "-1.00", credits(2_555_000): "2.56", price(250 * crowd.Credit): "250 cr", price(2_560_000): "2.56 cr",
		thousands(4096): "4,096", thousands(-1234567): "-1,234,567", thousands(uint64(999)): "999",
		size(1887437): "1.8 MiB", size(512): "512 B", size(20 << 30): "20 GiB",
		span(99 * time.Second): "1m39s", span(400 * time.Millisecond): "0.4s", span(76 * time.Hour): "3d 4h", span(0): "0s",
		shortID("job_01jd0000000000000000x7kq2m"): "job_x7kq2m", shortID("gwsearch"): "gwsearch",
		plural(1, "host"): "1 host", plural(4096, "unit"): "4,096 units",
		place(crowd.Place{Jurisdiction: "DE", Evidence: crowd.Contracted}): "DE contracted",
	} {
		if got != want {
			t.Errorf("%q, wanted %q", got, want)
		}
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 3, 4, 15, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"": {}, "2h": now.Add(-2 * time.Hour), "7d": now.Add(-7 * 24 * time.Hour), "14:00": now.Add(-time.Hour), "2026-03-01T00:00:00Z": time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if _, err := parseSince("yesterday", now); !crowd.KindIs(err, crowd.Invalid) {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	rows := [][]string{{"alice", "39", "a\nb"}, {"bö", "1,204", ""}}
	for width, want := range map[int]string{
		80: "host   counted  note\nalice       39  a b\nbö       1,204\n",
		16: "host   counted\nalice       39\nbö       1,204\n",
		3:  "host\nalice\nbö\n",
	} {
		var b bytes.Buffer
		if err := align(&b, []string{"host", ">counted", "note"}, rows, width); err != nil || b.String() != want {
			t.Errorf("width %d:\n%s", width, b.String())
		}
	}
	var b bytes.Buffer
	a := &app{stdio: stdio{out: &b}}
	if err := a.table([]string{"host", ">counted", "note"}, rows); err != nil || b.String() != "alice\t39\ta b\nbö\t1,204\t\n" {
		t.Errorf("off a terminal:\n%q", b.String())
	}
}

func TestErrorsAreForPeople(t *testing.T) {
	e := crowd.Errorf(crowd.Exhausted, crowd.CustomerCredit, "not enough\x1b[31m credit\nat all").WithHint("less")
	var b bytes.Buffer
	a := &app{stdio: stdio{err: &b}}
	if a.printError(e); b.String() != "crowd: not enough[31m credit at all (customer.no_credit)\n  hint: less\n" {
		t.Errorf("%q", b.String())
	}
	b.Reset()
	a.json = true
	a.printError(e)
	for _, want := range []string{`"code":"exhausted"`, `"reason":"customer.no_credit"`, `"hint":"less"`, `"type":"/problems/customer.no_credit"`, `"status":429`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in %s", want, b.String())
		}
	}
}

// TestProgress: on a terminal two lines that are drawn again, on a pipe a line every so often.
func TestProgress(t *testing.T) {
	d := &crowd.JobDetail{Job: crowd.Job{Units: 4096, State: crowd.JobRunning, Paid: 54_100_000,
		Progress: crowd.Progress{UnitsDone: 2368, AtWork: 14, Lost: 1, Chunks: 148, ChunksDone: 140, Attempts: 166}}}
	var b bytes.Buffer
	p := &progress{w: &b, width: 200, begun: time.Now().Add(-58 * time.Second)}
	p.job(d)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "units ━━━━━━━━━━━━━━━━──────────── 2,368/4,096  58%  40.8/s  about 42s left") ||
		lines[1] != "hosts 14 at work, 1 lost   replicas 1.12   paid 54.10 cr" {
		t.Errorf("%q", lines)
	}
	b.Reset()
	p.job(d) // at once again: not drawn
	if p.clear(); b.String() != "\x1b[A\x1b[2K\x1b[A\x1b[2K" {
		t.Errorf("%q", b.String())
	}
	b.Reset()
	p = &progress{w: &b, begun: time.Now().Add(-58 * time.Second), last: time.Now().Add(-time.Minute), every: 5 * time.Second}
	p.job(d)
	p.job(d)
	if b.String() != "58s 2368/4096 units, 14 hosts, 54.10 cr\n" {
		t.Errorf("%q", b.String())
	}
}

func TestPlainText(t *testing.T) {
	for in, want := range map[string]string{
		"a\x1b[31mred\x1b[0m b\n": "ared b\n", "\x1b]0;title\x07x": "x", "\x1b]0;t\x1b\\y": "y", "tab\tok\r\n": "tab\tok\n",
		"\u009b31mz": "31mz", "\x1bc!": "!", "end\x1b": "end", "grüße": "grüße",
	} {
		if got := plainText(in); got != want {
			t.Errorf("%q became %q, wanted %q", in, got, want)
		}
	}
}

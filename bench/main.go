// Bench measures the product's figures, each as a ratio to a limit or a peer measured in the same run, and writes bench/latest.md and
// bench/latest.json. Machines differ and are shared: trust the ratios. Run it by `make bench`; one part by `go run ./bench NAME…`.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/crowdcloud/crowd/internal/guest/wasm"
)

// Row is one figure.
type Row struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Against   string  `json:"against"` // what Reference is
	Reference float64 `json:"reference"`
	Ratio     float64 `json:"ratio"` // Value / Reference
	Goal      string  `json:"goal"`
	Better    string  `json:"better"` // higher | lower
	Met       bool    `json:"met"`
}

// part is one benchmark; it returns its rows.
type part struct {
	name string
	run  func(ctx context.Context) ([]Row, error)
}

var parts = []part{
	{"dispatch", dispatch},
	{"latency", latency},
	{"connections", connections},
	{"release", release},
	{"rest", rest},
	{"recovery", recovery},
	{"sim", simulator},
	{"floods", floods},
	{"gwsearch", gwsearch},
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "guest-child" { // the engine starts its guests as this binary
		os.Exit(wasm.ChildMain())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only []string) error {
	var rows []Row
	for _, p := range parts {
		if len(only) > 0 && !slices.Contains(only, p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", p.name)
		got, err := p.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for _, r := range got {
			fmt.Println(r.line())
		}
		rows = append(rows, got...)
	}
	if len(only) > 0 {
		return nil
	}
	return write(rows)
}

// row makes a figure; goal is what Value (or, if ratio is set, Value/Reference) must reach.
func row(name string, value float64, unit, against string, reference, goal float64, ofRatio bool, better string) Row {
	r := Row{Name: name, Value: round(value), Unit: unit, Against: against, Reference: round(reference), Better: better}
	judged := value
	if reference != 0 {
		r.Ratio = round(value / reference)
	}
	word, sign := unit, "≥"
	if ofRatio {
		judged, word = value/reference, "×"
	}
	r.Met = judged >= goal
	if better == "lower" {
		sign, r.Met = "≤", judged <= goal
	}
	r.Goal = fmt.Sprintf("%s %s %s", sign, number(goal), word)
	return r
}

func (r Row) line() string {
	met := "met"
	if !r.Met {
		met = "NOT MET"
	}
	return fmt.Sprintf("%-44s %10s %-9s %6s × %-44s goal %-18s %s", r.Name, number(r.Value), r.Unit, number(r.Ratio), r.Against, r.Goal, met)
}

func write(rows []Row) error {
	var b strings.Builder
	host, _ := os.ReadFile("/proc/cpuinfo")
	model := ""
	for line := range strings.Lines(string(host)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			model = strings.TrimSpace(v)
			break
		}
	}
	fmt.Fprintf(&b, "# Figures\n\nBy `make bench` on %s, %s. Every reference was measured in the same run.\n\n", time.Now().UTC().Format("2006-01-02"), model)
	b.WriteString("| what | value | unit | ratio | against | reference | goal | |\n|---|--:|---|--:|---|--:|---|---|\n")
	for _, r := range rows {
		met := "met"
		if !r.Met {
			met = "**not met**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", r.Name, number(r.Value), r.Unit, number(r.Ratio), r.Against, number(r.Reference), r.Goal, met)
	}
	if err := os.WriteFile("bench/latest.md", []byte(b.String()), 0o644); err != nil {
		return err
	}
	j, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile("bench/latest.json", append(j, '\n'), 0o644)
}

func round(v float64) float64 {
	var r float64
	_, _ = fmt.Sscan(fmt.Sprintf("%.4g", v), &r)
	return r
}

func number(v float64) string {
	switch {
	case v >= 1000 || v == float64(int64(v)):
		return thousands(int64(v + 0.5))
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/crowdcloud/crowd/examples/gwsearch/gw"
)

// result is report.json.
type result struct {
	Event  *gw.Event    `json:"event"` // null: nothing found
	Hosts  []hostResult `json:"hosts"`
	Money  money        `json:"money"`
	Ledger int64        `json:"ledger_sum_ucr"`
	Secs   float64      `json:"seconds"`
}

type hostResult struct {
	Name    string `json:"name"`
	Place   string `json:"place"`
	Counted int64  `json:"counted"`
	Earned  int64  `json:"earned_ucr"`
	Note    string `json:"note"`
}

type money struct {
	Held     int64 `json:"held_ucr"`
	Paid     int64 `json:"paid_ucr"`
	Returned int64 `json:"returned_ucr"`
}

// report prints the table and the event, and writes report.json and the plot.
func (s *story) report(ctx context.Context, out, example string, peaks []gw.Peak, job jobDetail) error {
	r := result{Money: money{job.Held, job.Paid, job.Returned}, Secs: time.Since(s.start).Seconds()}
	var status struct {
		Sum int64 `json:"ledger_sum_ucr"`
	}
	if err := s.op.get(ctx, "/v1/status", &status); err != nil {
		return err
	}
	r.Ledger = status.Sum
	shares := map[string]hostShare{}
	for _, h := range job.Hosts {
		shares[h.Name] = h
	}
	fmt.Printf("%-8s %-12s %7s  %-9s %s\n", "host", "place", "counted", "earned", "note")
	for _, h := range s.dev.Hosts {
		share := shares[h.Name]
		if n := share.Differ; n > 0 {
			s.notes[h.Name] = fmt.Sprintf("%d wrong answer, unpaid", n)
			if n > 1 {
				s.notes[h.Name] = fmt.Sprintf("%d wrong answers, unpaid", n)
			}
		}
		row := hostResult{h.Name, h.Place, share.Counted, share.Earned, s.notes[h.Name]}
		r.Hosts = append(r.Hosts, row)
		fmt.Println(strings.TrimRight(fmt.Sprintf("%-8s %-12s %7d  %-9s %s", h.Name, h.Place+" declared", row.Counted, credits(row.Earned)+" cr", row.Note), " "))
	}
	e, found := gw.Pick(peaks)
	if found {
		r.Event = &e
		plot := filepath.Join(out, "gwsearch-snr.png")
		strain, err := gw.Load(filepath.Join(example, "data"))
		if err == nil {
			err = gw.Plot(strain, e, plot)
		}
		if err != nil {
			return err
		}
		fmt.Printf("event    %s\nplot     %s\n", e, plot)
	}
	fmt.Printf("money    held %s, paid %s, returned %s cr; ledger sums to %s\n", credits(r.Money.Held), credits(r.Money.Paid), credits(r.Money.Returned), strconv.FormatInt(r.Ledger, 10))
	fmt.Printf("next     crowd dev, then in another terminal: crowd run examples/gwsearch/job.yaml\n")
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "report.json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	if !found {
		fmt.Fprintf(os.Stderr, "demo: nothing found: the loudest of %d templates has a network signal-to-noise of %.1f\n", len(peaks), e.SNR.Network)
		return errNothing
	}
	return nil
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
)

// result is survive.json.
type result struct {
	Kills        int    `json:"kills"` // -9, of broker and hosts
	ResultsEqual bool   `json:"results_equal"`
	LostUnits    uint64 `json:"lost_units"`     // missing or failed
	PaidTwice    int    `json:"paid_twice"`     // owners who got more for a chunk or a job than their counted answers are worth
	Ledger       int64  `json:"ledger_sum_ucr"` // the largest that was seen
	Releases     times  `json:"releases_s"`     // from a host's silence until others have its chunks
	LatePaid     int    `json:"late_paid"`      // reports of silent hosts whose chunk was open still
	OldRefused   int    `json:"old_refused"`    // reports of chunks that others had decided: unpaid
	Restored     bool   `json:"restored"`       // the backup of the middle led to the same results

	Seed       uint64 `json:"seed"`
	Attempts   int64  `json:"attempts"` // at the first job's chunks
	Checkpoint struct {
		Kills    int `json:"kills"`
		Attempts int `json:"attempts"`
		WentOn   int `json:"went_on"` // from the checkpoint of another attempt
	} `json:"checkpoint"`
	Audit   string  `json:"audit"`
	Seconds float64 `json:"seconds"`
}

type times struct {
	P50 float64 `json:"p50"`
	Max float64 `json:"max"`
}

func (t times) String() string { return fmt.Sprintf("%.1f s (median), %.1f s (last)", t.P50, t.Max) }

// spread is the median and the largest; zero of nothing.
func spread(all []time.Duration) (t times) {
	if len(all) == 0 {
		return t
	}
	all = slices.Sorted(slices.Values(all))
	seconds := func(d time.Duration) float64 { return d.Round(10 * time.Millisecond).Seconds() }
	return times{seconds(all[len(all)/2]), seconds(all[len(all)-1])}
}

// releases are, for each chunk whose host fell silent, how long after that it was another owner's. Chunks go by their first units.
func releases(all []crowd.Attempt, halted map[uint64]time.Time) (took []time.Duration) {
	first := map[uint64]time.Duration{}
	for _, a := range all {
		at, ok := halted[a.First]
		if d := a.LeasedAt.Sub(at); ok && d > 0 && (first[a.First] == 0 || d < first[a.First]) {
			first[a.First] = d
		}
	}
	return slices.Collect(maps.Values(first))
}

// released reports whether another owner has a chunk of which there was an attempt.
func released(all []crowd.Attempt, a crowd.Attempt) bool {
	return slices.ContainsFunc(all, func(b crowd.Attempt) bool { return b.First == a.First && b.N > a.N && b.Owner != a.Owner })
}

// twice counts, over attempts of one job, the pairs of a chunk and an owner that were paid more than once; sums is what each owner got in all.
func twice(all []crowd.Attempt) (n int, sums map[crowd.AccountID]crowd.UCR) {
	type seat struct {
		first uint64
		owner crowd.AccountID
	}
	paid := map[seat]int{}
	sums = map[crowd.AccountID]crowd.UCR{}
	for _, a := range all {
		if a.Paid == 0 {
			continue
		}
		sums[a.Owner] += a.Paid
		if at := (seat{a.First, a.Owner}); paid[at] > 0 {
			n++
		} else {
			paid[at]++
		}
	}
	return n, sums
}

// attempts are all of a job, page by page.
func (s *story) attempts(ctx context.Context, job string) (all []crowd.Attempt, err error) {
	for after := ""; ; {
		var p struct {
			Items []crowd.Attempt `json:"items"`
			Next  *string         `json:"next"`
		}
		path := "/v1/jobs/" + job + "/attempts?limit=1000"
		if after != "" {
			path += "&after=" + after
		}
		if err := s.Get(ctx, &p, s.ada, path); err != nil {
			return nil, err
		}
		all = append(all, p.Items...)
		if p.Next == nil {
			return all, nil
		}
		after = *p.Next
	}
}

// refused are the attempts of an ended job whose report came when others had decided the chunk: what the record says was reported and not paid, and
// what the hosts' own logs say was answered so.
func (s *story) refused(ctx context.Context, job string) (map[crowd.AttemptRef]bool, error) {
	all, err := s.attempts(ctx, job)
	if err != nil {
		return nil, err
	}
	refs := map[crowd.AttemptRef]bool{}
	for _, a := range all {
		if a.State == crowd.AttemptReported && a.Paid == 0 {
			refs[a.Ref()] = true
		}
	}
	for _, h := range s.Hosts {
		told, err := refusals(filepath.Join(h.Dir, "host.log"))
		if err != nil {
			return nil, err
		}
		for _, ref := range told {
			if ref.Job.String() == job {
				refs[ref] = true
			}
		}
	}
	return refs, nil
}

// refusals are the attempts of which a host's log says that their report was answered decided or conflict.
func refusals(log string) (refs []crowd.AttemptRef, err error) {
	f, err := os.Open(log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e struct {
			Job    crowd.JobID        `json:"job"`
			First  uint64             `json:"chunk"`
			N      int                `json:"attempt"`
			Answer crowd.ReportAnswer `json:"answer"`
		}
		if json.Unmarshal(lines.Bytes(), &e) == nil && (e.Answer == crowd.ReportDecided || e.Answer == crowd.ReportConflict) {
			refs = append(refs, crowd.AttemptRef{Job: e.Job, First: e.First, N: e.N})
		}
	}
	return refs, lines.Err()
}

// check holds every job against an undisturbed run, and the money against what was worked.
func (s *story) check(ctx context.Context) error {
	s.report.ResultsEqual = true
	before := len(s.wrong)
	if err := s.sound(ctx, s.jobs); err != nil || len(s.wrong) > before {
		return err
	}
	units := uint64(0)
	for _, j := range s.jobs {
		units += uint64(strings.Count(j.want, "\n"))
	}
	s.say(fmt.Sprintf("%d units of %d jobs are what an undisturbed run gives, each chunk is paid once, the audit is clean", units, len(s.jobs)), "")
	return nil
}

// sound checks jobs that have ended: results, money, and the broker's own audit.
func (s *story) sound(ctx context.Context, jobs []ordered) error {
	r := &s.report
	for _, job := range jobs {
		j, err := s.Job(ctx, s.ada, job.id)
		if err != nil {
			return err
		}
		if j.State != crowd.JobDone {
			s.amiss("%s %s %s", job.name, j.State, j.Reason)
		}
		if lost := j.Units - j.Progress.UnitsDone + j.Progress.UnitsFailed; lost > 0 {
			r.LostUnits += lost
			s.amiss("%s lost %d of %d units", job.name, lost, j.Units)
		}
		out, err := s.Run(ctx, s.ada, "job", "results", job.id)
		if err != nil {
			return err
		}
		if out != job.want {
			r.ResultsEqual = false
			s.amiss("the results of %s differ from those of an undisturbed run: %d bytes, wanted %d", job.name, len(out), len(job.want))
		}
		if err := s.paid(ctx, j); err != nil {
			return err
		}
	}
	var status struct {
		Sum int64 `json:"ledger_sum_ucr"`
	}
	if err := s.Read(ctx, &status, s.Operator, "broker", "status"); err != nil {
		return err
	}
	if status.Sum != 0 {
		r.Ledger = status.Sum
		s.amiss("the ledger sums to %d", status.Sum)
	}
	r.Audit = "ok"
	if _, err := s.Run(ctx, "", "broker", "audit", "--data", s.Data(), "--bodies", "all"); err != nil {
		r.Audit = "wrong"
		s.amiss("%v", err)
	}
	return nil
}

// paid holds a job's money against its attempts: no owner is paid twice for a chunk, and what owners' statements say of the job is what their attempts say.
func (s *story) paid(ctx context.Context, j crowd.JobDetail) error {
	all, err := s.attempts(ctx, j.ID.String())
	if err != nil {
		return err
	}
	n, sums := twice(all)
	if n > 0 {
		s.amiss("%s: %d answers are paid twice", j.Name, n)
	}
	rows, err := s.HostRows(ctx)
	if err != nil {
		return err
	}
	for _, h := range rows {
		got, err := s.statement(ctx, s.Hosts[h.Name].Key, "settle:"+j.ID.String())
		if err != nil {
			return err
		}
		if got != sums[h.Account] {
			n++
			s.amiss("%s: %s's statement says %d, its attempts %d", j.Name, h.Name, got, sums[h.Account])
		}
	}
	held, err := s.statement(ctx, s.ada, "order:"+j.ID.String())
	if err != nil {
		return err
	}
	back, err := s.statement(ctx, s.ada, "refund:"+j.ID.String())
	if err != nil {
		return err
	}
	if -held != j.Escrow || back != j.Returned || j.Escrow != j.Paid+j.Returned {
		s.amiss("%s: held %d, paid %d, returned %d; ada's statement says %d and %d", j.Name, j.Escrow, j.Paid, j.Returned, held, back)
	}
	s.report.PaidTwice += n
	return nil
}

// statement is what a transaction moved, by an account's statement.
func (s *story) statement(ctx context.Context, key, txn string) (sum crowd.UCR, err error) {
	var list struct {
		Items []crowd.Posting `json:"items"`
	}
	if err := s.Read(ctx, &list, key, "account", "statement", "--limit", "1000"); err != nil {
		return 0, err
	}
	for _, p := range list.Items {
		if p.Txn == txn {
			sum += p.Amount
		}
	}
	return sum, nil
}

// tell prints the figures and writes survive.json.
func (s *story) tell(out string) error {
	r := &s.report
	r.Seconds = time.Since(s.start).Round(100 * time.Millisecond).Seconds()
	fmt.Println()
	for _, row := range [][2]string{
		{"killed (-9)", fmt.Sprintf("%d times, broker and hosts", r.Kills)},
		{"results", map[bool]string{true: "equal to an undisturbed run's", false: "NOT equal"}[r.ResultsEqual]},
		{"lost units", fmt.Sprint(r.LostUnits)},
		{"paid twice", fmt.Sprint(r.PaidTwice)},
		{"ledger", fmt.Sprintf("sums to %d; audit %s", r.Ledger, r.Audit)},
		{"silent hosts", "their chunks with others after " + r.Releases.String()},
		{"late reports", fmt.Sprintf("%d paid (chunk open), %d refused (chunk decided)", r.LatePaid, r.OldRefused)},
		{"checkpoints", fmt.Sprintf("%d kills, %d times gone on from one", r.Checkpoint.Kills, r.Checkpoint.WentOn)},
		{"restored", map[bool]string{true: "from the middle to the same results", false: "NO"}[r.Restored]},
	} {
		fmt.Printf("%-13s %s\n", row[0], row[1])
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(out, "survive.json")
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Printf("report        %s, after %.0f s (--seed %d)\n", file, r.Seconds, r.Seed)
	if len(s.wrong) > 0 {
		return fmt.Errorf("not as told:\n  %s", strings.Join(s.wrong, "\n  "))
	}
	return nil
}

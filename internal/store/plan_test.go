package store

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	"github.com/crowdcloud/crowd"
)

// explainer is a querier that asks for the plan of each query before it runs it.
type explainer struct {
	*sql.DB
	plans *[]string
}

func (e explainer) QueryContext(c context.Context, q string, args ...any) (*sql.Rows, error) {
	rows, err := e.DB.QueryContext(c, "EXPLAIN QUERY PLAN "+q, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var a, b, n int
		var text string
		if err := rows.Scan(&a, &b, &n, &text); err != nil {
			return nil, err
		}
		*e.plans = append(*e.plans, text)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return e.DB.QueryContext(c, q, args...)
}

// No read of a page walks a table that grows with the work, nor sorts one.
func TestPlans(t *testing.T) {
	s := open(t, t.TempDir())
	var plans []string
	s.query = explainer{s.rd, &plans}
	job, acc := newID[crowd.JobID](), newID[crowd.AccountID]()
	for name, read := range map[string]func() error{
		"chunks":           func() error { return second(s.Chunks(ctx, job, 5, 10)) },
		"chunk":            func() error { _ = second(s.ChunkOf(ctx, job, 5)); return nil },
		"attempts":         func() error { return second(s.Attempts(ctx, job, 5)) },
		"job's attempts":   func() error { return second(s.JobAttempts(ctx, job, crowd.AttemptRef{First: 5}, 10)) },
		"body":             func() error { _ = second(s.Body(ctx, job, crowd.Digest{1})); return nil },
		"postings":         func() error { return second(s.Postings(ctx, "x", "", 10)) },
		"events":           func() error { return second(s.Events(ctx, EventFilter{After: 5})) },
		"newest events":    func() error { return second(s.Events(ctx, EventFilter{Newest: true})) },
		"account's events": func() error { return second(s.Events(ctx, EventFilter{Account: acc, After: 5, Newest: true})) },
		"thing's events":   func() error { return second(s.Events(ctx, EventFilter{Account: acc, Subject: "x"})) },
		"jobs":             func() error { return second(s.Jobs(ctx, JobFilter{})) },
		"account's jobs":   func() error { return second(s.Jobs(ctx, JobFilter{Account: acc, Before: job})) },
		"living jobs":      func() error { return second(s.Jobs(ctx, JobFilter{Living: true})) },
		"a name":           func() error { return second(s.Jobs(ctx, JobFilter{Account: acc, Living: true, Name: "x"})) },
		"keys":             func() error { return second(s.Keys(ctx, acc)) },
	} {
		plans = nil
		must(t, read())
		if len(plans) == 0 {
			t.Errorf("%s: no plan", name)
		}
		for _, p := range plans {
			walks := strings.Contains(p, "SCAN") && !strings.Contains(p, "INDEX") && p != "SCAN e" // e by its key, up to the limit
			if walks || strings.Contains(p, "TEMP B-TREE") && name != "a name" && name != "keys" {
				t.Errorf("%s: %s", name, strings.Join(plans, "; "))
				break
			}
		}
	}
}

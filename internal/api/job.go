package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
)

type jobsQuery struct {
	Paging
	State  crowd.JobState `query:"state" enum:"queued,running,waiting,done,failed,cancelled"`
	Label  string         `query:"label" maxLength:"200" doc:"KEY=VALUE"`
	Living bool           `query:"living" doc:"only those that haven't ended"`
	Since  time.Time      `query:"since" doc:"made since then"`
}

func (s *server) jobRoutes() {
	spec := &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schemaOf[crowd.JobSpec](s)}}}
	s.raw(huma.Operation{OperationID: "create-job", Method: "POST", Path: "/v1/jobs", Summary: "order a job", RequestBody: spec, Responses: answers[crowd.Job](s, "201", "ordered"),
		Parameters: []*huma.Param{param("quote", "query", "id of a quote: order at its price"), param("Idempotency-Key", "header", "the same key and body within 24 h: the same answer")}}, "", s.createJob)
	s.raw(huma.Operation{OperationID: "create-quote", Method: "POST", Path: "/v1/quotes", Summary: "price, time and hosts that fit, without ordering", RequestBody: spec, Responses: answers[crowd.Quote](s, "201", "the price is held until then")}, "", s.createQuote)
	handle(s, "GET", "/v1/jobs", "list-jobs", "the caller's jobs, newest first", 200, func(ctx context.Context, c broker.Caller, in *jobsQuery) (*out[list[crowd.Job]], error) {
		all, next, err := s.b.Jobs(ctx, c, broker.JobsFilter{State: in.State, Label: in.Label, Living: in.Living, Since: in.Since, After: in.After, Limit: in.Limit})
		return page(all, next), err
	})
	s.raw(huma.Operation{OperationID: "get-job", Method: "GET", Path: "/v1/jobs/{ref}", Summary: "a job, its hosts and reasons; waits for a change", Responses: answers[crowd.JobDetail](s, "200", "the job; ETag is its version"),
		Parameters: []*huma.Param{param("ref", "path", "id, short id or name"), param("If-None-Match", "header", `"VERSION": 304 if it is still that`), param("Prefer", "header", "wait=30: hold a 304 back so many seconds at most")}}, "", s.getJob)
	handle(s, "POST", "/v1/jobs/{ref}/cancel", "cancel-job", "pay what is done, return the rest; of an ended job: no change", 202, func(ctx context.Context, c broker.Caller, in *RefIn) (*out[crowd.Job], error) {
		j, err := s.b.CancelJob(ctx, c, in.Ref)
		return &out[crowd.Job]{Body: j}, err
	})
	handle(s, "GET", "/v1/jobs/{ref}/chunks", "list-chunks", "the chunks touched so far, by first unit", 200, func(ctx context.Context, c broker.Caller, in *struct {
		RefIn
		UnitPaging
	}) (*out[list[crowd.Chunk]], error) {
		from, limit := in.from()
		all, err := s.b.JobChunks(ctx, c, in.Ref, from, limit)
		next := ""
		if len(all) == limit {
			last := all[len(all)-1]
			next = fmt.Sprint(last.First + last.Count)
		}
		return page(all, next), err
	})
	handle(s, "GET", "/v1/jobs/{ref}/attempts", "list-attempts", "who tried, by chunk and number", 200, func(ctx context.Context, c broker.Caller, in *struct {
		RefIn
		Paging
	}) (*out[list[crowd.Attempt]], error) {
		var after crowd.AttemptRef
		if in.After != "" {
			if _, err := fmt.Sscanf(in.After, "%d.%d", &after.First, &after.N); err != nil {
				return nil, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%q is no cursor", clip(in.After))
			}
		}
		limit := broker.PageLimit(in.Limit)
		all, err := s.b.JobAttempts(ctx, c, in.Ref, after, limit)
		next := ""
		if len(all) == limit {
			last := all[len(all)-1]
			next = fmt.Sprintf("%d.%d", last.First, last.N)
		}
		return page(all, next), err
	})
}

// UnitPaging walks along a job's units.
type UnitPaging struct {
	From  uint64 `query:"from" doc:"first unit"`
	After string `query:"after" maxLength:"20" doc:"cursor: next of the page before"`
	Limit int    `query:"limit" minimum:"0" maximum:"1000" doc:"default 50"`
}

func (p UnitPaging) from() (uint64, int) {
	if n, err := strconv.ParseUint(p.After, 10, 64); err == nil {
		return n, broker.PageLimit(p.Limit)
	}
	return p.From, broker.PageLimit(p.Limit)
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// readSpec reads an order's body.
func readSpec(r *http.Request) (crowd.JobSpec, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, int64(crowd.Limits.SpecBytes)+1))
	if err != nil {
		return crowd.JobSpec{}, bodyError(err)
	}
	if len(b) > crowd.Limits.SpecBytes {
		return crowd.JobSpec{}, &crowd.Error{Kind: crowd.Invalid, Status: 413, Reason: crowd.CustomerFile, Message: fmt.Sprintf("an order has at most %d bytes", crowd.Limits.SpecBytes)}
	}
	return decodeSpec(b)
}

func (s *server) createJob(w http.ResponseWriter, r *http.Request) error {
	spec, err := readSpec(r)
	if err != nil {
		return err
	}
	j, err := s.b.SubmitQuoted(r.Context(), callerOf(r.Context()), spec, r.URL.Query().Get("quote"))
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/jobs/"+j.ID.String())
	w.Header().Set("ETag", etag(j.Version))
	return writeJSON(w, http.StatusCreated, j)
}

func (s *server) createQuote(w http.ResponseWriter, r *http.Request) error {
	spec, err := readSpec(r)
	if err != nil {
		return err
	}
	q, err := s.b.Quote(r.Context(), callerOf(r.Context()), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, q)
}

// getJob answers with the job, with 304 if the reader has that version, and waits for another one if asked to.
func (s *server) getJob(w http.ResponseWriter, r *http.Request) error {
	ctx, c, name := r.Context(), callerOf(r.Context()), r.PathValue("ref")
	if known, err := strconv.ParseInt(strings.Trim(r.Header.Get("If-None-Match"), `"`), 10, 64); err == nil {
		wait, cancel := context.WithTimeout(ctx, waitOf(r.Header.Get("Prefer")))
		j, err := s.b.WatchJob(wait, c, name, known)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if err == nil && j.Version == known {
			w.Header().Set("ETag", etag(j.Version))
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	d, err := s.b.Job(ctx, c, name)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(d.Version))
	return writeJSON(w, http.StatusOK, d)
}

// waitOf reads Prefer: wait=30 (RFC 7240).
func waitOf(prefer string) time.Duration {
	for p := range strings.SplitSeq(prefer, ",") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(p), "wait="); ok {
			if n, err := strconv.Atoi(v); err == nil && n > 0 {
				return min(time.Duration(n)*time.Second, maxWait)
			}
		}
	}
	return 0
}

// decodeSpec reads a spec's JSON and says every fault at once.
func decodeSpec(b []byte) (crowd.JobSpec, error) {
	tree, err := crowd.DecodeJSON(b)
	if err != nil {
		return crowd.JobSpec{}, err
	}
	spec, faults := crowd.ParseSpec(tree)
	if len(faults) == 0 {
		return spec, nil
	}
	e := crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%s: %s", faults[0].Path, faults[0].Text)
	if n := len(faults); n > 1 {
		e.Message = fmt.Sprintf("%d faults, nothing ordered; the first: %s", n, e.Message)
	}
	e.Faults, e.Hint = faults, faults[0].Hint
	return spec, e
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
)

type reasonRow struct {
	Code   crowd.Reason `json:"code"`
	Means  string       `json:"means"`
	WayOut string       `json:"way_out"`
}

func (s *server) eventRoutes() {
	s.raw(huma.Operation{OperationID: "list-events", Method: "GET", Path: "/v1/events", Summary: "what happened, oldest first; as text/event-stream it goes on", Responses: answers[list[crowd.Event]](s, "200", "events after a number"),
		Parameters: []*huma.Param{param("of", "query", "of one thing: id, short id or name"), param("after", "query", "after this number"), param("limit", "query", "default 50"), param("Last-Event-ID", "header", "as after, for event streams")}}, "", s.events)
	s.raw(huma.Operation{OperationID: "why", Method: "GET", Path: "/v1/why/{ref}", Summary: "why a job waits, an attempt ended, a host is quarantined, or what a reason code means", Responses: answers[crowd.Why](s, "200", "the explanation"),
		Parameters: []*huma.Param{param("ref", "path", "JOB, JOB/UNIT, HOST or a reason code")}}, "/v1/why/{ref...}", func(w http.ResponseWriter, r *http.Request) error {
		why, err := s.b.Why(r.Context(), callerOf(r.Context()), r.PathValue("ref"))
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, why)
	})
	handle(s, "GET", "/v1/status", "status", "the operator's view", 200, func(ctx context.Context, c broker.Caller, _ *empty) (*out[crowd.Status], error) {
		st, err := s.b.Status(ctx, c)
		return &out[crowd.Status]{Body: st}, err
	})
	handle(s, "GET", "/v1/reasons", "list-reasons", "every reason code: what it means and the way out", 200, func(context.Context, broker.Caller, *empty) (*out[list[reasonRow]], error) {
		var all []reasonRow
		for _, code := range sortedReasons() {
			m := crowd.Reasons[code]
			all = append(all, reasonRow{code, m.Means, m.WayOut})
		}
		return page(all, ""), nil
	})
}

func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	stream := eventStream(r)
	from := q.Get("after")
	if id := r.Header.Get("Last-Event-ID"); stream && id != "" {
		from = id
	}
	after, limit := int64(0), 0
	var err error
	if from != "" {
		if after, err = strconv.ParseInt(from, 10, 64); err != nil || after < 0 {
			return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%q is no event's number", clip(from))
		}
	}
	if l := q.Get("limit"); l != "" {
		if limit, err = strconv.Atoi(l); err != nil || limit < 0 {
			return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "limit: wanted a number from 1 to 1000, found %q", clip(l))
		}
	}
	limit = broker.PageLimit(limit)
	c := callerOf(r.Context())
	if stream {
		return s.stream(w, r, c, q.Get("of"), after)
	}
	all, err := s.b.Events(r.Context(), c, q.Get("of"), after, limit, false)
	if err != nil {
		return err
	}
	next := ""
	if len(all) == limit {
		next = fmt.Sprint(all[len(all)-1].Seq)
	}
	return writeJSON(w, http.StatusOK, page(all, next).Body)
}

// streamPage is how many events of a stream are in memory at once.
const streamPage = 100

// stream writes events as they happen until the reader leaves or the server stops.
func (s *server) stream(w http.ResponseWriter, r *http.Request, c broker.Caller, of string, after int64) error {
	all, err := s.b.Events(r.Context(), c, of, after, streamPage, false)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	for {
		var b bytes.Buffer
		for _, e := range all {
			data, err := json.Marshal(e)
			if err != nil {
				return nil
			}
			fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.What, data)
			after = e.Seq
		}
		if len(all) == 0 {
			b.WriteString(":\n\n")
		}
		if _, err := w.Write(b.Bytes()); err != nil || rc.Flush() != nil || r.Context().Err() != nil {
			return nil // nobody listens any more
		}
		wait, cancel := context.WithTimeout(r.Context(), beatEvery)
		all, err = s.b.Events(wait, c, of, after, streamPage, true)
		cancel()
		if err != nil && r.Context().Err() == nil && wait.Err() == nil {
			s.log.Warn("an event stream ended", "request", requestOf(r.Context()), "err", err)
			return nil
		}
		if err != nil {
			all = nil
		}
	}
}

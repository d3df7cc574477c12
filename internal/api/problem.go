package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crowdcloud/crowd"
)

// problem is an error as it is answered: RFC 9457 with code (the kind), reason and hint.
type problem struct {
	Type     string        `json:"type"`
	Title    string        `json:"title"`
	Status   int           `json:"status"`
	Detail   string        `json:"detail"`
	Instance string        `json:"instance"`
	Code     string        `json:"code"`
	Reason   crowd.Reason  `json:"reason,omitempty"`
	Hint     string        `json:"hint,omitempty"`
	Errors   []crowd.Fault `json:"errors,omitempty"`
}

func (p *problem) Error() string             { return p.Detail }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders says when to come back and who may come.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	switch p.Status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="crowd"`)
	case http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "2")
	}
	return h
}

// problem turns an error into its document. An internal one keeps its cause to the log; the request's id leads there.
func (s *server) problem(ctx context.Context, err error) *problem {
	e := crowd.AsError(err)
	p := document(e, requestOf(ctx))
	if e.Kind == crowd.Internal {
		s.log.ErrorContext(ctx, "request failed", "request", requestOf(ctx), "err", err)
		p.Detail, p.Hint = "something is broken in the broker, see its log for "+shortRequest(ctx), ""
	}
	return p
}

func document(e *crowd.Error, request string) *problem {
	p := &problem{Status: e.HTTPStatus(), Detail: e.Message, Instance: request, Code: e.Kind.String(), Reason: e.Reason, Hint: e.Hint}
	p.Type, p.Title = "/problems/"+p.Code, strings.ToLower(http.StatusText(p.Status))
	if e.Reason != "" {
		p.Type, p.Title = "/problems/"+string(e.Reason), crowd.Reasons[e.Reason].Means
	}
	p.Detail = secretForm.ReplaceAllString(p.Detail, "ck_…") // it may quote what somebody mistyped
	for _, f := range e.Faults {
		if !strings.HasPrefix(f.Path, "body") && !strings.HasPrefix(f.Path, "query") && !strings.HasPrefix(f.Path, "path") {
			f.Path = strings.TrimSuffix("body."+f.Path, ".")
		}
		p.Errors = append(p.Errors, f)
	}
	return p
}

// fail answers with a problem, if nothing was answered yet.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	writeProblem(w, s.problem(r.Context(), err))
}

func writeProblem(w http.ResponseWriter, p *problem) {
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	for _, k := range []string{"ETag", "Content-Length", "Content-Disposition", "Location"} {
		w.Header().Del(k)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return crowd.Errorf(crowd.Internal, "", "encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
	return nil
}

// hookErrors makes huma's own refusals (a field that isn't there, a number out of range) problems of ours. huma keeps this in variables of its
// package; nobody else in this program uses it.
var hookErrors = sync.OnceFunc(func() {
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		e := &crowd.Error{Kind: crowd.KindOf("", status), Status: status, Message: msg}
		if e.Kind == crowd.Invalid {
			e.Reason = crowd.CustomerFile
		}
		for _, err := range errs {
			f := crowd.Fault{Path: "body", Text: err.Error()}
			if d, ok := err.(huma.ErrorDetailer); ok {
				x := d.ErrorDetail()
				f = crowd.Fault{Path: x.Location, Text: x.Message}
			}
			e.Faults = append(e.Faults, f)
		}
		if len(e.Faults) > 0 {
			e.Message = fmt.Sprintf("%s: %s", strings.TrimPrefix(e.Faults[0].Path, "body."), e.Faults[0].Text)
		}
		id := ""
		if ctx != nil {
			id = requestOf(ctx.Context())
		}
		return document(e, id)
	}
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return huma.NewErrorWithContext(nil, status, msg, errs...)
	}
})

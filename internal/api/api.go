// Package api is the broker's face over HTTP: JSON resources under /v1 with an OpenAPI 3.1 description made from the handlers, the hosts'
// link, and a few pages for people. It holds no state of its own but rates: every decision is the broker's.
//
// Every answer that isn't 2xx or 304 is a problem document (RFC 9457) whose code is the kind of error, so that a client sees the
// broker's own error. What a caller may not see looks like what isn't there.
package api

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
)

// Options of New.
type Options struct {
	Log     *slog.Logger // nil: none
	Version string
	// TrustLoopback lets requests from this machine use scope operate. Leave it off behind a proxy on this machine; requests that carry a
	// Forwarded header never count as local.
	TrustLoopback bool
}

// Broker is what the API asks of a broker.
type face = *broker.Broker

type server struct {
	b    face
	log  *slog.Logger
	o    Options
	mux  *routes
	huma huma.API
	nets netRates
	open atOnce
}

// New makes the handler of everything on the broker's port. Requests should end with the server's base context, so that watchers let a shutdown pass.
func New(b *broker.Broker, o Options) http.Handler { return newServer(b, o).chain() }

func newServer(b *broker.Broker, o Options) *server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	hookErrors()
	s := &server{b: b, log: o.Log, o: o, mux: &routes{}}
	c := huma.DefaultConfig("Crowdcloud", o.Version)
	c.CreateHooks, c.DocsPath, c.SchemasPath = nil, "", ""
	c.RejectUnknownQueryParameters = true
	c.Info.Description = "Rent idle machines, or lend yours. Money is in micro-credits (_ucr), sizes in _bytes, spans in _seconds. " +
		"A ref is a full id, a short id (prefix and last six letters) or a name. Unknown request fields are refused; ignore unknown answer fields."
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer", BearerFormat: "ck_…"}}
	c.Security = []map[string][]string{{"key": {}}}
	s.huma = humago.New(s.mux, c)
	s.accountRoutes()
	s.jobRoutes()
	s.unitRoutes()
	s.blobRoutes()
	s.hostRoutes()
	s.eventRoutes()
	s.pageRoutes()
	for _, p := range s.mux.patterns { // huma makes its descriptions when they are first asked for, which two may do at once
		if path, ok := strings.CutPrefix(p, "GET /openapi"); ok {
			s.mux.ServeHTTP(&discard{h: http.Header{}}, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/openapi" + path}, Header: http.Header{}})
		}
	}
	return s
}

// list is a page of things, newest first where they have an age; next is null at the end.
type list[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next"`
}

func page[T any](items []T, next string) *out[list[T]] {
	if items == nil {
		items = []T{}
	}
	l := list[T]{Items: items}
	if next != "" {
		l.Next = &next
	}
	return &out[list[T]]{Body: l}
}

type out[T any] struct{ Body T }

type empty struct{}

// RefIn is the path parameter of most operations; embedded, and so exported, as the parts below.
type RefIn struct {
	Ref string `path:"ref" maxLength:"120" doc:"full id, short id or name"`
}

// Paging is where a page starts and how long it is.
type Paging struct {
	Limit int    `query:"limit" minimum:"0" maximum:"1000" doc:"default 50"`
	After string `query:"after" maxLength:"200" doc:"cursor: next of the page before"`
}

// handle registers an operation that JSON in and out is enough for.
func handle[I, O any](s *server, method, path, id, summary string, status int, f func(ctx context.Context, c broker.Caller, in *I) (*O, error)) {
	huma.Register(s.huma, huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, DefaultStatus: status, MaxBodyBytes: crowd.Limits.RequestBody},
		func(ctx context.Context, in *I) (*O, error) {
			out, err := f(ctx, callerOf(ctx), in)
			if err != nil {
				return nil, s.problem(ctx, err)
			}
			return out, nil
		})
}

// raw registers an operation that speaks HTTP itself and describes it.
func (s *server) raw(op huma.Operation, pattern string, f func(w http.ResponseWriter, r *http.Request) error) {
	if pattern == "" {
		pattern = op.Path
	}
	known := map[string]bool{}
	for _, p := range op.Parameters {
		known[p.Name] = p.In == "query"
	}
	s.mux.HandleFunc(op.Method+" "+pattern, func(w http.ResponseWriter, r *http.Request) {
		err := onlyKnown(r, known)
		if err == nil {
			err = f(w, r)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	})
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = &huma.Response{Description: "problem", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: schemaOf[problem](s)}}}
	s.huma.OpenAPI().AddOperation(&op)
}

// onlyKnown refuses query parameters that an operation hasn't got.
func onlyKnown(r *http.Request, known map[string]bool) error {
	e := crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "")
	for _, k := range slices.Sorted(maps.Keys(r.URL.Query())) {
		if !known[k] {
			e.Faults = append(e.Faults, crowd.Fault{Path: "query." + clip(k), Text: "no such parameter"})
		}
	}
	if len(e.Faults) == 0 {
		return nil
	}
	e.Message = e.Faults[0].Path + ": " + e.Faults[0].Text
	return e
}

func schemaOf[T any](s *server) *huma.Schema {
	return s.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
}

// answers describes a 2xx of a raw operation.
func answers[T any](s *server, status, description string) map[string]*huma.Response {
	return map[string]*huma.Response{status: {Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: schemaOf[T](s)}}}}
}

func param(name, in, doc string) *huma.Param {
	return &huma.Param{Name: name, In: in, Description: doc, Required: in == "path", Schema: &huma.Schema{Type: "string"}}
}

// slow is how long a request's body may take (an upload's: between two reads), and how long an answer may find nobody who takes it.
var slow = 30 * time.Second

const (
	beatEvery = 15 * time.Second // of an event stream that has nothing to say
	maxWait   = 60 * time.Second // Prefer: wait=
)

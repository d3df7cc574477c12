package api

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crowdcloud/crowd"
)

func sortedReasons() []crowd.Reason { return slices.Sorted(maps.Keys(crowd.Reasons)) }

// pageRoutes are what people and machines read without a key, and /metrics.
func (s *server) pageRoutes() {
	text := func(w http.ResponseWriter, t string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(t))
	}
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, "ok\n") })
	s.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { text(w, "ready\n") })
	s.mux.HandleFunc("GET /j/{token}", func(w http.ResponseWriter, _ *http.Request) {
		text(w, "This link lends a machine to the crowd: once, within an hour.\n\n"+
			"On the machine that you want to lend, type\n\n  crowd join 'LINK'\n\n"+
			"with the whole link from your address bar, the part after # included:\nit is how the machine knows that it speaks with the right broker.\n")
	})
	s.mux.HandleFunc("GET /schema/crowd.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/schema+json")
		_, _ = w.Write(crowd.Schema())
	})
	s.mux.HandleFunc("GET /problems/{code}", s.problemPage)
	s.mux.HandleFunc("GET /docs", s.docsPage)
	s.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/docs", http.StatusFound) })
	metrics := s.b.MetricsHandler()
	s.mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if c := callerOf(r.Context()); !c.Key.Has(crowd.ScopeOperate) || !c.Loopback {
			s.fail(w, r, crowd.Errorf(crowd.Denied, crowd.CustomerScope, "metrics need a key with scope operate, from the broker's own machine"))
			return
		}
		metrics.ServeHTTP(w, r)
	})
}

// problemPage says what a problem's type means.
func (s *server) problemPage(w http.ResponseWriter, r *http.Request) {
	code := r.PathValue("code")
	m, ok := crowd.Reasons[crowd.Reason(code)]
	if !ok && crowd.KindOf(code, 0) != crowd.Internal {
		m.Means, ok = "an error of kind "+code+"; its reason and hint say more", true
	}
	if !ok {
		s.fail(w, r, crowd.Errorf(crowd.NotFound, "", "there is no problem %s", clip(code)).WithHint("/v1/reasons lists them"))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s\n\n%s\n", code, m.Means)
	if m.WayOut != "" {
		fmt.Fprintf(w, "way out: %s\n", m.WayOut)
	}
}

const docsStyle = `body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b2330;background:#fbfbf9}
code{font:14px/1.5 ui-monospace,monospace}table{border-collapse:collapse;width:100%}td{padding:.3rem .6rem;border-top:1px solid #ddd;vertical-align:top}
td:first-child{width:4rem;color:#456}@media(prefers-color-scheme:dark){body{color:#dde3ea;background:#14181d}td{border-color:#333}td:first-child{color:#9ab}}`

var docsTemplate = template.Must(template.New("docs").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Crowdcloud API</title><style>{{.Style}}</style><h1>Crowdcloud API</h1><p>{{.About}}</p>
<p>Every request carries <code>Authorization: Bearer ck_…</code>. The whole description: <a href="/openapi.json">/openapi.json</a>.</p>
<table>{{range .Ops}}<tr><td><code>{{.Method}}</code><td><code>{{.Path}}</code><br>{{.Summary}}{{end}}</table></html>
`))

// docsPage lists the operations: one page without scripts, fonts or anything else from elsewhere.
func (s *server) docsPage(w http.ResponseWriter, _ *http.Request) {
	api := s.huma.OpenAPI()
	var ops []*huma.Operation
	for _, path := range slices.Sorted(maps.Keys(api.Paths)) {
		p := api.Paths[path]
		for _, op := range []*huma.Operation{p.Get, p.Head, p.Post, p.Put, p.Patch, p.Delete} {
			if op != nil {
				ops = append(ops, op)
			}
		}
	}
	sum := sha256.Sum256([]byte(docsStyle))
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	var b strings.Builder
	if err := docsTemplate.Execute(&b, map[string]any{"Style": template.CSS(docsStyle), "About": api.Info.Description, "Ops": ops}); err != nil {
		s.log.Error("docs page", "err", err)
	}
	_, _ = w.Write([]byte(b.String()))
}

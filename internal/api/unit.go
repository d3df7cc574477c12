package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
)

// pageBytes is how much content a page of results carries at most, once it has one unit.
const pageBytes = 4 << 20

func (s *server) unitRoutes() {
	handle(s, "GET", "/v1/jobs/{ref}/results", "list-results", "the units of a job in order: how each ended, and with=stdout or with=stderr what it wrote", 200, func(ctx context.Context, c broker.Caller, in *struct {
		RefIn
		UnitPaging
		With []string `query:"with" enum:"stdout,stderr"`
	}) (*out[list[crowd.UnitRow]], error) {
		return s.results(ctx, c, in.Ref, in.UnitPaging, in.With)
	})
	handle(s, "GET", "/v1/jobs/{ref}/logs", "list-logs", "stderr of decided units, in order", 200, func(ctx context.Context, c broker.Caller, in *struct {
		RefIn
		UnitPaging
		Failed bool `query:"failed" doc:"only units that failed"`
	}) (*out[list[crowd.LogRow]], error) {
		return s.logs(ctx, c, in.Ref, in.UnitPaging, in.Failed)
	})
	name, n := param("ref", "path", "id, short id or name"), param("unit", "path", "number of the unit")
	bytesOf := func(what string) map[string]*huma.Response {
		return map[string]*huma.Response{"200": {Description: what, Content: map[string]*huma.MediaType{"application/octet-stream": {}}}}
	}
	s.raw(huma.Operation{OperationID: "get-unit", Method: "GET", Path: "/v1/jobs/{ref}/units/{unit}", Summary: "how a decided unit ended", Parameters: []*huma.Param{name, n}, Responses: answers[crowd.UnitResult](s, "200", "its result")}, "", func(w http.ResponseWriter, r *http.Request) error {
		u, _, err := s.unit(r)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, u)
	})
	for _, which := range []string{"stdout", "stderr"} {
		s.raw(huma.Operation{OperationID: "get-unit-" + which, Method: "GET", Path: "/v1/jobs/{ref}/units/{unit}/" + which, Summary: "a decided unit's " + which, Parameters: []*huma.Param{name, n}, Responses: bytesOf(which)}, "", func(w http.ResponseWriter, r *http.Request) error {
			_, content, err := s.unit(r)
			if err != nil {
				return err
			}
			if which == "stderr" {
				writeBytes(w, content.Stderr)
			} else {
				writeBytes(w, content.Stdout)
			}
			return nil
		})
	}
	s.raw(huma.Operation{OperationID: "get-unit-file", Method: "GET", Path: "/v1/jobs/{ref}/units/{unit}/files/{path}", Summary: "a file that a decided unit left in /out", Parameters: []*huma.Param{name, n, param("path", "path", "as in its result; may hold slashes")}, Responses: bytesOf("the file")},
		"/v1/jobs/{ref}/units/{unit}/files/{path...}", func(w http.ResponseWriter, r *http.Request) error {
			u, content, err := s.unit(r)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(u.Files, func(f crowd.OutputFile) bool { return f.Path == r.PathValue("path") })
			if i < 0 {
				return crowd.Errorf(crowd.NotFound, "", "unit %s left no file %s", r.PathValue("unit"), clip(r.PathValue("path")))
			}
			writeBytes(w, content.Files[i])
			return nil
		})
}

func (s *server) unit(r *http.Request) (crowd.UnitResult, crowd.UnitContent, error) {
	n, err := strconv.ParseUint(r.PathValue("unit"), 10, 64)
	if err != nil {
		return crowd.UnitResult{}, crowd.UnitContent{}, crowd.Errorf(crowd.NotFound, "", "there is no unit %s", clip(r.PathValue("unit")))
	}
	leave, err := s.reading(r.Context())
	if err != nil {
		return crowd.UnitResult{}, crowd.UnitContent{}, err
	}
	defer leave()
	return s.b.UnitContent(r.Context(), callerOf(r.Context()), r.PathValue("ref"), n)
}

// writeBytes answers with a stranger's bytes: never to be looked at as anything else.
func writeBytes(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", "attachment")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b)
}

// walk goes along a page of units; each says how many bytes of content a unit added. It returns where the next page starts.
func (s *server) walk(ctx context.Context, c broker.Caller, name string, p UnitPaging, each func(crowd.UnitRow, *crowd.UnitContent) int) (next string, err error) {
	leave, err := s.reading(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	from, limit := p.from()
	size, n := 0, 0
	err = s.b.EachUnit(ctx, c, name, from, limit, func(u crowd.UnitRow, content *crowd.UnitContent) bool {
		size += each(u, content)
		if n++; n == limit || size > pageBytes {
			next = fmt.Sprint(u.Unit + 1)
		}
		return next == ""
	})
	return next, err
}

func (s *server) results(ctx context.Context, c broker.Caller, name string, p UnitPaging, with []string) (*out[list[crowd.UnitRow]], error) {
	stdout, stderr := slices.Contains(with, "stdout"), slices.Contains(with, "stderr")
	rows := []crowd.UnitRow{}
	next, err := s.walk(ctx, c, name, p, func(u crowd.UnitRow, content *crowd.UnitContent) int {
		x := u
		if content != nil && stdout {
			x.Stdout = bytes.Clone(content.Stdout) // else it would hold the whole chunk's
		}
		if content != nil && stderr {
			x.Stderr = bytes.Clone(content.Stderr)
		}
		rows = append(rows, x)
		return len(x.Stdout) + len(x.Stderr)
	})
	return page(rows, next), err
}

func (s *server) logs(ctx context.Context, c broker.Caller, name string, p UnitPaging, failed bool) (*out[list[crowd.LogRow]], error) {
	rows := []crowd.LogRow{}
	next, err := s.walk(ctx, c, name, p, func(u crowd.UnitRow, content *crowd.UnitContent) int {
		switch {
		case u.State == crowd.ChunkFailed:
			rows = append(rows, crowd.LogRow{Unit: u.Unit, Reason: crowd.HostFailed})
		case u.Result == nil || failed && !u.Result.Failed():
		case u.Result.Stderr > 0:
			rows = append(rows, crowd.LogRow{Unit: u.Unit, Exit: u.Result.Exit, Reason: u.Result.Reason, Stderr: bytes.Clone(content.Stderr)})
			return len(content.Stderr)
		case u.Result.Failed():
			rows = append(rows, crowd.LogRow{Unit: u.Unit, Exit: u.Result.Exit, Reason: u.Result.Reason, Stderr: []byte{}})
		}
		return 0
	})
	return page(rows, next), err
}

// contentRange reads "bytes 8388608-16777215/33554432", or a whole body of a known length.
func contentRange(r *http.Request) (offset, total int64, err error) {
	h := r.Header.Get("Content-Range")
	if h == "" {
		if r.ContentLength < 0 {
			return 0, 0, &crowd.Error{Kind: crowd.Invalid, Status: 400, Reason: crowd.CustomerFile, Message: "an upload says its length: Content-Length, or Content-Range: bytes 0-99/200"}
		}
		return 0, r.ContentLength, nil
	}
	spec, ok := strings.CutPrefix(h, "bytes ")
	span, size, cut := strings.Cut(spec, "/")
	first, last, dash := strings.Cut(span, "-")
	from, err1 := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	total, err3 := strconv.ParseInt(size, 10, 64)
	if !ok || !cut || !dash || err1 != nil || err2 != nil || err3 != nil || from < 0 || to < from || to >= total || r.ContentLength >= 0 && r.ContentLength != to-from+1 {
		return 0, 0, &crowd.Error{Kind: crowd.Invalid, Status: 400, Reason: crowd.CustomerFile, Message: fmt.Sprintf("wanted Content-Range: bytes FIRST-LAST/TOTAL, found %q", clip(h))}
	}
	return from, total, nil
}

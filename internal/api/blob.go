package api

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/link"
)

type have struct {
	Have int64 `json:"have_bytes"`
}

// haveHeader says in answers to HEAD how many bytes of a blob are there.
const haveHeader = "Crowd-Have-Bytes"

func (s *server) blobRoutes() {
	name := []*huma.Param{param("digest", "path", "b3: and 64 hex digits")}
	s.raw(huma.Operation{OperationID: "put-blob", Method: "PUT", Path: "/v1/blobs/{digest}", Summary: "upload content, whole or from where it broke off", Responses: answers[have](s, "202", "so many bytes are there; 201: all"),
		Parameters:  append(name, param("Content-Range", "header", "bytes FIRST-LAST/TOTAL; without it the body is the whole")),
		RequestBody: &huma.RequestBody{Content: map[string]*huma.MediaType{"application/octet-stream": {}}}}, "", s.putBlob)
	s.raw(huma.Operation{OperationID: "head-blob", Method: "HEAD", Path: "/v1/blobs/{digest}", Summary: "how much of it is there: 200 all, 202 some (" + haveHeader + "), 404 nothing of yours", Parameters: name}, "", s.headBlob)
	s.raw(huma.Operation{OperationID: "get-blob", Method: "GET", Path: "/v1/blobs/{digest}", Summary: "content of yours; takes Range", Parameters: name,
		Responses: map[string]*huma.Response{"200": {Description: "the bytes", Content: map[string]*huma.MediaType{"application/octet-stream": {}}}}}, "", s.getBlob)
	// for hosts, by the bearer of their link
	s.mux.HandleFunc("GET /v1/link/blobs/{digest}", s.hostBlob)
	s.mux.HandleFunc("PUT /v1/link/outcomes/{job}/{first}/{n}/{digest}", s.hostOutcome)
	s.mux.HandleFunc("PUT /v1/link/states/{job}/{first}/{n}/{seq}/{root}", s.hostState)
}

func (s *server) putBlob(w http.ResponseWriter, r *http.Request) error {
	d, err := crowd.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	offset, total, err := contentRange(r)
	if err != nil {
		return err
	}
	n, err := s.b.PutBlob(r.Context(), callerOf(r.Context()), d, offset, total, unhurried(w, r))
	if err != nil {
		w.Header().Set(haveHeader, strconv.FormatInt(n, 10))
		return err
	}
	status := http.StatusAccepted
	if n == total {
		status = http.StatusCreated
	}
	return writeJSON(w, status, have{n})
}

// unhurried is a body that may take long as a whole, but not between two reads.
func unhurried(w http.ResponseWriter, r *http.Request) io.Reader {
	return &timedBody{ReadCloser: r.Body, rc: http.NewResponseController(w), each: true}
}

// timedBody gives up on a body that comes too slowly. Once it has ended there is no deadline any more: it would end the handler's context.
type timedBody struct {
	io.ReadCloser
	rc      *http.ResponseController
	each    bool // a deadline for each read, not for all together
	started time.Time
	n       int64
}

func (b *timedBody) Read(p []byte) (int, error) {
	now := time.Now()
	switch first := b.started.IsZero(); {
	case first:
		b.started = now
		fallthrough
	case b.each:
		_ = b.rc.SetReadDeadline(pace(b.started, b.n, now))
	}
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if errors.Is(err, io.EOF) { // else what is left of it has no more time than it had
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (s *server) headBlob(w http.ResponseWriter, r *http.Request) error {
	d, err := crowd.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	n, whole, err := s.b.HasBlob(r.Context(), callerOf(r.Context()), d)
	if err != nil {
		return err
	}
	w.Header().Set(haveHeader, strconv.FormatInt(n, 10))
	switch {
	case whole:
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	case n > 0:
		w.WriteHeader(http.StatusAccepted)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	return nil
}

func (s *server) getBlob(w http.ResponseWriter, r *http.Request) error {
	d, err := crowd.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	f, err := s.b.OpenBlob(r.Context(), callerOf(r.Context()), d)
	if err != nil {
		return err
	}
	serveBlob(w, r, d, f)
	return nil
}

func serveBlob(w http.ResponseWriter, r *http.Request, d crowd.Digest, f io.ReadSeekCloser) {
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", "attachment")
	w.Header().Set("ETag", `"`+d.String()+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}

func (s *server) hostBlob(w http.ResponseWriter, r *http.Request) {
	secret, _ := bearer(r)
	d, err := crowd.ParseDigest(r.PathValue("digest"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f, err := s.b.HostOpenBlob(r.Context(), secret, d)
	if err != nil {
		s.failHost(w, r, err)
		return
	}
	serveBlob(w, r, d, f)
}

func (s *server) hostOutcome(w http.ResponseWriter, r *http.Request) {
	secret, _ := bearer(r)
	d, err := crowd.ParseDigest(r.PathValue("digest"))
	if err == nil {
		var at crowd.AttemptRef
		if at, err = attemptOf(r); err == nil {
			err = s.b.HostPutOutcome(r.Context(), secret, at, d, unhurried(w, r))
		}
	}
	if err != nil {
		if crowd.KindIs(err, crowd.Invalid) {
			s.b.HostSentGarbage(secret)
		}
		s.failHost(w, r, err)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// hostState keeps a checkpoint; see crowd.StateBytes.
func (s *server) hostState(w http.ResponseWriter, r *http.Request) {
	secret, _ := bearer(r)
	u, sig, err := stateOf(r)
	if err == nil {
		var answer crowd.StateAnswer
		if answer, err = s.b.HostPutState(r.Context(), secret, u, sig, unhurried(w, r)); err == nil {
			_ = writeJSON(w, http.StatusOK, map[string]crowd.StateAnswer{"answer": answer})
			return
		}
	}
	s.failHost(w, r, err)
}

func stateOf(r *http.Request) (u crowd.UnitState, sig []byte, err error) {
	if u.AttemptRef, err = attemptOf(r); err != nil {
		return u, nil, err
	}
	if u.Root, err = crowd.ParseDigest(r.PathValue("root")); err != nil {
		return u, nil, err
	}
	var err1, err2 error
	u.Seq, err1 = strconv.ParseInt(r.PathValue("seq"), 10, 64)
	u.Fuel, err2 = strconv.ParseUint(r.URL.Query().Get("fuel"), 10, 63)
	sig, err = base64.StdEncoding.DecodeString(r.Header.Get("Crowd-Signature"))
	if err1 != nil || err2 != nil || err != nil {
		return u, nil, crowd.Errorf(crowd.Invalid, "", "a checkpoint has a number, ?fuel= and a signature")
	}
	return u, sig, nil
}

// failHost refuses a host; who guesses at bearers is slowed down.
func (s *server) failHost(w http.ResponseWriter, r *http.Request, err error) {
	if crowd.KindIs(err, crowd.Denied) {
		if e := s.nets.allow(link.Network(r.RemoteAddr), true, time.Now()); e != nil {
			err = e
		}
	}
	s.fail(w, r, err)
}

func attemptOf(r *http.Request) (a crowd.AttemptRef, err error) {
	if err := a.Job.UnmarshalText([]byte(r.PathValue("job"))); err != nil {
		return a, err
	}
	first, err1 := strconv.ParseUint(r.PathValue("first"), 10, 64)
	n, err2 := strconv.Atoi(r.PathValue("n"))
	if err1 != nil || err2 != nil {
		return a, crowd.Errorf(crowd.Invalid, "", "%s/%s is no attempt", clip(r.PathValue("first")), clip(r.PathValue("n")))
	}
	a.First, a.N = first, n
	return a, nil
}

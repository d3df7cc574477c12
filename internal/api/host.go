package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/link"
)

type token struct {
	Link    string    `json:"link"`
	Expires time.Time `json:"expires"`
}

func (s *server) hostRoutes() {
	handle(s, "GET", "/v1/hosts", "list-hosts", "the caller's machines; all=true for operators", 200, func(ctx context.Context, c broker.Caller, in *struct {
		All bool `query:"all"`
	}) (*out[list[crowd.HostRow]], error) {
		all, err := s.b.Hosts(ctx, c, in.All)
		return page(all, ""), err
	})
	handle(s, "GET", "/v1/hosts/{ref}", "get-host", "a machine with the facts of the moment", 200, func(ctx context.Context, c broker.Caller, in *RefIn) (*out[crowd.HostRow], error) {
		h, err := s.b.Host(ctx, c, in.Ref)
		return &out[crowd.HostRow]{Body: h}, err
	})
	handle(s, "DELETE", "/v1/hosts/{ref}", "remove-host", "take a machine out of the crowd; of one that left: no change", 204, func(ctx context.Context, c broker.Caller, in *RefIn) (*empty, error) {
		return nil, s.b.RemoveHost(ctx, c, in.Ref)
	})
	handle(s, "POST", "/v1/tokens", "create-token", "a join link: one machine, within an hour", 201, func(ctx context.Context, c broker.Caller, in *struct {
		Body struct {
			TTL int64 `json:"ttl_seconds,omitempty" minimum:"0" maximum:"3600" doc:"0: an hour"`
		}
	}) (*out[token], error) {
		l, until, err := s.b.MakeToken(ctx, c, time.Duration(in.Body.TTL)*time.Second)
		return &out[token]{Body: token{l, until}}, err
	})
	s.raw(huma.Operation{OperationID: "join", Method: "POST", Path: "/v1/hosts/join", Summary: "enrol a machine by a join link's token; needs no API key", Security: []map[string][]string{},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schemaOf[crowd.JoinRequest](s)}}},
		Responses:   answers[crowd.Host](s, "201", "enrolled")}, "", s.join)
}

func (s *server) join(w http.ResponseWriter, r *http.Request) error {
	var q crowd.JoinRequest
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "the join request makes no sense: %v", err)
	}
	h, err := s.b.Join(r.Context(), link.Network(r.RemoteAddr), q)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/hosts/"+h.ID.String())
	return writeJSON(w, http.StatusCreated, h)
}

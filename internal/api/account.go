package api

import (
	"context"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
)

// me is the caller: the account, its money (with scope read) and the key it came with.
type me struct {
	crowd.Account
	Balances *crowd.Balances `json:"balances,omitempty" doc:"with scope read"`
	Key      crowd.Key       `json:"key"`
}

// newAccount is an account with its first key, newKey a key; the secret is told only here.
type newAccount struct {
	crowd.Account
	Secret string `json:"secret" doc:"its first API key (read, order, lend); told only here"`
}

type newKey struct {
	crowd.Key
	Secret string `json:"secret" doc:"told only here"`
}

type grant struct {
	ID     string    `json:"id,omitempty" maxLength:"120" doc:"the same id twice is one grant"`
	Amount crowd.UCR `json:"amount_ucr"`
}

type keyRequest struct {
	Body struct {
		Scopes []crowd.Scope `json:"scopes" doc:"read, order, lend, s3, operate"`
		Cap    crowd.UCR     `json:"cap_ucr,omitempty" doc:"what orders under the key may hold in all; 0: no cap"`
		TTL    int64         `json:"ttl_seconds,omitempty" minimum:"0" maximum:"3153600000" doc:"0: for ever"`
	}
}

func (s *server) accountRoutes() {
	handle(s, "GET", "/v1/accounts/me", "get-me", "who asks, with balances", 200, func(ctx context.Context, c broker.Caller, _ *empty) (*out[me], error) {
		x := &out[me]{Body: me{Account: c.Account, Key: c.Key}}
		if !c.Key.Has(crowd.ScopeRead) {
			return x, nil
		}
		b, err := s.b.Balances(ctx, c)
		x.Body.Balances = &b
		return x, err
	})
	handle(s, "POST", "/v1/accounts", "create-account", "make an account (operators)", 201, func(ctx context.Context, c broker.Caller, in *struct {
		Body struct {
			Name string `json:"name"`
		}
	}) (*out[newAccount], error) {
		a, secret, err := s.b.CreateAccount(ctx, c, in.Body.Name)
		return &out[newAccount]{Body: newAccount{a, secret}}, err
	})
	handle(s, "POST", "/v1/accounts/{ref}/grants", "grant", "give an account credit (operators)", 201, func(ctx context.Context, c broker.Caller, in *struct {
		RefIn
		Body grant
	}) (*out[grant], error) {
		return &out[grant]{Body: in.Body}, s.b.Grant(ctx, c, in.Ref, in.Body.Amount, in.Body.ID)
	})
	handle(s, "GET", "/v1/keys", "list-keys", "the caller's API keys", 200, func(ctx context.Context, c broker.Caller, _ *empty) (*out[list[crowd.Key]], error) {
		all, err := s.b.Keys(ctx, c)
		return page(all, ""), err
	})
	handle(s, "POST", "/v1/keys", "create-key", "make a key that may do no more than the caller's", 201, func(ctx context.Context, c broker.Caller, in *keyRequest) (*out[newKey], error) {
		k, secret, err := s.b.CreateKey(ctx, c, in.Body.Scopes, in.Body.Cap, time.Duration(in.Body.TTL)*time.Second)
		return &out[newKey]{Body: newKey{k, secret}}, err
	})
	handle(s, "DELETE", "/v1/keys/{ref}", "delete-key", "remove a key, at once", 204, func(ctx context.Context, c broker.Caller, in *RefIn) (*empty, error) {
		return nil, s.b.DeleteKey(ctx, c, in.Ref)
	})
	handle(s, "GET", "/v1/postings", "list-postings", "every movement of the caller's credit", 200, func(ctx context.Context, c broker.Caller, in *Paging) (*out[list[crowd.Posting]], error) {
		p, next, err := s.b.Statement(ctx, c, in.After, in.Limit)
		return page(p, next), err
	})
}

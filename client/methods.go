package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
)

func at(parts ...string) string {
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return "/v1/" + strings.Join(parts, "/")
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	out := new(T)
	return out, c.json(ctx, call{method: http.MethodGet, path: path, query: query}, out)
}

func post[T any](ctx context.Context, c *Client, path string, in any) (*T, error) {
	out := new(T)
	return out, c.json(ctx, call{method: http.MethodPost, path: path, in: in}, out)
}

func (c *Client) remove(ctx context.Context, path string) error {
	return c.json(ctx, call{method: http.MethodDelete, path: path}, nil)
}

// Page says which part of a list is wanted.
type Page struct {
	Limit int    // 0: 50
	After string // a cursor
}

func (p Page) query() url.Values {
	q := url.Values{}
	if p.Limit > 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	if p.After != "" {
		q.Set("after", p.After)
	}
	return q
}

// Me is the account and key that the client speaks for.
func (c *Client) Me(ctx context.Context) (*Me, error) {
	return get[Me](ctx, c, at("accounts", "me"), nil)
}

// CreateAccount makes an account (operators).
func (c *Client) CreateAccount(ctx context.Context, name string) (*NewAccount, error) {
	return post[NewAccount](ctx, c, at("accounts"), map[string]string{"name": name})
}

// Grant gives an account credit (operators). The same id twice is one grant.
func (c *Client) Grant(ctx context.Context, account string, g Grant) (*Grant, error) {
	return post[Grant](ctx, c, at("accounts", account, "grants"), g)
}

// Keys lists the account's API keys.
func (c *Client) Keys(ctx context.Context) (*List[crowd.Key], error) {
	return get[List[crowd.Key]](ctx, c, at("keys"), nil)
}

// CreateKey makes a key that may do no more than the client's own. spendCap 0: none; ttl 0: for ever.
func (c *Client) CreateKey(ctx context.Context, scopes []crowd.Scope, spendCap crowd.UCR, ttl time.Duration) (*NewKey, error) {
	return post[NewKey](ctx, c, at("keys"), map[string]any{"scopes": scopes, "cap_ucr": spendCap, "ttl_seconds": int64(ttl / time.Second)})
}

// DeleteKey removes a key, at once.
func (c *Client) DeleteKey(ctx context.Context, ref string) error {
	return c.remove(ctx, at("keys", ref))
}

// Statement lists every movement of the account's credit.
func (c *Client) Statement(ctx context.Context, p Page) (*List[crowd.Posting], error) {
	return get[List[crowd.Posting]](ctx, c, at("postings"), p.query())
}

// Submit orders a job whose program and inputs the broker has, at the price of a quote ("": of now).
func (c *Client) Submit(ctx context.Context, spec *crowd.JobSpec, quote string) (*crowd.Job, error) {
	q := call{method: http.MethodPost, path: at("jobs"), in: spec}
	if quote != "" {
		q.query = url.Values{"quote": {quote}}
	}
	j := &crowd.Job{}
	return j, c.json(ctx, q, j)
}

// Quote asks what an order would cost and who fits.
func (c *Client) Quote(ctx context.Context, spec *crowd.JobSpec) (*crowd.Quote, error) {
	return post[crowd.Quote](ctx, c, at("quotes"), spec)
}

// JobsFilter selects jobs.
type JobsFilter struct {
	Page
	State  crowd.JobState
	Label  string // KEY=VALUE
	Living bool
	Since  time.Time
}

// Jobs lists jobs, newest first.
func (c *Client) Jobs(ctx context.Context, f JobsFilter) (*List[crowd.Job], error) {
	q := f.query()
	if f.State != "" {
		q.Set("state", string(f.State))
	}
	if f.Label != "" {
		q.Set("label", f.Label)
	}
	if f.Living {
		q.Set("living", "true")
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339))
	}
	return get[List[crowd.Job]](ctx, c, at("jobs"), q)
}

// Job is a job with its hosts and reasons.
func (c *Client) Job(ctx context.Context, ref string) (*crowd.JobDetail, error) {
	return get[crowd.JobDetail](ctx, c, at("jobs", ref), nil)
}

// CancelJob pays what is done and returns the rest; of an ended job it changes nothing.
func (c *Client) CancelJob(ctx context.Context, ref string) (*crowd.Job, error) {
	return post[crowd.Job](ctx, c, at("jobs", ref, "cancel"), nil)
}

// Results lists units in order from one on; with may name "stdout" and "stderr". Next is where to go on, nil at the end.
func (c *Client) Results(ctx context.Context, ref string, from uint64, limit int, with ...string) (*List[crowd.UnitRow], error) {
	q := Page{Limit: limit}.query()
	q.Set("from", strconv.FormatUint(from, 10))
	if len(with) > 0 {
		q.Set("with", strings.Join(with, ","))
	}
	return get[List[crowd.UnitRow]](ctx, c, at("jobs", ref, "results"), q)
}

// Logs lists stderr of decided units in order from one on.
func (c *Client) Logs(ctx context.Context, ref string, from uint64, limit int, failed bool) (*List[crowd.LogRow], error) {
	q := Page{Limit: limit}.query()
	q.Set("from", strconv.FormatUint(from, 10))
	if failed {
		q.Set("failed", "true")
	}
	return get[List[crowd.LogRow]](ctx, c, at("jobs", ref, "logs"), q)
}

// Unit is how a decided unit ended; Conflict if it isn't decided yet.
func (c *Client) Unit(ctx context.Context, ref string, unit uint64) (*crowd.UnitResult, error) {
	return get[crowd.UnitResult](ctx, c, at("jobs", ref, "units", strconv.FormatUint(unit, 10)), nil)
}

// UnitStdout, UnitStderr and UnitFile read what a decided unit left behind.
func (c *Client) UnitStdout(ctx context.Context, ref string, unit uint64) ([]byte, error) {
	return c.bytes(ctx, at("jobs", ref, "units", strconv.FormatUint(unit, 10), "stdout"))
}

// UnitStderr reads a decided unit's stderr.
func (c *Client) UnitStderr(ctx context.Context, ref string, unit uint64) ([]byte, error) {
	return c.bytes(ctx, at("jobs", ref, "units", strconv.FormatUint(unit, 10), "stderr"))
}

// UnitFile reads a file that a decided unit left in /out.
func (c *Client) UnitFile(ctx context.Context, ref string, unit uint64, path string) ([]byte, error) {
	parts := append([]string{"jobs", ref, "units", strconv.FormatUint(unit, 10), "files"}, strings.Split(path, "/")...)
	return c.bytes(ctx, at(parts...))
}

func (c *Client) bytes(ctx context.Context, path string) ([]byte, error) {
	resp, err := c.do(ctx, call{method: http.MethodGet, path: path})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, c.refusal(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, crowd.Limits.OutcomeBytes+1))
	if err != nil {
		return nil, c.gaveUp(ctx, err, 1, 0)
	}
	return b, nil
}

// Attempts lists who tried, by chunk and number.
func (c *Client) Attempts(ctx context.Context, ref string, p Page) (*List[crowd.Attempt], error) {
	return get[List[crowd.Attempt]](ctx, c, at("jobs", ref, "attempts"), p.query())
}

// Chunks lists the chunks touched so far.
func (c *Client) Chunks(ctx context.Context, ref string, p Page) (*List[crowd.Chunk], error) {
	return get[List[crowd.Chunk]](ctx, c, at("jobs", ref, "chunks"), p.query())
}

// Why explains a job, JOB/UNIT, a host or a reason code.
func (c *Client) Why(ctx context.Context, ref string) (*crowd.Why, error) {
	return get[crowd.Why](ctx, c, at(append([]string{"why"}, strings.Split(ref, "/")...)...), nil)
}

// Hosts lists the account's machines; all: everybody's (operators).
func (c *Client) Hosts(ctx context.Context, all bool) (*List[crowd.HostRow], error) {
	q := url.Values{}
	if all {
		q.Set("all", "true")
	}
	return get[List[crowd.HostRow]](ctx, c, at("hosts"), q)
}

// Host is a machine with the facts of the moment.
func (c *Client) Host(ctx context.Context, ref string) (*crowd.HostRow, error) {
	return get[crowd.HostRow](ctx, c, at("hosts", ref), nil)
}

// RemoveHost takes a machine out of the crowd.
func (c *Client) RemoveHost(ctx context.Context, ref string) error {
	return c.remove(ctx, at("hosts", ref))
}

// CreateToken makes a join link: one machine, within ttl (0: an hour).
func (c *Client) CreateToken(ctx context.Context, ttl time.Duration) (*Token, error) {
	return post[Token](ctx, c, at("tokens"), map[string]int64{"ttl_seconds": int64(ttl / time.Second)})
}

// Status is the operator's view.
func (c *Client) Status(ctx context.Context) (*crowd.Status, error) {
	return get[crowd.Status](ctx, c, at("status"), nil)
}

// EventList lists events after a number, of one thing or of all.
func (c *Client) EventList(ctx context.Context, of string, after int64, limit int) (*List[crowd.Event], error) {
	q := Page{Limit: limit, After: fmt.Sprint(after)}.query()
	if of != "" {
		q.Set("of", of)
	}
	return get[List[crowd.Event]](ctx, c, at("events"), q)
}

// Ready reports whether the broker answers at all; it needs no key.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.bytes(ctx, "/readyz")
	return err
}

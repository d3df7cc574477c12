package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/crowdcloud/crowd"
)

// WatchJob yields the job as it is and then whenever it changed, until it has ended (that one included), an error, or ctx ends.
func (c *Client) WatchJob(ctx context.Context, ref string) iter.Seq2[*crowd.JobDetail, error] {
	return func(yield func(*crowd.JobDetail, error) bool) {
		d, err := c.Job(ctx, ref)
		for {
			if !yield(d, err) || err != nil || d.State.Ended() {
				return
			}
			next, e := c.changed(ctx, d)
			if e != nil {
				d, err = nil, e
			} else {
				d = next
			}
		}
	}
}

// changed waits until a job differs from d.
func (c *Client) changed(ctx context.Context, d *crowd.JobDetail) (*crowd.JobDetail, error) {
	h := http.Header{"Prefer": {"wait=30"}, "If-None-Match": {`"` + strconv.FormatInt(d.Version, 10) + `"`}}
	for {
		resp, err := c.do(ctx, call{method: http.MethodGet, path: at("jobs", d.ID.String()), header: h})
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusNotModified {
			_ = resp.Body.Close()
			continue
		}
		if resp.StatusCode != http.StatusOK {
			err = c.refusal(resp)
			_ = resp.Body.Close()
			return nil, err
		}
		next := &crowd.JobDetail{}
		err = json.NewDecoder(resp.Body).Decode(next)
		_ = resp.Body.Close()
		switch {
		case ctx.Err() != nil:
			return nil, c.waited(ctx.Err())
		case err == nil:
			return next, nil
		}
	}
}

// Events yields what happens to one thing (of "" is all) after a number, as it happens, until ctx ends. A broken connection is taken up where it broke.
func (c *Client) Events(ctx context.Context, of string, after int64) iter.Seq2[crowd.Event, error] {
	return func(yield func(crowd.Event, error) bool) {
		for {
			err := c.stream(ctx, of, &after, yield)
			switch {
			case errors.Is(err, errEnough):
				return
			case err != nil:
				yield(crowd.Event{}, err)
				return
			}
		}
	}
}

var errEnough = errors.New("enough")

func (c *Client) stream(ctx context.Context, of string, after *int64, yield func(crowd.Event, error) bool) error {
	q := url.Values{}
	if of != "" {
		q.Set("of", of)
	}
	resp, err := c.do(ctx, call{method: http.MethodGet, path: at("events"), query: q, header: http.Header{"Accept": {"text/event-stream"}, "Last-Event-Id": {strconv.FormatInt(*after, 10)}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.refusal(resp)
	}
	lines := bufio.NewScanner(io.Reader(resp.Body))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		var e crowd.Event
		if !ok || json.Unmarshal([]byte(data), &e) != nil {
			continue
		}
		*after = e.Seq
		if !yield(e, nil) {
			return errEnough
		}
	}
	if ctx.Err() != nil {
		return c.waited(ctx.Err())
	}
	return nil
}

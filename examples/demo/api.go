package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// api reads the broker's API with plain HTTP, as any customer's script would.
type api struct{ base, key string }

type jobDetail struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Units uint64 `json:"units"`
	State string `json:"state"`
	Spec  struct {
		Chunk  uint64 `json:"chunk"`
		Verify struct {
			Quorum int `json:"quorum"`
		} `json:"verify"`
	} `json:"spec"`
	Reason   string `json:"reason"`
	Held     int64  `json:"held_ucr"`
	Paid     int64  `json:"paid_ucr"`
	Returned int64  `json:"returned_ucr"`
	Version  int64  `json:"version"`
	Progress struct {
		UnitsDone uint64 `json:"units_done"`
	} `json:"progress"`
	Hosts []hostShare `json:"hosts"`
}

type hostShare struct {
	Name  string `json:"name"`
	Place struct {
		Jurisdiction string `json:"jurisdiction"`
	} `json:"place"`
	Counted int64 `json:"counted"`
	Differ  int64 `json:"differed"`
	Earned  int64 `json:"earned_ucr"`
}

type hostRow struct {
	Name     string            `json:"name"`
	Attempts []json.RawMessage `json:"attempts"`
}

type event struct {
	What   string `json:"event"`
	Reason string `json:"reason"`
	Text   string `json:"text"`
}

func (a api) request(ctx context.Context, path string, header ...string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+a.key)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return http.DefaultClient.Do(r)
}

func (a api) get(ctx context.Context, path string, into any, header ...string) error {
	resp, err := a.request(ctx, path, header...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(resp.Body).Decode(into)
	case http.StatusNotModified:
		return nil
	}
	return fmt.Errorf("GET %s: %s", path, resp.Status)
}

// wait returns when the thing differs from version, or after 30 s.
func (a api) wait(ctx context.Context, path string, version int64, into any) error {
	return a.get(ctx, path, into, "Prefer", "wait=30", "If-None-Match", fmt.Sprintf("%q", fmt.Sprint(version)))
}

// events calls tell for every event of one thing, until ctx ends; a broken stream is taken up where it ended.
func (a api) events(ctx context.Context, tell func(event), of string) error {
	last := "0"
	for ctx.Err() == nil {
		resp, err := a.request(ctx, "/v1/events?of="+of, "Accept", "text/event-stream", "Last-Event-ID", last)
		if err != nil {
			return err
		}
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				last = id
			}
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			var e event
			if ok && json.Unmarshal([]byte(data), &e) == nil {
				tell(e)
			}
		}
		resp.Body.Close()
	}
	return ctx.Err()
}

// attemptsOf is how many chunks of a job a host holds now.
func (s *story) attemptsOf(ctx context.Context, name string) (n int) {
	var status struct {
		Items []hostRow `json:"items"`
	}
	if err := s.op.get(ctx, "/v1/hosts?all=true", &status); err != nil {
		return 0
	}
	for _, h := range status.Items {
		if h.Name == name {
			n = len(h.Attempts)
		}
	}
	return n
}

func short(id string) string {
	kind, rest, _ := strings.Cut(id, "_")
	return kind + "_" + rest[max(0, len(rest)-6):]
}

func thousands(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func credits(ucr int64) string { return fmt.Sprintf("%.2f", float64(ucr)/1e6) }

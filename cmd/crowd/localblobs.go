package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/guest"
)

// localBlobs are an order's own files, by digest, for a unit that runs here.
type localBlobs map[crowd.Digest]client.Upload

// Open gives content that would be uploaded. What the order names by digest alone is not here: NotFound.
func (l localBlobs) Open(_ context.Context, d crowd.Digest) (guest.Blob, error) {
	u, ok := l[d]
	if !ok {
		return nil, crowd.Errorf(crowd.NotFound, "", "%s is not on this machine", d.Short()).WithHint("name a file instead of a digest, to test it here")
	}
	c, err := u.Open()
	if err != nil {
		return nil, err
	}
	return localBlob{c, u.Size}, nil
}

type localBlob struct {
	client.Content
	size int64
}

func (b localBlob) Size() int64 { return b.size }

// item is a unit's own file: line UNIT of the list; nil if the job has none.
func (l localBlobs) item(s *crowd.JobSpec, unit uint64) (*crowd.Input, error) {
	if s.Units.Items.IsZero() {
		return nil, nil
	}
	u, ok := l[s.Units.Items]
	if !ok {
		return nil, crowd.Errorf(crowd.NotFound, "", "the list of files is not on this machine")
	}
	f, err := u.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	for n := uint64(0); ; n++ {
		line, err := r.ReadBytes('\n')
		if err != nil && (err != io.EOF || len(line) == 0) { //nolint:errorlint // bufio's contract
			return nil, crowd.Errorf(crowd.NotFound, "", "the list of files has no line %d", unit)
		}
		if n == unit {
			in := &crowd.Input{}
			return in, json.Unmarshal(line, in)
		}
	}
}

package api

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/store"
)

// decided puts a job of one decided chunk into the store: each unit wrote n bytes to stdout and as many to stderr.
func (w *world) decided(units uint64, n int) string {
	now := time.Now()
	ada := crowd.Account{}
	must(w.t, ada.ID.UnmarshalText([]byte(w.want(200, "GET", "/v1/accounts/me", w.ada, "").json(w.t)["id"].(string))))
	job := crowd.Job{Account: ada.ID, Name: "past", Units: units, State: crowd.JobRunning, Created: now, Version: 1}
	host := crowd.Host{Account: ada.ID, Name: "past", State: crowd.HostActive, Created: now}
	mint(&job.ID, now, [10]byte{1})
	mint(&host.ID, now, [10]byte{2})
	o, contents := &crowd.Outcome{Units: make([]crowd.UnitResult, units)}, make([]crowd.UnitContent, units)
	for i := range o.Units {
		c := bytes.Repeat([]byte(fmt.Sprintf("%07d\n", i)), n/8)
		contents[i] = crowd.UnitContent{Stdout: c, Stderr: c}
		o.Units[i] = crowd.UnitResult{Fuel: 1, Stdout: crowd.ContentRef{Digest: digest.Of(c), Size: int64(len(c))}, Stderr: int64(len(c))}
	}
	body := o.Body(contents)
	d := digest.Of(body)
	chunk := crowd.Chunk{Job: job.ID, Count: units, Need: 1, State: crowd.ChunkOpen}
	at := crowd.Attempt{Job: job.ID, Host: host.ID, Owner: ada.ID, Group: "g", State: crowd.AttemptLeased, LeasedAt: now}
	must(w.t, w.st.Apply(w.t.Context(), store.AddJob{Job: job}, store.PutHost{Host: host}, store.Lease{Chunk: chunk, Attempt: at}))
	at.State, at.EndedAt, at.Digest, at.Fuel = crowd.AttemptReported, now, digest.Of(o.Manifest()), o.Fuel()
	chunk.State, chunk.Version, chunk.Digest, chunk.Decided = crowd.ChunkDecided, 1, at.Digest, now
	must(w.t, w.st.Apply(w.t.Context(), store.PutBody{Job: job.ID, Digest: d, Body: body}, store.End{Attempt: at, Counts: true, Body: d}, store.Decide{Chunk: chunk, Body: d}))
	return job.ID.String()
}

// A page of results costs the bodies of its chunks once, not once a unit.
func TestResultsReadAChunkOnce(t *testing.T) {
	w := newWorld(t)
	id := w.decided(500, 2000)
	for _, what := range []string{"results?with=stdout,stderr&limit=1000", "logs?limit=1000"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		items := w.want(200, "GET", "/v1/jobs/"+id+"/"+what, w.ada, "").json(t)["items"].([]any)
		runtime.ReadMemStats(&after)
		if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; len(items) != 500 || mib > 100 {
			t.Errorf("%s: %d units took %d MiB", what, len(items), mib)
		}
		last := items[len(items)-1].(map[string]any)
		if last["stderr"] == nil || last["unit"] != float64(499) {
			t.Errorf("%s: %.100v", what, last)
		}
	}
	if a := w.want(200, "GET", "/v1/jobs/"+id+"/units/7/stdout", w.ada, ""); !bytes.HasPrefix(a.body, []byte("0000007\n")) {
		t.Errorf("%.80s", a.body)
	}
	// pages join
	n, pages := 0, 0
	for next := "0"; next != ""; pages++ {
		l := w.want(200, "GET", "/v1/jobs/"+id+"/results?with=stdout&limit=300&after="+next, w.ada, "").json(t)
		n += len(l["items"].([]any))
		if next = ""; l["next"] != nil {
			next = l["next"].(string)
		}
	}
	if n != 500 || pages != 2 {
		t.Errorf("%d units in %d pages", n, pages)
	}
}

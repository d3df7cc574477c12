package store

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// TestSoakProgress fills one job with CROWD_SOAK million decided chunks through Apply, 200 of them open at any time and the map saved every 100,000, and
// measures how long a start takes to learn what is done: CROWD_SOAK=20 go test -run SoakProgress -v -timeout 2h
func TestSoakProgress(t *testing.T) {
	millions, err := strconv.Atoi(os.Getenv("CROWD_SOAK"))
	if err != nil {
		t.Skip("CROWD_SOAK isn't set (to millions of chunks)")
	}
	dir := t.TempDir()
	s := open(t, dir)
	job := addJob(t, s, "soak")
	owner, host := newID[crowd.AccountID](), newID[crowd.HostID]()
	const size, lag, perList, perSave = 64, 200, 1000, 100_000
	n := uint64(millions) * 1_000_000
	var ops []Op
	began := time.Now()
	for i := range n {
		a := attempt(job.ID, i*size, 0, owner)
		a.Host = host
		ops = append(ops, Lease{chunk(job.ID, i*size, size), a})
		if i >= lag {
			k := i - lag
			if k%997 == 0 { // a straggler now and then: decided with the next one
				k++
			}
			if (i-lag)%997 != 1 {
				ops = append(ops, decided(chunk(job.ID, k*size, size), 1))
			} else {
				ops = append(ops, decided(chunk(job.ID, (k-1)*size, size), 1))
			}
		}
		if (i+1)%perSave == 0 {
			must(t, s.Apply(ctx, ops...))
			ops = ops[:0]
			p := must1(s.JobProgress(ctx, job.ID))(t)
			ops = append(ops, Done{job.ID, p.Next, p.Runs})
		}
		if len(ops) >= 2*perList {
			must(t, s.Apply(ctx, ops...))
			ops = ops[:0]
		}
		if (i+1)%1_000_000 == 0 {
			t.Logf("%d million in %s", (i+1)/1_000_000, time.Since(began).Round(time.Second))
		}
	}
	must(t, s.Apply(ctx, ops...))
	t.Logf("%d chunks leased and decided in %s: %.0f chunks/s", n, time.Since(began).Round(time.Second), float64(n)/time.Since(began).Seconds())
	must(t, s.Close())
	st := must1(os.Stat(filepath.Join(dir, "crowd.db")))(t)
	t.Logf("crowd.db: %d MiB, %d bytes a chunk", st.Size()>>20, st.Size()/int64(n))

	began = time.Now()
	s = open(t, dir)
	opened := time.Since(began)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began = time.Now()
	p := must1(s.JobProgress(ctx, job.ID))(t)
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	t.Logf("open %s, JobProgress %s, %d KiB allocated; %d runs, %d open chunks", opened, took, (after.TotalAlloc-before.TotalAlloc)>>10, len(p.Runs), len(p.Open))
	if p.Next != n*size || len(p.Open) < lag-2 || took > 2*time.Second {
		t.Errorf("next %d, %d open, took %s", p.Next, len(p.Open), took)
	}
	var units uint64
	for _, r := range p.Runs {
		units += r.Count
	}
	if units+uint64(len(p.Open))*size != n*size {
		t.Errorf("%d units decided", units)
	}
	began = time.Now()
	must1(s.Chunks(ctx, job.ID, n*size/2, 1000))(t)
	must1(s.ChunkOf(ctx, job.ID, n*size/3))(t)
	t.Logf("a page of 1,000 chunks and one chunk from the middle: %s", time.Since(began))
}

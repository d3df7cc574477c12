package broker

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/store"
)

// decidedBefore writes n decided chunks of 64 units, each with an attempt that earned 900 µcr of 1000, and some with one that was lost before it, as an
// earlier life of the broker would have left them. Only the last 100 000 aren't in the saved map. The broker must not run.
func decidedBefore(t testing.TB, w *world, j crowd.Job, n uint64, winner, loser *fake) {
	t.Helper()
	ctx := context.Background()
	st, err := store.Open(ctx, w.dir, store.Options{})
	must(t, err)
	const size, atOnce, unsaved = 64, 2000, 100_000
	now, d := time.Now(), digest.Of([]byte("outcome"))
	began := time.Now()
	ops := make([]store.Op, 0, 2*atOnce)
	replies := make(chan error, 4)
	flying := 0
	flush := func() {
		if flying == cap(replies) {
			must(t, <-replies)
			flying--
		}
		list := ops
		flying++
		go func() { replies <- st.Apply(ctx, list...) }()
		ops = make([]store.Op, 0, 2*atOnce)
	}
	for i := range n {
		c := crowd.Chunk{Job: j.ID, First: i * size, Count: size, Need: 1, State: crowd.ChunkDecided, Version: 1, Digest: d, Decided: now}
		a := crowd.Attempt{Job: j.ID, First: c.First, N: 1, Host: winner.host.ID, Owner: winner.owner.Account.ID, State: crowd.AttemptReported,
			LeasedAt: now, EndedAt: now, Digest: d, Fuel: 1e9, Paid: 900}
		if i+unsaved >= n { // as the broker writes them
			open, leased := c, a
			open.State, open.Version, open.Digest, open.Decided = crowd.ChunkOpen, 0, crowd.Digest{}, time.Time{}
			leased.State, leased.EndedAt, leased.Digest, leased.Fuel, leased.Paid = crowd.AttemptLeased, time.Time{}, crowd.Digest{}, 0, 0
			ops = append(ops, store.Lease{Chunk: open, Attempt: leased}, store.End{Attempt: a, Counts: true}, store.Decide{Chunk: c})
		} else {
			ops = append(ops, store.Lease{Chunk: c, Attempt: a}) // the same rows, in one step
		}
		if i%10 == 0 {
			a.N, a.Host, a.Owner, a.State, a.Reason, a.Paid, a.Fuel, a.Digest = 2, loser.host.ID, loser.owner.Account.ID, crowd.AttemptExpired, crowd.HostLost, 0, 0, crowd.Digest{}
			ops = append(ops, store.Lease{Chunk: c, Attempt: a})
		}
		if len(ops) >= atOnce {
			flush()
		}
		if (i+1)%2_000_000 == 0 {
			t.Logf("%d million rows in %s", (i+1)/1_000_000, time.Since(began).Round(time.Second))
		}
	}
	flush()
	for range flying {
		must(t, <-replies)
	}
	job, err := st.Job(ctx, j.ID)
	must(t, err)
	job.State, job.Started = crowd.JobRunning, now
	saved := (n - min(n, unsaved)) * size
	legs, err := ledger.Verdict(j.ID, 0, 1, []ledger.Pay{{Owner: winner.owner.Account.ID, Amount: crowd.UCR(n) * 900}}, crowd.UCR(n)*100, now)
	must(t, err)
	last := []store.Op{store.SetJob{Job: job}, store.Post{Postings: legs}}
	if saved > 0 {
		last = append(last, store.Done{Job: j.ID, Next: saved, Runs: []store.Run{{First: 0, Count: saved}}})
	}
	must(t, st.Apply(ctx, last...))
	must(t, st.Close())
	t.Logf("%d decided chunks written in %s", n, time.Since(began).Round(time.Second))
}

func heapAfterGC() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// restartWith starts a broker over n decided chunks and says how long its first lease took.
func restartWith(t *testing.T, w *world, n uint64, log func(string, ...any)) {
	ctx := context.Background()
	all := w.owners("alice", "bob", "carol")
	s := w.spec(crowd.Limits.Units)
	s.Verify.None = true
	s.Price.Max = 900_000 * crowd.Credit
	must(t, w.b.Grant(ctx, w.operator, "ada", 1_000_000*crowd.Credit, "more"))
	j := w.submit(s)
	w.stop()
	decidedBefore(t, w, j, n, all[0], all[1])

	began := time.Now()
	w.start()
	up := time.Since(began)
	all[2].run()
	for all[2].leased() == 0 {
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	detail, err := w.b.Job(ctx, w.ada, j.ID.String())
	must(t, err)
	if detail.Progress.UnitsDone < n*64 {
		t.Errorf("%d units done", detail.Progress.UnitsDone)
	}
	log("store open and broker made in %s; first lease after %s", up.Round(time.Millisecond), took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("the first lease took %s", took)
	}
	for detail.Counting {
		time.Sleep(10 * time.Millisecond)
		detail, err = w.b.Job(ctx, w.ada, j.ID.String())
		must(t, err)
	}
	log("all added up after %s; heap %d MiB", time.Since(began).Round(time.Millisecond), heapAfterGC()>>20)
	lost := int64((n + 9) / 10)
	for _, h := range detail.Hosts {
		if h.Host == all[0].host.ID && (h.Counted != int64(n) || h.Earned != crowd.UCR(n)*900) || h.Host == all[1].host.ID && h.Lost != lost {
			t.Errorf("%+v", h)
		}
	}
	if p := detail.Progress; p.Lost != lost || p.Attempts < int64(n)+lost || p.ChunksDone < int64(n) || detail.Reasons[crowd.HostLost] != int(lost) {
		t.Errorf("%+v %v", p, detail.Reasons)
	}
	end, err := w.b.CancelJob(ctx, w.ada, j.ID.String())
	must(t, err)
	if m := w.balances(all[0].owner); m.Pending != 0 || m.Free != crowd.UCR(n)*900 || end.State != crowd.JobCancelled {
		t.Errorf("%s, %+v", end.State, m)
	}
}

// TestSoakRestart is a start over a job of CROWD_SOAK million decided chunks: CROWD_SOAK=20 go test -run SoakRestart -v -timeout 2h
func TestSoakRestart(t *testing.T) {
	millions, err := strconv.ParseFloat(os.Getenv("CROWD_SOAK"), 64)
	if err != nil {
		t.Skip("CROWD_SOAK isn't set (to millions of chunks)")
	}
	w := newWorld(t, t.TempDir())
	defer w.close()
	restartWith(t, w, uint64(millions*1e6), t.Logf)
	w.sumIsZero()
}

// A start doesn't wait for the sums over what was decided before; the job's end does, and pays all of it.
func TestRestartAddsUpLater(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.close()
	restartWith(t, w, 25_000, func(string, ...any) {})
	w.sumIsZero()
}

// Holes between many runs become chunks again, each unit once.
func TestGaps(t *testing.T) {
	b := &Broker{}
	j := &job{open: map[uint64]*chunk{}}
	var p store.Progress
	for i := range uint64(200_000) {
		p.Runs = append(p.Runs, store.Run{First: i * 10, Count: 4})
		if i%2 == 0 {
			p.Open = append(p.Open, store.OpenChunk{Chunk: crowd.Chunk{First: i*10 + 4, Count: 6}})
		}
	}
	p.Next = 2_000_000 + 10_000
	began := time.Now()
	b.gaps(j, p.Holes())
	units := uint64(0)
	for first, c := range j.open {
		if units += c.Count; first != c.First || c.Count > crowd.Limits.UnitsPerChunk || first < 2_000_000-6 && c.Count != 6 {
			t.Fatalf("%+v", c.Chunk)
		}
	}
	if units != 100_000*6+10_000 || time.Since(began) > 2*time.Second {
		t.Errorf("%d units, %s", units, time.Since(began))
	}
}

// What a broker keeps of a million decided chunks is their runs, and of a job without end one row.
func TestMemoryOfDecidedChunks(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.close()
	a, c, n := w.owners("alice", "bob"), 0, 50_000
	if os.Getenv("CROWD_SOAK") != "" {
		n = 1_000_000
	}
	before := heapAfterGC()
	s := w.spec(crowd.Limits.Units)
	s.Chunk = 64
	row := w.submit(s)
	if rows, err := w.b.st.Chunks(context.Background(), row.ID, 0, 10); err != nil || len(rows) != 0 {
		t.Fatalf("%d chunks of an untouched job, %v", len(rows), err)
	}
	b := w.b
	b.mu.Lock()
	defer b.mu.Unlock()
	j, now := b.jobs[row.ID], b.now()
	var hosts []*host
	for _, f := range a {
		h := b.hosts[f.host.ID]
		h.room, h.ready = 1<<30, crowd.Ready
		hosts = append(hosts, h)
	}
	o := &crowd.Outcome{Units: make([]crowd.UnitResult, 64)}
	var line []*chunk
	decide := func() {
		i := (c * 7919) % len(line) // out of order
		x := line[i]
		line[i] = line[len(line)-1]
		line = line[:len(line)-1]
		for range 2 { // both hosts
			h := hosts[len(x.attempts)%2]
			if len(x.attempts) < 2 {
				x.attempts = append(x.attempts, &attempt{Attempt: crowd.Attempt{Job: j.ID, First: x.First, N: len(x.attempts) + 1, Host: h.ID, Owner: h.Account}, chunk: x, host: h})
			}
		}
		v := &verdict{c: x, by: x.attempts, outcome: o, at: now}
		for i, t := range x.attempts {
			b.hostEnds(t)
			v.rows, v.v.Winners = append(v.rows, t.Attempt), append(v.v.Winners, i)
		}
		b.decided(v)
	}
	for c = range n {
		t := b.take(j, hosts[0], now)
		for t == nil || t.chunk.attempts[0] != t {
			panic("no new chunk")
		}
		t.chunk.busy, j.busy = false, 0
		b.watchExpiry(t)
		if line = append(line, t.chunk); len(line) > 200 {
			decide()
		}
		if now = now.Add(200 * time.Microsecond); c%1000 == 0 {
			b.mu.Unlock()
			b.tick(now)
			b.mu.Lock()
		}
	}
	used := int64(heapAfterGC()) - int64(before)
	t.Logf("%d KiB for %d decided chunks: %d runs, %d open", used>>10, j.Progress.ChunksDone, len(j.runs), len(j.open))
	if used > 100<<20 || j.Progress.ChunksDone < int64(n)-1000 {
		t.Error("too much, or too few decided")
	}
	for _, x := range line { // nothing of it is in the store: nobody may end it
		for _, t := range x.attempts {
			b.hostEnds(t)
		}
	}
	b.ring.Remove(j.Account, j.ID)
	delete(b.jobs, j.ID)
}

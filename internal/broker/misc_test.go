package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

func TestBlobs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		content := bytes.Repeat([]byte("0123456789"), 1000)
		d, total := digest.Of(content), int64(len(content))
		have, err := w.b.PutBlob(ctx, w.ada, d, 0, total, bytes.NewReader(content[:4000]))
		must(t, err)
		if n, whole, err := w.b.HasBlob(ctx, w.ada, d); have != 4000 || n != 4000 || whole || err != nil {
			t.Errorf("%d there, %d, %v, %v", have, n, whole, err)
		}
		_, err = w.b.PutBlob(ctx, w.ada, d, 5000, total, bytes.NewReader(content[5000:]))
		wantErr(t, err, crowd.Conflict, "", "4000 bytes are there")
		_, err = w.b.OpenBlob(ctx, w.ada, d)
		wantErr(t, err, crowd.NotFound, "")
		w.restart()
		have, err = w.b.PutBlob(ctx, w.ada, d, 4000, total, bytes.NewReader(content[4000:]))
		must(t, err)
		r, err := w.b.OpenBlob(ctx, w.ada, d)
		must(t, err)
		got, err := io.ReadAll(r)
		must(t, err)
		must(t, r.Close())
		if have != total || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %d read", have, len(got))
		}
		_, err = w.b.PutBlob(ctx, w.ada, digest.Of([]byte("x")), 0, 1, strings.NewReader("y"))
		wantErr(t, err, crowd.Invalid, crowd.CustomerFile)
		_, err = w.b.PutBlob(ctx, w.ada, digest.Of([]byte("x")), 0, 1, strings.NewReader("xx"))
		wantErr(t, err, crowd.Invalid, crowd.CustomerFile)
	})
}

func TestKeysAndCaps(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		w.owners("alice", "bob")
		k, secret, err := w.b.CreateKey(ctx, w.ada, []crowd.Scope{crowd.ScopeOrder, crowd.ScopeRead}, 15*crowd.Credit, time.Hour)
		must(t, err)
		c, err := w.b.Authenticate(ctx, secret, false)
		must(t, err)
		j, err := w.b.Submit(ctx, c, w.spec(1))
		must(t, err)
		_, err = w.b.Submit(ctx, c, w.spec(1))
		wantErr(t, err, crowd.Exhausted, crowd.CustomerCap)
		_, err = w.b.CancelJob(ctx, c, j.Name)
		must(t, err)
		_, err = w.b.Submit(ctx, c, w.spec(1)) // what came back may be spent again
		must(t, err)
		_, _, err = w.b.MakeToken(ctx, c, 0)
		wantErr(t, err, crowd.Denied, crowd.CustomerScope)
		_, _, err = w.b.CreateKey(ctx, c, []crowd.Scope{crowd.ScopeLend}, 0, 0)
		wantErr(t, err, crowd.Denied, crowd.CustomerScope)
		time.Sleep(2 * time.Hour)
		_, err = w.b.Authenticate(ctx, secret, false)
		wantErr(t, err, crowd.Denied, crowd.CustomerKey, "expired")
		must(t, w.b.DeleteKey(ctx, w.ada, k.ID.Short()))
		_, err = w.b.Authenticate(ctx, secret, false)
		wantErr(t, err, crowd.Denied, crowd.CustomerKey)
		if strings.Contains(crowd.AsError(err).Message, secret) {
			t.Error("an error tells a secret")
		}
	})
}

func TestIdempotency(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		w.owners("alice", "bob")
		hash := [32]byte{1}
		status, _, done, err := w.b.IdemBegin(ctx, w.ada, "k1", hash)
		must(t, err)
		if status != 0 {
			t.Fatal(status)
		}
		_, _, _, err = w.b.IdemBegin(ctx, w.ada, "k1", hash)
		wantErr(t, err, crowd.Conflict, "")
		j, err := w.b.Submit(WithIdem(ctx, "k1", hash), w.ada, w.spec(1))
		must(t, err)
		w.restart() // it died before it answered
		status, answer, _, err := w.b.IdemBegin(ctx, w.ada, "k1", hash)
		must(t, err)
		var kept crowd.Job
		must(t, json.Unmarshal(answer, &kept))
		if status != 201 || kept.ID != j.ID {
			t.Errorf("%d %s", status, answer)
		}
		_, _, _, err = w.b.IdemBegin(ctx, w.ada, "k1", [32]byte{2})
		wantErr(t, err, crowd.Invalid, crowd.CustomerFile)
		_ = done
	})
}

func TestJoinOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		f := w.owners("alice")[0]
		link, _, err := w.b.MakeToken(ctx, f.owner, time.Minute)
		must(t, err)
		token := link[strings.Index(link, "/j/")+3 : strings.Index(link, "#")]
		r := crowd.JoinRequest{Token: token, Key: bytes.Repeat([]byte{7}, 32), Name: "two", Place: crowd.Place{Jurisdiction: "DE", Evidence: crowd.Audited}}
		h, err := w.b.Join(ctx, "", r)
		must(t, err)
		if h.Place.Evidence != crowd.Declared {
			t.Error("a claim was believed")
		}
		r.Key = bytes.Repeat([]byte{8}, 32)
		_, err = w.b.Join(ctx, "", r)
		wantErr(t, err, crowd.Denied, crowd.BrokerToken)
		must(t, w.b.RemoveHost(ctx, f.owner, "two"))
		must(t, w.b.RemoveHost(ctx, f.owner, h.ID.String()))
		if _, err := w.b.lookup(h.ID); err == nil {
			t.Error("a host that left may dial")
		}
		w.operator.Loopback = true
		if s, err := w.b.Status(ctx, w.operator); err != nil || s.HostsTotal != 1 || s.LedgerSum != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

func TestFilesAsUnits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		for _, f := range w.owners("alice", "bob") {
			f.run()
		}
		var list bytes.Buffer
		for i := range 50 {
			c := []byte(fmt.Sprintf("file %d", i))
			b, err := json.Marshal(crowd.Input{As: fmt.Sprintf("raw/%d.txt", i), Digest: w.upload(w.ada, c), Size: int64(len(c))})
			must(t, err)
			list.Write(append(b, '\n'))
		}
		s := w.spec(0)
		s.Units = crowd.Units{Items: w.upload(w.ada, list.Bytes()), N: 50}
		s.Chunk = 10
		j := w.submit(s)
		if j.Units != 50 {
			t.Fatal(j.Units)
		}
		time.Sleep(100 * time.Millisecond)
		f := w.fakes[0]
		f.mu.Lock()
		var l *crowd.Lease
		for _, x := range f.held {
			l = x
		}
		f.mu.Unlock()
		if l == nil || len(l.Items) != 10 || l.Items[3].As != fmt.Sprintf("raw/%d.txt", l.First+3) {
			t.Fatalf("%+v", l)
		}
		bearer := "bearer-" + f.host.ID.String()
		r, err := w.b.HostOpenBlob(ctx, bearer, l.Items[3].Digest)
		must(t, err)
		must(t, r.Close())
		r, err = w.b.HostOpenBlob(ctx, bearer, w.program)
		must(t, err)
		must(t, r.Close())
		_, err = w.b.HostOpenBlob(ctx, bearer, s.Units.Items)
		wantErr(t, err, crowd.NotFound, "")
		_, err = w.b.HostOpenBlob(ctx, "guess", w.program)
		wantErr(t, err, crowd.Denied, crowd.CustomerKey)
		if got := w.done(j, time.Hour); got.State != crowd.JobDone {
			t.Error(got.State)
		}
		_, err = w.b.HostOpenBlob(ctx, bearer, w.program)
		wantErr(t, err, crowd.NotFound, "")
	})
}

func TestQuoteAndMetrics(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		for _, f := range w.owners("alice", "bob") {
			f.run()
		}
		w.host(w.account("carol", 0), "carol", "FR").run()
		time.Sleep(time.Second)
		s := w.spec(100)
		s.Place.In = []string{"DE"}
		q, err := w.b.Quote(ctx, w.ada, s)
		must(t, err)
		if q.Fits != 2 || q.Hosts != 3 || len(q.Excluded) != 1 || q.Excluded[0].Reason != crowd.CustomerPlace || q.High != s.Price.Max || q.Likely != 0 {
			t.Errorf("%+v", q)
		}
		w.done(w.submit(s), time.Hour)
		q, err = w.b.Quote(ctx, w.ada, s)
		must(t, err)
		if q.Likely != 200_000 || q.Low >= q.Likely || q.High <= q.Likely || q.Seconds <= 0 {
			t.Errorf("%+v", q)
		}
		rec := httptest.NewRecorder()
		w.b.MetricsHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
		for _, m := range []string{"crowd_verdicts_total", `crowd_reports_total{answer="accepted"}`, "crowd_ledger_sum_ucr 0", "crowd_hosts_online 3", `crowd_jobs_ended_total{state="done"} 1`} {
			if !strings.Contains(rec.Body.String(), m) {
				t.Errorf("no %s", m)
			}
		}
	})
}

func TestRates(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for range int(crowd.Limits.RequestBurst) {
			must(t, w.b.Allow(w.ada.Account.ID))
		}
		wantErr(t, w.b.Allow(w.ada.Account.ID), crowd.Exhausted, crowd.BrokerRate)
		must(t, w.b.Allow(w.operator.Account.ID))
		time.Sleep(time.Second)
		must(t, w.b.Allow(w.ada.Account.ID))
	})
}

// A crowd in which everything goes wrong: hosts die, come back, lie, sleep and give back; the broker restarts. No credit is made or lost at any
// moment, every job ends, and no unit is done without its quorum.
func TestChaos(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func chaos(t *testing.T, r *rand.Rand) {
	w := newWorld(t, t.TempDir())
	defer w.close()
	ctx := context.Background()
	all := w.owners("a", "b", "c", "d", "e", "f", "g")
	for i, f := range all {
		f.takes = time.Duration(1+r.IntN(5000)) * time.Millisecond
		if i == 6 {
			f.result = liar
		}
		f.run()
	}
	var jobs []crowd.Job
	for i := range 4 {
		s := w.spec(uint64(20 + r.IntN(200)))
		s.Verify.Quorum = 1 + r.IntN(3)
		if i == 3 {
			s.Price.Max = 30_000
		}
		jobs = append(jobs, w.submit(s))
	}
	for range 25 {
		time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
		f := all[r.IntN(len(all))]
		f.mu.Lock()
		connected := f.conn != nil
		f.mu.Unlock()
		switch k := r.IntN(20); {
		case k == 0:
			w.restart()
			for _, f := range all {
				f.cut()
				f.run()
			}
		case k == 1:
			_, err := w.b.CancelJob(ctx, w.ada, jobs[2].ID.String())
			must(t, err)
		case !connected:
			f.run()
		case k < 8:
			f.kill()
			f.newSession()
		case k < 14:
			f.cut()
		default:
			f.mu.Lock()
			f.refuse = map[crowd.Reason]crowd.Reason{"": crowd.OwnerPaused, crowd.OwnerPaused: ""}[f.refuse]
			f.mu.Unlock()
		}
		w.sumIsZero()
	}
	for _, f := range all {
		f.mu.Lock()
		f.refuse = ""
		f.mu.Unlock()
		f.cut()
		f.run()
	}
	for _, j := range jobs {
		got := w.done(j, 4*time.Hour)
		if got.Paid+got.Returned != got.Escrow {
			t.Errorf("held %d, paid %d, returned %d", got.Escrow, got.Paid, got.Returned)
		}
		if got.State == crowd.JobDone && got.Progress.UnitsDone != got.Units {
			t.Errorf("done with %d of %d", got.Progress.UnitsDone, got.Units)
		}
		if held, err := w.st.Balance(ctx, crowd.EscrowBook(j.ID)); err != nil || held != 0 {
			t.Errorf("%d are still in escrow, %v", held, err)
		}
		quorate(t, w, got)
	}
	for _, f := range all {
		if m := w.balances(f.owner); m.Pending != 0 || m.Free < 0 {
			t.Errorf("%s has %+v", f.host.Name, m)
		}
	}
	w.sumIsZero()
}

// quorate checks that each decided chunk has its votes, of different owners, and that their pay is what the job paid.
func quorate(t *testing.T, w *world, j crowd.Job) {
	ctx := context.Background()
	chunks, err := w.st.Chunks(ctx, j.ID, 0, 1e6)
	must(t, err)
	rows, err := w.st.JobAttempts(ctx, j.ID, crowd.AttemptRef{}, 1e6)
	must(t, err)
	net := crowd.UCR(0)
	for _, c := range chunks {
		votes := map[crowd.AccountID]bool{}
		for _, a := range rows {
			if a.First == c.First && a.State == crowd.AttemptReported && a.Digest == c.Digest && a.Paid > 0 {
				votes[a.Owner] = true
			}
		}
		if c.State == crowd.ChunkDecided && len(votes) < c.Need {
			t.Errorf("chunk %d of %s was decided by %d owners, need %d", c.First, j.Name, len(votes), c.Need)
		}
	}
	for _, a := range rows {
		net += a.Paid
	}
	if diff := j.Paid - j.Paid/10 - net; diff < -100 || diff > 100 { // each fee is rounded by itself
		t.Errorf("%s (%s) paid %d, its hosts got %d", j.Name, j.State, j.Paid, net)
	}
}

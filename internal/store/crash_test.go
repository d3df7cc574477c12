package store

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

var crashJob = crowd.Job{ID: crowd.JobID{0: 9, 6: 0x70, 8: 0x80}, Name: "crash", State: crowd.JobRunning, Units: 1 << 40}

// crashBody is the body of chunk i; every third is long and goes to the log.
func crashBody(i uint64) []byte {
	b := []byte(fmt.Sprint("chunk ", i))
	for len(b) < 9000 && i%3 == 0 {
		d := digest.Of(b)
		b = append(b, d[:]...)
	}
	return b
}

// crashChild applies lists from 8 goroutines until it is killed, printing each number once it is durable.
func crashChild(dir string) {
	s, err := Open(ctx, dir, Options{})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	_ = s.Apply(ctx, AddJob{crashJob})
	p, err := s.JobProgress(ctx, crashJob.ID)
	if err != nil {
		fmt.Println("progress:", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	next := p.Next/10 + 1000
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			owner := newID[crowd.AccountID]()
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				a := attempt(crashJob.ID, i*10, 0, owner)
				b := crashBody(i)
				d := digest.Of(b)
				end := a
				end.State = crowd.AttemptReported
				ops := []Op{Lease{chunk(crashJob.ID, i*10, 10), a}, End{end, true, d}, PutBody{crashJob.ID, d, b},
					legs(fmt.Sprint("c", i), crowd.BookMint, -3, crowd.PendingBook(owner), 2, crowd.BookFee, 1),
					Decide{decided(chunk(crashJob.ID, i*10, 10), 1).Chunk, d}}
				if i%7 == 0 {
					ops = append(ops, UseToken{}) // refused after everything
				}
				if err := s.Apply(ctx, ops...); (err != nil) != (i%7 == 0) {
					fmt.Println("apply:", err)
					os.Exit(1)
				} else if err == nil {
					mu.Lock()
					fmt.Println("ack", i)
					mu.Unlock()
				}
				if i%50 == 0 {
					q, err := s.JobProgress(ctx, crashJob.ID)
					if err == nil {
						err = s.Apply(ctx, Done{crashJob.ID, q.Next, q.Runs})
					}
					if err != nil {
						fmt.Println("done:", err)
						os.Exit(1)
					}
				}
			}
		})
	}
	wg.Wait()
}

// A broker killed at any moment has everything that it acknowledged, and nothing by halves.
func TestCrash(t *testing.T) {
	rounds := 20
	if os.Getenv("CROWD_SOAK") != "" {
		rounds = 200
	} else if testing.Short() {
		rounds = 4
	}
	dir := t.TempDir()
	acked, found, from := 0, 0, uint64(0)
	for range rounds {
		acks := killed(t, dir, 60*time.Millisecond+time.Duration(rand.IntN(250))*time.Millisecond)
		acked += len(acks)
		s := open(t, dir)
		if _, err := s.Job(ctx, crashJob.ID); crowd.KindIs(err, crowd.NotFound) && acked == 0 {
			must(t, s.Close())
			continue // killed before anything
		}
		var n int
		n, from = checkCrash(t, s, from, acks)
		found += n
		checkSums(t, s, found)
		must(t, s.Close())
		if t.Failed() {
			return
		}
	}
	if acked == 0 {
		t.Error("nothing was ever acknowledged")
	}
	t.Logf("%d lists acknowledged, %d found, over %d kills", acked, found, rounds)
}

// killed runs a child and kills it after a while; it returns what the child acknowledged.
func killed(t *testing.T, dir string, after time.Duration) (acks []uint64) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CROWD_STORE_CRASH="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	must(t, cmd.Start())
	time.Sleep(after)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	sc := bufio.NewScanner(&out)
	for sc.Scan() {
		n, isAck := strings.CutPrefix(sc.Text(), "ack ")
		i, err := strconv.ParseUint(n, 10, 64)
		if !isAck || err != nil {
			if strings.Contains(sc.Text(), ":") {
				t.Fatalf("the child says %q", sc.Text())
			}
			continue // cut off in the middle
		}
		acks = append(acks, i)
	}
	return acks
}

// checkCrash looks at every chunk of the last round, from a unit on; it returns how many there are and where they end.
func checkCrash(t *testing.T, s *Store, from uint64, acks []uint64) (found int, end uint64) {
	t.Helper()
	p := must1(s.JobProgress(ctx, crashJob.ID))(t)
	there := map[uint64]bool{}
	for more := true; more; {
		rows := must1(s.Chunks(ctx, crashJob.ID, from, 1000))(t)
		for _, r := range rows {
			i := r.First / 10
			from = r.First + 1
			there[i] = true
			a := must1(s.Attempts(ctx, crashJob.ID, r.First))(t)
			txn := must1(s.Txn(ctx, fmt.Sprint("c", i)))(t)
			in, _ := inside(p.Runs, r.First, r.Count)
			if r.State != crowd.ChunkDecided || len(a) != 1 || a[0].State != crowd.AttemptReported || len(txn) != 3 || !in || i%7 == 0 {
				t.Errorf("chunk %d by halves: %+v, attempts %+v, postings %v, in the map %v", i, r, a, txn, in)
			}
			if b := must1(s.Body(ctx, crashJob.ID, r.Body))(t); !bytes.Equal(b, crashBody(i)) {
				t.Errorf("chunk %d: body differs", i)
			}
		}
		more = len(rows) == 1000
	}
	for _, i := range acks {
		if !there[i] {
			t.Errorf("chunk %d was acknowledged and isn't there", i)
		}
	}
	if len(p.Open) != 0 {
		t.Errorf("open %v", p.Open)
	}
	return len(there), from
}

// checkSums checks what holds over all rounds.
func checkSums(t *testing.T, s *Store, chunks int) {
	t.Helper()
	if sum := must1(s.LedgerSum(ctx))(t); sum != 0 {
		t.Errorf("ledger sum %d", sum)
	}
	if e := must1(s.Balance(ctx, crowd.BookMint))(t); e != crowd.UCR(-3*chunks) {
		t.Errorf("mint %d after %d chunks", e, chunks)
	}
	for q, want := range map[string]any{"PRAGMA quick_check": "ok", "SELECT count(*) FROM chunks": int64(chunks), "SELECT count(*) FROM attempts": int64(chunks),
		"SELECT count(*) FROM txns": int64(chunks), "SELECT count(*) FROM postings": int64(3 * chunks)} {
		if got, err := s.w.one(q); err != nil || got[0] != want {
			t.Errorf("%s: %v, %v; want %v", q, got, err, want)
		}
	}
}

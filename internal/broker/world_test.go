package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/store"
)

// world is a broker over a real store, with hosts that live in this process. Time is synctest's: nothing really waits.
type world struct {
	t        testing.TB
	dir      string
	b        *Broker
	st       *store.Store
	key      ed25519.PrivateKey
	operator Caller
	ada      Caller // a customer with 1000 credits
	program  crowd.Digest
	stop     func()
	fakes    []*fake
	over     chan struct{}
	price    crowd.UCR
	keep     time.Duration
	check    func(context.Context, []byte) (crowd.Program, error)
}

func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	inWorldUnsound(t, func(t *testing.T, w *world) {
		f(t, w)
		w.sumIsZero()
	})
}

// inWorldUnsound is inWorld without a look at the ledger in the end.
func inWorldUnsound(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		defer w.close()
		f(t, w)
	})
}

func newWorld(t testing.TB, dir string) *world {
	w := &world{t: t, dir: dir, over: make(chan struct{}), price: 1000}
	seed := sha256.Sum256([]byte("broker"))
	w.key = ed25519.NewKeyFromSeed(seed[:])
	w.start()
	ctx := context.Background()
	secret, err := w.b.Bootstrap(ctx)
	must(t, err)
	w.operator, err = w.b.Authenticate(ctx, secret, true)
	must(t, err)
	w.ada = w.account("ada", 1000)
	w.program = w.upload(w.ada, []byte("\x00asm a program"))
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	w.st, err = store.Open(ctx, w.dir, store.Options{})
	must(w.t, err)
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("BROKER_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	w.b, err = New(Config{Dir: w.dir, Store: w.st, Key: w.key, URL: "https://cloud.example", Log: log, PerGfuel: w.price, FeePermille: 100, Keep: w.keep, Version: "test", CheckProgram: w.check})
	must(w.t, err)
	done := make(chan error, 1)
	go func() { done <- w.b.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
		must(w.t, w.st.Close())
	}
}

// restart ends the broker (its hosts' connections break) and starts another over the same files.
func (w *world) restart() {
	w.stop()
	w.start()
}

func (w *world) close() {
	close(w.over)
	for _, f := range w.fakes {
		f.kill()
	}
	w.stop()
}

func (w *world) sumIsZero() {
	w.t.Helper()
	sum, err := w.st.LedgerSum(context.Background())
	must(w.t, err)
	if sum != 0 {
		w.t.Errorf("the ledger sums to %d", sum)
	}
}

func (w *world) account(name string, credits crowd.UCR) Caller {
	w.t.Helper()
	ctx := context.Background()
	a, secret, err := w.b.CreateAccount(ctx, w.operator, name)
	must(w.t, err)
	if credits > 0 {
		must(w.t, w.b.Grant(ctx, w.operator, a.Name, credits*crowd.Credit, "grant-"+name))
	}
	c, err := w.b.Authenticate(ctx, secret, false)
	must(w.t, err)
	return c
}

func (w *world) upload(c Caller, content []byte) crowd.Digest {
	w.t.Helper()
	d := digest.Of(content)
	_, err := w.b.PutBlob(context.Background(), c, d, 0, int64(len(content)), bytes.NewReader(content))
	must(w.t, err)
	return d
}

func (w *world) spec(units uint64) crowd.JobSpec {
	return crowd.JobSpec{Kind: "job", Name: "test", Program: w.program.String(), Units: crowd.Units{Count: units}, Price: crowd.PriceRule{Max: 10 * crowd.Credit}}
}

func (w *world) submit(s crowd.JobSpec) crowd.Job {
	w.t.Helper()
	j, err := w.b.Submit(context.Background(), w.ada, s)
	must(w.t, err)
	return j
}

// await waits until a job is as wanted, for at most a while of synctest's time.
func (w *world) await(j crowd.Job, within time.Duration, ok func(crowd.Job) bool) crowd.Job {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	row, err := w.b.WatchJob(ctx, w.ada, j.ID.String(), -1)
	for err == nil && !ok(row) {
		if ctx.Err() != nil {
			w.t.Fatalf("after %v %s is %s (%s), %d of %d units done, %+v", within, row.Name, row.State, row.Reason, row.Progress.UnitsDone, row.Units, row.Progress)
		}
		row, err = w.b.WatchJob(ctx, w.ada, j.ID.String(), row.Version)
	}
	must(w.t, err)
	return row
}

func (w *world) done(j crowd.Job, within time.Duration) crowd.Job {
	w.t.Helper()
	return w.await(j, within, func(j crowd.Job) bool { return j.State.Ended() })
}

// attempts are all of a job's.
func (w *world) attempts(j crowd.Job) (all []crowd.Attempt) {
	w.t.Helper()
	var after crowd.AttemptRef
	for {
		rows, err := w.b.JobAttempts(context.Background(), w.ada, j.ID.String(), after, 1000)
		must(w.t, err)
		if all = append(all, rows...); len(rows) == 0 {
			return all
		}
		after = rows[len(rows)-1].Ref()
	}
}

func (w *world) balances(c Caller) crowd.Balances {
	w.t.Helper()
	m, err := w.b.Balances(context.Background(), c)
	must(w.t, err)
	return m
}

func wantErr(t testing.TB, err error, kind crowd.ErrKind, reason crowd.Reason, parts ...string) {
	t.Helper()
	e := crowd.AsError(err)
	if e == nil || e.Kind != kind || e.Reason != reason {
		t.Fatalf("wanted %s %s, found %v", kind, reason, err)
	}
	for _, p := range parts {
		if !strings.Contains(e.Message+"\n"+e.Hint, p) {
			t.Errorf("wanted %q in %q, hint %q", p, e.Message, e.Hint)
		}
	}
}

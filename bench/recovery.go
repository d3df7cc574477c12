package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	randv2 "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/seal"
	"github.com/crowdcloud/crowd/internal/store"
)

const (
	recoveryJobs  = 4
	recoveryHosts = 8
	recoveryUnits = 16      // of a chunk
	recoveryBytes = 2 << 10 // that a unit printed
	recoveryPay   = 100     // of a chunk, µcr
	recoveryList  = 200     // chunks in one list
	recoverySave  = 10_000
)

// recovery: a broker over a store of CROWD_BENCH_GB (10) is killed at work and started again, its files out of the system's memory: until it answers the
// first request, and until a host has the first lease; against reading those files once.
func recovery(ctx context.Context) ([]Row, error) {
	size, note, err := recoverySize()
	if err != nil {
		return nil, err
	}
	c, end, err := newCluster(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	hosts, err := c.join(ctx, recoveryHosts, 1)
	if err != nil {
		return nil, err
	}
	jobs := make([]*crowd.Job, recoveryJobs)
	program, err := c.upload(ctx, noopWasm)
	if err != nil {
		return nil, err
	}
	for i := range jobs {
		if jobs[i], err = c.ada.Submit(ctx, &crowd.JobSpec{Kind: "job", Name: fmt.Sprint("big-", i), Program: program.String(), Units: crowd.Units{Count: crowd.Limits.Units},
			Chunk: recoveryUnits, Verify: crowd.Verify{None: true}, Price: crowd.PriceRule{Max: 100_000 * crowd.Credit}, Resources: crowd.Resources{Memory: 16 << 20}}, ""); err != nil {
			return nil, err
		}
	}
	rows, err := c.owners(ctx, hosts)
	if err != nil {
		return nil, err
	}
	key, err := c.ada.CreateKey(ctx, []crowd.Scope{crowd.ScopeRead}, 0, 0)
	if err != nil {
		return nil, err
	}
	asks, err := client.New(client.Options{Broker: c.url, Key: key.Secret, TLS: seal.PinnedTLS(c.pin), Delays: []time.Duration{}}) // without waiting between tries
	if err != nil {
		return nil, err
	}
	c.stop()
	units, err := fill(ctx, filepath.Join(c.dir, "data"), size, jobs, rows)
	if err != nil {
		return nil, fmt.Errorf("fill the store: %w", err)
	}
	more, err := c.killAtWork(ctx, hosts)
	if err != nil {
		return nil, fmt.Errorf("work: %w", err)
	}
	bytes, err := eachFile(filepath.Join(c.dir, "data"), chill)
	if err != nil {
		return nil, err
	}
	answered, leased, err := c.comeBack(ctx, hosts[0], asks, jobs, units+more)
	if err != nil {
		return nil, fmt.Errorf("start again: %w", err)
	}
	c.stop()
	if _, err = eachFile(filepath.Join(c.dir, "data"), chill); err != nil {
		return nil, err
	}
	began := time.Now()
	if _, err = eachFile(filepath.Join(c.dir, "data"), func(f *os.File) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
		return err
	}); err != nil {
		return nil, err
	}
	once := time.Since(began).Seconds()
	name := fmt.Sprintf("%.2g GB%s, killed → ", float64(bytes)/1e9, note)
	return []Row{
		row(name+"first answer", answered.Seconds(), "s", "its files read once", once, 5, false, "lower"),
		row(name+"first lease", leased.Seconds(), "s", "its files read once", once, 5, false, "lower"),
	}, nil
}

// recoverySize is how large the store is to be, and what to say if the disk has no room for that.
func recoverySize() (size int64, note string, err error) {
	gb := 10.0
	if s := os.Getenv("CROWD_BENCH_GB"); s != "" {
		if gb, err = strconv.ParseFloat(s, 64); err != nil || gb <= 0 {
			return 0, "", fmt.Errorf("CROWD_BENCH_GB: wanted gigabytes, found %q", s)
		}
	}
	free, err := freeOf(os.TempDir())
	if err != nil {
		return 0, "", err
	}
	if size = int64(gb * 1e9); free < 3*size {
		size, note = free/3, fmt.Sprintf(" (the disk has no room for %v)", gb)
	}
	return size, note, nil
}

// owners are the hosts as the broker has them.
func (c *cluster) owners(ctx context.Context, hosts []*simHost) ([]crowd.HostRow, error) {
	rows := make([]crowd.HostRow, len(hosts))
	for i, h := range hosts {
		r, err := c.op.Host(ctx, h.id.String())
		if err != nil {
			return nil, err
		}
		rows[i] = *r
	}
	return rows, nil
}

// fill writes decided chunks into a store as a broker would have, in large lists, until its files have that size; it returns how many units that are.
func fill(ctx context.Context, dir string, size int64, jobs []*crowd.Job, hosts []crowd.HostRow) (units uint64, err error) {
	st, err := store.Open(ctx, dir, store.Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	began := time.Now()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var full atomic.Bool
	var chunks atomic.Uint64
	errs := make(chan error, len(jobs)+1)
	var wg, watch sync.WaitGroup
	defer watch.Wait()
	defer stop()
	watch.Go(func() {
		for told := began; ctx.Err() == nil; pause(ctx, 200*time.Millisecond) {
			bytes, err := eachFile(dir, nil)
			if err != nil {
				errs <- err
				full.Store(true)
				return
			}
			full.Store(bytes >= size)
			if time.Since(told) > 10*time.Second {
				told = time.Now()
				fmt.Fprintf(os.Stderr, "bench: %.1f GB, %d chunks in %s\n", float64(bytes)/1e9, chunks.Load(), time.Since(began).Round(time.Second))
			}
		}
	})
	for i, j := range jobs {
		wg.Go(func() {
			var seed [32]byte
			_, _ = rand.Read(seed[:])
			w := filler{st: st, job: *j, hosts: hosts, noise: randv2.NewChaCha8(seed), turn: i}
			for !full.Load() && ctx.Err() == nil {
				if err := w.list(ctx); err != nil {
					errs <- err
					stop()
					return
				}
				chunks.Add(recoveryList)
			}
		})
	}
	wg.Wait()
	stop()
	watch.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	fmt.Fprintf(os.Stderr, "bench: %d chunks written in %s\n", chunks.Load(), time.Since(began).Round(time.Second))
	return chunks.Load() * recoveryUnits, nil
}

// filler writes one job's chunks.
type filler struct {
	st    *store.Store
	job   crowd.Job
	hosts []crowd.HostRow
	noise *randv2.ChaCha8
	turn  int
	next  uint64 // unit
	done  uint64 // units in the saved map
}

// list writes the next chunks, each with its attempt, body, verdict and pay.
func (w *filler) list(ctx context.Context) error {
	now := time.Now()
	var ops []store.Op
	if w.job.State == crowd.JobQueued {
		w.job.State, w.job.Started = crowd.JobRunning, now
		ops = append(ops, store.SetJob{Job: w.job})
	}
	for range recoveryList {
		h := w.hosts[w.turn%len(w.hosts)]
		w.turn++
		o := &crowd.Outcome{First: w.next, Units: make([]crowd.UnitResult, recoveryUnits)}
		contents := make([]crowd.UnitContent, recoveryUnits)
		for i := range o.Units {
			contents[i].Stdout = make([]byte, recoveryBytes)
			_, _ = w.noise.Read(contents[i].Stdout)
			o.Units[i] = crowd.UnitResult{Fuel: 1000, Stdout: crowd.ContentRef{Size: recoveryBytes, Digest: digest.Of(contents[i].Stdout)}}
		}
		body := o.Body(contents)
		d := digest.Of(body)
		chunk := crowd.Chunk{Job: w.job.ID, First: w.next, Count: recoveryUnits, Need: 1, State: crowd.ChunkOpen}
		at := crowd.Attempt{Job: w.job.ID, First: w.next, N: 1, Host: h.ID, Owner: h.Account, Group: h.Account.String(), State: crowd.AttemptLeased, LeasedAt: now}
		decided, ended := chunk, at
		ended.State, ended.EndedAt, ended.Digest, ended.Fuel, ended.Paid = crowd.AttemptReported, now, digest.Of(o.Manifest()), o.Fuel(), recoveryPay
		decided.State, decided.Version, decided.Digest, decided.Decided = crowd.ChunkDecided, 1, ended.Digest, now
		pay, err := ledger.Verdict(w.job.ID, w.next, 1, []ledger.Pay{{Owner: h.Account, Amount: recoveryPay}}, 0, now)
		if err != nil {
			return err
		}
		ops = append(ops, store.Lease{Chunk: chunk, Attempt: at}, store.PutBody{Job: w.job.ID, Digest: d, Body: body}, store.End{Attempt: ended, Counts: true, Body: d},
			store.Decide{Chunk: decided, Body: d}, store.Post{Postings: pay})
		w.next += recoveryUnits
	}
	if w.next-w.done >= 2*recoverySave*recoveryUnits { // the map is saved now and then, and behind
		w.done = w.next - recoverySave*recoveryUnits
		ops = append(ops, store.Done{Job: w.job.ID, Next: w.done, Runs: []store.Run{{First: 0, Count: w.done}}})
	}
	return w.st.Apply(ctx, ops...)
}

// killAtWork starts the broker, has its hosts work for some seconds and kills it while they do. It returns the units that it acknowledged.
func (c *cluster) killAtWork(ctx context.Context, hosts []*simHost) (units uint64, err error) {
	kill, err := c.restart()
	if err != nil {
		return 0, err
	}
	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	var done atomic.Uint64
	for _, h := range hosts {
		if err := h.dial(ctx, c); err != nil {
			kill()
			return 0, err
		}
		wg.Go(func() { _ = h.work(work, 48, func(n uint64) { done.Add(n) }) }) // until the broker is gone
	}
	pause(ctx, 5*time.Second)
	kill()
	stop()
	wg.Wait()
	if done.Load() == 0 {
		return 0, errors.New("no report was accepted")
	}
	fmt.Fprintf(os.Stderr, "bench: killed after %d units more\n", done.Load())
	return done.Load(), ctx.Err()
}

// comeBack starts the broker and tells when it has answered a request and leased a chunk to a host. It must know of as many decided units.
func (c *cluster) comeBack(ctx context.Context, h *simHost, asks *client.Client, jobs []*crowd.Job, units uint64) (time.Duration, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	began := time.Now()
	var answered, leased time.Duration
	first := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		err := h.dial(ctx, c)
		for ; err != nil && ctx.Err() == nil; err = h.dial(ctx, c) {
			pause(ctx, 5*time.Millisecond)
		}
		if err == nil {
			err = h.renew(1, 1)
		}
		for err == nil && leased == 0 {
			var m *crowd.Message
			if m, err = h.conn.Receive(ctx); err == nil && m.Lease != nil {
				leased = time.Since(began)
			}
		}
		first <- err
	})
	var known uint64
	request := make(chan error, 1)
	wg.Go(func() {
		_, err := asks.Job(ctx, jobs[0].ID.String())
		for ; err != nil && ctx.Err() == nil; _, err = asks.Job(ctx, jobs[0].ID.String()) {
			pause(ctx, 5*time.Millisecond)
		}
		answered = time.Since(began)
		request <- err
	})
	if _, err := c.restart(); err != nil {
		return 0, 0, err
	}
	if err := errors.Join(<-request, <-first); err != nil {
		return 0, 0, err
	}
	for _, j := range jobs {
		d, err := asks.Job(ctx, j.ID.String())
		if err != nil {
			return 0, 0, err
		}
		known += d.Progress.UnitsDone
	}
	if known < units {
		return 0, 0, fmt.Errorf("%d units are decided, but %d were acknowledged", known, units)
	}
	return answered, leased, nil
}

// restart starts the broker over its data on the same port; kill ends it as kill -9 does.
func (c *cluster) restart() (kill func(), err error) {
	log, err := os.OpenFile(filepath.Join(c.dir, "broker.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(crowdBin, "broker", "run", "--json", "--listen", strings.TrimPrefix(c.url, "https://"), "--data", filepath.Join(c.dir, "data"))
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.pid = cmd.Process.Pid
	var once sync.Once
	end := func(s os.Signal) func() {
		return func() {
			once.Do(func() {
				_ = cmd.Process.Signal(s)
				_ = cmd.Wait()
				log.Close()
			})
		}
	}
	c.stop = end(os.Interrupt)
	lines := bufio.NewReader(out)
	if _, err := lines.ReadBytes('\n'); err != nil {
		c.stop()
		return nil, fmt.Errorf("broker didn't start: %w (see %s)", err, log.Name())
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	return end(os.Kill), nil
}

// eachFile opens the files in a folder one after the other, if do isn't nil, and returns how many bytes they have.
func eachFile(dir string, do func(*os.File) error) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		bytes += st.Size()
		if do == nil {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return do(f)
	})
	return bytes, err
}

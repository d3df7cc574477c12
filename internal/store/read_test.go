package store

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if reflect.DeepEqual(got, want) {
		return
	}
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	t.Errorf("%s:\ngot  %s\nwant %s", what, g, w)
}

// Every noun comes back as it was put, before and after a restart.
func TestNouns(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	later := t0.Add(time.Hour)
	acc := crowd.Account{ID: newID[crowd.AccountID](), Name: "ann", Group: "g", Created: t0, Banned: crowd.HostCheated}
	key := crowd.Key{ID: newID[crowd.KeyID](), Account: acc.ID, Hash: [32]byte{1, 2}, Hint: "ck_…abcd", Scopes: crowd.Scopes, Cap: 1000, Spent: 0, Created: t0, Expires: later}
	token := crowd.JoinToken{Hash: [32]byte{3}, Account: acc.ID, Expires: later}
	host := crowd.Host{ID: newID[crowd.HostID](), Account: acc.ID, Name: "box", Key: []byte("0123456789abcdef0123456789abcdef"),
		Platform: crowd.Platform{OS: "linux", Device: "laptop"}, Capacity: crowd.Capacity{Slots: 2, Speed: 1.25}, Place: crowd.Place{Jurisdiction: "DE", Evidence: crowd.NotRefuted},
		Network: "192.0.2.0/24", State: crowd.HostQuarantined, Reason: crowd.HostCloned, Record: crowd.Record{Counted: 3, Fuel: 1 << 63, Seconds: 1.5}, Unbound: true, Created: t0}
	ses := PutSession{Host: host.ID, Session: newID[crowd.SessionID](), Dial: 3}
	ses2 := PutSession{Host: host.ID, Session: newID[crowd.SessionID](), Dial: 1, Void: true}
	prog := crowd.Program{Digest: digest.Of([]byte("wasm")), Account: acc.ID, Size: 4, Needs: []string{"fd_write"}, Memory: 1 << 20, Created: t0}
	retries := 3
	job := crowd.Job{ID: newID[crowd.JobID](), Account: acc.ID, Key: key.ID, Name: "j", Units: 1 << 40, State: crowd.JobRunning, Escrow: 7, Created: t0, Version: 2,
		Spec:     crowd.JobSpec{Kind: "job", Name: "j", Program: prog.Digest.String(), Args: []string{"a", "{unit}"}, Labels: map[string]string{"team": "x"}, Units: crowd.Units{Count: 1 << 40}, Retries: &retries},
		Progress: crowd.Progress{UnitsDone: 5, Chunks: 2}}
	quote := crowd.Quote{ID: newID[crowd.QuoteID](), Account: acc.ID, Spec: prog.Digest, Until: later, PerGfuel: 400, Low: 1, Likely: 2, High: 3,
		Excluded: []crowd.Exclude{{Hosts: 1, Reason: crowd.CustomerPlace, What: "not in DE", Asked: "place DE"}}}
	idem := PutIdem{acc.ID, "k", [32]byte{4}, 201, []byte(`{"a":1}`), t0}
	c := chunk(job.ID, 64, 64)
	a := attempt(job.ID, 64, 0, acc.ID)
	a.Group = "g"
	big, small := bytes.Repeat([]byte("0123456789"), 1000), []byte("small")
	random := make([]byte, 10000)
	for i := range random {
		random[i] = byte(i * i >> 3 * 7)
	}
	dec := decided(c, 1)
	dec.Chunk.Failed, dec.Body = 3, digest.Of(random)
	first, n := uint64(64), 0
	event := crowd.Event{Seq: 1, At: t0, Subject: host.ID.String(), Account: acc.ID, Actor: acc.ID.String(), What: "lease.ended", Reason: crowd.HostLost, Text: "gone",
		Data: crowd.EventData{Job: job.ID, Host: host.ID, First: &first, N: &n, UCR: 5}}
	bare := crowd.Event{Seq: 2, At: t0, Subject: job.ID.String(), Actor: "broker", What: "job.queued"}
	must(t, s.Apply(ctx, PutAccount{acc}, PutKey{key}, Spend{key.ID, 10}, PutToken{token}, UseToken{token.Hash, t0}, PutHost{host}, ses, ses2, ses, PutProgram{prog},
		PutBlob{prog.Digest, acc.ID, 4, t0}, PutBlob{prog.Digest, acc.ID, 4, t0}, PutBlob{prog.Digest, newID[crowd.AccountID](), 4, t0}, AddJob{job},
		PutQuote{quote}, idem, Lease{c, a}, lease(job.ID, 64, 64, 1),
		PutBody{job.ID, digest.Of(big), big}, PutBody{job.ID, digest.Of(small), small}, PutBody{job.ID, digest.Of(random), random}, PutBody{job.ID, digest.Of(random), random},
		PutBody{job.ID, digest.Of(nil), nil}, AddEvent{event}, AddEvent{bare}, lease(job.ID, 0, 64, 0)))
	a.State, a.Reason, a.EndedAt, a.Digest, a.Fuel, a.Paid = crowd.AttemptReported, crowd.GuestTrap, later, dec.Chunk.Digest, 1<<63, 9
	job.State, job.Reason, job.Ended, job.Paid, job.Version = crowd.JobDone, crowd.BrokerLosses, later, 5, 3
	a.Counts = true
	must(t, s.Apply(ctx, End{a, true, dec.Body}, dec, SetJob{job}))
	key.Spent, token.UsedAt = 10, t0

	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			same(t, "account", must1(s.Account(ctx, acc.ID))(t), acc)
			same(t, "account by name", must1(s.AccountByName(ctx, "ann"))(t), acc)
			same(t, "accounts", must1(s.Accounts(ctx))(t), []crowd.Account{acc})
			same(t, "key", must1(s.KeyByHash(ctx, key.Hash))(t), key)
			same(t, "keys", must1(s.Keys(ctx, acc.ID))(t), []crowd.Key{key})
			same(t, "token", must1(s.Token(ctx, token.Hash))(t), token)
			same(t, "host", must1(s.Host(ctx, host.ID))(t), host)
			same(t, "hosts", must1(s.Hosts(ctx))(t), []crowd.Host{host})
			same(t, "session", must1(s.Session(ctx, host.ID))(t), ses2)
			same(t, "program", must1(s.Program(ctx, prog.Digest))(t), prog)
			same(t, "blob", must1(s.HasBlob(ctx, acc.ID, prog.Digest))(t), true)
			same(t, "no blob", must1(s.HasBlob(ctx, newID[crowd.AccountID](), prog.Digest))(t), false)
			same(t, "job", must1(s.Job(ctx, job.ID))(t), job)
			same(t, "quote", must1(s.Quote(ctx, quote.ID))(t), quote)
			same(t, "idem", must1(s.Idem(ctx, acc.ID, "k"))(t), idem)
			same(t, "attempt", must1(s.Attempts(ctx, job.ID, 64))(t)[0], a)
			same(t, "chunk", must1(s.ChunkOf(ctx, job.ID, 127))(t), ChunkRow{dec.Chunk, dec.Body})
			same(t, "events", must1(s.Events(ctx, EventFilter{}))(t), []crowd.Event{event, bare})
			for _, b := range [][]byte{big, small, random, {}} {
				if got := must1(s.Body(ctx, job.ID, digest.Of(b)))(t); !bytes.Equal(got, b) {
					t.Errorf("a body of %d bytes comes back as %d", len(b), len(got))
				}
			}
		})
		must(t, s.Close())
		s = open(t, dir)
	}
	for what, err := range map[string]error{
		"account": second(s.Account(ctx, newID[crowd.AccountID]())), "name": second(s.AccountByName(ctx, "x")), "key": second(s.KeyByHash(ctx, [32]byte{})),
		"host": second(s.Host(ctx, newID[crowd.HostID]())), "session": second(s.Session(ctx, newID[crowd.HostID]())), "token": second(s.Token(ctx, [32]byte{})),
		"program": second(s.Program(ctx, crowd.Digest{1})), "job": second(s.Job(ctx, newID[crowd.JobID]())), "progress": second(s.JobProgress(ctx, newID[crowd.JobID]())),
		"unit": second(s.ChunkOf(ctx, job.ID, 128)), "huge unit": second(s.ChunkOf(ctx, job.ID, 1<<63)), "body": second(s.Body(ctx, job.ID, crowd.Digest{1})),
		"idem": second(s.Idem(ctx, acc.ID, "x")), "quote": second(s.Quote(ctx, newID[crowd.QuoteID]())), "txn": second(s.Txn(ctx, "x")),
	} {
		if !crowd.KindIs(err, crowd.NotFound) {
			t.Errorf("%s that isn't there: %v", what, err)
		}
	}
	s.now = func() time.Time { return t0.Add(25 * time.Hour) }
	wantKind(t, second(s.Idem(ctx, acc.ID, "k")), crowd.NotFound)
}

func second[T any](_ T, err error) error { return err }

func TestPages(t *testing.T) {
	s := open(t, t.TempDir())
	acc, other := newID[crowd.AccountID](), newID[crowd.AccountID]()
	var jobs []crowd.Job
	for i := range 6 {
		j := crowd.Job{ID: crowd.JobID{0: byte(i + 1), 6: 0x70, 8: 0x80}, Account: acc, Name: string(rune('a' + i)), State: crowd.JobQueued, Created: t0.Add(time.Duration(i) * time.Second)}
		if i%2 == 1 {
			j.Account, j.State = other, crowd.JobDone
			j.Spec.Labels = map[string]string{"k": "v", "n": "1"}
		}
		jobs = append(jobs, j)
		must(t, s.Apply(ctx, AddJob{j}))
	}
	for _, c := range []struct {
		f    JobFilter
		want string
	}{
		{JobFilter{}, "fedcba"}, {JobFilter{Limit: 2}, "fe"}, {JobFilter{Before: jobs[4].ID, Limit: 2}, "dc"}, {JobFilter{Account: acc}, "eca"},
		{JobFilter{Living: true}, "eca"}, {JobFilter{State: crowd.JobDone}, "fdb"}, {JobFilter{State: crowd.JobDone, Living: true}, ""}, {JobFilter{State: crowd.JobQueued, Account: other}, ""},
		{JobFilter{Name: "c"}, "c"}, {JobFilter{Label: "k=v"}, "fdb"}, {JobFilter{Label: "k=x"}, ""}, {JobFilter{Since: jobs[3].Created}, "fed"},
	} {
		got := ""
		for _, j := range must1(s.Jobs(ctx, c.f))(t) {
			got += j.Name
		}
		if got != c.want {
			t.Errorf("%+v: %s, want %s", c.f, got, c.want)
		}
	}

	job := jobs[0].ID
	for i := range uint64(5) {
		must(t, s.Apply(ctx, lease(job, i*10, 10, 0), lease(job, i*10, 10, 1)))
	}
	rows := must1(s.Chunks(ctx, job, 11, 2))(t)
	if len(rows) != 2 || rows[0].First != 20 || rows[1].First != 30 {
		t.Errorf("chunks %+v", rows)
	}
	var seen []crowd.AttemptRef
	for after := (crowd.AttemptRef{}); ; {
		page := must1(s.JobAttempts(ctx, job, after, 3))(t)
		for _, a := range page {
			after = crowd.AttemptRef{Job: job, First: a.First, N: a.N}
			seen = append(seen, after)
		}
		if len(page) < 3 {
			break
		}
	}
	if len(seen) != 10 || seen[0] != (crowd.AttemptRef{Job: job}) || seen[9] != (crowd.AttemptRef{Job: job, First: 40, N: 1}) {
		t.Errorf("attempts %v", seen)
	}

	bal := crowd.BalanceBook(acc)
	for i := range 5 {
		must(t, s.Apply(ctx, legs(string(rune('a'+i)), crowd.BookMint, -3, bal, 1, bal, 2)))
	}
	var text string
	for after := ""; ; {
		page := must1(s.Postings(ctx, bal, after, 3))(t)
		for _, p := range page {
			text += Cursor(p) + " "
		}
		if len(page) == 0 {
			break
		}
		after = Cursor(page[len(page)-1])
	}
	if want := "e#2 e#1 d#2 d#1 c#2 c#1 b#2 b#1 a#2 a#1 "; text != want {
		t.Errorf("postings %s, want %s", text, want)
	}
	wantKind(t, second(s.Postings(ctx, bal, "zzz#1", 1)), crowd.Invalid)
	wantKind(t, second(s.Postings(ctx, bal, "zzz", 1)), crowd.Invalid)
	same(t, "txn", must1(s.Txn(ctx, "c"))(t), legs("c", crowd.BookMint, -3, bal, 1, bal, 2).Postings)
	if b := must1(s.Balance(ctx, "never"))(t); b != 0 {
		t.Error(b)
	}
	if sum := must1(s.LedgerSum(ctx))(t); sum != 0 {
		t.Error(sum)
	}

	host := newID[crowd.HostID]()
	for i := range 6 {
		e := crowd.Event{At: t0, Subject: job.String(), Actor: "broker", What: "x.y"}
		if i%2 == 1 {
			e = crowd.Event{At: t0, Subject: host.String(), Account: acc, Actor: "broker", What: "x.y", Data: crowd.EventData{Job: job, Host: host}}
		}
		must(t, s.Apply(ctx, AddEvent{e}))
	}
	for _, c := range []struct {
		f    EventFilter
		want []int64
	}{
		{EventFilter{}, []int64{1, 2, 3, 4, 5, 6}}, {EventFilter{After: 4}, []int64{5, 6}}, {EventFilter{Newest: true, Limit: 2}, []int64{6, 5}},
		{EventFilter{Subject: job.String(), Limit: 3}, []int64{1, 2, 3}}, {EventFilter{Subject: host.String()}, []int64{2, 4, 6}},
		{EventFilter{Subject: job.String(), Account: acc, After: 2, Newest: true}, []int64{6, 4}}, {EventFilter{Account: acc}, []int64{2, 4, 6}},
		{EventFilter{Account: other}, nil},
	} {
		var got []int64
		for _, e := range must1(s.Events(ctx, c.f))(t) {
			got = append(got, e.Seq)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.f, got, c.want)
		}
	}
}

// A body log whose end was torn off, and one that a crash left with bytes that nothing names.
func TestBodyLog(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	job := addJob(t, s, "j")
	body := func(i int) []byte {
		b := make([]byte, 8000)
		for k := range b {
			b[k] = byte(digest.Of([]byte{byte(i), byte(k), byte(k >> 8)})[0])
		}
		return b
	}
	put := func(i int) PutBody { return PutBody{job.ID, digest.Of(body(i)), body(i)} }
	must(t, s.Apply(ctx, put(0), put(1)))
	path := logPath(s.logDir, job.ID)
	size := func() int64 { return must1(os.Stat(path))(t).Size() }
	was := size()
	if was != 2*(8000+recordHead) {
		t.Fatalf("log of %d bytes", was)
	}
	must(t, s.Apply(ctx, put(0), put(1)))
	wantKind(t, s.Apply(ctx, put(2), UseToken{}), crowd.Denied)
	wantKind(t, second(s.Body(ctx, job.ID, digest.Of(body(2)))), crowd.NotFound)
	must(t, s.Apply(ctx, put(3)))
	must(t, s.Close())

	f := must1(os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0))(t)
	_, err := f.WriteString("half a rec")
	must(t, err)
	must(t, f.Close())
	s = open(t, dir)
	must(t, s.Apply(ctx, put(4)))
	for _, i := range []int{0, 1, 3, 4} {
		if got := must1(s.Body(ctx, job.ID, digest.Of(body(i))))(t); !bytes.Equal(got, body(i)) {
			t.Errorf("body %d differs", i)
		}
	}
	f = must1(os.OpenFile(path, os.O_WRONLY, 0))(t)
	_, err = f.WriteAt([]byte{1, 2, 3, 4}, 100)
	must(t, err)
	must(t, f.Close())
	wantKind(t, second(s.Body(ctx, job.ID, digest.Of(body(0)))), crowd.Internal)
	must(t, os.Truncate(path, was-1))
	wantKind(t, second(s.Body(ctx, job.ID, digest.Of(body(1)))), crowd.Internal)
	// bytes that aren't what their name says
	must(t, s.Apply(ctx, PutBody{job.ID, crowd.Digest{7}, []byte("x")}))
	wantKind(t, second(s.Body(ctx, job.ID, crowd.Digest{7})), crowd.Internal)
}

package store

import (
	"time"

	"github.com/crowdcloud/crowd"
)

// plan makes an op ready. It is called by many goroutines at once and doesn't touch the database.
func (s *Store) plan(op Op) (step, error) {
	switch o := op.(type) {
	case PutAccount:
		return planAccount(o)
	case PutKey:
		return planKey(o)
	case DeleteKey:
		return do("DELETE FROM keys WHERE id = ?", o.Key[:]), nil
	case Spend:
		return func(w *writer) error { return w.spend(o) }, nil
	case PutToken:
		return planToken(o)
	case UseToken:
		return func(w *writer) error { return w.useToken(o) }, nil
	case PutHost:
		return planHost(o)
	case PutSession:
		return do(`INSERT INTO sessions (host, session, dial, void) VALUES (?, ?, ?, ?)
			ON CONFLICT (host, session) DO UPDATE SET dial = max(dial, excluded.dial), void = max(void, excluded.void)`,
			o.Host[:], o.Session[:], o.Dial, flag(o.Void)), nil
	case PutProgram:
		js, err := marshal(o.Program)
		return do("INSERT INTO programs (digest, json) VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET json = excluded.json", o.Program.Digest[:], js), err
	case PutBlob:
		return func(w *writer) error { return w.putBlob(o) }, nil
	case AddJob:
		return planJob(o)
	case SetJob:
		return planSetJob(o)
	case Lease:
		return planLease(o)
	case End:
		return planEnd(o)
	case SetPaid:
		return func(w *writer) error { return w.setPaid(o.Attempt) }, nil
	case Decide:
		return planDecide(o)
	case Reopen:
		return func(w *writer) error { return w.reopen(o.Chunk) }, nil
	case PutState:
		return func(w *writer) error { return w.putState(o.State) }, nil
	case PutRevisit:
		return func(w *writer) error {
			return w.ofJob(o.Job, "INSERT INTO revisits (job, host) VALUES (?, ?) ON CONFLICT DO NOTHING", o.Host[:])
		}, nil
	case DropRevisit:
		return func(w *writer) error {
			return w.ofJob(o.Job, "DELETE FROM revisits WHERE job = ? AND host = ?", o.Host[:])
		}, nil
	case DropStates:
		return func(w *writer) error { return w.dropStates(o) }, nil
	case Done:
		return planDone(o)
	case Post:
		return planPost(o)
	case AddEvent:
		return planEvent(o)
	case PutIdem:
		return func(w *writer) error { return w.putIdem(o) }, nil
	case PutQuote:
		js, err := marshal(o.Quote)
		return do("INSERT INTO quotes (id, until, json) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET until = excluded.until, json = excluded.json",
			o.Quote.ID[:], nanos(o.Quote.Until), js), err
	case PutBody:
		return s.planBody(o)
	case interface{ step(*writer) error }:
		return o.step, nil
	}
	return nil, crowd.Errorf(crowd.Internal, "", "store: unknown op %T", op)
}

// do is a step of one statement without a condition.
func do(q string, args ...any) step {
	return func(w *writer) error {
		_, _, err := w.change(q, args...)
		return err
	}
}

func planAccount(o PutAccount) (step, error) {
	a := o.Account
	js, err := marshal(a)
	return func(w *writer) error {
		_, _, err := w.change("INSERT INTO accounts (id, name, json) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name, json = excluded.json",
			a.ID[:], a.Name, js)
		if isConstraint(err) {
			return crowd.Errorf(crowd.Conflict, "", "there is an account named %q already", a.Name).WithHint("choose another name")
		}
		return err
	}, err
}

func planKey(o PutKey) (step, error) {
	k := o.Key
	js, err := marshal(k)
	return func(w *writer) error {
		_, _, err := w.change(`INSERT INTO keys (id, account, hash, cap, spent, json) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
			SET account = excluded.account, hash = excluded.hash, cap = excluded.cap, spent = excluded.spent, json = excluded.json`,
			k.ID[:], k.Account[:], k.Hash[:], int64(k.Cap), int64(k.Spent), js)
		if isConstraint(err) {
			return crowd.Errorf(crowd.Conflict, "", "another key has the same secret")
		}
		return err
	}, err
}

func (w *writer) spend(o Spend) error {
	row, err := w.one("SELECT cap, spent FROM keys WHERE id = ?", o.Key[:])
	if err != nil {
		return err
	}
	if row == nil {
		if o.Amount <= 0 { // the key was deleted while its job ran
			return nil
		}
		return crowd.Errorf(crowd.NotFound, "", "no such key: %s", o.Key)
	}
	spendCap := crowd.UCR(row[0].(int64))
	spent, ok := add(crowd.UCR(row[1].(int64)), o.Amount)
	if o.Amount > 0 && (!ok || spendCap > 0 && spent > spendCap) {
		return crowd.Errorf(crowd.Exhausted, crowd.CustomerCap, "key %s: its spending cap doesn't cover this", o.Key.Short()).
			WithHint("use another key, or make one with a higher cap")
	}
	_, _, err = w.change("UPDATE keys SET spent = ? WHERE id = ?", int64(max(spent, 0)), o.Key[:])
	return err
}

func planToken(o PutToken) (step, error) {
	t := o.Token
	return do(`INSERT INTO tokens (hash, account, expires, used_at) VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE
		SET account = excluded.account, expires = excluded.expires, used_at = excluded.used_at`,
		t.Hash[:], t.Account[:], nanos(t.Expires), nanos(t.UsedAt)), nil
}

func (w *writer) useToken(o UseToken) error {
	n, _, err := w.change("UPDATE tokens SET used_at = ? WHERE hash = ? AND used_at = 0 AND expires > ?", nanos(o.Now), o.Hash[:], nanos(o.Now))
	if err == nil && n == 0 {
		return crowd.Errorf(crowd.Denied, crowd.BrokerToken, "the join link is used up, expired or unknown").WithHint("ask for a new one: crowd host token")
	}
	return err
}

func planHost(o PutHost) (step, error) {
	js, err := marshal(o.Host)
	return func(w *writer) error {
		row, err := w.one("SELECT json FROM hosts WHERE id = ?", o.Host.ID[:])
		if err != nil {
			return err
		}
		if row != nil {
			var old crowd.Host
			if err := unmarshal(row[0].(string), &old); err != nil {
				return err
			}
			if h := o.Host; old.State != h.State && (h.State == crowd.HostActive || !old.State.May(h.State)) { // h was copied before that move
				h.State, h.Reason = old.State, old.Reason
				if js, err = marshal(h); err != nil {
					return err
				}
			}
		}
		_, _, err = w.change("INSERT INTO hosts (id, account, json) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET account = excluded.account, json = excluded.json",
			o.Host.ID[:], o.Host.Account[:], js)
		return err
	}, err
}

// BlobCost is what a blob of some size counts against its account's quota.
func BlobCost(size int64) int64 { return max(size, 4<<10) }

func (w *writer) putBlob(o PutBlob) error {
	n, _, err := w.change("INSERT INTO blobs (account, digest, size, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", o.Account[:], o.Digest[:], o.Size, nanos(o.At))
	if err != nil || n == 0 {
		return err
	}
	n, _, err = w.change(`INSERT INTO blob_sums (account, bytes) VALUES (?1, ?2) ON CONFLICT (account) DO UPDATE
		SET bytes = bytes + excluded.bytes WHERE bytes + excluded.bytes <= ?3`, o.Account[:], BlobCost(o.Size), crowd.Limits.AccountBlobBytes)
	if err == nil && n == 0 {
		return crowd.Errorf(crowd.Exhausted, crowd.CustomerQuota, "an account has at most %d bytes of blobs", crowd.Limits.AccountBlobBytes)
	}
	return err
}

// idemFor is how long the answer to a POST is kept.
const idemFor = 24 * time.Hour

func (w *writer) putIdem(o PutIdem) error {
	old := nanos(o.At.Add(-idemFor))
	if _, _, err := w.change("DELETE FROM idem WHERE at < ?", old); err != nil {
		return err
	}
	answer := o.Answer
	if answer == nil {
		answer = []byte{}
	}
	n, _, err := w.change(`INSERT INTO idem (account, key, body_hash, status, answer, at) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account, key) DO UPDATE
		SET status = excluded.status, answer = excluded.answer WHERE body_hash = excluded.body_hash`,
		o.Account[:], o.Key, o.BodyHash[:], int64(o.Status), answer, nanos(o.At))
	if err == nil && n == 0 {
		return crowd.Errorf(crowd.Conflict, "", "the idempotency key %q was used for another request", o.Key).WithHint("use a new key for a new request")
	}
	return err
}

// setKey sets the broker's key, once.
type setKey struct{ key []byte }

func (setKey) op() {}

func (o setKey) step(w *writer) error {
	n, _, err := w.change("UPDATE meta SET broker_key = ?1 WHERE broker_key IS NULL OR broker_key = ?1", o.key)
	if err == nil && n == 0 {
		return crowd.Errorf(crowd.Conflict, crowd.BrokerKey, "this store belongs to a broker with another key").
			WithHint("put back the key file that belongs to this data folder")
	}
	return err
}

// planEvent appends an event and notes every id that it names.
func planEvent(o AddEvent) (step, error) {
	e := o.Event
	var data any
	if e.Data != (crowd.EventData{}) {
		js, err := marshal(e.Data)
		if err != nil {
			return nil, err
		}
		data = js
	}
	names := namesOf(e)
	return func(w *writer) error {
		_, seq, err := w.change("INSERT INTO events (part, at, subject, account, actor, what, reason, text, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
			partOf(e.Data.Job), nanos(e.At), e.Subject, idOrNull(e.Account), e.Actor, e.What, textOrNull(e.Reason), textOrNull(e.Text), data)
		for _, n := range names {
			if err != nil {
				return err
			}
			_, _, err = w.change("INSERT INTO event_names (name, seq) VALUES (?, ?)", n, seq)
		}
		return err
	}, nil
}

// partOf is the partition (0 to 255) that a job belongs to.
func partOf(id crowd.JobID) int64 { return int64(id[15]) }

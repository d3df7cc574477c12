package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/crowdcloud/crowd"
)

// querier is the pool or one of its transactions.
type querier interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}

// each calls f for every row; f scans it.
func (s *Store) each(ctx context.Context, f func(scan func(...any) error) error, q string, args ...any) error {
	return each(ctx, s.query, f, q, args...)
}

func each(ctx context.Context, db querier, f func(scan func(...any) error) error, q string, args ...any) error {
	rows, err := db.QueryContext(ctx, q, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// first scans the first row.
func (s *Store) first(ctx context.Context, what string, dest []any, q string, args ...any) error {
	err := s.rd.QueryRowContext(ctx, q, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return crowd.Errorf(crowd.NotFound, "", "no such %s", what)
	}
	return wrap("read "+what, err)
}

// noun reads a thing that stands as JSON; several reads many.
func noun[T any](ctx context.Context, s *Store, what, q string, args ...any) (v T, err error) {
	var js string
	if err = s.first(ctx, what, []any{&js}, q, args...); err != nil {
		return v, err
	}
	return v, unmarshal(js, &v)
}

func several[T any](ctx context.Context, s *Store, what, q string, args ...any) ([]T, error) {
	var all []T
	err := s.each(ctx, func(scan func(...any) error) error {
		var js sql.RawBytes
		if err := scan(&js); err != nil {
			return err
		}
		var v T
		if err := json.Unmarshal(js, &v); err != nil {
			return err
		}
		all = append(all, v)
		return nil
	}, q, args...)
	return all, wrap("read "+what, err)
}

// Meta is the store's own row.
func (s *Store) Meta(ctx context.Context) (m Meta, err error) {
	err = s.first(ctx, "meta", []any{&m.Incarnation, &m.BrokerKey, &m.Schema},
		"SELECT incarnation, broker_key, (SELECT max(version_id) FROM goose_db_version WHERE is_applied) FROM meta")
	return m, err
}

// SetBrokerKey notes the broker's public key; the same one again is fine, another is a Conflict.
func (s *Store) SetBrokerKey(ctx context.Context, key []byte) error {
	if len(key) == 0 {
		return crowd.Errorf(crowd.Invalid, "", "store: the broker's key is empty")
	}
	return s.Apply(ctx, setKey{append([]byte(nil), key...)})
}

// Account reads one account; AccountByName the one of that name, Accounts all, oldest first.
func (s *Store) Account(ctx context.Context, id crowd.AccountID) (crowd.Account, error) {
	return noun[crowd.Account](ctx, s, "account", "SELECT json FROM accounts WHERE id = ?", id[:])
}

func (s *Store) AccountByName(ctx context.Context, name string) (crowd.Account, error) {
	return noun[crowd.Account](ctx, s, "account", "SELECT json FROM accounts WHERE name = ?", name)
}

func (s *Store) Accounts(ctx context.Context) ([]crowd.Account, error) {
	return several[crowd.Account](ctx, s, "accounts", "SELECT json FROM accounts ORDER BY id")
}

const keyColumns = "SELECT json, hash, spent FROM keys "

func scanKey(scan func(...any) error) (k crowd.Key, err error) {
	var js string
	var hash []byte
	var spent int64
	if err = scan(&js, &hash, &spent); err != nil {
		return k, err
	}
	if err = unmarshal(js, &k); err != nil {
		return k, err
	}
	copy(k.Hash[:], hash)
	k.Spent = crowd.UCR(spent)
	return k, nil
}

// KeyByHash finds an API key by the hash of its secret, expired or not; Keys are an account's, oldest first.
func (s *Store) KeyByHash(ctx context.Context, hash [32]byte) (crowd.Key, error) {
	k, err := scanKey(s.rd.QueryRowContext(ctx, keyColumns+"WHERE hash = ?", hash[:]).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return k, crowd.Errorf(crowd.NotFound, "", "no such key")
	}
	return k, wrap("read key", err)
}

func (s *Store) Keys(ctx context.Context, account crowd.AccountID) (keys []crowd.Key, err error) {
	err = s.each(ctx, func(scan func(...any) error) error {
		k, err := scanKey(scan)
		keys = append(keys, k)
		return err
	}, keyColumns+"WHERE account = ? ORDER BY id", account[:])
	return keys, wrap("read keys", err)
}

// Token reads a join token by the hash of its secret, used or not: whose account UseToken lets a machine join.
func (s *Store) Token(ctx context.Context, hash [32]byte) (t crowd.JoinToken, err error) {
	var account []byte
	var expires, used int64
	err = s.first(ctx, "join token", []any{&account, &expires, &used}, "SELECT account, expires, used_at FROM tokens WHERE hash = ?", hash[:])
	if err != nil {
		return t, err
	}
	t = crowd.JoinToken{Hash: hash, Expires: instant(expires), UsedAt: instant(used)}
	copy(t.Account[:], account)
	return t, nil
}

// Host reads one host, Hosts all, oldest first.
func (s *Store) Host(ctx context.Context, id crowd.HostID) (crowd.Host, error) {
	return noun[crowd.Host](ctx, s, "host", "SELECT json FROM hosts WHERE id = ?", id[:])
}

func (s *Store) Hosts(ctx context.Context) ([]crowd.Host, error) {
	return several[crowd.Host](ctx, s, "hosts", "SELECT json FROM hosts ORDER BY id")
}

// Session is the host's newest session: the one that was first heard of last.
func (s *Store) Session(ctx context.Context, host crowd.HostID) (p PutSession, err error) {
	p.Host = host
	var session []byte
	err = s.first(ctx, "session", []any{&session, &p.Dial, &p.Void}, "SELECT session, dial, void FROM sessions WHERE host = ? ORDER BY num DESC LIMIT 1", host[:])
	copy(p.Session[:], session)
	return p, err
}

// Void reports whether a host's session was found void, ever.
func (s *Store) Void(ctx context.Context, host crowd.HostID, session crowd.SessionID) (void bool, err error) {
	err = s.first(ctx, "session", []any{&void}, "SELECT EXISTS (SELECT 1 FROM sessions WHERE host = ? AND session = ? AND void = 1)", host[:], session[:])
	return void, err
}

// Program reads what an upload of these bytes was found to be.
func (s *Store) Program(ctx context.Context, d crowd.Digest) (crowd.Program, error) {
	return noun[crowd.Program](ctx, s, "program", "SELECT json FROM programs WHERE digest = ?", d[:])
}

// HasBlob reports whether the account uploaded the content.
func (s *Store) HasBlob(ctx context.Context, account crowd.AccountID, d crowd.Digest) (has bool, err error) {
	err = s.first(ctx, "blob", []any{&has}, "SELECT EXISTS (SELECT 1 FROM blobs WHERE account = ? AND digest = ?)", account[:], d[:])
	return has, err
}

// OwnedBlob reports whether any account uploaded the content.
func (s *Store) OwnedBlob(ctx context.Context, d crowd.Digest) (has bool, err error) {
	err = s.first(ctx, "blob", []any{&has}, "SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?)", d[:])
	return has, err
}

// BlobBytes is what the account's blobs count together.
func (s *Store) BlobBytes(ctx context.Context, account crowd.AccountID) (n int64, err error) {
	err = s.first(ctx, "blobs", []any{&n}, "SELECT coalesce((SELECT bytes FROM blob_sums WHERE account = ?), 0)", account[:])
	return n, err
}

// Idem is the kept answer to a POST: NotFound if there is none, or it is older than a day.
func (s *Store) Idem(ctx context.Context, account crowd.AccountID, key string) (p PutIdem, err error) {
	p.Account, p.Key = account, key
	var hash []byte
	var at int64
	err = s.first(ctx, "request", []any{&hash, &p.Status, &p.Answer, &at},
		"SELECT body_hash, status, answer, at FROM idem WHERE account = ? AND key = ? AND at >= ?", account[:], key, nanos(s.now().Add(-idemFor)))
	copy(p.BodyHash[:], hash)
	p.At = instant(at)
	return p, err
}

// Quote reads a quote, held still or not.
func (s *Store) Quote(ctx context.Context, id crowd.QuoteID) (crowd.Quote, error) {
	return noun[crowd.Quote](ctx, s, "quote", "SELECT json FROM quotes WHERE id = ?", id[:])
}

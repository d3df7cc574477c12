package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"github.com/crowdcloud/crowd"
)

// Balance is what a book holds; one never posted to holds nothing.
func (s *Store) Balance(ctx context.Context, b crowd.Book) (crowd.UCR, error) {
	var sum int64
	err := s.rd.QueryRowContext(ctx, "SELECT balance FROM books WHERE name = ?", string(b)).Scan(&sum)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return crowd.UCR(sum), wrap("read balance", err)
}

// Cursor is where a page of postings that ends with p goes on: what Postings takes as after.
func Cursor(p crowd.Posting) string { return p.Txn + "#" + strconv.Itoa(p.Leg) }

// Postings are a book's, newest first, from after a Cursor ("": the newest); limit 0: 100. A cursor of no posting is Invalid.
func (s *Store) Postings(ctx context.Context, b crowd.Book, after string, limit int) (all []crowd.Posting, err error) {
	txn, leg := int64(1)<<62, int64(0)
	if after != "" {
		i := strings.LastIndexByte(after, '#')
		n, bad := strconv.ParseInt(after[i+1:], 10, 64)
		if i < 0 || bad != nil {
			return nil, crowd.Errorf(crowd.Invalid, "", "%q is no place in a statement", after)
		}
		leg = n
		err := s.first(ctx, "posting", []any{&txn}, "SELECT num FROM txns WHERE name = ?", after[:i])
		if crowd.KindIs(err, crowd.NotFound) {
			return nil, crowd.Errorf(crowd.Invalid, "", "%q is no place in a statement", after)
		}
		if err != nil {
			return nil, err
		}
	}
	err = s.each(ctx, func(scan func(...any) error) error {
		p := crowd.Posting{Book: b}
		var at int64
		err := scan(&p.Txn, &p.Leg, &p.Amount, &at)
		p.At = instant(at)
		all = append(all, p)
		return err
	}, `SELECT t.name, p.leg, p.amount, t.at FROM postings p CROSS JOIN txns t ON t.num = p.txn
		WHERE p.book = (SELECT num FROM books WHERE name = ?) AND (p.txn, p.leg) < (?, ?) ORDER BY p.txn DESC, p.leg DESC LIMIT ?`,
		string(b), txn, leg, limitOr(limit, 100))
	return all, wrap("read postings", err)
}

// Txn are the legs of one transaction: NotFound.
func (s *Store) Txn(ctx context.Context, name string) (legs []crowd.Posting, err error) {
	var num, at int64
	var index []byte
	if err = s.first(ctx, "transaction", []any{&num, &at, &index}, "SELECT num, at, legs FROM txns WHERE name = ?", name); err != nil {
		return nil, err
	}
	for len(index) > 0 {
		leg, n := binary.Uvarint(index)
		book, m := binary.Uvarint(index[max(n, 0):])
		if n <= 0 || m <= 0 {
			return nil, crowd.Errorf(crowd.Internal, "", "store: transaction %q is not as it was written", name)
		}
		index = index[n+m:]
		p := crowd.Posting{Txn: name, Leg: int(leg), At: instant(at)}
		err = s.first(ctx, "posting", []any{&p.Book, &p.Amount},
			"SELECT b.name, p.amount FROM postings p JOIN books b ON b.num = p.book WHERE p.book = ? AND p.txn = ? AND p.leg = ?", int64(book), num, int64(leg))
		if err != nil {
			return nil, err
		}
		legs = append(legs, p)
	}
	return legs, nil
}

// LedgerSum is the sum over all postings: zero, always. After a start the first call reads every posting; later ones only those since.
func (s *Store) LedgerSum(ctx context.Context) (crowd.UCR, error) {
	s.sum.Lock()
	defer s.sum.Unlock()
	tx, err := s.rd.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return 0, wrap("sum the ledger", err)
	}
	defer func() { _ = tx.Rollback() }()
	var last, sum int64
	err = tx.QueryRowContext(ctx, "SELECT coalesce(max(num), 0) FROM txns").Scan(&last)
	if err == nil {
		err = tx.QueryRowContext(ctx, "SELECT coalesce(sum(p.amount), 0) FROM books b CROSS JOIN postings p ON p.book = b.num AND p.txn > ?", s.sum.txn).Scan(&sum)
	}
	if err != nil {
		return 0, wrap("sum the ledger", err)
	}
	s.sum.txn = last
	s.sum.sum += crowd.UCR(sum)
	return s.sum.sum, nil
}

// Events selects events.
func (s *Store) Events(ctx context.Context, f EventFilter) (all []crowd.Event, err error) {
	q, args := "FROM events e WHERE e.seq > ?", []any{f.After}
	if f.Subject != "" {
		q, args = "FROM event_names x CROSS JOIN events e ON e.seq = x.seq WHERE x.name = ? AND x.seq > ?", []any{f.Subject, f.After}
	}
	if !f.Account.IsZero() {
		q += " AND e.account = ?"
		args = append(args, f.Account[:])
	}
	order := "e.seq"
	if f.Subject != "" {
		order = "x.seq"
	}
	if f.Newest {
		order += " DESC"
	}
	args = append(args, limitOr(f.Limit, 100))
	err = s.each(ctx, func(scan func(...any) error) error {
		e, err := scanEvent(scan)
		all = append(all, e)
		return err
	}, eventColumns+q+" ORDER BY "+order+" LIMIT ?", args...)
	return all, wrap("read events", err)
}

const eventColumns = "SELECT e.seq, e.at, e.subject, e.account, e.actor, e.what, e.reason, e.text, e.data "

func scanEvent(scan func(...any) error) (e crowd.Event, err error) {
	var at int64
	var account, reason, text, data sql.RawBytes
	if err = scan(&e.Seq, &at, &e.Subject, &account, &e.Actor, &e.What, &reason, &text, &data); err != nil {
		return e, err
	}
	e.At, e.Reason, e.Text = instant(at), crowd.Reason(reason), string(text)
	copy(e.Account[:], account)
	if data != nil {
		err = unmarshal(string(data), &e.Data)
	}
	return e, err
}

package store

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"strings"

	"github.com/crowdcloud/crowd"
)

// book is a balance as the writer knows it; it is written once per commit.
type book struct {
	name    crowd.Book
	num     int64
	balance crowd.UCR
	dirty   bool
	gone    bool // its row was rolled back
}

// undo is a book's balance before a posting.
type undo struct {
	book    *book
	balance crowd.UCR
	created bool
}

// add is a + b; ok is false if it can't be represented.
func add(a, b crowd.UCR) (sum crowd.UCR, ok bool) {
	s, _ := bits.Add64(uint64(a), uint64(b), 0)
	sum = crowd.UCR(s)
	return sum, (a >= 0) != (b >= 0) || (sum >= 0) == (a >= 0)
}

// planPost checks what can be checked without the books.
func planPost(o Post) (step, error) {
	legs := slices.Clone(o.Postings)
	slices.SortStableFunc(legs, func(a, b crowd.Posting) int {
		if c := strings.Compare(a.Txn, b.Txn); c != 0 {
			return c
		}
		return a.Leg - b.Leg
	})
	var txns [][]crowd.Posting
	for i := 0; i < len(legs); {
		k, sum, ok := i, crowd.UCR(0), true
		for ; k < len(legs) && legs[k].Txn == legs[i].Txn; k++ {
			var fits bool
			sum, fits = add(sum, legs[k].Amount)
			ok = ok && fits && legs[k].Leg >= 0 && (k == i || legs[k].Leg != legs[k-1].Leg) && legs[k].Book != ""
		}
		if sum != 0 || !ok || legs[i].Txn == "" {
			return nil, crowd.Errorf(crowd.Internal, "", "store: the postings of %q don't sum to zero, or are malformed (sum %d)", legs[i].Txn, sum)
		}
		txns = append(txns, legs[i:k:k])
		i = k
	}
	return func(w *writer) error { return w.post(txns) }, nil
}

func (w *writer) post(txns [][]crowd.Posting) error {
	mark := len(w.undo)
	for _, legs := range txns {
		t, err := w.one("SELECT 1 FROM txns WHERE name = ?", legs[0].Txn)
		if err != nil {
			return err
		}
		if t != nil {
			continue // posted before
		}
		index := make([]byte, 0, 4*len(legs))
		books := make([]*book, len(legs))
		for i, p := range legs {
			if books[i], err = w.move(p.Book, p.Amount); err != nil {
				return err
			}
			index = binary.AppendUvarint(index, uint64(p.Leg))
			index = binary.AppendUvarint(index, uint64(books[i].num))
		}
		_, num, err := w.change("INSERT INTO txns (name, at, legs) VALUES (?, ?, ?)", legs[0].Txn, nanos(legs[0].At), index)
		if err != nil {
			return err
		}
		for i, p := range legs {
			if _, _, err = w.change("INSERT INTO postings (book, txn, leg, amount) VALUES (?, ?, ?, ?)", books[i].num, num, int64(p.Leg), int64(p.Amount)); err != nil {
				return err
			}
		}
	}
	for i := mark; i < len(w.undo); i++ {
		b, before := w.undo[i].book, w.undo[i].balance
		kind, rest, _ := strings.Cut(string(b.name), ":")
		if b.balance >= 0 || b.balance >= before || kind != "balance" && kind != "pending" && kind != "escrow" {
			continue
		}
		if slices.ContainsFunc(w.undo[mark:i], func(u undo) bool { return u.book == b }) {
			continue // only its balance before the whole op counts
		}
		if kind != "balance" { // what the broker took for its own sums is wrong
			return crowd.Errorf(crowd.Internal, "", "store: %s would be overdrawn", b.name)
		}
		return crowd.Errorf(crowd.Exhausted, crowd.CustomerCredit, "%s has too little free credit", rest)
	}
	return nil
}

// move adds to a book's balance in memory; saveBooks writes it.
func (w *writer) move(name crowd.Book, amount crowd.UCR) (*book, error) {
	b, created := w.books[name], false
	if b == nil {
		row, err := w.one("SELECT num, balance FROM books WHERE name = ?", string(name))
		if err != nil {
			return nil, err
		}
		b = &book{name: name}
		if row != nil {
			b.num, b.balance = row[0].(int64), crowd.UCR(row[1].(int64))
		} else {
			created = true
			if _, b.num, err = w.change("INSERT INTO books (name, balance) VALUES (?, 0)", string(name)); err != nil {
				return nil, err
			}
		}
		w.books[name] = b
	}
	w.undo = append(w.undo, undo{b, b.balance, created})
	sum, ok := add(b.balance, amount)
	if !ok {
		return nil, crowd.Errorf(crowd.Internal, "", "store: the balance of %q would overflow", name)
	}
	b.balance = sum
	if !b.dirty {
		b.dirty = true
		w.dirty = append(w.dirty, b)
	}
	return b, nil
}

func (w *writer) saveBooks() error {
	defer func() {
		for _, b := range w.dirty {
			b.dirty = false
		}
		w.dirty = w.dirty[:0]
	}()
	for _, b := range w.dirty {
		if b.gone {
			continue
		}
		if _, _, err := w.exec("UPDATE books SET balance = ? WHERE num = ?", int64(b.balance), b.num); err != nil {
			return err
		}
	}
	return nil
}

// Package ledger says which postings an event causes. It is law: pure, no clock; what it returns is posted by the store.
//
//	deposit   mint → balance               deposit:ID
//	order     balance → escrow             order:JOB
//	verdict   escrow → pending of each, fee    chunk:JOB:FIRST:VERSION
//	settle    pending → balance of each    settle:JOB
//	refund    escrow → balance             refund:JOB
//	reverse   every leg backwards          reverse:TXN
//
// A transaction's name is made of the event only, so that the same event twice is one transaction. The legs of each sum to zero. Amounts are
// never negative here: Invalid. What would overflow is Invalid too. An event that moves nothing has no postings.
package ledger

import (
	"strconv"
	"time"

	"github.com/crowdcloud/crowd"
)

// Pay is what an owner's hosts get.
type Pay struct {
	Owner  crowd.AccountID
	Amount crowd.UCR
}

// Deposit grants an account credit; id names the grant.
func Deposit(id string, account crowd.AccountID, amount crowd.UCR, at time.Time) ([]crowd.Posting, error) {
	if id == "" {
		return nil, crowd.Errorf(crowd.Invalid, "", "a deposit needs an id")
	}
	return move("deposit:"+id, crowd.BookMint, []leg{{crowd.BalanceBook(account), amount}}, at)
}

// Order puts an order's maximum into escrow.
func Order(job crowd.JobID, account crowd.AccountID, amount crowd.UCR, at time.Time) ([]crowd.Posting, error) {
	return move("order:"+job.String(), crowd.BalanceBook(account), []leg{{crowd.EscrowBook(job), amount}}, at)
}

// VerdictTxn names the transaction of a chunk's verdict.
func VerdictTxn(job crowd.JobID, first uint64, version int) string {
	return "chunk:" + job.String() + ":" + strconv.FormatUint(first, 10) + ":" + strconv.Itoa(version)
}

// Verdict pays the owners whose attempts a chunk's verdict counts, and the operator's fee. An owner named twice gets both, in one leg.
func Verdict(job crowd.JobID, first uint64, version int, pays []Pay, fee crowd.UCR, at time.Time) ([]crowd.Posting, error) {
	to := make([]leg, 0, len(pays)+1)
	for _, p := range pays {
		to = append(to, leg{crowd.PendingBook(p.Owner), p.Amount})
	}
	return move(VerdictTxn(job, first, version), crowd.EscrowBook(job), append(to, leg{crowd.BookFee, fee}), at)
}

// Settle makes what a job's hosts earned theirs to spend.
func Settle(job crowd.JobID, pendings []Pay, at time.Time) ([]crowd.Posting, error) {
	txn := "settle:" + job.String()
	var all []crowd.Posting
	var sums sums
	for _, p := range pendings {
		if err := sums.add(crowd.PendingBook(p.Owner), p.Amount, txn); err != nil {
			return nil, err
		}
	}
	owner := map[crowd.Book]crowd.AccountID{}
	for _, p := range pendings {
		owner[crowd.PendingBook(p.Owner)] = p.Owner
	}
	for _, l := range sums.legs {
		all = append(all,
			crowd.Posting{Txn: txn, Leg: len(all), Book: l.book, Amount: -l.amount, At: at},
			crowd.Posting{Txn: txn, Leg: len(all) + 1, Book: crowd.BalanceBook(owner[l.book]), Amount: l.amount, At: at})
	}
	return all, nil
}

// Refund gives back what is left of a job's escrow.
func Refund(job crowd.JobID, account crowd.AccountID, rest crowd.UCR, at time.Time) ([]crowd.Posting, error) {
	return move("refund:"+job.String(), crowd.EscrowBook(job), []leg{{crowd.BalanceBook(account), rest}}, at)
}

// ReverseTxn names the transaction that takes another back.
func ReverseTxn(txn string) string { return "reverse:" + txn }

// Reverse takes back a transaction, given all its postings, under the name id ("": ReverseTxn of its name).
func Reverse(postings []crowd.Posting, id string, at time.Time) ([]crowd.Posting, error) {
	var sum crowd.UCR
	all := make([]crowd.Posting, 0, len(postings))
	for _, p := range postings {
		var ok bool
		if sum, ok = add(sum, p.Amount); !ok || p.Txn != postings[0].Txn || p.Amount == -p.Amount && p.Amount != 0 {
			return nil, crowd.Errorf(crowd.Invalid, "", "the postings to reverse are not one transaction")
		}
		p.Amount, p.At = -p.Amount, at
		all = append(all, p)
	}
	if sum != 0 {
		return nil, crowd.Errorf(crowd.Invalid, "", "the postings to reverse are not a whole transaction: they sum to %d", sum)
	}
	for i := range all {
		if all[i].Txn = id; id == "" {
			all[i].Txn = ReverseTxn(postings[0].Txn)
		}
	}
	return all, nil
}

type leg struct {
	book   crowd.Book
	amount crowd.UCR
}

// sums adds up amounts by book, in the order in which books first appear, leaving out zeros.
type sums struct {
	legs []leg
	at   map[crowd.Book]int
}

func (s *sums) add(b crowd.Book, amount crowd.UCR, txn string) error {
	if amount < 0 {
		return crowd.Errorf(crowd.Invalid, "", "%s: %d to %s is negative", txn, amount, b)
	}
	if amount == 0 {
		return nil
	}
	i, ok := s.at[b]
	if !ok {
		if s.at == nil {
			s.at = map[crowd.Book]int{}
		}
		i = len(s.legs)
		s.at[b] = i
		s.legs = append(s.legs, leg{book: b})
	}
	if s.legs[i].amount, ok = add(s.legs[i].amount, amount); !ok {
		return crowd.Errorf(crowd.Invalid, "", "%s: the amount for %s is too large", txn, b)
	}
	return nil
}

// move takes the sum of the legs from one book; leg 0 is the giver.
func move(txn string, from crowd.Book, to []leg, at time.Time) ([]crowd.Posting, error) {
	var s sums
	var total crowd.UCR
	for _, l := range to {
		if err := s.add(l.book, l.amount, txn); err != nil {
			return nil, err
		}
		var ok bool
		if total, ok = add(total, l.amount); !ok {
			return nil, crowd.Errorf(crowd.Invalid, "", "%s: the amounts are too large", txn)
		}
	}
	if total == 0 {
		return nil, nil
	}
	all := []crowd.Posting{{Txn: txn, Book: from, Amount: -total, At: at}}
	for i, l := range s.legs {
		all = append(all, crowd.Posting{Txn: txn, Leg: i + 1, Book: l.book, Amount: l.amount, At: at})
	}
	return all, nil
}

// add is a + b; ok is false if it can't be represented.
func add(a, b crowd.UCR) (sum crowd.UCR, ok bool) {
	sum = a + b // wraps
	return sum, (a >= 0) != (b >= 0) || (sum >= 0) == (a >= 0)
}

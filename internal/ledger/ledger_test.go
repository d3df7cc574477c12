package ledger

import (
	"math"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crowdcloud/crowd"
)

var (
	at  = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	job = crowd.JobID{6: 0x70, 8: 0x80, 15: 1}
	ann = account(1)
	bob = account(2)
)

func account(n byte) crowd.AccountID { return crowd.AccountID{6: 0x70, 8: 0x80, 15: n} }

// check compares postings with book, amount pairs.
func check(t *testing.T, what string, got []crowd.Posting, err error, txn string, want ...any) {
	t.Helper()
	if err != nil || len(got) != len(want)/2 {
		t.Fatalf("%s: %v, %v", what, got, err)
	}
	for i, p := range got {
		if p.Txn != txn || p.Leg != i || p.Book != want[2*i].(crowd.Book) || p.Amount != crowd.UCR(want[2*i+1].(int)) || !p.At.Equal(at) {
			t.Errorf("%s: leg %d is %+v", what, i, p)
		}
	}
}

func TestEvents(t *testing.T) {
	j := job.String()
	p, err := Deposit("gift-1", ann, 100, at)
	check(t, "deposit", p, err, "deposit:gift-1", crowd.BookMint, -100, crowd.BalanceBook(ann), 100)
	p, err = Order(job, ann, 60, at)
	check(t, "order", p, err, "order:"+j, crowd.BalanceBook(ann), -60, crowd.EscrowBook(job), 60)
	p, err = Verdict(job, 64, 1, []Pay{{ann, 5}, {bob, 7}, {ann, 1}, {account(3), 0}}, 2, at)
	check(t, "verdict", p, err, "chunk:"+j+":64:1", crowd.EscrowBook(job), -15, crowd.PendingBook(ann), 6, crowd.PendingBook(bob), 7, crowd.BookFee, 2)
	r, err := Reverse(p, "", at)
	check(t, "reverse", r, err, "reverse:chunk:"+j+":64:1", crowd.EscrowBook(job), 15, crowd.PendingBook(ann), -6, crowd.PendingBook(bob), -7, crowd.BookFee, -2)
	r, err = Reverse(p, "mine", at)
	check(t, "reverse", r[:1], err, "mine", crowd.EscrowBook(job), 15)
	p, err = Settle(job, []Pay{{ann, 6}, {bob, 7}}, at)
	check(t, "settle", p, err, "settle:"+j, crowd.PendingBook(ann), -6, crowd.BalanceBook(ann), 6, crowd.PendingBook(bob), -7, crowd.BalanceBook(bob), 7)
	p, err = Refund(job, ann, 45, at)
	check(t, "refund", p, err, "refund:"+j, crowd.EscrowBook(job), -45, crowd.BalanceBook(ann), 45)
}

func TestNothingAndRefusals(t *testing.T) {
	for what, f := range map[string]func() ([]crowd.Posting, error){
		"refund":  func() ([]crowd.Posting, error) { return Refund(job, ann, 0, at) },
		"verdict": func() ([]crowd.Posting, error) { return Verdict(job, 0, 1, []Pay{{ann, 0}}, 0, at) },
		"settle":  func() ([]crowd.Posting, error) { return Settle(job, nil, at) },
		"reverse": func() ([]crowd.Posting, error) { return Reverse(nil, "", at) },
	} {
		if p, err := f(); len(p) != 0 || err != nil {
			t.Errorf("%s of nothing: %v, %v", what, p, err)
		}
	}
	big := crowd.UCR(math.MaxInt64)
	for what, f := range map[string]func() ([]crowd.Posting, error){
		"deposit, no id":    func() ([]crowd.Posting, error) { return Deposit("", ann, 1, at) },
		"deposit, negative": func() ([]crowd.Posting, error) { return Deposit("x", ann, -1, at) },
		"order, negative":   func() ([]crowd.Posting, error) { return Order(job, ann, -1, at) },
		"verdict, negative": func() ([]crowd.Posting, error) { return Verdict(job, 0, 1, []Pay{{ann, 5}, {bob, -1}}, 0, at) },
		"verdict, too much": func() ([]crowd.Posting, error) { return Verdict(job, 0, 1, []Pay{{ann, big}, {bob, 1}}, 0, at) },
		"verdict, fee":      func() ([]crowd.Posting, error) { return Verdict(job, 0, 1, []Pay{{ann, 1}}, -1, at) },
		"settle, too much":  func() ([]crowd.Posting, error) { return Settle(job, []Pay{{ann, big}, {ann, big}}, at) },
		"reverse, a part":   func() ([]crowd.Posting, error) { return Reverse([]crowd.Posting{{Txn: "a", Amount: 1}}, "", at) },
		"reverse, two": func() ([]crowd.Posting, error) {
			return Reverse([]crowd.Posting{{Txn: "a", Amount: 1}, {Txn: "b", Amount: -1}}, "", at)
		},
	} {
		if p, err := f(); !crowd.KindIs(err, crowd.Invalid) || p != nil {
			t.Errorf("%s: %v, %v", what, p, err)
		}
	}
}

// Every event's legs sum to zero, are distinct and well-named; the same event gives the same postings; a reversal of a reversal is the event.
func TestSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		amount := rapid.Map(rapid.Int64Range(0, 1<<40), func(v int64) crowd.UCR { return crowd.UCR(v) })
		pays := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Pay {
			return Pay{account(rapid.Byte().Draw(t, "owner")), amount.Draw(t, "pay")}
		}), 0, 9).Draw(t, "pays")
		x, version := amount.Draw(t, "amount"), rapid.IntRange(1, 5).Draw(t, "version")
		first := rapid.Uint64().Draw(t, "first")
		for _, f := range []func() ([]crowd.Posting, error){
			func() ([]crowd.Posting, error) { return Deposit("d", ann, x, at) },
			func() ([]crowd.Posting, error) { return Order(job, ann, x, at) },
			func() ([]crowd.Posting, error) { return Verdict(job, first, version, pays, x, at) },
			func() ([]crowd.Posting, error) { return Settle(job, pays, at) },
			func() ([]crowd.Posting, error) { return Refund(job, ann, x, at) },
		} {
			p, err := f()
			again, _ := f()
			if err != nil || !reflect.DeepEqual(p, again) {
				t.Fatalf("%v, %v; again %v", p, err, again)
			}
			var sum crowd.UCR
			for i, l := range p {
				sum += l.Amount
				if l.Leg != i || l.Txn != p[0].Txn || l.Amount == 0 || l.Book == "" {
					t.Fatalf("leg %+v", l)
				}
			}
			back, err := Reverse(p, "", at)
			twice, err2 := Reverse(back, "", at)
			if sum != 0 || err != nil || err2 != nil || len(twice) != len(p) {
				t.Fatal(sum, err, err2)
			}
			for i := range p {
				if back[i].Amount != -p[i].Amount || twice[i].Amount != p[i].Amount || twice[i].Book != p[i].Book {
					t.Fatal("reversal", back[i], twice[i])
				}
			}
		}
	})
}

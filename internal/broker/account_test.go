package broker

import (
	"context"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
)

// with is a caller by a new key of the same account.
func (w *world) with(c Caller, spendCap crowd.UCR, scopes ...crowd.Scope) Caller {
	w.t.Helper()
	ctx := context.Background()
	_, secret, err := w.b.CreateKey(ctx, c, scopes, spendCap, 0)
	must(w.t, err)
	got, err := w.b.Authenticate(ctx, secret, false)
	must(w.t, err)
	return got
}

// A key with a cap can't get around it by making keys.
func TestCappedKeyMakesNoKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		capped := w.with(w.ada, crowd.Credit, crowd.ScopeOrder, crowd.ScopeRead)
		for _, most := range []crowd.UCR{0, 1, crowd.Credit} {
			_, _, err := w.b.CreateKey(context.Background(), capped, []crowd.Scope{crowd.ScopeOrder}, most, time.Hour)
			wantErr(t, err, crowd.Denied, crowd.CustomerScope, "may make no keys")
		}
	})
}

func TestScopesOfReads(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		d := digest.Of([]byte("\x00asm a program"))
		asks := map[string]func(Caller) error{
			"keys":      func(c Caller) error { _, err := w.b.Keys(ctx, c); return err },
			"balances":  func(c Caller) error { _, err := w.b.Balances(ctx, c); return err },
			"statement": func(c Caller) error { _, _, err := w.b.Statement(ctx, c, "", 0); return err },
			"has blob":  func(c Caller) error { _, _, err := w.b.HasBlob(ctx, c, d); return err },
			"open blob": func(c Caller) error {
				r, err := w.b.OpenBlob(ctx, c, d)
				if err == nil {
					err = r.Close()
				}
				return err
			},
		}
		all := w.ada
		all.Key.Scopes = []crowd.Scope{crowd.ScopeRead, crowd.ScopeOrder, crowd.ScopeLend, crowd.ScopeS3}
		for _, scope := range all.Key.Scopes {
			c := w.with(all, 0, scope)
			for name, ask := range asks {
				err := ask(c)
				if scope == crowd.ScopeRead || scope == crowd.ScopeOrder && name == "has blob" {
					must(t, err)
				} else if !crowd.KindIs(err, crowd.Denied) || crowd.AsError(err).Reason != crowd.CustomerScope {
					t.Errorf("%s with scope %s: %v", name, scope, err)
				}
			}
		}
	})
}

// A key deletes itself, or those that may do no more than it.
func TestWhoDeletesKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		read, lend := w.with(w.ada, 0, crowd.ScopeRead), w.with(w.ada, 0, crowd.ScopeLend)
		both := w.with(w.ada, 0, crowd.ScopeRead, crowd.ScopeLend)
		for _, other := range []Caller{w.ada, both, lend} {
			wantErr(t, w.b.DeleteKey(ctx, read, other.Key.ID.String()), crowd.Denied, crowd.CustomerScope)
		}
		must(t, w.b.DeleteKey(ctx, both, read.Key.ID.String()))
		must(t, w.b.DeleteKey(ctx, lend, lend.Key.Hint))
		must(t, w.b.DeleteKey(ctx, w.ada, both.Key.ID.Short()))
		must(t, w.b.DeleteKey(ctx, w.ada, w.ada.Key.ID.String()))
	})
}

func TestGrantTwice(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		bob := w.account("bob", 0)
		granted := func() (n int) {
			evs, err := w.b.Events(ctx, bob, "", 0, 1000, false)
			must(t, err)
			for _, e := range evs {
				if e.What == "account.granted" {
					n++
				}
			}
			return n
		}
		for range 2 {
			must(t, w.b.Grant(ctx, w.operator, "bob", 5*crowd.Credit, "invoice-17"))
		}
		wantErr(t, w.b.Grant(ctx, w.operator, "bob", 6*crowd.Credit, "invoice-17"), crowd.Conflict, "", "5.00 cr")
		wantErr(t, w.b.Grant(ctx, w.operator, "ada", 5*crowd.Credit, "invoice-17"), crowd.Conflict, "")
		if n := granted(); n != 1 || w.balances(bob).Free != 5*crowd.Credit {
			t.Errorf("%d grants, %+v", n, w.balances(bob))
		}
		long := "invoice-17-of-a-very-long-name-that-goes-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on-1"
		wantErr(t, w.b.Grant(ctx, w.operator, "bob", crowd.Credit, long), crowd.Invalid, crowd.CustomerFile)
	})
}

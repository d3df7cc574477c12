package broker

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"
)

// A ledger that doesn't sum to zero is told to operators, and to nobody else, within a minute.
func TestUnsoundLedgerIsTold(t *testing.T) {
	inWorldUnsound(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		time.Sleep(2 * time.Minute)
		if e, err := w.b.Events(ctx, w.operator, "broker", 0, 10, false); err != nil || len(e) != 0 {
			t.Fatalf("a sound one: %+v, %v", e, err)
		}
		w.stop()
		db, err := sql.Open("sqlite", filepath.Join(w.dir, "crowd.db"))
		must(t, err)
		_, err = db.ExecContext(ctx, "UPDATE postings SET amount = amount + 5 WHERE (book, txn, leg) = (SELECT book, txn, leg FROM postings LIMIT 1)")
		must(t, err)
		must(t, db.Close())
		w.start()
		time.Sleep(2 * time.Minute)
		e, err := w.b.Events(ctx, w.operator, "broker", 0, 10, false)
		must(t, err)
		if len(e) != 1 || e[0].What != "ledger.unsound" || e[0].Data.UCR != 5 {
			t.Errorf("told: %+v", e)
		}
		if e, err := w.b.Events(ctx, w.ada, "", 0, 1000, false); err != nil {
			t.Fatal(err)
		} else {
			for _, x := range e {
				if x.What == "ledger.unsound" {
					t.Error("a customer is told")
				}
			}
		}
	})
}

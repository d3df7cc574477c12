package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"syscall"

	"modernc.org/sqlite"

	"github.com/crowdcloud/crowd"
)

// conn is the writer's connection, spoken to as a driver: database/sql's locks and conversions would cost as much again as a short statement.
// Statements are prepared once and found by their text. One goroutine only.
type conn struct {
	c     driver.Conn
	stmts map[string]stmt
	args  []driver.NamedValue
	row   []driver.Value
}

type stmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func dial(ctx context.Context, dsn string) (*conn, error) {
	d, err := sqlite.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	c, err := d.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{c: c, stmts: map[string]stmt{}}, nil
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		_ = s.Close()
	}
	return c.c.Close()
}

func (c *conn) prepare(q string, args []any) (stmt, error) {
	s := c.stmts[q]
	if s == nil {
		p, err := c.c.Prepare(q)
		if err != nil {
			return nil, err
		}
		s = p.(stmt)
		c.stmts[q] = s
	}
	c.args = c.args[:0]
	for i, a := range args {
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return s, nil
}

// exec runs a statement that changes rows; args are int64, string, []byte or nil. It returns how many rows changed and the last inserted number.
func (c *conn) exec(q string, args ...any) (rows, last int64, err error) {
	s, err := c.prepare(q, args)
	if err != nil {
		return 0, 0, err
	}
	r, err := s.ExecContext(context.Background(), c.args)
	if err != nil {
		return 0, 0, err
	}
	rows, _ = r.RowsAffected()
	last, _ = r.LastInsertId()
	return rows, last, nil
}

// each calls f with every row; the values are good until f returns.
func (c *conn) each(f func([]driver.Value) error, q string, args ...any) error {
	s, err := c.prepare(q, args)
	if err != nil {
		return err
	}
	r, err := s.QueryContext(context.Background(), c.args)
	if err != nil {
		return err
	}
	row := make([]driver.Value, len(r.Columns()))
	for {
		if err = r.Next(row); err != nil {
			break
		}
		if err = f(row); err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, r.Close())
}

// one returns the first row, or nil; it is good until the next call.
func (c *conn) one(q string, args ...any) ([]driver.Value, error) {
	s, err := c.prepare(q, args)
	if err != nil {
		return nil, err
	}
	r, err := s.QueryContext(context.Background(), c.args)
	if err != nil {
		return nil, err
	}
	n := len(r.Columns())
	for len(c.row) < n {
		c.row = append(c.row, nil)
	}
	err = r.Next(c.row[:n])
	if e := r.Close(); e != nil && (err == nil || errors.Is(err, io.EOF)) {
		err = e
	}
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	return c.row[:n], err
}

// The result codes that the store tells apart.
const (
	codeFull       = 13
	codeConstraint = 19 // the low byte
	codePrimaryKey = 1555
	codeUnique     = 2067
)

func codeOf(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

func isConstraint(err error) bool { return codeOf(err)&0xff == codeConstraint }

// wrap makes an engine's error a crowd.Error; a crowd.Error stays as it is.
func wrap(doing string, err error) error {
	var e *crowd.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return err
	case codeOf(err)&0xff == codeFull, errors.Is(err, syscall.ENOSPC):
		return crowd.Errorf(crowd.Exhausted, crowd.BrokerDisk, "store: %s: the disk is full: %w", doing, err).WithHint("free some space on the broker's disk")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return crowd.Errorf(crowd.Unavailable, "", "store: %s: %w", doing, err)
	}
	return crowd.Errorf(crowd.Internal, "", "store: %s: %w", doing, err)
}

package link

import (
	"bytes"
	"encoding/json"
	"io"

	"github.com/crowdcloud/crowd"
)

// Side is an end of the link.
type Side int

// The ends.
const (
	HostSide Side = iota
	BrokerSide
)

// Decode reads one message that the other end, from, may say once the handshake is over: JSON of known fields only, exactly one
// word. Anything else is Invalid. The bytes are a stranger's.
func Decode(b []byte, from Side) (*crowd.Message, error) {
	m, err := decode(b)
	if err != nil {
		return nil, err
	}
	hosts := m.Renew != nil || m.Return != nil || m.Report != nil || m.Leave != nil
	brokers := m.Answer != nil || m.Lease != nil || m.Cancel != nil || m.Reported != nil || m.Problem != nil
	if from == HostSide && !hosts || from == BrokerSide && !brokers {
		return nil, crowd.Errorf(crowd.Invalid, "", "this word has no place here")
	}
	return m, nil
}

func decode(b []byte) (*crowd.Message, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	m := &crowd.Message{}
	if err := d.Decode(m); err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "malformed message: %w", err)
	}
	if _, err := d.Token(); err != io.EOF { //nolint:errorlint // Token returns io.EOF itself
		return nil, crowd.Errorf(crowd.Invalid, "", "something follows the message")
	}
	n := 0
	for _, there := range []bool{
		m.Challenge != nil, m.Hello != nil, m.Welcome != nil, m.Renew != nil, m.Answer != nil, m.Lease != nil,
		m.Cancel != nil, m.Return != nil, m.Report != nil, m.Reported != nil, m.Leave != nil, m.Problem != nil,
	} {
		if there {
			n++
		}
	}
	if n != 1 {
		return nil, crowd.Errorf(crowd.Invalid, "", "a message has exactly one word, this one has %d", n)
	}
	return m, nil
}

func encode(m *crowd.Message) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "encode message: %w", err)
	}
	if len(b) > crowd.Limits.MessageBytes {
		return nil, crowd.Errorf(crowd.Internal, "", "message of %d bytes, at most %d go over the link", len(b), crowd.Limits.MessageBytes)
	}
	return b, nil
}

// Problem puts an error into the words of the link. Final: dialling again, as this session, won't help.
func Problem(err error) *crowd.Problem {
	e := crowd.AsError(err)
	final := e.Reason == crowd.HostCloned
	switch e.Kind {
	case crowd.Denied, crowd.Invalid, crowd.NotFound:
		final = true
	}
	return &crowd.Problem{Kind: e.Kind.String(), Reason: e.Reason, Text: e.Message, Hint: e.Hint, Final: final}
}

// Closed is why the other end, or this one, closed the connection on purpose. errors.As finds the crowd.Error in it.
type Closed struct{ Problem crowd.Problem }

func (c *Closed) Error() string { return c.err().Error() }

func (c *Closed) Unwrap() error { return c.err() }

func (c *Closed) err() *crowd.Error {
	p := c.Problem
	return &crowd.Error{Kind: crowd.KindOf(p.Kind, 0), Reason: p.Reason, Message: p.Text, Hint: p.Hint}
}

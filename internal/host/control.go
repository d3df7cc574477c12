package host

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
)

const (
	controlName  = "control.sock"
	controlBytes = 64 << 10
	socketPath   = 100 // the shortest limit of any system's socket address, with room for the end
)

// Request is what the owner's command asks of a running agent: one per connection, answered by one Reply.
type Request struct {
	Do  string        `json:"do"`               // status | pause | resume | leave | upgrade
	For time.Duration `json:"for_ns,omitempty"` // pause; 0: until resume. upgrade: what isn't done by then goes back
	To  string        `json:"to,omitempty"`     // upgrade: the new program; empty: that at the old one's path
}

// patience is how long the answer may take: an upgrade copies and tries a program first.
func (q *Request) patience() time.Duration {
	if q.Do == "upgrade" {
		return time.Minute
	}
	return 10 * time.Second
}

// Reply is the answer; Error is nil if it was done.
type Reply struct {
	Status *Status        `json:"status,omitempty"`
	Error  *crowd.Problem `json:"error,omitempty"`
}

func errRuns(dir string) error {
	return crowd.Errorf(crowd.Conflict, "", "another agent runs in %s", dir).WithHint("crowd host status")
}

// control is the socket in the agent's folder. Who may open it is its owner: mode 0600 in a folder of mode 0700, and the peer's user is checked.
type control struct {
	a *Agent
	l net.Listener
}

func listenControl(a *Agent) (*control, error) {
	path := filepath.Join(a.o.Dir, controlName)
	if len(path) > socketPath {
		return nil, crowd.Errorf(crowd.Invalid, "", "the path %s is too long for a socket", path).WithHint("a shorter folder")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // the folder is locked: what is there is dead
		return nil, crowd.Errorf(crowd.Internal, "", "control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, crowd.Errorf(crowd.Internal, "", "control socket: %w", err)
	}
	return &control{a, l}, nil
}

// serve answers until ctx ends.
func (c *control) serve(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = c.l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := c.l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			c.a.wait(ctx, 100*time.Millisecond) // out of descriptors, perhaps
			continue
		}
		wg.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if !peerIsOwner(conn) {
				return
			}
			var q Request
			var r Reply
			if err := json.NewDecoder(io.LimitReader(conn, controlBytes)).Decode(&q); err != nil {
				r = failure(crowd.Errorf(crowd.Invalid, "", "malformed request: %w", err))
			} else {
				_ = conn.SetDeadline(time.Now().Add(q.patience()))
				r = c.a.handle(ctx, q)
			}
			_ = json.NewEncoder(conn).Encode(r)
		})
	}
}

func (a *Agent) handle(ctx context.Context, q Request) Reply {
	var err error
	switch q.Do {
	case "status":
	case "pause":
		err = a.Pause(q.For)
	case "resume":
		err = a.Resume()
	case "leave":
		err = a.Leave()
	case "upgrade":
		err = a.Upgrade(ctx, q.To, q.For)
	default:
		err = crowd.Errorf(crowd.Invalid, "", "no such request: %q", oneLine(q.Do))
	}
	if err != nil {
		return failure(err)
	}
	s := a.Status()
	return Reply{Status: &s}
}

func failure(err error) Reply {
	e := crowd.AsError(err)
	return Reply{Error: &crowd.Problem{Kind: e.Kind.String(), Reason: e.Reason, Text: e.Message, Hint: e.Hint}}
}

// Ask sends a request to the agent that runs in dir and returns how things are after it. Unavailable if none runs.
func Ask(ctx context.Context, dir string, q Request) (Status, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "unix", filepath.Join(dir, controlName))
	if err != nil {
		e := crowd.Errorf(crowd.Unavailable, "", "no agent runs here").WithHint("crowd host run")
		e.Err = err // for those who look for it; people needn't see a socket
		return Status{}, e
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(q.patience()))
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		return Status{}, crowd.Errorf(crowd.Unavailable, "", "the agent doesn't listen: %w", err)
	}
	var r Reply
	if err := json.NewDecoder(io.LimitReader(conn, 16<<20)).Decode(&r); err != nil {
		return Status{}, crowd.Errorf(crowd.Unavailable, "", "the agent doesn't answer: %w", err).WithHint("is it yours? only its own user may ask")
	}
	if r.Error != nil {
		return Status{}, &crowd.Error{Kind: crowd.KindOf(r.Error.Kind, 0), Reason: r.Error.Reason, Message: r.Error.Text, Hint: r.Error.Hint}
	}
	if r.Status == nil {
		return Status{}, crowd.Errorf(crowd.Internal, "", "the agent's answer makes no sense")
	}
	return *r.Status, nil
}

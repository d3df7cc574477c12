package cage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// Spec says what to start.
type Spec struct {
	Path   string   // program; empty: the running binary itself, even if its file was replaced
	Args   []string // after the program's name
	Stderr int      // bytes kept of what it says on stderr, the first ones; 0: 64 KiB
	User   *User    // run as another user, unix only, for an agent that is root; nil: as the caller
}

// User is a unix user without further groups.
type User struct{ UID, GID uint32 }

// Child is a running child process. Its methods may be called concurrently. It dies with the parent on Linux and Windows;
// elsewhere it must end when its stdin does.
type Child struct {
	Stdin  io.WriteCloser // to the child
	Stdout io.ReadCloser  // from the child; give it up with Close

	cmd    *exec.Cmd
	stderr capped
	exited chan struct{} // closed once the child is reaped and err is set
	err    error
	system systemState //nolint:unused // windows keeps a job object there

	mu     sync.Mutex
	reaped bool // its process number may be another's by now
}

// Usage is what a child has used.
type Usage struct {
	CPU time.Duration // user and system
	RSS int64         // resident bytes now, or at most once it has ended; 0 where unknown
}

// Start runs a child with an empty environment, pipes and nothing else open, in a session of its own and at idle
// priority. It is reaped whether or not Wait is called. The caller must not be a goroutine locked to its thread: on Linux
// the child dies with the thread that started it.
func Start(spec Spec) (*Child, error) {
	path := spec.Path
	if path == "" {
		var err error
		if path, err = self(); err != nil {
			return nil, fmt.Errorf("start a caged child: %w", err)
		}
	}
	c := &Child{exited: make(chan struct{})}
	c.stderr.most = spec.Stderr
	if c.stderr.most <= 0 {
		c.stderr.most = 64 << 10
	}
	c.cmd = exec.Command(path, spec.Args...)
	c.cmd.Env = []string{}
	c.cmd.Stderr = &c.stderr
	c.cmd.WaitDelay = time.Second // for whoever else holds its stderr
	if err := c.start(spec); err != nil {
		return nil, fmt.Errorf("start a caged child: %w", err)
	}
	go c.reap() // ends with the process
	return c, nil
}

func (c *Child) start(spec Spec) error {
	inR, inW, err := os.Pipe()
	if err != nil {
		return err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, inR.Close(), inW.Close())
	}
	defer inR.Close()
	defer outW.Close()
	c.cmd.Stdin, c.cmd.Stdout = inR, outW
	c.Stdin, c.Stdout = inW, outR
	if err = prepare(c.cmd, spec); err == nil {
		err = c.cmd.Start()
	}
	if err == nil {
		if err = c.started(); err != nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
		}
	}
	if err != nil {
		inW.Close()
		outR.Close()
	}
	return err
}

func (c *Child) reap() {
	waitable(c.Pid())
	c.mu.Lock()
	c.reaped = true
	c.mu.Unlock()
	c.err = c.cmd.Wait()
	c.release()
	close(c.exited)
}

// Pid is the process number, good only as long as the child runs.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Done is closed when the child has ended and is reaped.
func (c *Child) Done() <-chan struct{} { return c.exited }

// Wait waits for the end. It gives nil when the child exited with 0, else an [*exec.ExitError]. What it said remains in
// Stdout until that is closed.
func (c *Child) Wait() error {
	<-c.exited
	return c.err
}

// Stderr gives the first bytes that the child wrote on stderr. They are a stranger's.
func (c *Child) Stderr() []byte { return c.stderr.bytes() }

// Kill ends the child at once; if it has ended already, it does nothing. Wait still tells how it ended.
func (c *Child) Kill() error {
	return c.unlessReaped(c.kill)
}

// Freeze stops the child from running until Thaw. Where the system cannot, the error is [errors.ErrUnsupported]: pause it
// at a poll instead.
func (c *Child) Freeze() error { return c.unlessReaped(c.freeze) }

// Thaw lets a frozen child run on.
func (c *Child) Thaw() error { return c.unlessReaped(c.thaw) }

// Usage tells what the child has used until now. Where the system does not tell about a running process, the error is
// [errors.ErrUnsupported].
func (c *Child) Usage() (Usage, error) {
	u, ended, err := Usage{}, true, error(nil)
	_ = c.unlessReaped(func() error {
		u, err = c.usage()
		ended = false
		return nil
	})
	if ended {
		<-c.exited
		s := c.cmd.ProcessState
		return Usage{CPU: s.UserTime() + s.SystemTime(), RSS: maxRSS(s)}, nil
	}
	return u, err
}

// unlessReaped acts on the process while its number is certainly its own.
func (c *Child) unlessReaped(act func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped {
		return nil
	}
	return act()
}

// capped keeps the first bytes written and takes the rest.
type capped struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	most int
}

func (w *capped) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p[:min(len(p), w.most-w.buf.Len())])
	return len(p), nil
}

func (w *capped) bytes() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.buf.Bytes())
}

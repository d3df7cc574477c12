package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/guest/wasm"
	"github.com/crowdcloud/crowd/internal/host"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "guest-child" { // hosts that run in the test start their guests as this
		os.Exit(wasm.ChildMain())
	}
	testscript.Main(m, map[string]func(){"crowd": main})
}

// town is a broker with TLS on loopback and two hosts of two owners, all in this process.
type town struct {
	*runningBroker
	data     string
	operator broker.Caller
}

func newTown(t *testing.T) *town {
	t.Helper()
	ctx := context.Background()
	data := filepath.Join(t.TempDir(), "b")
	b, err := startBroker(ctx, brokerConfig{Data: data, Listen: "127.0.0.1:0", PerGfuel: crowd.Credit, Version: "test"})
	must(t, err)
	t.Cleanup(func() { _ = b.Close() })
	w := &town{runningBroker: b, data: data}
	w.operator, err = b.Authenticate(ctx, b.OwnerKey, true)
	must(t, err)
	dir := shortTemp(t)
	for _, name := range []string{"hal", "ida"} {
		owner, err := b.Authenticate(ctx, w.account(t, name, 0), true)
		must(t, err)
		link, _, err := b.MakeToken(ctx, owner, 0)
		must(t, err)
		lends := crowd.Capacity{Slots: 1, MemoryBytes: 1 << 30, DiskBytes: 1 << 30, Speed: 1}
		_, err = host.Join(ctx, link, host.JoinOptions{Dir: filepath.Join(dir, name), Name: name, Place: "DE", Platform: host.ThisPlatform("test", ""), Capacity: lends})
		must(t, err)
		h, err := startHost(ctx, hostConfig{Dir: filepath.Join(dir, name), Capacity: lends})
		must(t, err)
		t.Cleanup(func() { _ = h.Close() })
	}
	return w
}

// account makes an account with credit and returns its key.
func (w *town) account(t interface{ Fatal(...any) }, name string, credit crowd.UCR) string {
	ctx := context.Background()
	_, secret, err := w.CreateAccount(ctx, w.operator, name)
	if err == nil && credit > 0 {
		err = w.Grant(ctx, w.operator, name, credit, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// shortTemp is a temporary folder with a path that a socket's address can hold.
func shortTemp(t *testing.T) string {
	dir, err := os.MkdirTemp("", "crowd-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestScripts runs the stories in testdata/script, each with an account of its own name and 100 cr.
func TestScripts(t *testing.T) {
	w := newTown(t)
	program, err := os.ReadFile("testdata/tale.wasm")
	must(t, err)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			name := strings.TrimPrefix(filepath.Base(e.WorkDir), "script-")
			key := w.account(e.T(), name, 100*crowd.Credit)
			e.Setenv("ME", name)
			e.Setenv("CROWD_BROKER", w.Local)
			e.Setenv("CROWD_PIN", w.Pin)
			e.Setenv("CROWD_KEY", key)
			e.Setenv("OPERATOR_KEY", w.OwnerKey)
			e.Setenv("DATA", w.data)
			e.Setenv("LINK", w.Local+"/#"+w.Pin)
			for _, d := range []string{"CONFIG_HOME", "CACHE_HOME"} {
				e.Setenv("XDG_"+d, filepath.Join(e.WorkDir, strings.ToLower(d)))
			}
			e.Setenv("XDG_STATE_HOME", shortTemp(t))
			return os.WriteFile(filepath.Join(e.WorkDir, "tale.wasm"), program, 0o644)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"exits": exits, "save": save, "waitfor": waitFor},
	})
}

// exits CODE COMMAND…: the command ends with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s: exit %d, wanted %d", strings.Join(args[1:], " "), got, want)
	}
}

// save NAME: what the last command printed becomes a variable.
func save(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// waitfor HOST STATE: until the broker sees it so.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for range 200 {
		ts.Check(ts.Exec("crowd", "host", "ls"))
		for line := range strings.SplitSeq(ts.ReadFile("stdout"), "\n") {
			if f := strings.Split(line, "\t"); len(f) > 2 && f[0] == args[0] && f[2] == args[1] {
				return
			}
		}
		time.Sleep(50 * time.Millisecond) // a poll: the agent is another process
	}
	ts.Fatalf("%s never became %s", args[0], args[1])
}

// crowdRun runs the command in this process.
func crowdRun(t *testing.T, ctx context.Context, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(ctx, args, stdio{strings.NewReader(""), &o, &e})
	return code, o.String(), e.String()
}

// emptyHome keeps the test away from the settings of whoever runs it.
func emptyHome(t *testing.T) {
	dir := t.TempDir()
	for _, k := range []string{"CROWD_BROKER", "CROWD_KEY", "CROWD_PIN", "CROWD_CONTEXT", "CROWD_MAX_COST"} {
		t.Setenv(k, "")
	}
	t.Setenv("HOME", dir)
	for _, k := range []string{"XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"} {
		t.Setenv(k, filepath.Join(dir, k))
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	a := &app{stdio: stdio{strings.NewReader(""), io.Discard, io.Discard}, getenv: os.Getenv}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		path := c.CommandPath()
		if c.Hidden || c.Name() == "help" {
			return
		}
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s has no example or no short text", path)
		}
		if c.Short != "" && (strings.HasSuffix(c.Short, ".") || strings.ToLower(c.Short[:1]) != c.Short[:1]) && !strings.HasPrefix(c.Short, "API") {
			t.Errorf("%s: %q isn't lower case without a full stop", path, c.Short)
		}
		for _, f := range []string{"json", "quiet", "context", "timeout", "verbose"} {
			if c.Flag(f) == nil && c.InheritedFlags().Lookup(f) == nil {
				t.Errorf("%s doesn't take --%s", path, f)
			}
		}
		if !c.Runnable() {
			t.Errorf("%s does nothing, and so takes any argument", path)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(a.root())
	_, out, _ := crowdRun(t, t.Context(), "job", "results", "--help")
	if _, rest, _ := strings.Cut(out, "Examples:"); rest == "" || strings.Contains(rest, "--json ") {
		t.Errorf("help doesn't end with its example:\n%s", out)
	}
}

func TestNobodyAnswers(t *testing.T) {
	emptyHome(t)
	testDelays = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}
	t.Cleanup(func() { testDelays = nil })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Setenv("CROWD_BROKER", "http://"+l.Addr().String())
	t.Setenv("CROWD_KEY", "ck_0123456789abcdefghjk")
	l.Close()
	code, out, errs := crowdRun(t, t.Context(), "ls")
	want := "crowd: " + l.Addr().String() + " doesn't answer: connection refused, 4 tries in "
	if code != 7 || out != "" || !strings.HasPrefix(errs, want) || !strings.Contains(errs, "(network.broker)\n  hint: nothing was changed, the same command again is safe") {
		t.Errorf("%d %q\n%s", code, out, errs)
	}
}

// onWord does something once a word was written.
type onWord struct {
	bytes.Buffer
	word string
	do   func()
}

func (w *onWord) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(w.word)) {
		w.do()
	}
	return w.Buffer.Write(b)
}

func TestCtrlCLeavesTheJobAlone(t *testing.T) {
	emptyHome(t)
	w := &town{}
	b, err := startBroker(context.Background(), brokerConfig{Data: t.TempDir(), Listen: "127.0.0.1:0", Plain: true, PerGfuel: crowd.Credit})
	must(t, err)
	t.Cleanup(func() { _ = b.Close() })
	w.runningBroker = b
	w.operator, err = b.Authenticate(t.Context(), b.OwnerKey, true)
	must(t, err)
	key := w.account(t, "ada", 10*crowd.Credit)
	ada, err := b.Authenticate(t.Context(), key, true)
	must(t, err)
	link, _, err := b.MakeToken(t.Context(), ada, 0) // a host that never comes: the job is queued
	must(t, err)
	_, err = host.Join(t.Context(), link, host.JoinOptions{Dir: t.TempDir(), Name: "far", Capacity: crowd.Capacity{Slots: 1, MemoryBytes: 4 << 30, DiskBytes: 4 << 30}})
	must(t, err)
	t.Setenv("CROWD_BROKER", b.Local)
	t.Setenv("CROWD_KEY", key)
	ctx, interrupt := context.WithCancel(t.Context())
	said := &onWord{word: "at most", do: interrupt} // Ctrl-C once it says that it is ordered
	code := run(ctx, []string{"run", "testdata/tale.wasm", "--max", "1cr", "--set", "verify=none"}, stdio{strings.NewReader(""), io.Discard, said})
	errs := said.String()
	if code != 130 || !strings.Contains(errs, "tale goes on without you. look: crowd show tale · stop it: crowd job cancel tale\n") {
		t.Errorf("%d\n%s", code, errs)
	}
	if code, _, errs = crowdRun(t, t.Context(), "run", "testdata/tale.wasm", "--max", "1cr", "--set", "verify=none", "--timeout", "1s"); code != 7 || !strings.Contains(errs, "crowd: --timeout 1s is over") {
		t.Errorf("%d\n%s", code, errs)
	}
	if code, out, _ := crowdRun(t, t.Context(), "why", "tale"); code != 0 || !strings.Contains(out, "host.offline") {
		t.Errorf("%d %s", code, out)
	}
}

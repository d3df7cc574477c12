package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/crowdcloud/crowd"
)

// What is printed where: results go to stdout; progress, warnings, prompts and hints to stderr. With --json stdout has one object, a list as
// {"items","next"}, or for what flows one object a line with a "type"; nothing else. Colour and redrawn lines are for terminals only.

// stdio is where a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// app is one run of the command: its streams and the flags that every command takes.
type app struct {
	stdio
	json, quiet, verbose, yes, wide bool
	context                         string
	timeout                         time.Duration
	timedOut                        func() bool
	getenv                          func(string) string
}

// version is set by the linker (-X main.version=…), else by what the module was built from.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return "dev"
}

// run is the whole command: it does what args say and returns the exit code, which tells the kind of error.
func run(ctx context.Context, args []string, s stdio) int {
	a := &app{stdio: s, getenv: os.Getenv, timedOut: func() bool { return false }}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	cmd, err := root.ExecuteContextC(ctx)
	return a.end(ctx, cmd, err)
}

// end prints what went wrong and says with which code to exit.
func (a *app) end(ctx context.Context, cmd *cobra.Command, err error) int {
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(ctx.Err(), context.Canceled):
		return 130
	case a.timedOut() && !crowd.KindIs(err, crowd.Failed):
		over := crowd.Errorf(crowd.Unavailable, "", "--timeout %s is over", span(a.timeout)).WithHint("the same command again is safe")
		if e := crowd.AsError(err); e.Reason == crowd.NetworkBroker {
			over.Reason, over.Message = e.Reason, e.Message+"; "+over.Message
		}
		err = over
	}
	e := crowd.AsError(err)
	if typed := (*crowd.Error)(nil); !errors.As(err, &typed) && isUsage(err) {
		e = crowd.Errorf(crowd.Invalid, "", "%s", strings.TrimSpace(err.Error())).WithHint("%s --help", cmd.CommandPath())
	}
	a.printError(e)
	return e.Kind.Exit()
}

// exitCode ends the command with a code and no more words.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit %d", int(c)) }

// isUsage tells cobra's own complaints, which have no type.
func isUsage(err error) bool {
	m := err.Error()
	for _, p := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "requires ", "invalid argument", "flag needs", "required flag", "bad flag", "if any flags in the group"} {
		if strings.HasPrefix(m, p) {
			return true
		}
	}
	return false
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "crowd", Short: "rent idle machines, or lend yours", SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		Long:              "crowd: rent idle machines, or lend yours\n\nExit codes: 0 done, 1 our bug, 2 invalid, 3 not found, 4 denied, 5 conflict, 6 exhausted, 7 unavailable,\n8 it ran and the answer is no, 130 Ctrl-C.",
		Example:           "  crowd run job.yaml\n  crowd join https://cloud.example/j/q7k4m2xdp3ws9fza#…\n  crowd dev",
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
	}
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "results as JSON")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "ids and values only")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say more on stderr")
	f.StringVarP(&a.context, "context", "c", "", "use this context of the profile, for once")
	f.Var(spanFlag{&a.timeout}, "timeout", "give up after so long (90s, 15m)")
	root.SetUsageTemplate(usageText)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return crowd.Errorf(crowd.Invalid, "", "%s", err).WithHint("%s --help", cmd.CommandPath())
	})
	for _, g := range []cobra.Group{{ID: "rent", Title: "RENT"}, {ID: "lend", Title: "LEND"}, {ID: "know", Title: "KNOW"}, {ID: "operate", Title: "OPERATE"}} {
		root.AddGroup(&g)
	}
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("rent", newRunCommand(a, "run"), newQuoteCommand(a), newJobCommand(a))
	group("lend", newJoinCommand(a), newHostCommand(a))
	group("know", newWhyCommand(a), newLsCommand(a), newShowCommand(a), newLogsCommand(a), newAccountCommand(a))
	group("operate", newBrokerCommand(a), newDoctorCommand(a))
	if c := devCommand(a); c != nil {
		group("operate", c)
	}
	root.AddCommand(newVersionCommand(a), newCompletionCommand(a))
	return root
}

// usageText is how every help ends: with an example.
const usageText = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND{{end}}
{{if .HasAvailableSubCommands}}{{$c := .Commands}}{{range $g := .Groups}}
{{$g.Title}}{{range $c}}{{if and (eq .GroupID $g.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if not .AllChildCommandsHaveGroup}}
{{range $c}}{{if and (eq .GroupID "") .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}
{{end}}{{if .HasAvailableLocalFlags}}
Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}{{if .HasAvailableInheritedFlags}}
Of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}{{if .HasExample}}
Examples:
{{.Example}}
{{end}}`

// prepare sets the clock for --timeout.
func (a *app) prepare(cmd *cobra.Command) error {
	if a.timeout < 0 {
		return crowd.Errorf(crowd.Invalid, "", "--timeout can't be negative")
	}
	if a.timeout > 0 {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		context.AfterFunc(ctx, cancel) // it ends with the process at the latest
		a.timedOut = func() bool { return errors.Is(ctx.Err(), context.DeadlineExceeded) }
		cmd.SetContext(ctx)
	}
	return nil
}

// log is for what runs long: to stderr, quiet unless -v.
func (a *app) log() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}

// say writes a line for people to stderr, unless -q.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		_, _ = fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// isTerminal reports whether w is a terminal, and how wide.
func isTerminal(w any) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	return width, true
}

// confirm asks before what can't be undone; off a terminal it takes -y.
func (a *app) confirm(format string, args ...any) error {
	if a.yes {
		return nil
	}
	if _, ok := isTerminal(a.in); !ok {
		return crowd.Errorf(crowd.Invalid, "", "this can't be undone, and there is nobody to ask").WithHint("-y says yes")
	}
	_, _ = fmt.Fprintf(a.err, format+" go on? [y/N] ", args...)
	var answer string
	_, _ = fmt.Fscanln(a.in, &answer)
	if answer != "y" && answer != "yes" {
		return crowd.Errorf(crowd.Conflict, "", "nothing was changed")
	}
	return nil
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

// print writes v as JSON if --json asks for it, else calls people.
func (a *app) print(v any, people func() error) error {
	if !a.json {
		return people()
	}
	return a.printJSON(v)
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return stdoutError(e.Encode(v))
}

// listJSON is how every list looks with --json.
type listJSON[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next"`
}

func listOf[T any](items []T, next string) listJSON[T] {
	l := listJSON[T]{Items: items}
	if items == nil {
		l.Items = []T{}
	}
	if next != "" {
		l.Next = &next
	}
	return l
}

// flow is one line of what flows: v's fields with a type in front.
func (a *app) flow(kind string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	m["type"], _ = json.Marshal(kind)
	return a.printJSON(m)
}

// stdoutError makes a broken pipe or a full disk an error of its own words.
func stdoutError(err error) error {
	if err == nil {
		return nil
	}
	return crowd.Errorf(crowd.Unavailable, "", "can't write the result: %w", err)
}

func (a *app) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return stdoutError(err)
}

// table prints rows: on a terminal aligned under heads, dropping columns from the right until they fit unless --wide; off it tab-separated and
// headless. A head that starts with ">" is aligned to the right.
func (a *app) table(heads []string, rows [][]string) error {
	width, tty := isTerminal(a.out)
	if !tty {
		for _, r := range rows {
			if err := a.printf("%s\n", strings.Join(cleanCells(r), "\t")); err != nil {
				return err
			}
		}
		return nil
	}
	if a.wide {
		width = 1 << 20
	}
	return align(a.out, heads, rows, width)
}

func cleanCells(r []string) []string {
	out := make([]string, len(r))
	for i, c := range r {
		out[i] = strings.NewReplacer("\t", " ", "\n", " ").Replace(c)
	}
	return out
}

// align writes columns two blanks apart.
func align(w io.Writer, heads []string, rows [][]string, width int) error {
	if len(rows) == 0 {
		return nil
	}
	right := make([]bool, len(heads))
	head := make([]string, len(heads))
	for i, h := range heads {
		head[i], right[i] = strings.TrimPrefix(h, ">"), strings.HasPrefix(h, ">")
	}
	wide := make([]int, len(heads))
	all := append([][]string{head}, rows...)
	for _, r := range all {
		for i, c := range cleanCells(r) {
			wide[i] = max(wide[i], utf8.RuneCountInString(c))
		}
	}
	columns := len(heads)
	for sum := func() (n int) {
		for _, x := range wide[:columns] {
			n += x + 2
		}
		return n - 2
	}; columns > 1 && sum() > width; {
		columns--
	}
	for _, r := range all {
		var b strings.Builder
		for i, c := range cleanCells(r)[:columns] {
			pad := strings.Repeat(" ", wide[i]-utf8.RuneCountInString(c))
			if right[i] {
				b.WriteString(pad + c)
			} else {
				b.WriteString(c + pad)
			}
			b.WriteString("  ")
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return stdoutError(err)
		}
	}
	return nil
}

// facts prints named lines: the names in a column, as in `crowd job show`.
func (a *app) facts(pairs ...string) error {
	wide := 8
	for i := 0; i < len(pairs); i += 2 {
		wide = max(wide, utf8.RuneCountInString(pairs[i]))
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		if err := a.printf("%-*s  %s\n", wide, pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// printError says what went wrong and what now: as people read it, or as a problem document with --json.
func (a *app) printError(e *crowd.Error) {
	if a.json {
		p := map[string]any{"type": "/problems/" + e.Kind.String(), "title": e.Kind.String(), "status": e.HTTPStatus(), "detail": e.Message, "code": e.Kind.String()}
		if e.Reason != "" {
			p["type"], p["title"], p["reason"] = "/problems/"+string(e.Reason), crowd.Reasons[e.Reason].Means, e.Reason
		}
		if e.Hint != "" {
			p["hint"] = e.Hint
		}
		if len(e.Faults) > 0 {
			p["errors"] = e.Faults
		}
		enc := json.NewEncoder(a.err)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(p)
		return
	}
	if text := client.FaultsText(e); text != "" { // faults of a file, each with its place
		_, _ = fmt.Fprintln(a.err, strings.TrimRight(text, "\n"))
		return
	}
	_, _ = fmt.Fprintf(a.err, "crowd: %s\n", oneLine(e.Error()))
	if len(e.Faults) > 1 {
		for _, f := range e.Faults {
			_, _ = fmt.Fprintf(a.err, "  %s: %s\n", f.Path, oneLine(f.Text))
		}
	}
	if e.Hint != "" {
		_, _ = fmt.Fprintf(a.err, "  hint: %s\n", oneLine(e.Hint))
	}
}

// oneLine makes a stranger's text safe for a terminal: no control characters, no line breaks.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < 0x20 || r >= 0x7f && r < 0xa0 || r == utf8.RuneError:
			return -1
		}
		return r
	}, s)
}

var escapes = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\^_]|.)?`)

// plainText takes terminal escapes and control characters out of what a stranger wrote, so that it can't act on the reader's terminal.
func plainText(s string) string {
	s = escapes.ReplaceAllString(s, "")
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

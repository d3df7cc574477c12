package client

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/crowdcloud/crowd"
)

// JobFile is an order that was read and has no faults but such as its files may still have: Resolve looks into those.
type JobFile struct {
	Name  string        // as it was given
	Spec  crowd.JobSpec // program, inputs and unit files are paths, as written
	dir   string        // that paths are relative to
	marks marks
}

// maxJobFile is the size of a file that is read at all.
const maxJobFile = 1 << 20

// ReadJobFile reads a job.yaml (YAML 1.2, or JSON, which is YAML), lays sets over it, each KEY=VALUE with a dotted key and a value in YAML, and looks
// whether program, inputs and unit files are there. All faults come at once, in an Invalid error: FaultsText prints it. NotFound
// means that there is no such file.
func ReadJobFile(name string, sets []string) (*JobFile, error) {
	src, err := readCapped(name)
	if err != nil {
		return nil, err
	}
	f, faults := parseJobFile(name, src, sets)
	f.dir = filepath.Dir(name)
	_, missing := f.look()
	if err := f.err(append(faults, missing...)); err != nil {
		return nil, err
	}
	return f, nil
}

// openRegular opens an ordinary file. A pipe or device is refused: opening one may wait for ever, and its content can't be read twice.
func openRegular(name string) (*os.File, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no ordinary file")
	}
	return os.Open(name)
}

func readCapped(name string) ([]byte, error) {
	file, err := openRegular(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, crowd.Errorf(crowd.NotFound, crowd.CustomerFile, "there is no file %s", name).WithHint("crowd job init writes one")
	} else if err != nil {
		return nil, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "can't read %s: %w", name, plainErr(err))
	}
	defer file.Close()
	src, err := io.ReadAll(io.LimitReader(file, maxJobFile+1))
	if err != nil {
		return nil, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "can't read %s: %w", name, plainErr(err))
	}
	if len(src) > maxJobFile {
		return nil, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%s has more than 1 MiB: no job file", name).WithHint("a program is ordered as crowd run PROG.wasm")
	}
	return src, nil
}

// plainErr drops the operation and path that os puts around an error.
func plainErr(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// parseJobFile reads text without looking at any file.
func parseJobFile(name string, src []byte, sets []string) (*JobFile, []crowd.Fault) {
	f := &JobFile{Name: name, marks: marks{}}
	tree, faults := readYAML(src, f.marks)
	if len(faults) > 0 {
		return f, faults
	}
	for _, set := range sets {
		var err error
		if tree, err = f.set(tree, set); err != nil {
			faults = append(faults, crowd.Fault{Path: "--set " + set, Text: crowd.AsError(err).Message, Hint: crowd.AsError(err).Hint})
		}
	}
	spec, more := crowd.ParseSpec(tree)
	f.Spec = spec
	return f, append(faults, more...)
}

// ProgramSpec is the order of `crowd run PROG.wasm -- ARGS`: a job without a file. args may hold templates; paths are relative to the
// working directory; units 0 means 1.
func ProgramSpec(program string, args []string, units uint64, inputs []string) (*JobFile, error) {
	list := func(words []string) []any {
		l := make([]any, len(words))
		for i, w := range words {
			l[i] = w
		}
		return l
	}
	tree := crowd.Tree{{Key: "program", Value: program}, {Key: "units", Value: crowd.Tree{{Key: "count", Value: max(units, 1)}}}}
	if len(args) > 0 {
		tree = append(tree, crowd.Pair{Key: "args", Value: list(args)})
	}
	if len(inputs) > 0 {
		tree = append(tree, crowd.Pair{Key: "inputs", Value: list(inputs)})
	}
	base := strings.TrimSuffix(filepath.Base(program), ".wasm")
	if regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`).MatchString(base) {
		tree = append(tree, crowd.Pair{Key: "name", Value: base})
	}
	f := &JobFile{Name: program, marks: marks{}, dir: "."}
	var faults []crowd.Fault
	f.Spec, faults = crowd.ParseSpec(tree)
	_, missing := f.look()
	if err := f.err(append(faults, missing...)); err != nil {
		return nil, err
	}
	return f, nil
}

// FormatFaults prints faults as people read them: file:line:col, key, what is wrong; a hint; in the order of the text; and a last line that counts
// them. src is the file's text, from which the positions come.
func FormatFaults(name string, src []byte, faults []crowd.Fault) string {
	m := marks{}
	readYAML(src, m)
	return m.format(name, faults)
}

// FaultsText is what to print for an error of this package's job files: FormatFaults. "" if err is another.
func FaultsText(err error) string {
	var f *faultsError
	if errors.As(err, &f) {
		return f.text
	}
	return ""
}

type faultsError struct{ text string }

func (e *faultsError) Error() string { return e.text }

// err makes the error of some faults; nil if there are none.
func (f *JobFile) err(faults []crowd.Fault) error {
	if len(faults) == 0 {
		return nil
	}
	f.marks.sort(faults)
	text := f.marks.format(f.Name, faults)
	return &crowd.Error{Kind: crowd.Invalid, Reason: crowd.CustomerFile, Message: f.Name + ": " + counted(len(faults)), Faults: faults, Err: &faultsError{text}}
}

func counted(n int) string {
	if n == 1 {
		return "1 fault, nothing ordered"
	}
	return strconv.Itoa(n) + " faults, nothing ordered"
}

// marks say where the things of a file stand, by path. The path "" is where the reading of YAML ended.
type marks map[string]mark

type mark struct {
	key, value place
	set        string // the --set that it comes from
}

type place struct{ line, col int }

// of finds a fault's place: its value or key, or else that of the nearest thing around it.
func (m marks) of(f crowd.Fault) (place, string) {
	for p := f.Path; ; p = p[:max(0, strings.LastIndexAny(p, ".["))] {
		if k, ok := m[p]; ok && (f.AtKey() && p == f.Path || k.value == place{}) {
			return k.key, k.set
		} else if ok {
			return k.value, k.set
		}
		if p == "" {
			return place{}, ""
		}
	}
}

func (m marks) sort(faults []crowd.Fault) {
	slices.SortStableFunc(faults, func(a, b crowd.Fault) int {
		x, _ := m.of(a)
		y, _ := m.of(b)
		return cmp.Or(cmp.Compare(x.line, y.line), cmp.Compare(x.col, y.col))
	})
}

func (m marks) format(name string, faults []crowd.Fault) string {
	faults = slices.Clone(faults)
	m.sort(faults)
	var b strings.Builder
	for _, f := range faults {
		at, set := m.of(f)
		where := []string{name, f.Path, f.Text}
		switch {
		case set != "":
			where[0] = set
		case strings.HasPrefix(f.Path, "--set "):
			where = where[1:]
		case at.line > 0:
			where[0] = fmt.Sprintf("%s:%d:%d", name, at.line, at.col)
		}
		where = slices.DeleteFunc(where, func(s string) bool { return s == "" })
		b.WriteString(strings.Join(where, ": ") + "\n")
		if f.Hint != "" {
			b.WriteString("  hint: " + f.Hint + "\n")
		}
	}
	b.WriteString(counted(len(faults)) + "\n")
	return b.String()
}

// moved drops what is known of path and all in it: a --set replaced it.
func (m marks) moved(path, set string) {
	for p := range m {
		if rest, ok := strings.CutPrefix(p, path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			delete(m, p)
		}
	}
	m[path] = mark{set: set}
}

var templateForm = regexp.MustCompile(`^\{\w+\}$`)

var stepForm = regexp.MustCompile(`^([^.\[\]]+)((?:\[\d{1,6}\])*)$`)

// set lays one KEY=VALUE over a tree and returns the new one.
func (f *JobFile) set(tree any, set string) (any, error) {
	bad := func(text, hint string) error {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%s", text).WithHint("%s", hint)
	}
	path, text, ok := strings.Cut(set, "=")
	if !ok || path == "" {
		return tree, bad("wanted KEY=VALUE", "--set units.count=64")
	}
	var value any = ""
	if templateForm.MatchString(text) { // YAML would see a map
		value = text
	} else if text != "" {
		var faults []crowd.Fault
		if value, faults = readYAML([]byte(text), marks{}); len(faults) > 0 {
			return tree, bad("the value: "+faults[0].Text, "in quotes, it is text")
		}
	}
	var steps []any
	for part := range strings.SplitSeq(path, ".") {
		m := stepForm.FindStringSubmatch(part)
		if m == nil {
			return tree, bad("there is no such key", "--set units.count=64 · --set 'args[3]=x'")
		}
		steps = append(steps, m[1])
		for n := range strings.SplitSeq(strings.Trim(m[2], "[]"), "][") {
			if i, err := strconv.Atoi(n); err == nil {
				steps = append(steps, i)
			}
		}
	}
	out, ok := lay(tree, steps, value)
	if !ok {
		return tree, bad("the file has nothing there that this could go into", "--set units.count=64 · --set 'args[3]=x'")
	}
	f.marks.moved(path, "--set "+set)
	return out, nil
}

// lay puts value at steps, making objects and list ends on its way.
func lay(tree any, steps []any, value any) (any, bool) {
	if len(steps) == 0 {
		return value, true
	}
	if i, isIndex := steps[0].(int); isIndex {
		list, ok := tree.([]any)
		if tree != nil && !ok || i > len(list) {
			return nil, false
		}
		list = slices.Clone(list)
		if i == len(list) {
			list = append(list, nil)
		}
		list[i], ok = lay(list[i], steps[1:], value)
		return list, ok
	}
	t, ok := tree.(crowd.Tree)
	if tree != nil && !ok {
		return nil, false
	}
	t = slices.Clone(t)
	i := slices.IndexFunc(t, func(p crowd.Pair) bool { return p.Key == steps[0] })
	if i < 0 {
		i = len(t)
		t = append(t, crowd.Pair{Key: steps[0].(string)})
	}
	t[i].Value, ok = lay(t[i].Value, steps[1:], value)
	return t, ok
}

// checkText refuses what is no text at all before it is parsed; ok is src without a byte order mark.
func checkText(src []byte) (ok []byte, f *crowd.Fault) {
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	switch {
	case len(src) > maxJobFile:
		return nil, &crowd.Fault{Text: "more than 1 MiB"}
	case bytes.HasPrefix(src, []byte("\x00asm")):
		return nil, &crowd.Fault{Text: "a program, not a job file", Hint: "crowd run PROG.wasm"}
	case !utf8.Valid(src):
		return nil, &crowd.Fault{Text: "not UTF-8 text", Hint: "save it as UTF-8"}
	case bytes.ContainsRune(src, 0):
		return nil, &crowd.Fault{Text: "a zero byte: not text"}
	}
	return src, nil
}

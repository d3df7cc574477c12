package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the goldens of job file messages")

func TestFaultsGolden(t *testing.T) {
	const golden = "testdata/faults.txtar"
	a, err := txtar.ParseFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]*txtar.File{}
	for i := range a.Files {
		parts[a.Files[i].Name] = &a.Files[i]
	}
	for _, f := range a.Files {
		name, isYAML := strings.CutSuffix(f.Name, ".yaml")
		if !isYAML {
			continue
		}
		var sets []string
		if args := parts[name+".args"]; args != nil {
			sets = strings.Split(strings.TrimSpace(string(args.Data)), "\n")
		}
		file, faults := parseJobFile("job.yaml", f.Data, sets)
		got := FaultsText(file.err(faults))
		if *update {
			parts[name+".want"].Data = []byte(got)
		} else if want := string(parts[name+".want"].Data); got != want {
			t.Errorf("%s:\ngot:\n%swanted:\n%s", name, got, want)
		}
		if again := FormatFaults("job.yaml", f.Data, faults); sets == nil && again != got {
			t.Errorf("%s: FormatFaults says\n%s", name, again)
		}
	}
	if *update {
		if err := os.WriteFile(golden, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestYAMLCore(t *testing.T) {
	const text = "\ufeffa: NO\r\nb: [yes, 1_000, 0x1F, 017, 1.50, +5, .5, 1e3, ~, null, True, 'true', \"1\", .inf, 2026-01-01]\r\nc: |\r\n  x\r\n  y\r\nd: &q {e: 1}\r\nf: *q\r\n" +
		"1: one\r\n\"k: y\": >-\r\n  long\r\n  text\r\ng:\r\n"
	m := marks{}
	tree, faults := readYAML([]byte(text), m)
	n := func(s string) any { return json.Number(s) }
	want := crowd.Tree{{Key: "a", Value: "NO"},
		{Key: "b", Value: []any{"yes", "1_000", n("0x1F"), n("017"), n("1.50"), n("+5"), n(".5"), n("1e3"), nil, nil, true, "true", "1", ".inf", "2026-01-01"}},
		{Key: "c", Value: "x\ny\n"}, {Key: "d", Value: crowd.Tree{{Key: "e", Value: n("1")}}}, {Key: "f", Value: crowd.Tree{{Key: "e", Value: n("1")}}},
		{Key: "1", Value: "one"}, {Key: "k: y", Value: "long text"}, {Key: "g", Value: nil}}
	if !reflect.DeepEqual(tree, any(want)) || len(faults) > 0 {
		t.Errorf("%+v\ngot    %#v\nwanted %#v", faults, tree, want)
	}
	for path, p := range map[string]place{"a": {1, 4}, "b[1]": {2, 10}, "b[12]": {2, 70}, "d.e": {6, 11}, "f": {7, 4}} {
		if m[path].value != p {
			t.Errorf("%s stands at %v, not %v", path, m[path].value, p)
		}
	}
}

func TestYAMLIsBounded(t *testing.T) {
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := range 9 {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d,", i), 9))
	}
	for name, text := range map[string]string{"laughs": laughs, "flow": strings.Repeat("[", 1<<19), "maps": strings.Repeat("{a: ", 1<<17), "dashes": strings.Repeat("- ", 1<<17),
		"keys": strings.Repeat("? ", 1<<17), "many keys": func() string {
			var b strings.Builder
			for i := range 60_000 {
				fmt.Fprintf(&b, "k%d: 1\n", i)
			}
			return b.String()
		}(), "many items": "a:\n" + strings.Repeat("- a\n", 1<<17), "zero": "a: \x00", "latin": "a: \xe4", "big": strings.Repeat("#", maxJobFile+1), "wasm": "\x00asm\x01\x00\x00\x00"} {
		start := time.Now()
		if _, faults := readYAML([]byte(text), marks{}); len(faults) != 1 {
			t.Errorf("%s: %.200v", name, faults)
		}
		t.Log(name, time.Since(start))
	}
}

// hash stands in for the digest that the caller brings.
func hash(r io.Reader) (d crowd.Digest, n int64, err error) {
	h := sha256.New()
	n, err = io.Copy(h, r)
	return crowd.Digest(h.Sum(nil)), n, err
}

// folder writes files; a name that ends in / is a folder.
func folder(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if strings.HasSuffix(name, "/") {
			_ = os.MkdirAll(path, 0o755)
			continue
		}
		_ = os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const wasm = "\x00asm\x01\x00\x00\x00"

func TestReadJobFileFindsMissingFiles(t *testing.T) {
	dir := folder(t, map[string]string{"job.yaml": `program: main.go
args: ["{unti}"]
inputs:
  - gone.bin
  - from: raw
    as: raw.bin
  - here.bin
units: {files: "raw/*.png"}
`, "main.go": "package main", "here.bin": "x", "raw/a.jpg": "a"})
	name := filepath.Join(dir, "job.yaml")
	_, err := ReadJobFile(name, nil)
	want := strings.ReplaceAll(`NAME:1:10: program: main.go is no wasm module
  hint: GOOS=wasip1 GOARCH=wasm go build -o main.go .
NAME:2:8: args[0]: no template {unti}
  hint: {unit}; a literal brace is {{
NAME:4:5: inputs[0]: there is no file gone.bin
  hint: paths start at the file's folder
NAME:5:5: inputs[1]: raw is a folder, wanted a file
  hint: a unit per file of it: units: {files: "raw"}
NAME:8:16: units.files: raw/*.png names no file
  hint: paths start at the file's folder
5 faults, nothing ordered
`, "NAME", name)
	if got := FaultsText(err); got != want || !crowd.KindIs(err, crowd.Invalid) || len(crowd.AsError(err).Faults) != 5 {
		t.Errorf("got\n%swanted\n%s%v", got, want, err)
	}
	if _, err := ReadJobFile(filepath.Join(dir, "nope.yaml"), nil); !crowd.KindIs(err, crowd.NotFound) {
		t.Error(err)
	}
	if _, err := ReadJobFile(dir, nil); !crowd.KindIs(err, crowd.Invalid) {
		t.Error(err)
	}
}

func TestResolve(t *testing.T) {
	dir := folder(t, map[string]string{"job.yaml": "program: bin/main.wasm\nargs: ['{stem}']\ninputs: [data/bank.bin, {from: data/bank.bin, as: b/again.bin}]\nunits: {files: raw}\n",
		"bin/main.wasm": wasm, "data/bank.bin": "bank", "raw/b.jpg": "B", "raw/a/x.jpg": "X", "raw/.DS_Store": "no", "raw/.git/x": "no", "raw/c.jpg": "bank", "raw/e\u0301.jpg": "E"})
	f, err := ReadJobFile(filepath.Join(dir, "job.yaml"), []string{"name=renamed", "price={max: 5cr}"})
	if err != nil {
		t.Fatal(FaultsText(err), err)
	}
	o, err := f.Resolve(context.Background(), hash)
	if err != nil {
		t.Fatal(FaultsText(err), err)
	}
	if f := o.Spec.Check(); len(f) > 0 || o.Spec.Name != "renamed" || o.Spec.Price.Max != 5*crowd.Credit || o.Spec.NumUnits() != 4 || len(o.Uploads) != 6 {
		t.Errorf("%+v\n%+v\n%+v", f, o.Spec, o.Uploads)
	}
	var names []string
	for _, u := range o.Uploads {
		c, err := u.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(c)
		c.Close()
		if d, n, _ := hash(bytes.NewReader(b)); d != u.Digest || n != u.Size {
			t.Errorf("%s: %q isn't what its digest says", u.Name, b)
		}
		if u.Digest == o.Spec.Units.Items {
			for line := range strings.Lines(string(b)) {
				var in crowd.Input
				if err := json.Unmarshal([]byte(line), &in); err != nil || in.Size == 0 {
					t.Errorf("%s: %v", line, err)
				}
				names = append(names, in.As)
			}
		}
	}
	if want := []string{"a/x.jpg", "b.jpg", "c.jpg", "\u00e9.jpg"}; !reflect.DeepEqual(names, want) {
		t.Errorf("%q", names)
	}
	if in := o.Spec.Inputs[1]; in.As != "b/again.bin" || in.From != "" || in.Size != 4 {
		t.Errorf("%+v", in)
	}

	bank := filepath.Join(dir, "data", "bank.bin")
	if err := os.WriteFile(bank, []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, u := range o.Uploads {
		if _, err := u.Open(); (u.Name == "data/bank.bin") != crowd.KindIs(err, crowd.Conflict) {
			t.Errorf("%s: %v", u.Name, err)
		}
	}
	_, err = f.Resolve(context.Background(), func(r io.Reader) (crowd.Digest, int64, error) {
		d, n, err := hash(r)
		if n == 5 {
			_ = os.WriteFile(bank, []byte("growing"), 0o644)
		}
		return d, n, err
	})
	if text := FaultsText(err); !strings.Contains(text, ":3:10: inputs[0]: data/bank.bin: changed while it was read\n  hint: wait") {
		t.Errorf("%s %v", text, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.Resolve(ctx, hash); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestUnitFiles(t *testing.T) {
	dir := folder(t, map[string]string{"raw[1]/a.jpg": "", "raw[1]/b.JPG": "", "raw[1]/x/c.jpg": "", "raw[1]/.h.jpg": "", "one.txt": "", "clash/A": "", "clash/a": "", "bad/a?": "", "bad/con.txt": "", "empty/": ""})
	for pattern, want := range map[string]string{
		"raw[[]1]/*.jpg": "raw[1]/a.jpg", "*/*/*.jpg": "raw[1]/x/c.jpg", "*/.h*": "raw[1]/.h.jpg", "one.txt": "one.txt", "./one.txt": "one.txt", "clash": "! differ by case only",
		"bad": "! holds a ?", "empty": "! names no file", "nowhere": "! names no file", "raw/**": "! ** isn't known", "[": "! syntax error in pattern",
	} {
		f := &JobFile{Spec: crowd.JobSpec{Units: crowd.Units{Files: pattern}}, dir: dir}
		files, faults := f.unitFiles()
		var got []string
		for _, l := range files {
			got = append(got, l.as)
		}
		if text, bad := strings.CutPrefix(want, "! "); bad {
			if len(faults) == 0 || !strings.Contains(faults[0].Text, text) {
				t.Errorf("%s: %+v", pattern, faults)
			}
		} else if strings.Join(got, " ") != want || len(faults) > 0 {
			t.Errorf("%s: %q %+v", pattern, got, faults)
		}
	}
}

func TestProgramSpecAndInit(t *testing.T) {
	dir := folder(t, map[string]string{"search.wasm": wasm})
	f, err := ProgramSpec(filepath.Join(dir, "search.wasm"), []string{"--n", "{unit}", "{{}"}, 0, nil)
	if err != nil || f.Spec.Name != "search" || f.Spec.Units.Count != 1 {
		t.Fatalf("%+v %v", f, err)
	}
	if o, err := f.Resolve(context.Background(), hash); err != nil || len(o.Uploads) != 1 {
		t.Errorf("%+v %v", o, err)
	}
	if _, err := ProgramSpec(filepath.Join(dir, "search.wasm"), []string{"{nuit}"}, 0, []string{"gone"}); !strings.HasSuffix(FaultsText(err), "2 faults, nothing ordered\n") {
		t.Error(err)
	}
	if _, faults := parseJobFile("job.yaml", []byte(InitJobFile()), nil); len(faults) > 0 {
		t.Errorf("%+v", faults)
	}
	open := strings.NewReplacer("# env", "env", "# inputs", "inputs", "# outputs", "outputs", "# deadline", "deadline", "# place", "place", "# devices", "devices", "# labels", "labels").Replace(InitJobFile())
	if f, faults := parseJobFile("job.yaml", []byte(open), nil); len(faults) > 0 || f.Spec.Place.In[1] != "FR" {
		t.Errorf("%+v", faults)
	}
	src, err := os.ReadFile("../examples/gwsearch/job.yaml")
	if err != nil {
		t.Skip(err)
	}
	if _, faults := parseJobFile("job.yaml", src, nil); len(faults) > 0 {
		t.Errorf("%+v", faults)
	}
}

// TestJSONIsYAML: a spec's JSON read as YAML is the same spec.
func TestJSONIsYAML(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := crowd.JobSpec{Kind: "job", Program: "a.wasm", Units: crowd.Units{Count: rapid.Uint64Range(1, 1<<40).Draw(t, "count")},
			Args: rapid.SliceOfN(rapid.StringMatching(`[^{\x00-\x1f\x7f-\x{9f}\x{2028}\x{2029}\x{feff}\x{fffe}\x{ffff}]{0,8}`), 1, 4).Draw(t, "args"),
			Env:  map[string]string{rapid.StringMatching(`[a-zA-Z_]{1,5}`).Draw(t, "key"): "{seed}"}}
		f, faults := parseJobFile("job.json", crowd.Canonical(&s), nil)
		if len(faults) > 0 || !reflect.DeepEqual(f.Spec, s) {
			t.Fatalf("%+v\n%s\n%s", faults, crowd.Canonical(&s), crowd.Canonical(&f.Spec))
		}
	})
}

// FuzzJobFile: no text makes the reader panic or take long, and every fault can be printed.
func FuzzJobFile(f *testing.F) {
	a, err := txtar.ParseFile("testdata/faults.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range a.Files {
		if strings.HasSuffix(file.Name, ".yaml") {
			f.Add(file.Data)
		}
	}
	f.Add([]byte(InitJobFile()))
	f.Fuzz(func(t *testing.T, src []byte) {
		late := time.AfterFunc(10*time.Second, func() { panic(fmt.Sprintf("it takes for ever: %q", src)) })
		defer late.Stop()
		file, faults := parseJobFile("job.yaml", src, nil)
		if len(faults) > 0 && !strings.HasSuffix(FormatFaults("job.yaml", src, faults), " nothing ordered\n") {
			t.Errorf("%+v", faults)
		}
		if len(faults) == 0 {
			_ = crowd.Canonical(&file.Spec)
		}
	})
}

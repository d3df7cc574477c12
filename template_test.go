package crowd

import (
	"encoding/binary"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestPlan(t *testing.T) {
	job := JobID{1, 2, 3}
	s := &JobSpec{Program: Digest{9}.String(), Args: []string{"{unit}/{units}", "{{unit}", "m={mass} s={spin}", "{seed}", "{job}", "}}"},
		Env:    map[string]string{"B": "{spin}", "A": "x"},
		Inputs: []Input{{As: "bank.bin", Digest: Digest{1}}},
		Units:  Units{Grid: []Axis{{"mass", []string{"1.4", "30"}}, {"spin", []string{"0", "{mass}", "0.9"}}}}}
	if f := s.Check(); len(f) > 0 {
		t.Fatal(f)
	}
	p, err := s.Plan(job, 4, nil)
	seed := UnitSeed(job, 4)
	want := []string{"program", "4/6", "{unit}", "m=30 s={mass}", strconv.FormatUint(binary.BigEndian.Uint64(seed[:])>>1, 10), job.String(), "}}"}
	if err != nil || !reflect.DeepEqual(p.Args, want) || !reflect.DeepEqual(p.Env, []string{"A=x", "B={mass}"}) || p.Seed != seed || len(p.Inputs) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := s.Plan(job, 6, nil); !KindIs(err, Invalid) {
		t.Error("a unit beyond the last was planned")
	}
	s.Units = Units{Items: Digest{2}, N: 3}
	s.Args = []string{"{input}", "{stem}"}
	s.Env = nil
	for as, stem := range map[string]string{"a/b.tar.gz": "b.tar", ".x": ".x", "c": "c"} {
		p, err = s.Plan(job, 2, &Input{As: as})
		if err != nil || p.Args[1] != "/in/"+as || p.Args[2] != stem || p.Inputs[1].As != as {
			t.Errorf("%s: %+v, %v", as, p, err)
		}
	}
	for _, item := range []*Input{nil, {As: "BANK.bin"}} {
		if _, err := s.Plan(job, 0, item); !KindIs(err, Invalid) {
			t.Errorf("item %+v was taken", item)
		}
	}
	s = &JobSpec{Program: "x/search.wasm", Units: Units{Count: 1}, Args: []string{"{mass}"}}
	if _, err := s.Plan(job, 0, nil); err == nil || !strings.Contains(err.Error(), "no template {mass}") {
		t.Error(err)
	}
	s.Args = nil
	if p, _ := s.Plan(job, 0, nil); p.Args[0] != "search.wasm" {
		t.Error(p.Args)
	}
}

func TestNumUnits(t *testing.T) {
	axis := make([]string, 1<<13)
	for i := range axis {
		axis[i] = "x"
	}
	g := []Axis{{"a", axis}, {"b", axis}, {"c", axis}, {"d", axis}}
	s := JobSpec{Units: Units{Grid: g}}
	if n := s.NumUnits(); n != 1<<52 {
		t.Errorf("%d", n)
	}
	if f := s.Check(); !strings.Contains(f[1].Text, "wanted at most 2^40 units, found 2^52") {
		t.Errorf("%+v", f)
	}
	s.Units.Grid = append(g, Axis{"e", axis})
	if n := s.NumUnits(); n != 1<<64-1 {
		t.Errorf("%d: an overflow isn't seen", n)
	}
}

func TestCleanName(t *testing.T) {
	for _, good := range []string{"a", "a/b.txt", "ä/é", ".hidden", "console", "com10", "a b", "日本", "x/" + strings.Repeat("y", 255), "..a"} {
		if got, err := CleanName(good); err != nil || got != good {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\x00b", "a\nb", "a\x7f", `a\b`, "C:", "c:/x", "a:stream", "con", "NUL.txt", "x/Com1",
		"lpt9.tar.gz", "COM¹", "aux .txt", "a.", "a ", "a./b", "\xff", "e\u0301", "\u1112\u1161", "x\u202etxt.exe", "a?", "a*", strings.Repeat("a/", 16) + "a",
		strings.Repeat("y", 256), strings.Repeat("abc/", 128) + "d", "CONIN$"} {
		if _, err := CleanName(bad); !KindIs(err, Invalid) {
			t.Errorf("%q was taken: %v", bad, err)
		}
	}
}

func TestCaseClash(t *testing.T) {
	for _, c := range []struct {
		names string
		at    int
		text  string
	}{
		{"a b/c b/d", -1, ""}, {"a A", 1, "differ by case only"}, {"a b a", 2, "stands twice"}, {"a a/b", 1, "a file and a folder"}, {"a/b a", 1, "a file and a folder"},
		{"a/b A/c", 1, "differ by case only"}, {"straße STRASSE", -1, ""}, {"ſ s", 1, "differ by case only"},
	} {
		at, err := CaseClash(strings.Fields(c.names))
		if at != c.at || (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %d, %v", c.names, at, err)
		}
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{"unti": "unit", "resorces": "resources", "inptus": "inputs", "zzz": "", "": "", "Memory": "memory"} {
		if got := nearest(word, []string{"unit", "units", "resources", "inputs", "memory"}); got != want {
			t.Errorf("%s: %q", word, got)
		}
	}
}

package crowd

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// read parses JSON text and prints its faults, a line each.
func read(t *testing.T, text string) (JobSpec, string) {
	t.Helper()
	tree, err := DecodeJSON([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	s, faults := ParseSpec(tree)
	var b strings.Builder
	for _, f := range faults {
		fmt.Fprintf(&b, "%s: %s", f.Path, f.Text)
		if f.Hint != "" {
			fmt.Fprintf(&b, " [%s]", f.Hint)
		}
		b.WriteByte('\n')
	}
	return s, b.String()
}

// TestFaults: a good file but for the keys given, and what is said about them.
func TestFaults(t *testing.T) {
	d := Digest{1}.String()
	for _, c := range []struct{ keys, want string }{
		{`"units":{"count":"many"},"args":["a","b","c","{unti}"],"resorces":{}`,
			"units.count: wanted a whole number from 1 to 2^40, found \"many\" [one unit per file? units: {files: \"raw/*.jpg\"}]\n" +
				"resorces: no such key in a job [resources]\n" +
				"args[3]: no template {unti} [{unit}; a literal brace is {{]\n"},
		{`"units":{"count":0}`, "units.count: wanted a whole number from 1 to 2^40, found 0\n"},
		{`"units":{"count":"12"}`, "units.count: wanted a whole number from 1 to 2^40, found \"12\" [without quotes: 12]\n"},
		{`"units":{"count":1.5}`, "units.count: wanted a whole number from 1 to 2^40, found 1.5\n"},
		{`"units":{"count":1e3}`, ""},
		{`"units":{"cuont":3}`, "units.cuont: no such key in units [count]\n"},
		{`"units":{}`, "units: wanted exactly one of count, files, grid [units: {count: 100}]\n"},
		{`"units":{"count":2,"files":"raw"}`, "units: wanted exactly one of count, files, grid [units: {count: 100}]\n"},
		{`"units":{"lines":"words.txt","each":3}`, "units.lines: not built yet [a unit per file: units: {files: \"raw/*.jpg\"}]\n"},
		{`"units":{"grid":{"a":"0..1/0.5","a b":[1],"unit":[2],"c":"up","d":"5..1"}}`,
			"units.grid.c: wanted a list or a range like 0..0.9/0.1, found \"up\"\n" +
				"units.grid.d: wanted a range upwards of at most 65536 values in all, found \"5..1\" [0..0.9/0.1]\n" +
				"units.grid.a b: an axis can't be named \"a b\" [letters, digits and _, a letter first]\n" +
				"units.grid.unit: {unit} means something else already: another name, please\n"},
		{`"units":{"grid":{"a":"0..65535","b":"0..9"}}`, "units.grid.b: wanted a range upwards of at most 65536 values in all, found \"0..9\" [0..0.9/0.1]\n" +
			": the whole job is 501 KiB, at most 128 fit [put what is long into an input file]\n"},
		{`"kind":"vm","image":"debian"`, "kind: \"vm\" is not built yet [kind: job]\n"},
		{`"kind":"jbo"`, "kind: wanted job, found \"jbo\" [job]\n"},
		{`"place":"de"`, "place: wanted a place like DE, found \"de\" [DE]\n"},
		{`"place":"NO"`, ""},
		{`"place":{"in":["DE","X1"],"evidence":"not-refutd"}`,
			"place.in[1]: wanted a place like DE, found \"X1\" [a country or a part of one: DE, US-CA]\n" +
				"place.evidence: wanted declared, not-refuted, contracted, hardware-bound, audited, found \"not-refutd\" [not-refuted]\n"},
		{`"place":3`, "place: wanted a place like DE, or {in: [DE, FR]}, found 3\n"},
		{`"trust":"attested"`, "trust: \"attested\" is not built yet [trust: open]\n"},
		{`"devices":["labtop"]`, "devices[0]: wanted desktop, laptop, server, phone, browser, found \"labtop\" [laptop]\n"},
		{`"devices":"laptop"`, "devices: wanted a list, found \"laptop\" [devices: [desktop, server]]\n"},
		{`"price":{"max":"250"}`, "price.max: wanted credits like 1.5cr, found \"250\"\n"},
		{`"price":{"rate":"1.5cr"}`, "price.rate: wanted credits like 1.5cr/h, found \"1.5cr\"\n"},
		{`"price":{"max":"2000000000cr"}`, "price.max: wanted at most 1000000000cr, found 2000000000cr\n"},
		{`"price":{"max":"2cr","max_ucr":7}`, "price.max_ucr: it says the same as price.max [one of them]\n"},
		{`"labels":{"a b":"x","c":"1\n2"}`, "labels.a b: wanted a key of up to 63 letters, digits and . _ / -\nlabels.c: wanted one line of at most 63 bytes, found \"1\\n2\"\n"},
		{`"program":"tools:search.wasm"`, "program: programs in buckets are not built yet [a path, or the b3:… of an uploaded program]\n"},
		{`"program":"b3:12"`, "program: wanted a digest b3:<64 hex digits>, found \"b3:12\"\n"},
		{`"program":null`, "program: wanted a path, found nothing\n"},
		{`"args":["{input}","{offset}","{{x}","{"]`,
			"args[0]: {input} is for units that are files [{unit} {units} {seed} {job}; a literal brace is {{]\n" +
				"args[1]: {offset} is not built yet [{unit} {units} {seed} {job}; a literal brace is {{]\n" +
				"args[3]: a { that nothing closes [a literal brace is {{]\n"},
		{`"args":["a",null]`, "args[1]: wanted text, found nothing\n"},
		{`"args":"a b"`, "args: wanted a list, found \"a b\" [args: [--unit, \"{unit}\"]]\n"},
		{`"env":{"A-B":"x","C":"{jbo}"}`, "env.A-B: a variable can't be named \"A-B\" [letters, digits and _, a letter first]\nenv.C: no template {jbo} [{job}; a literal brace is {{]\n"},
		{`"inputs":["../a.bin",{"from":"b.bin","as":"A.bin"},{"as":"x"},"ligo:o1/b","` + d + `",{"from":"c","as":"../c"}]`,
			"inputs[2]: an input needs from: a path or b3:… [{from: data/bank.bin, as: bank.bin}]\n" +
				"inputs[3]: inputs from buckets are not built yet [a file whose name has a colon: ./ligo:o1/b]\n" +
				"inputs[4]: an input that is a digest needs a name: as [as: bank.bin]\n" +
				"inputs[5].as: the name \"../c\" has an element \"..\"\n" +
				"inputs[1].as: \"a.bin\" and \"A.bin\" differ by case only [give one of them another name: as]\n"},
		{`"chunk":"many"`, "chunk: wanted a whole number from 1 to 4096, found \"many\" [auto]\n"},
		{`"resources":{"cpu":2}`, "resources.cpu: wanted 1, found 2: more is not built yet [more units at once make a job faster]\n"},
		{`"resources":{"cpu":0,"memory":"lots","disk":64,"time":"1.5s","memory_byte":3}`,
			"resources.cpu: wanted a whole number from 1 to 1024, found 0\n" +
				"resources.memory: wanted a size like 512MiB, found \"lots\" [a number and B, KiB, MiB or GiB]\n" +
				"resources.disk: wanted a size like 512MiB, found 64 [a number and B, KiB, MiB or GiB]\n" +
				"resources.time: wanted whole seconds, as in 90s or 10m, found \"1.5s\" [a number and s, m, h or d]\n" +
				"resources.memory_byte: no such key in resources [memory_bytes]\n"},
		{`"resources":{"memory":"8GiB"}`, "resources.memory: wanted at most 4GiB, found 8GiB\n"},
		{`"verify":"adaptive"`, "verify: \"adaptive\" is not built yet [verify: {quorum: 2}]\n"},
		{`"verify":{"adaptive":{"floor":"3%"}}`, "verify.adaptive: not built yet [verify: {quorum: 2}]\n"},
		{`"verify":{"quorum":12}`, "verify.quorum: wanted a whole number from 1 to 9, found 12\n"},
		{`"verify":"nome"`, "verify: wanted none or {quorum: 2}, found \"nome\" [none]\n"},
		{`"checkpoint":"soon"`, "checkpoint: wanted never, or a span from 1s to 24h, found \"soon\" [checkpoint: 30s · or never]\n"},
		{`"checkpoint":"30s","chunk":4`, "chunk: a unit with checkpoints is leased by itself, found chunks of 4 [chunk: 1, or leave it out]\n"},
		{`"retries":-1`, "retries: wanted a whole number from 0 to 8, found -1\n"},
		{`"deadline":"soon"`, "deadline: wanted a span like 6h or a time like 2031-12-24T18:00:00Z, found \"soon\"\n"},
		{`"deadline":"2031-12-24T18:00:00Z"`, ""},
		{`"outputs":{"to":"b:x/","keep":["[a"],"max":"1TiB"}`,
			"outputs.to: not built yet [leave it out: results are kept 30 days, crowd job results fetches them]\n" +
				"outputs.keep[0]: wanted a pattern of file names, found \"[a\" [keep: [\"*.json\"]]\n" +
				"outputs.max: wanted at most 64MiB, found 1TiB\n"},
		{`"name":"Search"`, "name: wanted up to 63 of a-z 0-9 -, a letter or digit first, found \"Search\"\n"},
		{`"progam":"x"`, "progam: no such key in a job [program]\n"},
	} {
		text := "{" + c.keys
		for key, v := range map[string]string{"program": `"a.wasm"`, "units": `{"count":7}`} {
			if !strings.Contains(c.keys, `"`+key+`":`) && !strings.Contains(c.keys, "progam") || key != "program" && !strings.Contains(c.keys, `"units"`) {
				text += `,"` + key + `":` + v
			}
		}
		if _, got := read(t, text+"}"); got != c.want {
			t.Errorf("%s\ngot:\n%swanted:\n%s", c.keys, got, c.want)
		}
	}
	if _, got := read(t, `[1]`); got != ": wanted the keys of a job, found a list [kind: …]\n" {
		t.Error(got)
	}
	if _, got := read(t, `{}`); got != "program: a job needs a program [program: search.wasm]\nunits: wanted exactly one of count, files, grid [units: {count: 100}]\n" {
		t.Error(got)
	}
}

func TestParseSpecReads(t *testing.T) {
	five := 5
	s, faults := read(t, `{"name":"gw","place":{"in":["NO","US-CA"],"evidence":"audited"},"trust":"open","devices":["server"],
		"price":{"max":"250cr","rate_ucr":1500000},"labels":{"v":1.10},"program":"x/search.wasm","args":["--n",1.50,true],"env":{"A":"{spin}"},
		"inputs":["d/H1.f64",{"from":"y","as":"bank.bin"},{"from":"`+Digest{7}.String()+`","as":"z"}],
		"units":{"grid":{"zeta":[1.4,"x"],"spin":"-0.1..0.9/0.5","one":3}},
		"chunk":"auto","resources":{"memory":"64M","disk":"20MB","time":"2h","fuel":1e9},"verify":"none","checkpoint":"never","retries":5,
		"deadline":"7d","outputs":{"keep":["*.json"],"max":"1MiB"}}`)
	want := JobSpec{Kind: "job", Name: "gw", Place: PlaceRule{In: []string{"NO", "US-CA"}, Evidence: "audited"}, Trust: "open", Devices: []string{"server"},
		Price: PriceRule{Max: 250 * Credit, Rate: 1500000}, Labels: map[string]string{"v": "1.10"}, Program: "x/search.wasm",
		Args: []string{"--n", "1.50", "true"}, Env: map[string]string{"A": "{spin}"},
		Inputs:    []Input{{From: "d/H1.f64", As: "H1.f64"}, {From: "y", As: "bank.bin"}, {As: "z", Digest: Digest{7}}},
		Units:     Units{Grid: []Axis{{"zeta", []string{"1.4", "x"}}, {"spin", []string{"-0.1", "0.4", "0.9"}}, {"one", []string{"3"}}}},
		Resources: Resources{Memory: 64 << 20, Disk: 20_000_000, Time: 7200, Fuel: 1e9}, Verify: Verify{None: true}, Checkpoint: "never", Retries: &five,
		Deadline: "7d", Outputs: Outputs{Keep: []string{"*.json"}, Max: 1 << 20}}
	if faults != "" || !reflect.DeepEqual(s, want) {
		t.Errorf("%s\ngot    %+v\nwanted %+v", faults, s, want)
	}
	if s.NumUnits() != 6 {
		t.Errorf("%d units", s.NumUnits())
	}
	plain, faultList := ParseSpec(map[string]any{"program": "a.wasm", "units": map[string]any{"count": float64(3e6)}, "args": []any{3e6}})
	if len(faultList) > 0 || plain.Units.Count != 3e6 || plain.Args[0] != "3000000" {
		t.Errorf("%+v %+v", plain, faultList)
	}
}

func TestDecodeJSON(t *testing.T) {
	for text, want := range map[string]string{
		``: "not JSON: unexpected end of JSON input", `{`: "not JSON at byte 1: unexpected end of JSON input", `{"a":1}x`: "not JSON at byte 8",
		`{"a":{"b":1,"b":2},"c":[{"d":1,"d":1}]}`: "a.b stands twice", "\"\xff\"": "isn't UTF-8",
		strings.Repeat("[", 40) + strings.Repeat("]", 40): "nested too deep", strings.Repeat(" ", 1<<20) + "1": "more than 1MiB of JSON",
	} {
		_, err := DecodeJSON([]byte(text))
		if !KindIs(err, Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, wanted %s", text, err, want)
		}
	}
	v, err := DecodeJSON([]byte(`{"z":1,"a":[null,true,"x",{}]}`))
	want := Tree{{"z", json.Number("1")}, {"a", []any{nil, true, "x", Tree{}}}}
	if err != nil || !reflect.DeepEqual(v, any(want)) {
		t.Errorf("%#v %v", v, err)
	}
}

func TestMeasures(t *testing.T) {
	for s, want := range map[string]int64{"512MiB": 512 << 20, "20GB": 20e9, "1K": 1024, "1.5G": 3 << 29, "7B": 7, "1 MiB": 1 << 20,
		"": 0, "7": 0, "0B": 0, "0.5B": 0, "-1B": 0, "1XB": 0, "1iB": 0, "99999999999P": 0} {
		if n, err := ParseSize(s); n != want || (err == nil) != (want > 0) {
			t.Errorf("size %q: %d, %v", s, n, err)
		}
	}
	for s, want := range map[string]time.Duration{"90s": 90 * time.Second, "15m": 15 * time.Minute, "2h": 2 * time.Hour, "7d": 168 * time.Hour, "1.5h": 90 * time.Minute,
		"": 0, "7": 0, "0s": 0, "1h30m": 0, "400d": 0, "1y": 0} {
		if d, err := ParseSpan(s); d != want || (err == nil) != (want > 0) {
			t.Errorf("span %q: %v, %v", s, d, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 1<<50).Draw(t, "n")
		if got, err := ParseSize(FormatSize(n)); err != nil || got != n {
			t.Fatalf("%s: %d, %v", FormatSize(n), got, err)
		}
		if got, err := ParseCredits(FormatCredits(UCR(n))); err != nil || got != UCR(n) {
			t.Fatalf("%s: %d, %v", FormatCredits(UCR(n)), got, err)
		}
	})
}

// FuzzParseSpec: nothing a stranger sends panics, and what is taken comes back the same from its own JSON.
func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(`{"program":"a.wasm","units":{"grid":{"a":"0..1/0.1","b":[1,"x"]}},"args":["{a}{{"],"place":"DE","verify":"none"}`))
	f.Add([]byte(`{"program":"b3:00","units":{"count":1e9},"price":{"max":"1.5cr"},"inputs":["a",{"from":"b","as":"c"}]}`))
	f.Add([]byte(`{"units":{"files":"raw/*"},"resources":{"memory":"1G","time_seconds":3},"outputs":{"keep":["["]},"deadline":"3d"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := DecodeJSON(b)
		if err != nil {
			return
		}
		if s, faults := ParseSpec(tree); len(faults) == 0 {
			roundTrip(t, s)
			s.Check()
			if _, err := s.Plan(JobID{}, s.NumUnits()-1, nil); err != nil && s.Units.Files == "" && s.Units.Items.IsZero() {
				t.Errorf("%s: %v", Canonical(&s), err)
			}
		}
	})
}

type tester interface {
	Fatalf(format string, args ...any)
}

func roundTrip(t tester, s JobSpec) {
	tree, err := DecodeJSON(Canonical(&s))
	if err != nil {
		t.Fatalf("%s: %v", Canonical(&s), err)
	}
	again, faults := ParseSpec(tree)
	if len(faults) > 0 || string(Canonical(&again)) != string(Canonical(&s)) {
		t.Fatalf("%+v\n%s\ncame back as\n%s", faults, Canonical(&s), Canonical(&again))
	}
}

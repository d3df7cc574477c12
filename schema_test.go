package crowd

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// admits is as much of JSON Schema as Schema uses; it fails on a keyword that it doesn't know.
func admits(s map[string]any, v any) error {
	for key, arg := range s {
		ok := true
		switch key {
		case "$schema", "title", "description", "default", "examples":
		case "type":
			types, isList := arg.([]any)
			if !isList {
				types = []any{arg}
			}
			n, isNumber := v.(json.Number)
			_, whole := parseWhole(string(n))
			is := map[string]bool{"integer": isNumber && whole, "number": isNumber, "object": kindOf(v) == "object", "array": kindOf(v) == "array",
				"string": kindOf(v) == "string", "boolean": kindOf(v) == "bool"}
			ok = slices.ContainsFunc(types, func(t any) bool { return is[t.(string)] })
		case "enum":
			ok = slices.Contains(arg.([]any), v)
		case "pattern":
			text, isText := v.(string)
			ok = !isText || regexp.MustCompile(arg.(string)).MatchString(text)
		case "minLength", "maxLength":
			text, isText := v.(string)
			limit, _ := arg.(json.Number).Int64()
			ok = !isText || key == "minLength" && len(text) >= int(limit) || key == "maxLength" && len(text) <= int(limit)
		case "minimum", "maximum":
			n, isNumber := v.(json.Number)
			a, _ := n.Float64()
			b, _ := arg.(json.Number).Float64()
			ok = !isNumber || key == "minimum" && a >= b || key == "maximum" && a <= b
		case "items":
			list, _ := v.([]any)
			for i, it := range list {
				if err := admits(arg.(map[string]any), it); err != nil {
					return fmt.Errorf("[%d]%w", i, err)
				}
			}
		case "properties", "additionalProperties":
			known, _ := s["properties"].(map[string]any)
			m, _ := v.(map[string]any)
			for k, x := range m {
				sub, isKnown := known[k].(map[string]any)
				if more, isShape := arg.(map[string]any); key == "additionalProperties" && !isKnown && isShape {
					sub = more
				} else if key == "additionalProperties" {
					ok = ok && isKnown
					continue
				}
				if err := admits(sub, x); err != nil {
					return fmt.Errorf(".%s%w", k, err)
				}
			}
		case "required":
			m, isObject := v.(map[string]any)
			for _, k := range arg.([]any) {
				_, has := m[k.(string)]
				ok = ok && (has || !isObject)
			}
		case "anyOf", "oneOf":
			n := 0
			for _, sub := range arg.([]any) {
				if admits(sub.(map[string]any), v) == nil {
					n++
				}
			}
			ok = n == 1 || n > 1 && key == "anyOf"
		default:
			return fmt.Errorf(": the test doesn't know %s", key)
		}
		if !ok {
			return fmt.Errorf(": %v isn't %s %v", v, key, arg)
		}
	}
	return nil
}

func kindOf(v any) string {
	switch v.(type) {
	case map[string]any:
		return "object"
	case []any:
		return "array"
	}
	return fmt.Sprintf("%T", v)
}

func plain(t tester, b []byte) (v any) {
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v", err)
	}
	return v
}

// TestSchemaAndTables: the example of every key is admitted by the schema and read without faults; defaults too.
func TestSchemaAndTables(t *testing.T) {
	schema := plain(t, Schema()).(map[string]any)
	inner := map[string]string{}
	holders := map[string]any{"place": placeKeys, "price": priceKeys, "resources": resourceKeys, "outputs": outputKeys, "verify": verifyKeys, "units": unitKeys, "": jobKeys}
	count := 0
	for at, rows := range holders {
		for i := range reflect.ValueOf(rows).Len() {
			row := reflect.ValueOf(rows).Index(i)
			field := func(name string) any {
				return reflect.NewAt(row.FieldByName(name).Type(), row.FieldByName(name).Addr().UnsafePointer()).Elem().Interface()
			}
			key := field("key").(string)
			if field("shape").(shape) == nil {
				inner[join(at, key)] = "not built"
				continue
			}
			if field("doc").(string) == "" || field("example") == nil {
				t.Errorf("%s has no words or no example", join(at, key))
			}
			for _, v := range []any{field("def"), field("example")} {
				if v == nil || key == "n" {
					continue
				}
				job := Tree{{"program", "a.wasm"}, {"units", Tree{{"count", json.Number("4096")}}}, {at, Tree{{key, v}}}}
				if at == "" {
					job[2] = Pair{key, v}
				}
				if i := slices.IndexFunc(job[:2], func(p Pair) bool { return p.Key == job[2].Key }); i >= 0 {
					job = slices.Delete(job, i, i+1)
				}
				text, err := json.Marshal(job)
				if err != nil {
					t.Fatal(err)
				}
				if _, faults := ParseSpec(job); len(faults) > 0 {
					t.Errorf("%s: %+v", text, faults)
				}
				if err := admits(schema, plain(t, text)); err != nil {
					t.Errorf("%s: the schema says %v", text, err)
				}
				count++
			}
		}
	}
	if count < 50 || len(inner) != 5 {
		t.Errorf("%d values tried, not built: %v", count, inner)
	}
	for _, bad := range []string{`{}`, `{"program":"a","units":{}}`, `{"program":"a","units":{"count":1,"files":"x"}}`, `{"program":"a","units":{"count":1},"resorces":{}}`,
		`{"program":"a","units":{"lines":"x"}}`, `{"program":"a","units":{"count":"many"}}`} {
		if admits(schema, plain(t, []byte(bad))) == nil {
			t.Errorf("the schema admits %s", bad)
		}
	}
}

func drawSpec(t *rapid.T) JobSpec {
	word := func(label string) string { return rapid.StringMatching(`[a-z][a-z0-9]{0,8}`).Draw(t, label) }
	some := func(label string) bool { return rapid.Bool().Draw(t, label) }
	s := JobSpec{Kind: "job", Program: Digest{1, 2}.String(), Units: Units{Count: rapid.Uint64Range(1, Limits.Units).Draw(t, "count")}}
	if some("grid") {
		s.Units = Units{}
		for i := range rapid.IntRange(1, 3).Draw(t, "axes") {
			s.Units.Grid = append(s.Units.Grid, Axis{fmt.Sprintf("x%d", i), rapid.SliceOfN(rapid.StringMatching(`[^\x00]{0,5}`), 1, 4).Draw(t, "values")})
		}
		s.Args = append(s.Args, "{x0}")
	} else if some("items") {
		s.Units = Units{Items: Digest{3}, N: rapid.Uint64Range(0, 1000).Draw(t, "n")}
		s.Args = append(s.Args, "{input} {stem}")
	}
	s.Args = append(s.Args, rapid.SliceOfN(rapid.StringMatching(`([^{\x00]|\{\{|\{unit\}|\{seed\}){0,6}`), 0, 4).Draw(t, "args")...)
	if some("more") {
		n := rapid.IntRange(0, Limits.FailedAttempts).Draw(t, "retries")
		s.Name, s.Retries, s.Chunk, s.Deadline = word("name"), &n, rapid.Uint64Range(0, Limits.UnitsPerChunk).Draw(t, "chunk"), "6h"
		s.Env = map[string]string{word("key"): "{job}<>&"}
		s.Labels = map[string]string{word("label"): word("text")}
		s.Inputs = []Input{{As: word("as"), Digest: Digest{4}, Size: rapid.Int64Range(0, Limits.BlobBytes).Draw(t, "size")}}
		s.Place = PlaceRule{In: []string{"DE", "NO"}, Evidence: rapid.SampledFrom(evidenceWords).Draw(t, "evidence")}
		s.Devices, s.Trust, s.Checkpoint = []string{"server"}, "open", "never"
		s.Price = PriceRule{UCR(rapid.Int64Range(0, int64(maxPrice)).Draw(t, "max")), UCR(rapid.Int64Range(0, 1000).Draw(t, "rate"))}
		s.Resources = Resources{1, rapid.Int64Range(0, Limits.MemoryBytes).Draw(t, "memory"), 1, rapid.Int64Range(0, maxSpan).Draw(t, "time"), rapid.Uint64Range(0, 1<<62).Draw(t, "fuel")}
		s.Outputs = Outputs{Keep: []string{"*.json"}, Max: rapid.Int64Range(0, Limits.OutcomeBytes).Draw(t, "out")}
		s.Verify = rapid.SampledFrom([]Verify{{}, {None: true}, {Quorum: 9}}).Draw(t, "verify")
	}
	return s
}

// TestSpecsRoundTrip: what Check passes comes back from its JSON without faults, is admitted by the schema, and each of its units can be planned.
func TestSpecsRoundTrip(t *testing.T) {
	schema := plain(t, Schema()).(map[string]any)
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t)
		if f := s.Check(); len(f) > 0 {
			t.Fatalf("%+v", f)
		}
		roundTrip(t, s)
		if err := admits(schema, plain(t, Canonical(&s))); err != nil {
			t.Fatalf("%s: the schema says %v", Canonical(&s), err)
		}
		if n := s.NumUnits(); n > 0 {
			var item *Input
			if !s.Units.Items.IsZero() {
				item = &Input{As: "0/t.em", Digest: Digest{5}}
			}
			if _, err := s.Plan(JobID{1}, rapid.Uint64Range(0, n-1).Draw(t, "u"), item); err != nil {
				t.Fatalf("%v", err)
			}
		}
	})
}

// TestCheckHoldsDecodedSpecs: an order that never was a file is held to the same.
func TestCheckHoldsDecodedSpecs(t *testing.T) {
	bad := -1
	s := JobSpec{Kind: "vm", Program: "a.wasm", Inputs: []Input{{As: "x"}, {As: "../x", Digest: Digest{1}}}, Units: Units{Files: "raw"}, Retries: &bad,
		Args: []string{"{unti}", "a\x00"}, Resources: Resources{CPU: 2, Memory: 1 << 40}, Verify: Verify{None: true, Quorum: 99}, Price: PriceRule{Max: -1}, Deadline: "x", Chunk: 1 << 20}
	var at []string
	for _, f := range s.Check() {
		at = append(at, f.Path)
	}
	want := []string{"kind", "program", "inputs[0].digest", "inputs[1].as", "units.files", "chunk", "args[0]", "args[1]", "price.max_ucr", "resources.cpu",
		"resources.memory_bytes", "verify.quorum", "verify", "retries", "deadline"}
	if !slices.Equal(at, want) {
		t.Errorf("%q", at)
	}
}

package crowd

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"time"
)

// keyRow is one key of an object of the order file: what it means to people, which values it takes and how it is read. The tables below
// are all there is: ParseSpec reads by them and knows no other key, Schema is written from them.
type keyRow[T any] struct {
	key     string
	doc     string
	shape   shape // its values as JSON Schema; nil: the key is known but not built, set says so
	def     any   // default
	example any   // set in an otherwise good file, it is good
	set     func(r *specReader, at string, v any, t *T)
}

type shape map[string]any

func keyNames[T any](rows []keyRow[T]) (names []string) {
	for _, row := range rows {
		if row.shape != nil {
			names = append(names, row.key)
		}
	}
	return names
}

var jobKeys = []keyRow[JobSpec]{
	{"kind", "what is ordered", oneOf("job"), "job", "job", setText("job", func(s *JobSpec) *string { return &s.Kind })},
	{"name", "a-z 0-9 -; unique among your live things: jobs add -2, -3 by themselves", pattern(nameForm.String()), nil, "gwsearch",
		setText("a name", func(s *JobSpec) *string { return &s.Name })},
	{"place", "where it may run: hard, for life, fails closed. `place: DE` is short for {in: [DE]}; none: anywhere",
		either(pattern(placeForm.String()), object(placeKeys)), nil, Tree{{"in", []any{"DE", "FR"}}, {"evidence", "not-refuted"}}, setPlace},
	{"trust", "the tier of trust; only open in this version: a host's owner could read the inputs in memory", oneOf("open"), "open", "open",
		setText("open", func(s *JobSpec) *string { return &s.Trust })},
	{"devices", "the sorts of machines it may run on; none: any", listOf(oneOf(deviceWords...)), nil, []any{"desktop", "server"},
		setTexts(func(s *JobSpec) *[]string { return &s.Devices }, "", "devices: [desktop, server]")},
	{"price", "what the order may cost at most", object(priceKeys), nil, Tree{{"max", "250cr"}, {"rate", "1.5cr/h"}},
		setObject("price", priceKeys, func(s *JobSpec) *PriceRule { return &s.Price })},
	{"labels", "for ls --label and statements", mapOf(shape{"type": scalar}), nil, Tree{{"team", "gw"}},
		func(r *specReader, at string, v any, s *JobSpec) { s.Labels = r.texts(at, "labels: {team: gw}", v) }},
	{"program", "the wasm module: a path, or the b3:… of an uploaded one", shape{"type": "string", "minLength": 1}, nil, "search.wasm",
		setText("a path", func(s *JobSpec) *string { return &s.Program })},
	{"args", "its arguments. Templates: {unit} {units} {input} {stem} {seed} {job} and grid names; {{ is a brace",
		listOf(shape{"type": scalar}), nil, []any{"--unit", "{unit}", "--of", "{units}"},
		setTexts(func(s *JobSpec) *[]string { return &s.Args }, "bool", `args: [--unit, "{unit}"]`)},
	{"env", "its environment; the same templates", mapOf(shape{"type": scalar}), nil, Tree{{"SEED", "{seed}"}},
		func(r *specReader, at string, v any, s *JobSpec) { s.Env = r.texts(at, `env: {SEED: "{seed}"}`, v) }},
	{"inputs", "files that a unit sees read-only under /in; a plain path is short for {from: it}",
		listOf(either(shape{"type": "string", "minLength": 1}, object(inputKeys))), nil, []any{"H1.f64", Tree{{"from", "data/bank.bin"}, {"as", "bank.bin"}}},
		func(r *specReader, at string, v any, s *JobSpec) {
			r.list(at, "inputs: [data/bank.bin]", v, func(at string, v any) { s.Inputs = append(s.Inputs, readInput(r, at, v)) })
		}},
	{"units", "the space of units: exactly one of count, files, grid", object(unitKeys), nil, Tree{{"count", json.Number("4096")}},
		setObject("units", unitKeys, func(s *JobSpec) *Units { return &s.Units })},
	{"chunk", "units per lease; auto aims at 30 s of work", either(oneOf("auto"), integer(1, Limits.UnitsPerChunk)), "auto", json.Number("16"), setChunk},
	{"resources", "what one unit may use", object(resourceKeys), nil, Tree{{"cpu", json.Number("1")}, {"memory", "256MiB"}, {"disk", "1GiB"}, {"time", "10m"}},
		setObject("resources", resourceKeys, func(s *JobSpec) *Resources { return &s.Resources })},
	{"verify", "how results are believed: hosts of this many unrelated owners must agree, or none", either(oneOf("none"), object(verifyKeys)),
		Tree{{"quorum", json.Number("2")}}, Tree{{"quorum", json.Number("3")}}, setVerify},
	{"checkpoint", "how often a unit's /state leaves the host, so that the next one goes on from there | never", either(oneOf("never"), pattern(spanForm.String())), "never", "30s",
		setText("a span like 30s, or never", func(s *JobSpec) *string { return &s.Checkpoint })},
	{"retries", "of a unit that failed by itself; lost and frozen hosts don't count", integer(0, uint64(Limits.FailedAttempts)), json.Number("7"), json.Number("5"),
		setWhole(0, uint64(Limits.FailedAttempts), "", func(s *JobSpec, n uint64) { i := int(n); s.Retries = &i })},
	{"deadline", "from the order, or a time of RFC 3339; then it is cancelled and the rest returned", shape{"type": "string"}, nil, "6h",
		setText("a span like 6h", func(s *JobSpec) *string { return &s.Deadline })},
	{"outputs", "what of /out is kept, for 30 days", object(outputKeys), nil, Tree{{"keep", []any{"*.json"}}, {"max", "16MiB"}},
		setObject("outputs", outputKeys, func(s *JobSpec) *Outputs { return &s.Outputs })},
}

var placeKeys = []keyRow[PlaceRule]{
	{"in", "countries or parts of them, ISO 3166: DE, US-CA", listOf(pattern(placeForm.String())), nil, []any{"DE", "FR"},
		setTexts(func(p *PlaceRule) *[]string { return &p.In }, "", "in: [DE, FR]")},
	{"evidence", "how well a host's place must be proven", oneOf(evidenceWords...), "declared", "not-refuted",
		setText("a level of evidence", func(p *PlaceRule) *string { return &p.Evidence })},
}

var priceKeys = []keyRow[PriceRule]{
	{"max", "of the whole order; none: the profile's max_cost", pattern(creditForm.String()), nil, "250cr",
		setCredits("price.max_ucr", "", func(p *PriceRule) *UCR { return &p.Max })},
	{"rate", "per core and hour; none: any", pattern(strings.TrimSuffix(creditForm.String(), "$") + "/h$"), nil, "1.5cr/h",
		setCredits("price.rate_ucr", "/h", func(p *PriceRule) *UCR { return &p.Rate })},
	{"max_ucr", "max in micro-credits", integer(1, uint64(maxPrice)), nil, json.Number("250000000"),
		setTwin(1, uint64(maxPrice), func(p *PriceRule, n uint64) { p.Max = UCR(n) })},
	{"rate_ucr", "rate in micro-credits", integer(1, uint64(maxPrice)), nil, json.Number("1500000"),
		setTwin(1, uint64(maxPrice), func(p *PriceRule, n uint64) { p.Rate = UCR(n) })},
}

var inputKeys = []keyRow[Input]{
	{"from", "a path, or the b3:… of something uploaded", shape{"type": "string", "minLength": 1}, nil, "data/bank.bin",
		setText("a path", func(i *Input) *string { return &i.From })},
	{"as", "its name under /in; default: its own", shape{"type": "string", "minLength": 1, "maxLength": Limits.PathBytes}, nil, "bank.bin",
		setText("a name", func(i *Input) *string { return &i.As })},
	{"digest", "of its content; the client sets it", pattern("^(b3:[0-9a-f]{64})?$"), nil, Digest{1}.String(),
		setDigest(func(i *Input) *Digest { return &i.Digest })},
	{"size_bytes", "of its content; the client sets it", integer(0, uint64(Limits.BlobBytes)), nil, json.Number("17"),
		setWhole(0, uint64(Limits.BlobBytes), "", func(i *Input, n uint64) { i.Size = int64(n) })},
}

var unitKeys = []keyRow[Units]{
	{"count", "that many units", integer(1, Limits.Units), nil, json.Number("4096"),
		setWhole(1, Limits.Units, `one unit per file? units: {files: "raw/*.jpg"}`, func(u *Units, n uint64) { u.Count = n })},
	{"files", "a unit per file of a pattern or folder: {input} its path, {stem} its bare name", shape{"type": "string", "minLength": 1}, nil, "raw/*.jpg",
		setText("a pattern of file names", func(u *Units) *string { return &u.Files })},
	{"grid", "a unit per combination, the last axis fastest: {mass: [1.4, 30], spin: 0..0.9/0.1}",
		either(mapOf(either(listOf(shape{"type": scalar}), shape{"type": "number"}, pattern(rangeForm.String()))),
			listOf(object(axisKeys))), nil, Tree{{"mass", []any{json.Number("1.4"), json.Number("30")}}, {"spin", "0..0.9/0.1"}}, setGrid},
	{"items", "the list that the client made of files", pattern("^(b3:[0-9a-f]{64})?$"), nil, Digest{1}.String(), setDigest(func(u *Units) *Digest { return &u.Items })},
	{"n", "how many units there are; the client sets it", integer(0, Limits.Units), nil, json.Number("4096"),
		setWhole(0, Limits.Units, "", func(u *Units, n uint64) { u.N = n })},
	{key: "lines", set: notBuilt[Units](`a unit per file: units: {files: "raw/*.jpg"}`)},
	{key: "bytes", set: notBuilt[Units](`a unit per file: units: {files: "raw/*.jpg"}`)},
	{key: "each", set: func(*specReader, string, any, *Units) {}}, // belongs to lines and bytes, which say it
}

var axisKeys = []keyRow[Axis]{
	{"name", "as templates call it", pattern(wordForm.String()), nil, "mass", setText("a name", func(a *Axis) *string { return &a.Name })},
	{"values", "as they are put into templates", listOf(shape{"type": scalar}), nil, []any{"1.4", "30"},
		func(r *specReader, at string, v any, a *Axis) { a.Values = readValues(r, at, v) }},
}

var resourceKeys = []keyRow[Resources]{
	{"cpu", "cores", integer(1, 1), json.Number("1"), json.Number("1"),
		setWhole(1, 1024, "", func(t *Resources, n uint64) { t.CPU = int(n) })},
	{"memory", "its linear memory; beyond: guest.memory", pattern(sizeForm.String()), "256MiB", "64MiB",
		setSize("resources.memory_bytes", func(t *Resources) *int64 { return &t.Memory })},
	{"disk", "of /out and /state", pattern(sizeForm.String()), "1GiB", "64MiB", setSize("resources.disk_bytes", func(t *Resources) *int64 { return &t.Disk })},
	{"time", "of the wall clock, at full speed; beyond: guest.time", pattern(spanForm.String()), "10m", "1m", setTime},
	{"fuel", "instructions, about; beyond: guest.fuel. none: only time bounds a unit", shape{"type": "integer", "minimum": 1}, nil, json.Number("1e9"),
		setWhole(1, 1<<62, "", func(t *Resources, n uint64) { t.Fuel = n })},
	{"memory_bytes", "memory in bytes", integer(1, uint64(Limits.MemoryBytes)), nil, json.Number("67108864"),
		setTwin(1, uint64(Limits.MemoryBytes), func(t *Resources, n uint64) { t.Memory = int64(n) })},
	{"disk_bytes", "disk in bytes", integer(1, uint64(Limits.MemoryBytes)), nil, json.Number("67108864"),
		setTwin(1, uint64(Limits.MemoryBytes), func(t *Resources, n uint64) { t.Disk = int64(n) })},
	{"time_seconds", "time in seconds", integer(1, maxSpan), nil, json.Number("60"), setTwin(1, maxSpan, func(t *Resources, n uint64) { t.Time = int64(n) })},
}

var verifyKeys = []keyRow[Verify]{
	{"quorum", "hosts of that many unrelated owners must agree", integer(1, uint64(Limits.Quorum)), json.Number("2"), json.Number("3"),
		setWhole(1, uint64(Limits.Quorum), "", func(t *Verify, n uint64) { t.Quorum = int(n) })},
	{"none", "true: the first answer counts", shape{"type": "boolean"}, false, true, func(r *specReader, at string, v any, t *Verify) {
		var ok bool
		if t.None, ok = v.(bool); !ok {
			r.wanted(at, "true or false", v, "")
		}
	}},
	{key: "adaptive", set: notBuilt[Verify]("verify: {quorum: 2}")},
}

var outputKeys = []keyRow[Outputs]{
	{"keep", "patterns of file names under /out; none: all", listOf(shape{"type": "string", "minLength": 1}), nil, []any{"*.json"},
		setTexts(func(o *Outputs) *[]string { return &o.Keep }, "", `keep: ["*.json"]`)},
	{"max", "of a unit's stdout and files together; beyond: guest.output", pattern(sizeForm.String()), "16MiB", "1MiB",
		setSize("outputs.max_bytes", func(o *Outputs) *int64 { return &o.Max })},
	{"max_bytes", "max in bytes", integer(1, uint64(Limits.OutcomeBytes)), nil, json.Number("1048576"),
		setTwin(1, uint64(Limits.OutcomeBytes), func(o *Outputs, n uint64) { o.Max = int64(n) })},
	{key: "to", set: notBuilt[Outputs]("leave it out: results are kept 30 days, crowd job results fetches them")},
}

// How values are read.

func notBuilt[T any](hint string) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, _ any, _ *T) { r.add(at, hint, "not built yet") }
}

func setText[T any](what string, f func(*T) *string) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, v any, t *T) {
		s, ok := r.text(at, what, v)
		if ok && s == "" {
			r.wanted(at, what, v, "")
		}
		*f(t) = s
	}
}

func setTexts[T any](f func(*T) *[]string, kind, example string) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, v any, t *T) {
		r.list(at, example, v, func(at string, v any) {
			if _, isBool := v.(bool); isBool && kind != "bool" {
				r.wanted(at, "text", v, "")
			}
			*f(t) = append(*f(t), r.value(at, v))
		})
	}
}

func setWhole[T any](low, high uint64, hint string, f func(*T, uint64)) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, v any, t *T) {
		if n, ok := r.whole(at, v, low, high, hint); ok {
			f(t, n)
		}
	}
}

// setTwin is setWhole for the API's spelling of a key that people write with a unit.
func setTwin[T any](low, high uint64, f func(*T, uint64)) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, v any, t *T) {
		if n, ok := r.whole(at, v, low, high, ""); r.spell(at, at) && ok {
			f(t, n)
		}
	}
}

func setObject[T, U any](what string, rows []keyRow[U], f func(*T) *U) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, v any, t *T) { readObject(r, at, what, v, rows, f(t)) }
}

func setDigest[T any](f func(*T) *Digest) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, v any, t *T) {
		s, _ := v.(string)
		if err := f(t).UnmarshalText([]byte(s)); err != nil || v != any(s) {
			r.wanted(at, "a digest b3:<64 hex digits>", v, "")
		}
	}
}

// setMeasured reads a number with its unit.
func setMeasured[T any, N int64 | UCR](api, what, hint string, parse func(string) (N, error), f func(*T) *N) func(*specReader, string, any, *T) {
	return func(r *specReader, at string, v any, t *T) {
		s, isText := v.(string)
		n, err := parse(s)
		if !isText || err != nil {
			r.wanted(at, what, v, hint)
		} else if r.spell(api, at) {
			*f(t) = n
		}
	}
}

func setSize[T any](api string, f func(*T) *int64) func(*specReader, string, any, *T) {
	return setMeasured(api, "a size like 512MiB", "a number and B, KiB, MiB or GiB", ParseSize, f)
}

func setCredits[T any](api, per string, f func(*T) *UCR) func(*specReader, string, any, *T) {
	return setMeasured(api, "credits like 1.5cr"+per, "", func(s string) (UCR, error) {
		s, ok := strings.CutSuffix(s, per)
		n, err := ParseCredits(s)
		if err == nil && (!ok || n == 0) {
			err = Errorf(Invalid, "", "not that")
		}
		return n, err
	}, f)
}

var setTime = setMeasured("resources.time_seconds", "whole seconds, as in 90s or 10m", "a number and s, m, h or d", func(s string) (int64, error) {
	d, err := ParseSpan(s)
	if err == nil && d%time.Second != 0 {
		err = Errorf(Invalid, "", "not that")
	}
	return int64(d / time.Second), err
}, func(t *Resources) *int64 { return &t.Time })

func setPlace(r *specReader, at string, v any, s *JobSpec) {
	if word, ok := v.(string); ok {
		s.Place.In = []string{word}
		r.spell("place.in[0]", at)
		return
	}
	if _, ok := asTree(v); !ok {
		r.wanted(at, "a place like DE, or {in: [DE, FR]}", v, "")
		return
	}
	readObject(r, at, "place", v, placeKeys, &s.Place)
}

func setChunk(r *specReader, at string, v any, s *JobSpec) {
	if v == "auto" {
		return
	}
	s.Chunk, _ = r.whole(at, v, 1, Limits.UnitsPerChunk, "auto")
}

func setVerify(r *specReader, at string, v any, s *JobSpec) {
	if _, ok := asTree(v); ok {
		readObject(r, at, "verify", v, verifyKeys, &s.Verify)
		return
	}
	switch word, _ := v.(string); word {
	case "none":
		s.Verify.None = true
	case "adaptive":
		r.add(at, "verify: {quorum: 2}", "%q is not built yet", word)
	default:
		r.wanted(at, "none or {quorum: 2}", v, nearest(word, []string{"none"}))
	}
}

// readInput reads a path or an object; a digest in from moves to Digest, and As is from's own name if nothing else is said.
func readInput(r *specReader, at string, v any) (in Input) {
	if s, ok := v.(string); ok {
		in.From = s
		for _, key := range []string{".from", ".as", ".digest"} {
			r.spell(at+key, at)
		}
	} else {
		readObject(r, at, "an input", v, inputKeys, &in)
	}
	if d, err := ParseDigest(in.From); err == nil && (in.Digest.IsZero() || in.Digest == d) {
		in.From, in.Digest = "", d
	}
	if in.As == "" && !strings.HasPrefix(in.From, "b3:") {
		in.As = in.From[strings.LastIndexAny(in.From, `/\`)+1:]
		if _, ok := r.spelled[at+".as"]; !ok {
			r.spelled[at+".as"] = at + ".from"
		}
	}
	return in
}

// setGrid reads axes: a map in a file, a list of {name, values} in the API.
func setGrid(r *specReader, at string, v any, u *Units) {
	if _, isList := v.([]any); isList {
		r.list(at, "", v, func(at string, v any) {
			var a Axis
			readObject(r, at, "an axis", v, axisKeys, &a)
			u.Grid = append(u.Grid, a)
		})
		return
	}
	tree, ok := asTree(v)
	if !ok {
		r.wanted(at, "axes and their values", v, "grid: {mass: [1.4, 30], spin: 0..0.9/0.1}")
		return
	}
	for i, p := range tree {
		axis := join(at, p.Key)
		r.spelled[fmt.Sprintf("%s[%d].values", at, i)] = axis
		r.spelled[fmt.Sprintf("%s[%d]", at, i)] = axis
		u.Grid = append(u.Grid, Axis{Name: p.Key, Values: readValues(r, axis, p.Value)})
	}
}

var rangeForm = regexp.MustCompile(`^(-?\d{1,15}(?:\.\d{1,9})?)\.\.(-?\d{1,15}(?:\.\d{1,9})?)(?:/(\d{1,15}(?:\.\d{1,9})?))?$`)

// readValues reads an axis: a list, a number, or a range FIRST..LAST/STEP, which includes LAST if a step falls on it.
func readValues(r *specReader, at string, v any) (values []string) {
	if _, isList := v.([]any); isList {
		r.list(at, "", v, func(at string, v any) {
			if r.values--; r.values >= 0 {
				values = append(values, r.value(at, v))
			}
		})
	} else if n, ok := number(v); ok {
		r.values--
		values = []string{n}
	} else if s, ok := v.(string); !ok || !rangeForm.MatchString(s) {
		r.wanted(at, "a list or a range like 0..0.9/0.1", v, "")
	} else if values = rangeValues(s, r.values); values == nil {
		r.wanted(at, fmt.Sprintf("a range upwards of at most %d values in all", maxAxisValues), v, "0..0.9/0.1")
	} else {
		r.values -= len(values)
	}
	if r.values < 0 {
		r.add(at, "units: {count: …} and {unit}", "more than %d values in one grid", maxAxisValues)
		r.values = 0
	}
	return values
}

// rangeValues counts in exact decimals; nil if s goes down, has no step or more than most values.
func rangeValues(s string, most int) (values []string) {
	m := rangeForm.FindStringSubmatch(s)
	if m[3] == "" {
		m[3] = "1"
	}
	digits := 0
	var n [3]*big.Rat
	for i, text := range m[1:] {
		n[i], _ = new(big.Rat).SetString(text)
		if dot := strings.IndexByte(text, '.'); dot >= 0 {
			digits = max(digits, len(text)-dot-1)
		}
	}
	steps := new(big.Rat).Sub(n[1], n[0])
	if n[2].Sign() <= 0 || steps.Sign() < 0 || steps.Quo(steps, n[2]).Cmp(new(big.Rat).SetInt64(int64(most)-1)) > 0 {
		return nil
	}
	for x := n[0]; x.Cmp(n[1]) <= 0; x.Add(x, n[2]) {
		text := x.FloatString(digits)
		if digits > 0 {
			text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
		}
		values = append(values, text)
	}
	return values
}

// The shapes, and the schema.

var scalar = []string{"string", "number", "boolean"}

func oneOf(words ...string) shape { return shape{"enum": words} }
func pattern(p string) shape      { return shape{"type": "string", "pattern": p} }
func integer(low, high uint64) shape {
	return shape{"type": "integer", "minimum": low, "maximum": high}
}
func listOf(s shape) shape    { return shape{"type": "array", "items": s} }
func mapOf(s shape) shape     { return shape{"type": "object", "additionalProperties": s} }
func either(s ...shape) shape { return shape{"anyOf": s} }
func object[T any](rows []keyRow[T]) shape {
	return shape{"type": "object", "additionalProperties": false, "properties": properties(rows)}
}

func properties[T any](rows []keyRow[T]) shape {
	all := shape{}
	for _, row := range rows {
		if row.shape == nil {
			continue
		}
		p := shape{"description": row.doc}
		for k, v := range row.shape {
			p[k] = v
		}
		if row.def != nil {
			p["default"] = row.def
		}
		if row.example != nil {
			p["examples"] = []any{row.example}
		}
		all[row.key] = p
	}
	return all
}

// MarshalJSON writes t as an object, keys as they stand.
func (t Tree) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, p := range t {
		if i > 0 {
			b = append(b, ',')
		}
		k, _ := json.Marshal(p.Key)
		v, err := json.Marshal(p.Value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, k...), ':'), v...)
	}
	return append(b, '}'), nil
}

// Schema is the JSON Schema (2020-12) of job.yaml, in both spellings, served at /schema/crowd.json.
func Schema() []byte {
	root := object(jobKeys)
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "a crowd job"
	root["required"] = []string{"program", "units"}
	units := root["properties"].(shape)["units"].(shape)
	var one []shape
	for _, key := range []string{"count", "files", "grid", "items"} {
		one = append(one, shape{"required": []string{key}})
	}
	units["oneOf"] = one
	b, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic("the schema is no JSON: " + err.Error()) // it is made of constants
	}
	return append(b, '\n')
}

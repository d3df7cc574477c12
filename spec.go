package crowd

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// JobSpec is what a customer orders: the file job.yaml, the body of POST /v1/jobs and the row at the broker are this one
// struct. In a file, program, inputs and unit files are paths; the client uploads them and puts digests in their place
// before it orders. ParseSpec reads one (from decoded YAML or JSON) and says every fault at once.
type JobSpec struct {
	Kind       string            `json:"kind,omitempty"` // "job"
	Name       string            `json:"name,omitempty"`
	Place      PlaceRule         `json:"place,omitzero"`
	Trust      string            `json:"trust,omitempty"`   // "open" (the default); others are refused as not built
	Devices    []string          `json:"devices,omitempty"` // desktop laptop server phone browser; none: any
	Price      PriceRule         `json:"price,omitzero"`
	Labels     map[string]string `json:"labels,omitempty"`
	Program    string            `json:"program"` // a path in a file; "b3:…" at the broker
	Args       []string          `json:"args,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	Inputs     []Input           `json:"inputs,omitempty"`
	Units      Units             `json:"units"`
	Chunk      uint64            `json:"chunk,omitempty"` // units per lease; 0: auto, aims at 30 s of work
	Resources  Resources         `json:"resources,omitzero"`
	Verify     Verify            `json:"verify,omitzero"`
	Checkpoint string            `json:"checkpoint,omitempty"` // "30s": /state leaves the host this often; "" or "never": not at all
	Retries    *int              `json:"retries,omitempty"`
	Deadline   string            `json:"deadline,omitempty"` // "6h" from the order, or RFC 3339
	Outputs    Outputs           `json:"outputs,omitzero"`
}

// PlaceRule is where a thing may be: hard, for life, failing closed. In a file `place: DE` is short for {in: [DE]}.
type PlaceRule struct {
	In       []string `json:"in,omitempty"`       // none: anywhere
	Evidence string   `json:"evidence,omitempty"` // declared (default) | not-refuted | contracted | hardware-bound | audited
}

// PriceRule caps what an order may cost. In a file: {max: 250cr, rate: 1.5cr/h}.
type PriceRule struct {
	Max  UCR `json:"max_ucr,omitempty"`  // of the whole order; 0: the profile's max_cost
	Rate UCR `json:"rate_ucr,omitempty"` // per core and hour; 0: any
}

// Input is a file that a unit sees read-only under /in. In a file a plain string is short for {from: it}, and As defaults to its base name.
type Input struct {
	From   string `json:"from,omitempty"`  // path or "b3:…"
	As     string `json:"as"`              // name under /in, slash-separated
	Digest Digest `json:"digest,omitzero"` // set by the client
	Size   int64  `json:"size_bytes,omitempty"`
}

// Units is the space of units: exactly one of Count, Files, Grid (Lines and Bytes are refused as not built).
type Units struct {
	Count uint64 `json:"count,omitempty"`
	// Files is a unit per file. In a job.yaml it is a glob or folder; the client replaces it by Items, a blob of
	// newline-separated JSON Inputs in unit order.
	Files string `json:"files,omitempty"`
	Items Digest `json:"items,omitzero"`
	// Grid is a unit per combination, in the order of Axes, the last axis fastest.
	Grid []Axis `json:"grid,omitempty"`
	N    uint64 `json:"n,omitempty"` // number of units; set by the client for Items, checked by the broker
}

// Axis is one dimension of a grid. In a file: {mass: [1.4, 30], spin: 0..0.9/0.1}.
type Axis struct {
	Name   string   `json:"name"`
	Values []string `json:"values"` // as they are put into templates
}

// Resources is what one unit may use. Beyond memory, output and fuel limits a unit fails the same way everywhere and that
// votes; time is the host's own and never votes.
type Resources struct {
	CPU    int    `json:"cpu,omitempty"`          // 1 here
	Memory int64  `json:"memory_bytes,omitempty"` // default 256 MiB
	Disk   int64  `json:"disk_bytes,omitempty"`   // of /out and /state, default 1 GiB, kept in memory here: counts against the host
	Time   int64  `json:"time_seconds,omitempty"` // wall time at full speed, default 600
	Fuel   uint64 `json:"fuel,omitempty"`         // default: none but time
}

// Verify says how results are believed. The zero value means quorum 2.
type Verify struct {
	None   bool `json:"none,omitempty"`
	Quorum int  `json:"quorum,omitempty"` // 1 to Limits.Quorum agreeing owners
}

// Need is how many agreeing votes a chunk wants.
func (v Verify) Need() int {
	switch {
	case v.None:
		return 1
	case v.Quorum == 0:
		return 2
	}
	return v.Quorum
}

// Outputs says what of /out is kept.
type Outputs struct {
	To   string   `json:"to,omitempty"`        // refused as not built: results are kept 30 days
	Keep []string `json:"keep,omitempty"`      // patterns under /out; none: everything
	Max  int64    `json:"max_bytes,omitempty"` // of a unit's stdout and files together, default 16 MiB
}

// The defaults of a spec.
const (
	DefaultMemory  = 256 << 20
	DefaultDisk    = 1 << 30
	DefaultTime    = 10 * time.Minute
	DefaultRetries = 7
	DefaultOutput  = 16 << 20
	ChunkSeconds   = 30 // what chunk: auto aims at
)

// Plan is one unit, its templates filled in: what a guest is started with.
type Plan struct {
	Unit   uint64
	Args   []string // argv, the program's name first
	Env    []string // KEY=VALUE, sorted
	Inputs []Input  // the job's, and the unit's own file if Units.Files
	Seed   [32]byte // of its clock and random numbers
}

// UnitSeed is the seed of unit u: SHA-256 over a label, the job's id and the unit, so that replicas agree bit for bit.
func UnitSeed(job JobID, u uint64) [32]byte {
	b := append([]byte("crowd unit seed 1\x00"), job[:]...)
	return sha256.Sum256(binary.BigEndian.AppendUint64(b, u))
}

// Check verifies everything about a spec that can be verified without the broker's state, and says every fault: what the broker holds any
// order to, whichever way it came. Program, inputs and unit files must be digests by now. A spec without faults has NumUnits from 1 to
// Limits.Units, and Plan succeeds for each of them whose item is clean and no input's namesake. Paths are those of the JSON form.
func (s *JobSpec) Check() []Fault { return s.check(true) }

// check is Check; unless ordered, paths may stand where digests will.
func (s *JobSpec) check(ordered bool) []Fault {
	c := &checker{}
	c.head(s)
	c.program(s, ordered)
	c.inputs(s, ordered)
	c.units(s, ordered)
	c.templates(s)
	c.rules(s)
	if n := len(Canonical(s)); n > Limits.SpecBytes {
		c.add("", "put what is long into an input file", "the whole job is %d KiB, at most %d fit", n>>10, Limits.SpecBytes>>10)
	}
	return c.faults
}

type checker struct{ faults []Fault }

func (c *checker) add(at, hint, format string, args ...any) {
	c.faults = append(c.faults, Fault{Path: at, Text: fmt.Sprintf(format, args...), Hint: hint})
}

// oneOf checks that v is "" or one of built; soon are words that a later version takes.
func (c *checker) oneOf(at, v string, built, soon []string) {
	switch {
	case v == "" || slices.Contains(built, v):
	case slices.Contains(soon, v):
		c.add(at, at+": "+built[0], "%q is not built yet", v)
	default:
		c.add(at, nearest(v, append(slices.Clone(built), soon...)), "wanted %s, found %s", strings.Join(built, ", "), found(v))
	}
}

// within checks a number that the JSON form could hold out of its bounds. 0 means the default.
func (c *checker) within(at string, v, most int64, show func(int64) string) {
	if v < 0 || v > most {
		c.add(at, "", "wanted at most %s, found %s", show(most), show(v))
	}
}

func (c *checker) head(s *JobSpec) {
	c.oneOf("kind", s.Kind, []string{"job"}, []string{"vm", "app", "mapreduce"})
	if s.Name != "" && (!nameForm.MatchString(s.Name) || len(s.Name) > Limits.NameBytes) {
		c.add("name", "", "wanted up to %d of a-z 0-9 -, a letter or digit first, found %s", Limits.NameBytes, found(s.Name))
	}
	for i, p := range s.Place.In {
		if !placeForm.MatchString(p) {
			hint := "a country or a part of one: DE, US-CA"
			if up := strings.ToUpper(p); placeForm.MatchString(up) {
				hint = up
			}
			c.add(fmt.Sprintf("place.in[%d]", i), hint, "wanted a place like DE, found %s", found(p))
		}
	}
	c.oneOf("place.evidence", s.Place.Evidence, evidenceWords, nil)
	c.oneOf("trust", s.Trust, []string{"open"}, []string{"proven", "attested", "confidential"})
	for i, d := range s.Devices {
		c.oneOf(fmt.Sprintf("devices[%d]", i), d, deviceWords, nil)
		if d == "" {
			c.add(fmt.Sprintf("devices[%d]", i), "", "wanted %s, found \"\"", strings.Join(deviceWords, ", "))
		}
	}
	if len(s.Labels) > Limits.Labels {
		c.add("labels", "", "wanted at most %d labels, found %d", Limits.Labels, len(s.Labels))
	}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if !labelForm.MatchString(k) || len(k) > Limits.NameBytes {
			c.add("labels."+k, "", "wanted a key of up to %d letters, digits and . _ / -", Limits.NameBytes)
		}
		if v := s.Labels[k]; len(v) > Limits.NameBytes || !plainText(v) {
			c.add("labels."+k, "", "wanted one line of at most %d bytes, found %s", Limits.NameBytes, found(v))
		}
	}
}

func (c *checker) program(s *JobSpec, ordered bool) {
	_, err := ParseDigest(s.Program)
	switch {
	case s.Program == "":
		c.add("program", "program: search.wasm", "a job needs a program")
	case strings.HasPrefix(s.Program, "b3:") && err != nil || ordered && err != nil:
		c.add("program", "", "%s", AsError(err).Message)
	case bucketForm.MatchString(s.Program) && err != nil:
		c.add("program", "a path, or the b3:… of an uploaded program", "programs in buckets are not built yet")
	case strings.ContainsRune(s.Program, 0):
		c.add("program", "", "a path can't hold a zero byte")
	}
}

func (c *checker) inputs(s *JobSpec, ordered bool) {
	if len(s.Inputs) > Limits.Inputs {
		c.add("inputs", `one unit per file? units: {files: "raw/*.jpg"}`, "wanted at most %d inputs, found %d", Limits.Inputs, len(s.Inputs))
		return
	}
	var names []string
	var at []int
	for i, in := range s.Inputs {
		path := fmt.Sprintf("inputs[%d]", i)
		switch {
		case strings.HasPrefix(in.From, "b3:"):
			if d, err := ParseDigest(in.From); err != nil {
				c.add(path+".from", "", "%s", AsError(err).Message)
			} else if !in.Digest.IsZero() && d != in.Digest {
				c.add(path+".digest", "", "from names another digest")
			} else if ordered && in.Digest.IsZero() {
				c.add(path+".digest", "the client sets it", "an order needs the digest")
			}
		case in.Digest.IsZero() && ordered:
			c.add(path+".digest", "upload the file first and name it here", "an order needs the digest of each input")
		case in.Digest.IsZero() && bucketForm.MatchString(in.From):
			c.add(path+".from", "a file whose name has a colon: ./"+in.From, "inputs from buckets are not built yet")
		case in.Digest.IsZero() && in.From == "":
			c.add(path, "{from: data/bank.bin, as: bank.bin}", "an input needs from: a path or b3:…")
		case strings.ContainsRune(in.From, 0):
			c.add(path+".from", "", "a path can't hold a zero byte")
		}
		c.within(path+".size_bytes", in.Size, Limits.BlobBytes, FormatSize)
		if in.As == "" && (in.From != "" || !in.Digest.IsZero()) {
			c.add(path, "as: bank.bin", "an input that is a digest needs a name: as")
		} else if in.As != "" {
			if _, err := CleanName(in.As); err != nil {
				c.add(path+".as", AsError(err).Hint, "%s", AsError(err).Message)
			} else {
				names, at = append(names, in.As), append(at, i)
			}
		}
	}
	if i, err := CaseClash(names); err != nil {
		c.add(fmt.Sprintf("inputs[%d].as", at[i]), "give one of them another name: as", "%s", AsError(err).Message)
	}
}

func (c *checker) units(s *JobSpec, ordered bool) {
	u, n := s.Units, 0
	for _, is := range []bool{u.Count > 0, u.Files != "", !u.Items.IsZero(), len(u.Grid) > 0} {
		if is {
			n++
		}
	}
	switch {
	case n != 1:
		c.add("units", "units: {count: 100}", "wanted exactly one of count, files, grid")
		return
	case ordered && u.Files != "":
		c.add("units.files", "the client uploads the files and lists them in units.items", "an order needs the list of files: units.items")
	case strings.ContainsRune(u.Files, 0):
		c.add("units.files", "", "a path can't hold a zero byte")
	}
	seen := map[string]bool{}
	for i, a := range u.Grid {
		at := fmt.Sprintf("units.grid[%d]", i)
		switch reserved := []string{"unit", "units", "input", "stem", "seed", "job", "offset", "length"}; {
		case !wordForm.MatchString(a.Name) || len(a.Name) > Limits.NameBytes:
			c.add(at, "letters, digits and _, a letter first", "an axis can't be named %s", found(a.Name))
		case slices.Contains(reserved, a.Name):
			c.add(at, "", "{%s} means something else already: another name, please", a.Name)
		case seen[a.Name]:
			c.add(at, "", "the axis %s stands twice", a.Name)
		case len(a.Values) == 0:
			c.add(at, "[1.4, 30] or 0..0.9/0.1", "the axis %s has no values", a.Name)
		}
		seen[a.Name] = true
		for j, v := range a.Values {
			if !cText(v) {
				c.add(fmt.Sprintf("%s.values[%d]", at, j), "", "wanted text without zero bytes")
			}
		}
	}
	switch total := s.NumUnits(); {
	case total > Limits.Units:
		c.add("units", "", "wanted at most %s units, found %s", whole(Limits.Units), whole(total))
	case u.N != 0 && u.N != total:
		c.add("units.n", "leave it out", "it is %d, but there are %d units", u.N, total)
	}
	if s.Chunk > Limits.UnitsPerChunk {
		c.add("chunk", "auto", "wanted at most %d units in a chunk, found %d", Limits.UnitsPerChunk, s.Chunk)
	}
}

func (c *checker) templates(s *JobSpec) {
	names := s.templateNames()
	text := func(at, v string) {
		if !cText(v) {
			c.add(at, "", "wanted text without zero bytes")
		}
		expand(v, func(name string) (string, bool) { return "", slices.Contains(names, name) },
			func(name string) { c.faults = append(c.faults, s.templateFault(at, name)) })
	}
	if len(s.Args) > Limits.Args {
		c.add("args", "", "wanted at most %d args, found %d", Limits.Args, len(s.Args))
	}
	for i, a := range s.Args {
		text(fmt.Sprintf("args[%d]", i), a)
	}
	if len(s.Env) > Limits.Env {
		c.add("env", "", "wanted at most %d variables, found %d", Limits.Env, len(s.Env))
	}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		if !wordForm.MatchString(k) {
			c.add("env."+k, "letters, digits and _, a letter first", "a variable can't be named %s", found(k))
		}
		text("env."+k, s.Env[k])
	}
	if n := s.longest(); n > Limits.ArgBytes {
		c.add("args", "put it into an input file", "args and env can come to %d KiB, at most %d fit", n>>10, Limits.ArgBytes>>10)
	}
}

func (c *checker) rules(s *JobSpec) {
	number := func(v int64) string { return strconv.FormatInt(v, 10) }
	c.within("price.max_ucr", int64(s.Price.Max), int64(maxPrice), func(v int64) string { return FormatCredits(UCR(v)) })
	c.within("price.rate_ucr", int64(s.Price.Rate), int64(maxPrice), func(v int64) string { return FormatCredits(UCR(v)) })
	if s.Resources.CPU != 0 && s.Resources.CPU != 1 {
		c.add("resources.cpu", "more units at once make a job faster", "wanted 1, found %d: more is not built yet", s.Resources.CPU)
	}
	c.within("resources.memory_bytes", s.Resources.Memory, Limits.MemoryBytes, FormatSize)
	c.within("resources.disk_bytes", s.Resources.Disk, Limits.MemoryBytes, FormatSize)
	c.within("resources.time_seconds", s.Resources.Time, maxSpan, number)
	c.within("verify.quorum", int64(s.Verify.Quorum), int64(Limits.Quorum), number)
	if s.Verify.None && s.Verify.Quorum != 0 {
		c.add("verify", "", "wanted none or a quorum, found both")
	}
	if every, err := s.checkpointEvery(); err != nil {
		c.add("checkpoint", "checkpoint: 30s · or never", "%s", err)
	} else if every > 0 && s.Chunk > 1 {
		c.add("chunk", "chunk: 1, or leave it out", "a unit with checkpoints is leased by itself, found chunks of %d", s.Chunk)
	}
	if r := s.Retries; r != nil && (*r < 0 || *r > Limits.FailedAttempts) {
		c.add("retries", "", "wanted a whole number from 0 to %d, found %d", Limits.FailedAttempts, *r)
	}
	if s.Deadline != "" {
		if _, err := ParseDeadline(s.Deadline, time.Time{}); err != nil {
			c.add("deadline", "", "%s", AsError(err).Message)
		}
	}
	if s.Outputs.To != "" {
		c.add("outputs.to", "leave it out: results are kept 30 days, crowd job results fetches them", "writing to a bucket is not built yet")
	}
	for i, p := range s.Outputs.Keep {
		if _, err := path.Match(p, ""); err != nil || p == "" || !plainText(p) {
			c.add(fmt.Sprintf("outputs.keep[%d]", i), `keep: ["*.json"]`, "wanted a pattern of file names, found %s", found(p))
		}
	}
	c.within("outputs.max_bytes", s.Outputs.Max, Limits.OutcomeBytes, FormatSize)
}

// The forms of words, and the caps that keep sums from overflowing.
var (
	nameForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
	wordForm   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	labelForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]*$`)
	placeForm  = regexp.MustCompile(`^[A-Z]{2}(-[A-Z0-9]{1,3})?$`)
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]+:`)

	evidenceWords = []string{"declared", "not-refuted", "contracted", "hardware-bound", "audited"}
	deviceWords   = []string{"desktop", "laptop", "server", "phone", "browser"}
)

const (
	maxPrice = 1e9 * Credit    // of one order
	maxSpan  = 366 * 24 * 3600 // seconds
)

// plainText is one line of valid UTF-8; cText is what an argument or variable can hold.
func plainText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
func cText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// Canonical is the one JSON form of a spec, for a quote's digest of it: equal specs give equal bytes.
func Canonical(s *JobSpec) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("a spec that is no JSON: " + err.Error()) // its types can't do that
	}
	return b
}

package crowd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Tree is a decoded object whose keys stand as written. With []any, string, json.Number, bool and nil it is what the readers of YAML
// and JSON hand to ParseSpec; map[string]any and Go's numbers are taken too, such a map's keys in sorted order.
type Tree []Pair

// Pair is one key of a Tree.
type Pair struct {
	Key   string
	Value any
}

// ParseSpec reads a spec from a decoded tree and says every fault at once. It takes what people write in files (place: DE, memory:
// 256MiB, max: 250cr, inputs as strings, grids as maps) and what the API says (memory_bytes, max_ucr, …), and any mix, but no key in
// both spellings. Paths are as written. A faulty spec is returned as far as it could be read. Schema describes what is taken.
func ParseSpec(tree any) (JobSpec, []Fault) {
	r := &specReader{spelled: map[string]string{}, values: maxAxisValues}
	s := JobSpec{Kind: "job"}
	readObject(r, "", "a job", tree, jobKeys, &s)
	if s.Kind != "job" {
		c := &checker{}
		if c.head(&JobSpec{Kind: s.Kind}); len(c.faults) > 0 {
			return s, c.faults // the other keys are those of another kind
		}
	}
	faults := slices.Clone(r.faults)
	for _, f := range s.check(false) {
		f.Path = r.written(f.Path)
		if !r.told(f.Path) && !(r.told("units") && strings.HasSuffix(f.Text, filesOnly)) {
			faults = append(faults, f)
		}
	}
	return s, faults
}

// AtKey reports whether it is the key that is wrong, not its value: that is where a reader should look.
func (f Fault) AtKey() bool { return strings.HasPrefix(f.Text, "no such key") }

// maxAxisValues bounds a grid's values, all axes together.
const maxAxisValues = 1 << 16

type specReader struct {
	faults  []Fault
	meant   []string          // keys that unknown ones stand for
	spelled map[string]string // path in the JSON form: path as written
	values  int               // that grids may still have
}

func (r *specReader) add(at, hint, format string, args ...any) {
	r.faults = append(r.faults, Fault{Path: at, Text: fmt.Sprintf(format, args...), Hint: hint})
}

func (r *specReader) wanted(at, what string, v any, hint string) {
	r.add(at, hint, "wanted %s, found %s", what, found(v))
}

// spell notes that what the JSON form calls api was written at. It is false, with a fault, if that was said before in the other spelling.
func (r *specReader) spell(api, at string) bool {
	if was, ok := r.spelled[api]; ok {
		r.add(at, "one of them", "it says the same as %s", was)
		return false
	}
	r.spelled[api] = at
	return true
}

// written turns a path of the JSON form into the one that was written.
func (r *specReader) written(path string) string {
	for p := path; p != ""; p = p[:max(0, strings.LastIndexAny(p, ".["))] {
		if at, ok := r.spelled[p]; ok {
			return at + path[len(p):]
		}
	}
	return path
}

// told reports whether a fault above, at or below path was found already.
func (r *specReader) told(path string) bool {
	under := func(a, b string) bool { // a is b, or in it
		rest, ok := strings.CutPrefix(a, b)
		return ok && b != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	for _, f := range r.faults {
		if under(f.Path, path) || under(path, f.Path) {
			return true
		}
	}
	return slices.Contains(r.meant, path) || len(r.faults) > 0 && r.faults[0].Path == ""
}

// readObject reads v, which what names in messages, key by key into t.
func readObject[T any](r *specReader, at, what string, v any, rows []keyRow[T], t *T) {
	tree, ok := asTree(v)
	if !ok {
		r.wanted(at, "the keys of "+what, v, keyNames(rows)[0]+": …")
		return
	}
	seen := map[string]bool{}
	for _, p := range tree {
		path := join(at, p.Key)
		i := slices.IndexFunc(rows, func(row keyRow[T]) bool { return row.key == p.Key })
		switch {
		case seen[p.Key]:
			r.add(path, "", "it stands twice")
		case i < 0:
			near := nearest(p.Key, keyNames(rows))
			if near != "" {
				r.meant = append(r.meant, join(at, near))
			}
			r.add(path, near, "no such key in %s", what)
		default:
			rows[i].set(r, path, p.Value, t)
		}
		seen[p.Key] = true
	}
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

func asTree(v any) (Tree, bool) {
	switch v := v.(type) {
	case Tree:
		return v, true
	case map[string]any:
		var t Tree
		for _, k := range slices.Sorted(maps.Keys(v)) {
			t = append(t, Pair{k, v[k]})
		}
		return t, true
	}
	return nil, false
}

// number is v's text if it is a number.
func number(v any) (string, bool) {
	switch v := v.(type) {
	case json.Number:
		return string(v), true
	case int, int64, uint64:
		return fmt.Sprint(v), true
	case float64:
		if math.Abs(v) < 1e21 {
			return strconv.FormatFloat(v, 'f', -1, 64), true
		}
		return strconv.FormatFloat(v, 'g', -1, 64), true
	}
	return "", false
}

// found says what stands where something else was wanted.
func found(v any) string {
	if n, ok := number(v); ok {
		return clip(n, 40)
	}
	switch v := v.(type) {
	case nil:
		return "nothing"
	case string:
		return strconv.Quote(clip(v, 40))
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "a list"
	}
	return "keys and values"
}

// whole prints a bound: large powers of two as such.
func whole(n uint64) string {
	if n >= 1<<20 && bits.OnesCount64(n) == 1 {
		return "2^" + strconv.Itoa(bits.TrailingZeros64(n))
	}
	return strconv.FormatUint(n, 10)
}

// whole reads a whole number from low to high; textHint is for those who wrote text.
func (r *specReader) whole(at string, v any, low, high uint64, textHint string) (uint64, bool) {
	text, isNumber := number(v)
	n, ok := parseWhole(text)
	if isNumber && ok && n >= low && n <= high {
		return n, true
	}
	hint := ""
	if s, isText := v.(string); isText {
		if hint = textHint; s != "" {
			if _, ok := parseWhole(s); ok {
				hint = "without quotes: " + s
			}
		}
	}
	r.wanted(at, "a whole number from "+whole(low)+" to "+whole(high), v, hint)
	return 0, false
}

func parseWhole(s string) (uint64, bool) {
	for _, f := range []struct {
		prefix string
		base   int
	}{{"0x", 16}, {"0o", 8}, {"", 10}} {
		if rest, ok := strings.CutPrefix(s, f.prefix); ok && (f.base == 10 || !strings.HasPrefix(rest, "_")) {
			if n, err := strconv.ParseUint(strings.TrimPrefix(rest, "+"), f.base, 64); err == nil {
				return n, true
			}
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || f < 0 || f >= 1<<63 {
		return 0, false
	}
	return uint64(f), true
}

// text reads one word or line; a number counts as it is written.
func (r *specReader) text(at, what string, v any) (string, bool) {
	if s, ok := v.(string); ok {
		return s, true
	}
	if n, ok := number(v); ok {
		return n, true
	}
	hint := ""
	if t, ok := v.(Tree); ok && len(t) == 1 && t[0].Value == nil { // {unit} without quotes is a map in YAML
		hint = `in quotes: "{` + t[0].Key + `}"`
	}
	r.wanted(at, what, v, hint)
	return "", false
}

// value reads text that a program gets: true and false count as such too.
func (r *specReader) value(at string, v any) string {
	if b, ok := v.(bool); ok {
		return strconv.FormatBool(b)
	}
	s, _ := r.text(at, "text", v)
	return s
}

// list reads a list item by item.
func (r *specReader) list(at, example string, v any, item func(at string, v any)) {
	items, ok := v.([]any)
	if !ok {
		r.wanted(at, "a list", v, example)
		return
	}
	for i, it := range items {
		item(at+"["+strconv.Itoa(i)+"]", it)
	}
}

// texts reads a map of texts.
func (r *specReader) texts(at, example string, v any) map[string]string {
	tree, ok := asTree(v)
	if !ok {
		r.wanted(at, "keys and values", v, example)
		return nil
	}
	m := map[string]string{}
	for _, p := range tree {
		if _, twice := m[p.Key]; twice {
			r.add(join(at, p.Key), "", "it stands twice")
		}
		m[p.Key] = r.value(join(at, p.Key), p.Value)
	}
	return m
}

// DecodeJSON decodes one JSON value into what ParseSpec takes, keys in order. It refuses, with an Invalid error, more than
// Limits.RequestBody bytes, text that isn't UTF-8, more than 32 levels, and keys that stand twice (each a fault).
func DecodeJSON(b []byte) (any, error) {
	bad := func(format string, args ...any) *Error { return Errorf(Invalid, CustomerFile, format, args...) }
	if int64(len(b)) > Limits.RequestBody {
		e := bad("more than %s of JSON", FormatSize(Limits.RequestBody))
		e.Status = 413
		return nil, e
	}
	if !utf8.Valid(b) {
		return nil, bad("the JSON isn't UTF-8")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) && len(b) > 0 {
			return nil, bad("not JSON at byte %d: %s", syntax.Offset, syntax.Error())
		}
		return nil, bad("not JSON: %s", err.Error())
	}
	d := &treeReader{json: json.NewDecoder(bytes.NewReader(b))}
	d.json.UseNumber()
	v, err := d.value("", 0)
	if err != nil {
		return nil, bad("not JSON that is taken here: %w", err)
	}
	if len(d.twice) > 0 {
		e := bad("%s", d.twice[0].Path+" stands twice")
		e.Faults = d.twice
		return nil, e
	}
	return v, nil
}

type treeReader struct {
	json  *json.Decoder
	twice []Fault
}

func (d *treeReader) value(at string, depth int) (any, error) {
	tok, err := d.json.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == 32 {
		return nil, errors.New("nested too deep")
	}
	if delim == '[' {
		list := []any{}
		for d.json.More() {
			v, err := d.value(at+"["+strconv.Itoa(len(list))+"]", depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.json.Token()
		return list, err
	}
	tree, seen := Tree{}, map[string]bool{}
	for d.json.More() {
		tok, err := d.json.Token()
		key, ok := tok.(string)
		if err != nil || !ok {
			return nil, errors.Join(err, io.ErrUnexpectedEOF)
		}
		if seen[key] && len(d.twice) < 100 {
			d.twice = append(d.twice, Fault{Path: join(at, clip(key, 60)), Text: "it stands twice"})
		}
		seen[key] = true
		v, err := d.value(join(at, clip(key, 60)), depth+1)
		if err != nil {
			return nil, err
		}
		tree = append(tree, Pair{key, v})
	}
	_, err = d.json.Token()
	return tree, err
}

// The units of measure that people write (one table each), and back.

var sizeForm = regexp.MustCompile(`^(\d{1,18}(?:\.\d{1,9})?) ?([KMGTP]?)(iB|B)?$`)

// ParseSize reads a size of at least a byte: 512MiB, 20GB, 100B; bare K M G T P are binary.
func ParseSize(s string) (int64, error) {
	bad := Errorf(Invalid, CustomerFile, "wanted a size like 512MiB, found %s", found(s))
	m := sizeForm.FindStringSubmatch(s)
	if m == nil || m[2] == "" && m[3] != "B" {
		return 0, bad.WithHint("a number and B, KiB, MiB or GiB")
	}
	base := int64(1024)
	if m[3] == "B" {
		base = 1000
	}
	n, ok := scaled(m[1], pow(base, strings.Index("KMGTP", m[2])+1-b2i(m[2] == "")))
	if !ok || n == 0 {
		return 0, bad
	}
	return n, nil
}

// FormatSize writes a size so that ParseSize reads it back: in the largest binary unit that divides it.
func FormatSize(n int64) string {
	units := "KMGTP"
	if n <= 0 || n%1024 != 0 {
		return strconv.FormatInt(n, 10) + "B"
	}
	i := -1
	for ; n%1024 == 0 && i+1 < len(units); i++ {
		n /= 1024
	}
	return strconv.FormatInt(n, 10) + units[i:i+1] + "iB"
}

var creditForm = regexp.MustCompile(`^(\d{1,12}(?:\.\d{1,6})?) ?cr$`)

// ParseCredits reads 250cr or 1.5cr, to the micro-credit.
func ParseCredits(s string) (UCR, error) {
	m := creditForm.FindStringSubmatch(s)
	if m == nil {
		return 0, Errorf(Invalid, CustomerFile, "wanted credits like 250cr, found %s", found(s))
	}
	n, ok := scaled(m[1], int64(Credit))
	if !ok {
		return 0, Errorf(Invalid, CustomerFile, "%s are more credits than there can be", s)
	}
	return UCR(n), nil
}

// FormatCredits writes an amount, which isn't negative, so that ParseCredits reads it back.
func FormatCredits(u UCR) string {
	s := strconv.FormatInt(int64(u/Credit), 10)
	if part := u % Credit; part != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%06d", max(part, -part)), "0")
	}
	return s + "cr"
}

var spanForm = regexp.MustCompile(`^(\d{1,9}(?:\.\d{1,3})?)([smhd])$`)

// ParseSpan reads a span of time of at least a millisecond and at most 366 days: 90s 15m 2h 7d.
func ParseSpan(s string) (time.Duration, error) {
	m := spanForm.FindStringSubmatch(s)
	if m != nil {
		unit := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[2]]
		if n, ok := scaled(m[1], int64(unit)); ok && n > 0 && n <= maxSpan*int64(time.Second) {
			return time.Duration(n), nil
		}
	}
	return 0, Errorf(Invalid, CustomerFile, "wanted a span like 90s, 15m, 2h or 7d, found %s", found(s))
}

// ParseDeadline reads a span from an order on, or a time of RFC 3339.
func ParseDeadline(s string, from time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := ParseSpan(s)
	if err != nil {
		return time.Time{}, Errorf(Invalid, CustomerFile, "wanted a span like 6h or a time like 2031-12-24T18:00:00Z, found %s", found(s))
	}
	return from.Add(d), nil
}

// scaled is decimal × unit, if that is a whole number that fits.
func scaled(decimal string, unit int64) (int64, bool) {
	r, ok := new(big.Rat).SetString(decimal)
	if !ok {
		return 0, false
	}
	r.Mul(r, new(big.Rat).SetInt64(unit))
	return r.Num().Int64(), r.IsInt() && r.Num().IsInt64()
}

func pow(base int64, n int) int64 {
	p := int64(1)
	for range n {
		p *= base
	}
	return p
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

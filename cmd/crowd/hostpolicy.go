package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/host"
)

// readPolicy reads a host policy file: what the owner of a machine lends and allows. All faults come at once, each with its place. A key that
// exists but isn't built is a fault too: an owner must never believe that something protects the machine which doesn't.
func readPolicy(file string) (host.Policy, error) {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return host.Policy{}, crowd.Errorf(crowd.NotFound, "", "there is no policy file %s", file)
	case err != nil:
		return host.Policy{}, crowd.Errorf(crowd.Invalid, "", "read the policy: %w", err)
	}
	return parsePolicy(file, b)
}

func parsePolicy(file string, b []byte) (host.Policy, error) {
	r := &policyReader{file: file}
	f, err := parser.ParseBytes(b, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return r.p, crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "%s is no YAML: %s", file, firstLine(err.Error()))
	}
	for _, d := range f.Docs {
		if d.Body != nil {
			r.object(d.Body, "a host-policy", map[string]func(ast.Node){
				"kind": r.kind, "lend": r.lend, "hours": r.hours, "allow": r.allow, "deny": r.deny,
				"move_after": func(n ast.Node) { r.p.MoveAfter = r.span(n) },
			}, "mode", "in_use", "idle_after", "keep_memory", "film", "battery", "metered", "heat", "starts", "egress", "price", "place")
		}
	}
	if len(r.faults) == 0 {
		return r.p, nil
	}
	return r.p, &crowd.Error{Kind: crowd.Invalid, Reason: crowd.CustomerFile, Faults: r.faults, Message: r.faults[0].Path + ": " + r.faults[0].Text, Hint: r.faults[0].Hint}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

type policyReader struct {
	file   string
	p      host.Policy
	faults []crowd.Fault
}

func (r *policyReader) fault(n ast.Node, hint, format string, args ...any) {
	at := n.GetToken().Position
	r.faults = append(r.faults, crowd.Fault{Path: fmt.Sprintf("%s:%d:%d", r.file, at.Line, at.Column), Text: fmt.Sprintf(format, args...), Hint: hint})
}

// object calls the reader of each key; later names keys that aren't built yet.
func (r *policyReader) object(n ast.Node, what string, keys map[string]func(ast.Node), later ...string) {
	m, ok := n.(ast.MapNode)
	if !ok {
		r.fault(n, "", "wanted %s, found %q", what, n.String())
		return
	}
	seen := map[string]bool{}
	for it := m.MapRange(); it.Next(); {
		name := it.Key().GetToken().Value
		read, known := keys[name]
		switch {
		case seen[name]:
			r.fault(it.Key(), "", "%s stands twice", name)
		case known:
			read(it.Value())
		case slices.Contains(later, name):
			r.fault(it.Key(), "leave it out", "%s: this version can't do that yet", name)
		default:
			r.fault(it.Key(), "there are "+strings.Join(slices.Sorted(maps.Keys(keys)), ", "), "%s: no such key in %s", name, what)
		}
		seen[name] = true
	}
}

func (r *policyReader) text(n ast.Node) string {
	if s, ok := n.(ast.ScalarNode); ok && n.Type() != ast.NullType {
		return s.GetToken().Value
	}
	r.fault(n, "", "wanted a single value, found %q", n.String())
	return ""
}

func (r *policyReader) list(n ast.Node) []ast.Node {
	if s, ok := n.(*ast.SequenceNode); ok {
		return s.Values
	}
	r.fault(n, "", "wanted a list, found %q", n.String())
	return nil
}

func (r *policyReader) kind(n ast.Node) {
	if s := r.text(n); s != "host-policy" {
		r.fault(n, "kind: host-policy", "kind: wanted host-policy, found %q", s)
	}
}

func (r *policyReader) lend(n ast.Node) {
	r.object(n, "lend", map[string]func(ast.Node){
		"cpu":    func(n ast.Node) { r.p.CPU = r.percent(n) },
		"memory": func(n ast.Node) { r.p.Memory = r.percent(n) },
		"disk": func(n ast.Node) {
			size, err := crowd.ParseSize(r.text(n))
			if err != nil || size <= 0 {
				r.fault(n, "disk: 20GiB", "lend.disk: wanted a size, found %q", n.String())
			}
			r.p.Disk = size
		},
	}, "up", "down", "traffic")
}

func (r *policyReader) percent(n ast.Node) int {
	s := r.text(n)
	v, err := strconv.Atoi(strings.TrimSuffix(s, "%"))
	if err != nil || !strings.HasSuffix(s, "%") || v < 1 || v > 100 {
		r.fault(n, "50%", "wanted a share from 1%% to 100%%, found %q", s)
	}
	return v
}

func (r *policyReader) span(n ast.Node) time.Duration {
	d, err := crowd.ParseSpan(r.text(n))
	if err != nil || d <= 0 {
		r.fault(n, "5m", "wanted a time like 90s or 5m, found %q", n.String())
	}
	return d
}

func (r *policyReader) allow(n ast.Node) {
	r.object(n, "allow", map[string]func(ast.Node){
		"signed": func(n ast.Node) {
			switch r.text(n) {
			case "true":
				r.p.Signed = true
			case "false":
			default:
				r.fault(n, "", "allow.signed: wanted true or false, found %q", n.String())
			}
		},
		"kinds": func(n ast.Node) {
			jobs := false
			for _, k := range r.list(n) {
				switch s := r.text(k); s {
				case "job":
					jobs = true
				case "vm", "app", "storage":
				default:
					r.fault(k, "job, vm, app, storage", "allow.kinds: there is no kind %q", s)
				}
			}
			if !jobs {
				r.fault(n, "kinds: [job]", "allow.kinds: jobs are all that this version runs; without them there is nothing to lend for")
			}
		},
	})
}

func (r *policyReader) deny(n ast.Node) {
	r.object(n, "deny", map[string]func(ast.Node){
		"programs": func(n ast.Node) {
			for _, x := range r.list(n) {
				d, err := crowd.ParseDigest(r.text(x))
				if err != nil {
					r.fault(x, "b3:91ce…", "deny.programs: wanted the digest of a program, found %q", x.String())
				}
				r.p.Programs = append(r.p.Programs, d)
			}
		},
		"accounts": func(n ast.Node) {
			for _, x := range r.list(n) {
				var id crowd.AccountID
				if err := id.UnmarshalText([]byte(r.text(x))); err != nil || id.IsZero() {
					r.fault(x, "acc_01j9…, as crowd host log --json says it", "deny.accounts: wanted the whole id of an account, found %q", x.String())
				}
				r.p.Accounts = append(r.p.Accounts, id)
			}
		},
		"publishers": r.none("deny.publishers"),
	})
}

// none takes an empty list only.
func (r *policyReader) none(name string) func(ast.Node) {
	return func(n ast.Node) {
		if all := r.list(n); len(all) > 0 {
			r.fault(all[0], "deny.programs and deny.accounts work", "%s: this version can't do that yet: programs aren't signed", name)
		}
	}
}

var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// hours reads windows like "mon-fri 18:00-08:00" or "sat,sun".
func (r *policyReader) hours(n ast.Node) {
	for _, x := range r.list(n) {
		w, ok := parseWindow(r.text(x))
		if !ok {
			r.fault(x, `"mon-fri 18:00-08:00", or "sat,sun"`, "hours: wanted days and perhaps a time of day, found %q", x.String())
			continue
		}
		r.p.Hours = append(r.p.Hours, w)
	}
}

func parseWindow(s string) (w host.Window, ok bool) {
	names, times, timed := strings.Cut(strings.TrimSpace(strings.ToLower(s)), " ")
	for part := range strings.SplitSeq(names, ",") {
		first, last, span := strings.Cut(part, "-")
		from, to := dayOf(first), dayOf(last)
		if !span {
			to = from
		}
		if from < 0 || to < 0 {
			return w, false
		}
		for d := from; ; d = (d + 1) % 7 {
			w.Days[d] = true
			if d == to {
				break
			}
		}
	}
	if !timed {
		return w, true
	}
	from, to, ok := strings.Cut(strings.TrimSpace(times), "-")
	var okFrom, okTo bool
	w.From, okFrom = timeOfDay(from)
	w.To, okTo = timeOfDay(to)
	return w, ok && okFrom && okTo
}

func dayOf(s string) int {
	return slices.Index(days, s)
}

func timeOfDay(s string) (time.Duration, bool) {
	if s == "24:00" {
		return 0, true
	}
	t, err := time.Parse("15:04", s)
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err == nil
}

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

func TestPolicy(t *testing.T) {
	d := "b3:" + strings.Repeat("0a", 32)
	p, err := parsePolicy("host-policy.yaml", []byte(`kind: host-policy  # mine
lend: {cpu: 25%, memory: 50%, disk: 20GiB}
hours: ["mon-fri 18:00-08:00", "sat,sun"]
move_after: 5m
allow: {kinds: [job, vm], signed: false}
deny: {accounts: [acc_01jd0000000000000000000000], publishers: [], programs: ["`+d+`"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	if p.CPU != 25 || p.Memory != 50 || p.Disk != 20<<30 || p.Signed || p.MoveAfter != 5*time.Minute || len(p.Programs) != 1 || len(p.Accounts) != 1 || p.Accounts[0].String() != "acc_01jd0000000000000000000000" || len(p.Hours) != 2 {
		t.Errorf("%+v", p)
	}
	if w := p.Hours[0]; !w.Days[1] || !w.Days[5] || w.Days[6] || w.Days[0] || w.From != 18*time.Hour || w.To != 8*time.Hour {
		t.Errorf("mon-fri: %+v", w)
	}
	if w := p.Hours[1]; !w.Days[6] || !w.Days[0] || w.Days[1] || w.From != w.To {
		t.Errorf("sat,sun: %+v", w)
	}
	if p, err := parsePolicy("empty.yaml", nil); err != nil || p.CPU != 0 {
		t.Errorf("nothing said: %+v, %v", p, err)
	}
}

// All faults come at once, each with its place, and what isn't built is never taken for granted.
func TestPolicyFaults(t *testing.T) {
	_, err := parsePolicy("p.yaml", []byte(`kind: host
lend: {cpu: half, memory: 0%, disk: lots, up: 10Mbit/s}
hours: [never, "mon 25:00-26:00", "mon 8:00"]
battery: stop
colour: red
allow: {kinds: [vm], signed: maybe}
deny: {accounts: [acc_x, ""], programs: [b3:zz], publishers: [x]}
lend: 7
`))
	e := crowd.AsError(err)
	if e == nil || e.Kind != crowd.Invalid {
		t.Fatal(err)
	}
	var all []string
	for _, f := range e.Faults {
		all = append(all, f.Path+": "+f.Text)
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{
		`p.yaml:1:7: kind: wanted host-policy, found "host"`,
		`p.yaml:2:13: wanted a share from 1% to 100%, found "half"`,
		`p.yaml:2:27: wanted a share from 1% to 100%, found "0%"`,
		`p.yaml:2:37: lend.disk: wanted a size, found "lots"`,
		`p.yaml:2:43: up: this version can't do that yet`,
		`p.yaml:3:9: hours: wanted days`,
		`p.yaml:3:16: hours: wanted days`,
		`p.yaml:3:35: hours: wanted days`,
		`p.yaml:4:1: battery: this version can't do that yet`,
		`p.yaml:5:1: colour: no such key in a host-policy`,
		`p.yaml:8:1: lend stands twice`,
		`allow.kinds: jobs are all that this version runs`,
		`allow.signed: wanted true or false`,
		`deny.accounts: wanted the whole id of an account, found "acc_x"`,
		`p.yaml:7:26: deny.accounts`,
		`deny.publishers: this version can't do that yet`,
		`deny.programs: wanted the digest of a program`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if _, err := parsePolicy("p.yaml", []byte("lend: [")); !crowd.KindIs(err, crowd.Invalid) {
		t.Error(err)
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte("lend: {cpu: 50%}\nhours: [\"mon-fri 18:00-08:00\"]\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("<<: &x {lend: *x}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parsePolicy("p.yaml", b); err != nil && !crowd.KindIs(err, crowd.Invalid) {
			t.Error(err)
		}
	})
}

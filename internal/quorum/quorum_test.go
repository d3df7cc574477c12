package quorum

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/crowdcloud/crowd"
	"pgregory.net/rapid"
)

func d(b byte) crowd.Digest { return crowd.Digest{b} }

func votes(s string) (vs []Vote) { // "aA bA cB": group, digest
	for i := 0; i+1 < len(s); i += 3 {
		vs = append(vs, Vote{Digest: d(s[i+1]), Group: s[i : i+1], Host: crowd.HostID{byte(i + 1)}})
	}
	return vs
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		votes string
		need  int
		want  string
	}{
		{"", 1, "want 1"},
		{"", 3, "want 3"},
		{"aA", 1, "A won by 1, 0 lost"},
		{"aA", 2, "want 1"},
		{"aA bA", 2, "A won by 2, 0 lost"},
		{"aA aA", 2, "want 1"},
		{"aA bB", 2, "want 1 differ"},
		{"aA bB cA", 2, "A won by 2, 1 lost convict"},
		{"aA bB cC", 2, "want 1 differ"},
		{"aA bB cC dD eE fF gG", 2, "over differ"},
		{"aA bB cC dD eE fF gA", 2, "A won by 2, 5 lost convict"},
		{"aA bA cB", 3, "want 1 differ"},
		{"aA bB", 1, "want 1 differ"},
		{"aA bA cB dB", 2, "want 1 differ"},
	} {
		v := Decide(votes(c.votes), c.need)
		got := fmt.Sprintf("want %d", v.Want)
		switch {
		case v.Decided:
			got = fmt.Sprintf("%c won by %d, %d lost", v.Digest[0], len(v.Winners), len(v.Losers))
		case v.Over:
			got = "over"
		}
		if v.Convict {
			got += " convict"
		} else if v.Differ && !v.Decided {
			got += " differ"
		}
		if got != c.want {
			t.Errorf("%q need %d: %s, wanted %s", c.votes, c.need, got, c.want)
		}
	}
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		need := rapid.IntRange(1, crowd.Limits.Quorum).Draw(t, "need")
		n := rapid.IntRange(0, 14).Draw(t, "n")
		var vs []Vote
		for i := range n {
			vs = append(vs, Vote{Digest: d(rapid.ByteRange(1, 3).Draw(t, "d")), Group: string(rune('a' + rapid.IntRange(0, 7).Draw(t, "g"))), Host: crowd.HostID{byte(i)}})
		}
		v := Decide(vs, need)
		perm := rapid.Permutation(vs).Draw(t, "perm")
		w := Decide(perm, need)
		if v.Decided != w.Decided || v.Digest != w.Digest || v.Want != w.Want || len(v.Winners) != len(w.Winners) || v.Convict != w.Convict || v.Over != w.Over {
			t.Fatalf("order matters: %+v, %+v", v, w)
		}
		groups := map[string]bool{}
		for _, i := range v.Winners {
			groups[vs[i].Group] = true
			if vs[i].Digest != v.Digest {
				t.Fatal("a winner with another answer")
			}
		}
		switch {
		case v.Decided && len(groups) < need:
			t.Fatalf("%d groups decided, need %d", len(groups), need)
		case v.Decided && len(v.Winners)+len(v.Losers) != len(vs):
			t.Fatal("a vote is neither right nor wrong")
		case v.Convict && len(groups) < 2:
			t.Fatal("one owner convicts")
		case !v.Decided && !v.Over && v.Want < 1:
			t.Fatal("undecided, and nobody asked")
		case v.Decided && v.Want != 0:
			t.Fatal("decided, and more asked")
		}
		if len(vs) > 0 { // a group's same answer again changes nothing
			x := Decide(append(vs[:len(vs):len(vs)], vs[0]), need)
			if x.Decided != v.Decided || x.Want != v.Want {
				t.Fatal("a group counts twice")
			}
		}
	})
}

// The short cuts of Decide say what the long way says.
func TestShortCuts(t *testing.T) {
	for need := 1; need <= crowd.Limits.Quorum; need++ {
		for _, votes := range [][]Vote{nil, {{Digest: crowd.Digest{1}, Group: "a"}}} {
			if got, want := Decide(votes, need), decide(votes, need); !reflect.DeepEqual(got, want) {
				t.Errorf("need %d, %d votes: %+v, wanted %+v", need, len(votes), got, want)
			}
		}
	}
}

package guest

import "testing"

func TestKept(t *testing.T) {
	for _, tc := range []struct {
		pattern, file string
		want          bool
	}{
		{"*.json", "a.json", true},
		{"*.json", "deep/down/a.json", true},
		{"*.json", "a.txt", false},
		{"results/*", "results/a", true},
		{"results/*", "results/a/b", false},
		{"results/**", "results/a/b", true},
		{"results/**", "results", true},
		{"**/x/*.csv", "x/1.csv", true},
		{"**/x/*.csv", "a/b/x/1.csv", true},
		{"**/x/*.csv", "a/b/y/1.csv", false},
		{"/out/a", "a", true},
		{"**", "a/b", true},
		{"[", "a", false},
		{"**/**/**/**/a", "b/c/d/e/f/g", false},
	} {
		if got := Kept([]string{tc.pattern}, tc.file); got != tc.want {
			t.Errorf("Kept(%q, %q) = %v", tc.pattern, tc.file, got)
		}
	}
	if !Kept(nil, "x") {
		t.Error("no pattern keeps nothing")
	}
}

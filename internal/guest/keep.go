package guest

import (
	"path"
	"slices"
	"strings"
)

// Kept tells whether a file under /out with this slash-separated path is kept by the patterns of a task; none keep
// everything. A pattern without a slash is matched with the file's base name in any folder, one with a slash with the
// whole path under /out; its elements are as in path.Match, and an element ** stands for any number of elements.
func Kept(patterns []string, file string) bool {
	if len(patterns) == 0 {
		return true
	}
	elems := strings.Split(file, "/")
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = strings.TrimPrefix(p, "/out/")
		if !strings.Contains(p, "/") && p != "**" {
			ok, _ := path.Match(p, elems[len(elems)-1])
			return ok
		}
		return matchElems(strings.Split(strings.Trim(p, "/"), "/"), elems)
	})
}

// matchElems keeps the set of lengths of elems that the pattern so far can match, so that its time is bounded by the
// product of the lengths.
func matchElems(pattern, elems []string) bool {
	reach := make([]bool, len(elems)+1)
	reach[0] = true
	for _, p := range pattern {
		next := make([]bool, len(elems)+1)
		for i, r := range reach {
			switch {
			case p == "**":
				next[i] = r || i > 0 && next[i-1]
			case r && i < len(elems):
				ok, _ := path.Match(p, elems[i])
				next[i+1] = ok
			}
		}
		reach = next
	}
	return reach[len(elems)]
}

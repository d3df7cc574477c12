//go:build crashpoints

package crash

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

var (
	want, times = parse(os.Getenv("CROWD_CRASH"))
	seen        atomic.Int64
)

func parse(s string) (string, int64) {
	name, n, found := strings.Cut(s, ":")
	if !found {
		return name, 1
	}
	times, err := strconv.ParseInt(n, 10, 64)
	if err != nil {
		panic("CROWD_CRASH: wanted POINT:TIMES, found " + s)
	}
	return name, times
}

// Point is where a process may die.
func Point(name string) {
	if !slices.Contains(Points, name) {
		panic("crash: no such point: " + name)
	}
	if name != want || seen.Add(1) != times {
		return
	}
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		_ = p.Kill()
	}
	select {} // until it is dead
}

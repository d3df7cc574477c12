package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/crowdcloud/crowd"
)

// progress shows how something gets on: on a terminal lines that are drawn again, on a pipe a line every five seconds.
type progress struct {
	w     io.Writer
	width int // 0: no terminal
	mute  bool
	every time.Duration

	mu    sync.Mutex
	lines int // drawn now
	last  time.Time
	begun time.Time
}

func (a *app) progress() *progress {
	width, _ := isTerminal(a.err)
	if a.getenv("TERM") == "dumb" {
		width = 0
	}
	return &progress{w: a.err, width: width, mute: a.quiet || a.json, every: 5 * time.Second, begun: time.Now(), last: time.Now()}
}

// show draws lines; plain is what a pipe gets instead.
func (p *progress) show(plain string, lines ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case p.mute:
	case p.width > 0:
		if p.lines > 0 && now.Sub(p.last) < 100*time.Millisecond {
			return
		}
		p.erase()
		for _, l := range lines {
			_, _ = fmt.Fprintln(p.w, cut(l, p.width-1))
		}
		p.lines, p.last = len(lines), now
	case now.Sub(p.last) >= p.every:
		p.last = now
		_, _ = fmt.Fprintln(p.w, plain)
	}
}

// clear takes the lines away, so that something else can be printed.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

func (p *progress) erase() {
	if p.lines > 0 {
		_, _ = fmt.Fprint(p.w, strings.Repeat("\x1b[A\x1b[2K", p.lines))
		p.lines = 0
	}
}

func cut(s string, n int) string {
	r := []rune(s)
	if len(r) > n {
		r = r[:n]
	}
	return string(r)
}

// bar is "━━━━━─────", n wide.
func bar(share float64, n int) string {
	full := min(n, max(0, int(share*float64(n))))
	return strings.Repeat("━", full) + strings.Repeat("─", n-full)
}

// job shows how a job stands.
func (p *progress) job(j *crowd.JobDetail) {
	g := j.Progress
	took := time.Since(p.begun)
	plain := fmt.Sprintf("%s %d/%d units, %s, %s", span(took.Round(time.Second)), g.UnitsDone, j.Units, plural(g.AtWork, "host"), credits(j.Paid)+" cr")
	share := 0.0
	if j.Units > 0 {
		share = float64(g.UnitsDone) / float64(j.Units)
	}
	first := fmt.Sprintf("units %s %s/%s  %.0f%%", bar(share, 28), thousands(g.UnitsDone), thousands(j.Units), share*100)
	if rate := float64(g.UnitsDone) / took.Seconds(); rate > 0 && g.UnitsDone < j.Units && !j.State.Ended() {
		left := time.Duration(float64(j.Units-g.UnitsDone) / rate * float64(time.Second))
		first += fmt.Sprintf("  %.3g/s  about %s left", rate, span(left.Round(time.Second)))
	}
	second := fmt.Sprintf("hosts %d at work", g.AtWork)
	if g.Lost > 0 {
		second += fmt.Sprintf(", %d lost", g.Lost)
	}
	if g.ChunksDone > 0 {
		second += fmt.Sprintf("   replicas %.2f", float64(g.Attempts)/float64(max(1, g.Chunks)))
	}
	second += fmt.Sprintf("   paid %s cr", credits(j.Paid))
	if j.State != crowd.JobRunning {
		second += "   " + string(j.State)
		if j.Reason != "" {
			second += " (" + string(j.Reason) + ")"
		}
	}
	p.show(plain, first, second)
}

// uploadBar shows an upload that takes long.
type uploadBar struct {
	*progress
	name string
}

func (a *app) uploadProgress(name string) *uploadBar {
	return &uploadBar{a.progress(), name}
}

func (u *uploadBar) tell(have, total int64) {
	if total < 8<<20 || time.Since(u.begun) < 500*time.Millisecond {
		return
	}
	line := fmt.Sprintf("%s %s/%s", oneLine(u.name), size(have), size(total))
	u.show(line, line+"  "+bar(float64(have)/float64(total), 28))
}

func (u *uploadBar) end() { u.clear() }

package wasm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
)

// hostile children, by the name under which the test binary is started.
var hostile = map[string]func() int{
	"junk at once":    func() int { os.Stdout.WriteString(strings.Repeat("junk", 1<<20)); return 0 },
	"huge frame":      lie(func(l *liar) { l.raw(0xffffffff, fromReady) }),
	"cut frame":       lie(func(l *liar) { l.raw(1000, fromReady); os.Exit(0) }),
	"exits":           lie(func(l *liar) { os.Exit(3) }),
	"closes stdout":   lie(func(l *liar) { os.Stdout.Close(); time.Sleep(time.Hour) }),
	"says so":         lie(func(l *liar) { l.say(fromFailed, []byte("no\x1b[31m more")) }),
	"unit too early":  lie(func(l *liar) { l.unit(head{}) }),
	"layers again":    lie(func(l *liar) { l.say(fromLayers, []byte("[]")) }),
	"unknown frame":   lie(func(l *liar) { l.say('?', nil) }),
	"ready twice":     at(0, func(l *liar) { l.say(fromReady, nil) }),
	"hangs":           at(0, func(l *liar) {}),
	"alive for ever":  at(0, func(l *liar) { l.flood(appendFrame(nil, fromAlive, nil)) }),
	"frozen for ever": at(0, func(l *liar) { l.flood(appendFrame(nil, fromFrozen, nil)) }),
	"data unasked":    at(1, func(l *liar) { l.say(fromData, make([]byte, 10)) }),
	"data too long":   at(1, func(l *liar) { l.unit(head{Stdout: 3}); l.say(fromData, make([]byte, 4)) }),
	"data empty":      at(1, func(l *liar) { l.unit(head{Stdout: 3}); l.say(fromData, nil) }),
	"size beyond":     at(1, func(l *liar) { l.unit(head{Stdout: math.MaxInt64}) }),
	"sizes add up":    at(1, func(l *liar) { l.unit(head{Files: []fileHead{{"a", 15 << 20}, {"b", 15 << 20}}}) }),
	"bad name":        at(1, func(l *liar) { l.unit(head{Files: []fileHead{{"../../x", 1}}}) }),
	"names unsorted":  at(1, func(l *liar) { l.unit(head{Files: []fileHead{{"b", 0}, {"a", 0}}}) }),
	"unknown reason":  at(1, func(l *liar) { l.unit(head{Reason: crowd.HostLost}) }),
	"too much fuel":   at(2, func(l *liar) { l.unit(head{Fuel: math.MaxUint64}); l.unit(head{Fuel: 2}) }),
	"endless head":    at(1, func(l *liar) { l.flood(appendFrame(nil, fromUnit, make([]byte, dataPiece))) }),
	"foreign blob":    at(1, func(l *liar) { l.ask(crowd.Digest{66}, 0, 10) }),
	"blob beyond":     at(1, func(l *liar) { l.ask(crowd.Digest{}, 1<<62, maxAsk) }),
	"blob too much":   at(1, func(l *liar) { l.ask(crowd.Digest{}, 0, 1<<30) }),
	"reads nothing":   at(1, func(l *liar) { l.ask(crowd.Digest{5}, 0, maxAsk); time.Sleep(time.Hour) }),
	"state early":     lie(func(l *liar) { l.state(10, 10, 5) }),
	"state unasked":   at(1, func(l *liar) { l.state(10, 10, 5) }),
	"state no bytes":  at(1, func(l *liar) { l.say(fromState, nil) }),
	"state no start":  at(1, func(l *liar) { l.say(fromSaved, []byte{0, 0}) }),
	"state length":    at(1, func(l *liar) { l.state(10, 11, 5) }),
	"state fuel":      at(1, func(l *liar) { l.state(10, 10, 5); l.state(10, 10, 4) }),
	"state limit":     at(1, func(l *liar) { l.state(10, 10, math.MaxUint64) }),
	"state half":      at(1, func(l *liar) { l.say(fromState, make([]byte, 10)); l.unit(head{}) }),
	"state in head":   at(1, func(l *liar) { l.say(fromUnit, (&head{}).append(nil)); l.state(10, 10, 5) }),
	"state why":       at(1, func(l *liar) { l.say(fromState, make([]byte, 10)); l.say(fromUnsaved, []byte("no")) }),
	"state whys":      at(1, func(l *liar) { l.flood(appendFrame(nil, fromUnsaved, []byte("no\x1b[31m"))) }),
	"state endless":   at(1, func(l *liar) { l.flood(appendFrame(nil, fromState, make([]byte, dataPiece))) }),
	"state too often": at(1, func(l *liar) {
		for {
			l.state(10, 10, 5)
		}
	}),
	"asks on and on": at(1, func(l *liar) {
		for {
			l.ask(crowd.Digest{5}, 0, maxAsk)
		}
	}),
}

// at is lie from when the program is loaded and so many units have come.
func at(units int, f func(l *liar)) func() int {
	return lie(func(l *liar) {
		l.say(fromReady, nil)
		for range units {
			l.await(toUnit)
		}
		f(l)
	})
}

// liar is the child's side of a lie.
type liar struct {
	in *bufio.Reader
}

func lie(f func(l *liar)) func() int {
	return func() int {
		l := &liar{in: bufio.NewReader(os.Stdin)}
		l.say(fromLayers, []byte(`[{"name":"lies","held":true}]`))
		l.await(toTask)
		f(l)
		for { // hang, without a word
			if _, err := l.in.ReadByte(); err != nil {
				return 0
			}
		}
	}
}

func (l *liar) say(t frameType, p []byte) {
	if _, err := os.Stdout.Write(appendFrame(nil, t, p)); err != nil {
		os.Exit(0)
	}
}

func (l *liar) raw(n uint32, t frameType) {
	os.Stdout.Write(binary.BigEndian.AppendUint32([]byte{byte(t)}, n))
}

func (l *liar) await(want frameType) {
	for {
		t, _, err := readFrame(l.in, maxToChild)
		if err != nil {
			os.Exit(0)
		}
		if t == want {
			return
		}
	}
}

func (l *liar) flood(b []byte) {
	for {
		if _, err := os.Stdout.Write(b); err != nil {
			os.Exit(0)
		}
	}
}

func (l *liar) unit(h head) {
	l.say(fromUnit, h.append(nil))
	l.say(fromUnit, nil)
}

func (l *liar) state(n int, said, fuel uint64) {
	l.say(fromState, make([]byte, n))
	l.say(fromSaved, binary.AppendUvarint(binary.AppendUvarint(nil, said), fuel))
}

func (l *liar) ask(d crowd.Digest, off, n uint64) {
	l.say(fromBlob, binary.AppendUvarint(binary.AppendUvarint(d[:], off), n))
}

// Whatever a child does, the parent ends the attempt with an error, and soon.
func TestHostileChildren(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs links to the test binary")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	honest := testEngine(t, nil)
	w := newWorld(fixture(t, "noop"))
	w.run(t, honest)
	w.plans = append(w.plans, w.plans[0])
	w.input("x", make([]byte, 1<<20))
	d := crowd.Digest{5}
	for i := range w.plans {
		w.plans[i].Inputs = append(w.plans[i].Inputs, crowd.Input{As: "y", Digest: d})
	}
	blobs := withHuge{w.blobs, d, hugeBlob{1 << 40}}
	w.limits.Time = 300 * time.Millisecond
	bin := t.TempDir()
	for name := range hostile {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(bin, name)
			if err := os.Symlink(self, path); err != nil {
				t.Skip(err)
			}
			e := testEngine(t, func(e *Engine) { e.o.Self = path })
			e.cache = honest.cache
			s, err := e.slot(context.Background(), crowd.JobID{})
			if err == nil {
				task := w.task()
				if strings.HasPrefix(name, "state ") && name != "state unasked" {
					task.Plans, task.Every, task.Save = task.Plans[:1], time.Second, func([]byte, uint64) {}
					task.Limits.Fuel = 1e9
				}
				_, _, err = s.Run(context.Background(), task, blobs, nil)
				if !s.p.ended() {
					t.Error("the child is still there")
				}
			}
			var ce *crowd.Error
			if !errors.As(err, &ce) || ce.Reason != crowd.HostFailed && ce.Reason != crowd.GuestTime {
				t.Errorf("error %v", err)
			} else if strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("%q has control characters", err)
			} else {
				t.Log(err)
			}
		})
	}
}

func FuzzParseHead(f *testing.F) {
	h := head{Exit: 1, Fuel: 77, Stdout: 9, Stderr: 3, Files: []fileHead{{"a", 1}, {"b/c", 2}}}
	f.Add(h.append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHead(b, 1<<20)
		if err != nil {
			return
		}
		total := h.Stdout
		for _, file := range h.Files {
			total += file.Size
		}
		if total > 1<<20 || h.Stderr > stderrCap {
			t.Errorf("accepted %+v", h)
		}
	})
}

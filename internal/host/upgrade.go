package host

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
)

// How an agent is replaced by a newer program without losing work. To the broker it is leaving (a ready host with no room would get a lease for
// each report): it takes nothing more, lets what runs finish, gives back what doesn't in time, and says no more. Then it leaves a hand-over in its
// folder and becomes the new program, which goes on as the same session with the next dial number: one host that dialled again. What the broker
// hasn't acknowledged lies in the outbox and is said again. Wherever this breaks off, the folder's next agent is a new session, as after a crash.

const (
	handoverName  = "handover.json"
	lockName      = "lock"
	handoverFresh = 2 * time.Minute
	checkWait     = 5 * time.Second // for a new program to say its version
	mailWait      = 5 * time.Second // for the broker to acknowledge the last reports; else the next process says them
	programBytes  = 1 << 30
	modulePath    = "github.com/crowdcloud/crowd"
)

// Upgrading is an upgrade that goes on.
type Upgrading struct {
	Version string    `json:"version"` // that takes over
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"` // then what isn't done goes back
	Left    int       `json:"left"`  // attempts to finish
	Warning string    `json:"warning,omitempty"`
}

// upgrade is one with the new program's copy beside the old one; empty: the file at Options.Self, as it is by then.
type upgrade struct {
	Upgrading
	staged string
}

var errHandover = errors.New("the agent hands over")

// Upgrade has the program at path, or what by now is at Options.Self if path is "", take over from this one as soon as what runs is done, at the
// latest after within: what isn't done by then goes back. It returns when the new program has been looked at: Invalid if it isn't one. Another
// Upgrade takes the place of one that goes on.
func (a *Agent) Upgrade(ctx context.Context, path string, within time.Duration) error {
	if a.o.Self == "" {
		return crowd.Errorf(crowd.Conflict, "", "this agent is part of another program: it can't be replaced alone")
	}
	if path != "" && !filepath.IsAbs(path) {
		return crowd.Errorf(crowd.Invalid, "", "wanted the whole path of the new program, found %q", path)
	}
	up := &upgrade{}
	warning, err := suspicious(cmp.Or(path, a.o.Self))
	if err != nil {
		return err
	}
	if path != "" {
		if up.staged, err = stage(path, a.o.Self); err != nil {
			return err
		}
	}
	v, err := checkProgram(ctx, cmp.Or(up.staged, a.o.Self))
	now := time.Now()
	up.Upgrading = Upgrading{Version: v, Since: now, Until: now.Add(within), Warning: warning}
	a.mu.Lock()
	switch {
	case err != nil:
	case a.halted:
		err = crowd.Errorf(crowd.Conflict, "", "the agent is about to end")
	case a.owner.Left:
		err = crowd.Errorf(crowd.Conflict, crowd.OwnerLeft, "this machine is leaving the crowd")
	}
	if err != nil {
		a.mu.Unlock()
		up.drop()
		return err
	}
	old := a.up
	a.up = up
	if old != nil {
		up.Since = old.Since
	}
	var waiting []*attempt // haven't begun: they are sooner done elsewhere
	for ref, at := range a.held {
		if !at.running && at.report == nil {
			delete(a.held, ref)
			waiting = append(waiting, at)
		}
	}
	a.mu.Unlock()
	old.drop()
	for _, at := range waiting {
		a.giveBack(&crowd.Return{AttemptRef: at.AttemptRef, Reason: crowd.OwnerStopped})
		a.book.add(Entry{What: "chunk.returned", Reason: crowd.OwnerStopped}.about(at))
	}
	a.book.add(Entry{What: "agent.upgrading", Text: v})
	if warning != "" {
		a.log.Warn("the new program", "warning", warning)
	}
	poke(a.changed)
	poke(a.going)
	return nil
}

// drop forgets an upgrade that won't happen.
func (u *upgrade) drop() {
	if u != nil && u.staged != "" {
		_ = os.Remove(u.staged)
	}
}

func (a *Agent) dropUpgrade() {
	a.mu.Lock()
	up := a.up
	a.up = nil
	a.mu.Unlock()
	up.drop()
}

// upgradeLoop ends the agent's life by end once everything is done or given back that an upgrade waits for.
func (a *Agent) upgradeLoop(ctx context.Context, end context.CancelCauseFunc) {
	select {
	case <-ctx.Done():
		return
	case <-a.going:
	}
	a.waitFor(ctx, func() bool { return a.liveLocked() == 0 || a.up == nil || !time.Now().Before(a.up.Until) })
	a.returnAll(crowd.OwnerStopped)
	if !a.waitFor(ctx, func() bool { return a.liveLocked() == 0 }) {
		return
	}
	said, cancel := context.WithTimeout(ctx, mailWait)
	defer cancel()
	a.waitFor(said, func() bool { return a.conn == nil || a.unsaidLocked() == 0 })
	end(errHandover)
}

// handover is the file in the agent's folder by which the next process goes on as this one's session. Only who holds the folder's lock without
// a break may use it (Windows: who takes it next, soon), and only once: the file goes first.
type handover struct {
	Session crowd.SessionID `json:"session"`
	Dials   int64           `json:"dials"`
	Version string          `json:"version"` // of the process that left it
	At      time.Time       `json:"at"`
	PID     int             `json:"pid"`
	Lock    int             `json:"lock"` // the descriptor that holds the folder's lock
}

// takeOver locks the folder, and goes on as the session of the process before if that handed over.
func (a *Agent) takeOver() (*dirLock, error) {
	path := filepath.Join(a.o.Dir, handoverName)
	var h handover
	b, err := os.ReadFile(path)
	if err == nil && (json.Unmarshal(b, &h) != nil || h.PID != os.Getpid()) {
		h.Lock = 0
	}
	lock, inherited, lockErr := lockDir(a.o.Dir, h.Lock)
	if lockErr != nil || err != nil {
		return lock, lockErr
	}
	age := time.Since(h.At)
	if err := errors.Join(os.Remove(path), syncDir(a.o.Dir)); err != nil {
		a.log.Warn("can't use what the agent before left", "err", err) // it might be used twice
		return lock, nil
	}
	if (inherited || runtime.GOOS == "windows") && age >= 0 && age < handoverFresh && !h.Session.IsZero() && h.Dials > 0 {
		a.session, a.dials, a.before = h.Session, h.Dials, h.Version
	}
	return lock, nil
}

// cameFrom is a line about the agent before.
func (a *Agent) cameFrom() string {
	switch {
	case a.o.Failed != nil:
		return "the upgrade failed: " + a.o.Failed.Error()
	case a.before != "":
		return a.before + " became " + a.o.Platform.Agent
	}
	return ""
}

// handOver leaves the file for the next process, with the lock.
func (a *Agent) handOver(l *dirLock) error {
	a.mu.Lock()
	up := a.up
	a.mu.Unlock()
	h := &Handover{Version: up.Version, file: filepath.Join(a.o.Dir, handoverName), self: a.o.Self, staged: up.staged, lock: l.keep()}
	b, _ := json.Marshal(handover{a.session, a.dials, a.o.Platform.Agent, time.Now(), os.Getpid(), h.lock})
	if err := writeFile(h.file, append(b, '\n')); err != nil {
		a.log.Warn("the new agent will be another session", "err", err)
	}
	a.book.add(Entry{What: "agent.replaced", Text: a.o.Platform.Agent + " by " + up.Version})
	return h
}

// Handover is what Run returns when the agent has ended so that another program can take over: close the engine, then Exec.
type Handover struct {
	Version string // of the program that takes over
	file    string
	self    string
	staged  string
	lock    int
}

func (h *Handover) Error() string { return "the agent hands over to " + h.Version }

// Exec puts the new program in the old one's place, the old one beside it as NAME.previous, and starts it with args and this process's environment:
// on unix this very process becomes it, and Exec only returns if that failed; on Windows it is a new process, and nil means that this one should
// end. After an error the old program is back in its place, and a new Agent of this folder in this process goes on as the same session.
func (h *Handover) Exec(args []string) (err error) {
	if h.staged != "" {
		if err := swap(h.self, h.staged); err != nil {
			(&upgrade{staged: h.staged}).drop()
			return crowd.Errorf(crowd.Unavailable, "", "put the new program in place: %w", err)
		}
	}
	if err = h.start(args); err == nil {
		return nil
	}
	if h.staged != "" {
		err = errors.Join(err, os.Rename(previous(h.self), h.self))
	}
	return crowd.Errorf(crowd.Unavailable, "", "the new program doesn't start: %w", err)
}

// Drop ends the agent for good instead: what was to be handed over is forgotten.
func (h *Handover) Drop() {
	(&upgrade{staged: h.staged}).drop()
	_ = os.Remove(h.file)
	if h.lock > 0 {
		closeLock(h.lock)
	}
}

// previous is where the program goes that was replaced: crowd.previous, crowd.previous.exe.
func previous(self string) string {
	bare, isExe := strings.CutSuffix(self, ".exe")
	if isExe {
		return bare + ".previous.exe"
	}
	return self + ".previous"
}

// stage copies a program beside the one that it will replace.
func stage(from, self string) (string, error) {
	src, err := os.Open(from)
	if err != nil {
		return "", crowd.Errorf(crowd.Invalid, "", "read the new program: %w", err)
	}
	defer src.Close()
	dst, err := os.CreateTemp(filepath.Dir(self), ".crowd-*"+filepath.Ext(self))
	if errors.Is(err, fs.ErrPermission) {
		return "", crowd.Errorf(crowd.Denied, "", "the agent may not write to %s", filepath.Dir(self)).WithHint("replace %s as you installed it, then: crowd host upgrade", self)
	}
	if err != nil {
		return "", crowd.Errorf(crowd.Unavailable, "", "copy the new program: %w", err)
	}
	n, err := io.Copy(dst, io.LimitReader(src, programBytes))
	if err == nil && n == programBytes {
		err = errors.New("it is too large")
	}
	if err == nil && runtime.GOOS != "windows" {
		err = dst.Chmod(0o755)
	}
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		_ = os.Remove(dst.Name())
		return "", crowd.Errorf(crowd.Unavailable, "", "copy the new program: %w", err)
	}
	return dst.Name(), nil
}

// suspicious refuses what can't be a program, and warns of one that others may change.
func suspicious(path string) (warning string, err error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", crowd.Errorf(crowd.NotFound, "", "there is no %s", path)
	case err != nil:
		return "", crowd.Errorf(crowd.Invalid, "", "%w", err)
	case !st.Mode().IsRegular():
		return "", crowd.Errorf(crowd.Invalid, "", "%s is no file", path)
	case runtime.GOOS == "windows":
	case st.Mode()&0o111 == 0:
		return "", crowd.Errorf(crowd.Invalid, "", "%s isn't executable", path).WithHint("chmod +x %s", path)
	case st.Mode()&0o022 != 0:
		warning = "others than its owner may write to " + path
	}
	return warning, nil
}

// checkProgram says which version of crowd a program is: built for this platform, by its own mark, and able to run here.
func checkProgram(ctx context.Context, path string) (version string, err error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil || info.Main.Path != modulePath {
		return "", crowd.Errorf(crowd.Invalid, "", "that is no program of crowd")
	}
	built := map[string]string{}
	for _, s := range info.Settings {
		built[s.Key] = s.Value
	}
	if platform := built["GOOS"] + "/" + built["GOARCH"]; platform != runtime.GOOS+"/"+runtime.GOARCH {
		return "", crowd.Errorf(crowd.Invalid, "", "that crowd is built for %s, this machine is %s/%s", platform, runtime.GOOS, runtime.GOARCH)
	}
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	for try := 0; ; try++ {
		c := exec.CommandContext(ctx, path, "version", "--json")
		c.Args[0] = os.Args[0] // as it will be called
		c.WaitDelay = time.Second
		out, err := c.Output()
		if err != nil && isBusy(err) && try < 50 { // a child that was being started has the copy open still
			time.Sleep(20 * time.Millisecond)
			continue
		}
		var v struct{ Version string }
		if err == nil {
			err = json.NewDecoder(bytes.NewReader(out)).Decode(&v)
		}
		if err == nil && v.Version == "" {
			err = errors.New("it says no version")
		}
		if err != nil {
			return "", crowd.Errorf(crowd.Invalid, "", "that crowd doesn't run here: %w", cause(ctx, err))
		}
		return oneLine(v.Version), nil
	}
}

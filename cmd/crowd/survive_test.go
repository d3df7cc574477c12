package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/rig"
)

// dies runs a command that is killed at a crash point.
func (r *ruin) dies(point string, args ...string) {
	r.t.Helper()
	cmd := exec.CommandContext(r.ctx, r.Bin, args...)
	cmd.Env = append(os.Environ(), "CROWD_CRASH="+point)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Exited() {
		r.t.Errorf("crowd %s passes %s without dying: %v\n%s", strings.Join(args, " "), point, err, out)
	}
}

// TestCrashPointsApart kills at the points that no job passes: while a store is made or brought up to date, backed up, restored, or an old job is archived.
func TestCrashPointsApart(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks at processes through /proc")
	}
	bin, err := crashing()
	must(t, err)
	r := &ruin{Town: &rig.Town{Bin: bin}, t: t, ctx: t.Context()}
	for _, p := range []string{"migrate.before", "migrate.after"} {
		data := filepath.Join(shortTemp(t), "b")
		r.dies(p, "broker", "run", "--data", data, "--listen", "127.0.0.1:0")
		if _, err := r.Run(t.Context(), "", "broker", "audit", "--data", data); err != nil && p == "migrate.after" {
			t.Errorf("after %s: %v", p, err)
		}
	}
	r = newRuin(t, "hal", "ida")
	job := r.order(r.jobFile("first", 24, 100_000, "chunk: 2"))
	r.check(job, 100_000)
	file := filepath.Join(r.Dir, "b.crowd")
	for _, p := range []string{"backup.part", "backup.whole"} {
		r.dies(p, "broker", "backup", file, "--data", r.Data())
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: the backup has its name", p)
		}
	}
	_, err = r.Run(r.ctx, "", "broker", "backup", file, "--data", r.Data())
	must(t, err)
	if left, _ := filepath.Glob(filepath.Join(r.Dir, ".*")); len(left) > 0 {
		t.Errorf("left beside the backup: %v", left)
	}
	for _, p := range []string{"restore.part", "restore.whole"} {
		to := filepath.Join(r.Dir, "to-"+p)
		r.dies(p, "broker", "restore", file, "--data", to)
		if _, err := os.Stat(filepath.Join(to, "crowd.db")); err == nil {
			t.Errorf("%s: a store is there", p)
		}
		_, err := r.Run(r.ctx, "", "broker", "restore", file, "--data", to)
		must(t, err)
		_, err = r.Run(r.ctx, "", "broker", "audit", "--data", to, "--bodies", "all")
		must(t, err)
	}
	r.Flags = append(r.Flags, "--keep", "0.001s")
	for _, p := range []string{"archive.before", "archive.after"} {
		must(t, r.Broker.Interrupt())
		again := r.Start("CROWD_CRASH=" + p) // it may die before it is ready
		select {
		case <-r.Broker.Gone():
		case <-time.After(time.Minute):
			t.Fatalf("nobody passed %s (%v)", p, again)
		}
		must(t, r.Start())
	}
	archived := filepath.Join(r.Data(), "archive")
	for range 100 {
		if found, _ := filepath.Glob(filepath.Join(archived, "job_*.zst")); len(found) == 1 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if _, err := r.Run(r.ctx, r.ada, "job", "results", job); err == nil || !strings.Contains(err.Error(), "archive") {
		t.Errorf("results of an archived job: %v", err)
	}
	if logs, _ := filepath.Glob(filepath.Join(r.Data(), "bodies", "*")); len(logs) > 0 {
		t.Errorf("bodies stay: %v", logs)
	}
	r.sound()
}

// seed makes runs repeatable as far as the machine's timing allows.
func seed(t *testing.T) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	t.Logf("seed %d", n)
	return rand.New(rand.NewPCG(n, 1))
}

func soaking() bool { return os.Getenv("CROWD_SOAK") != "" }

// TestKills kills broker and hosts at random moments of a job, and backs the store up in the middle. The results are those of an undisturbed run, also of the
// job's life after the backup goes back.
func TestKills(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks at processes through /proc")
	}
	kills := 24
	if soaking() {
		kills = 200
	}
	r := newRuin(t, "hal", "ida", "jon", "kim")
	rnd := seed(t)
	const rounds = 15_000_000
	job := r.order(r.jobFile("killed", uint64(40*kills), rounds, "chunk: 4"))
	backup := filepath.Join(r.Dir, "half.crowd")
	names := []string{"hal", "ida", "jon", "kim"}
	ended := 0
	for n := range kills {
		time.Sleep(time.Duration(50+rnd.IntN(400)) * time.Millisecond) // the moment of the next kill
		if n == kills/2 {
			_, err := r.Run(r.ctx, "", "broker", "backup", backup, "--data", r.Data())
			must(t, err)
		}
		if k := rnd.IntN(len(names) + 2); k < len(names) {
			r.Hosts[names[k]].Kill()
		} else {
			r.Broker.Kill()
		}
		r.revive()
		if j, err := r.Job(r.ctx, r.ada, job); err == nil && j.State.Ended() {
			ended++
		}
	}
	if ended > kills/2 {
		t.Errorf("the job had ended before most of the kills")
	}
	r.check(job, rounds)
	before := r.attempts(job)
	r.sound()

	out, err := r.Run(r.ctx, "", "broker", "restore", backup, "--data", r.Data(), "--replace")
	must(t, err)
	t.Log(out)
	must(t, r.Start())
	r.revive()
	j, err := r.Job(r.ctx, r.ada, job)
	must(t, err)
	if j.State.Ended() {
		t.Error("the backup of the middle knows the end")
	}
	r.check(job, rounds)
	t.Logf("%d attempts at first, %d after the restore", before, r.attempts(job))
	r.sound()
}

func (r *ruin) attempts(job string) int64 {
	j, err := r.Job(r.ctx, r.ada, job)
	must(r.t, err)
	return j.Progress.Attempts
}

// TestFullDisk fills the broker's disk amid a job and frees it again.
func TestFullDisk(t *testing.T) {
	bin, err := crashing()
	must(t, err)
	town, err := rig.New(bin, shortTemp(t))
	must(t, err)
	must(t, os.MkdirAll(town.Data(), 0o700))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", town.Data()).CombinedOutput(); err != nil {
		t.Skipf("needs root to make a small file system: %v %s", err, out)
	}
	defer func() { _ = exec.Command("umount", town.Data()).Run() }()
	r := newRuinOf(t, town, "hal", "ida", "jon")
	const rounds = 5_000_000
	job := r.order(r.jobFile("full", 600, rounds, "chunk: 4"))
	for {
		if j, err := r.Job(r.ctx, r.ada, job); err == nil && j.Progress.UnitsDone > 40 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	filler := filepath.Join(town.Data(), "filler")
	f, err := os.Create(filler)
	must(t, err)
	for size := 1 << 20; size > 0; size /= 2 { // to the last byte
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
	full := false
	for range 100 {
		_, err := r.Run(r.ctx, r.ada, "run", r.jobFile("more", 1, rounds, ""), "-d", "-q")
		if full = err != nil && strings.Contains(err.Error(), string(crowd.BrokerDisk)); full {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !full {
		t.Error("an order on a full disk isn't told so")
	}
	for refused := "a change was refused"; strings.Count(r.Broker.Log(), refused) < 4 && r.ctx.Err() == nil; { // reports that can't be taken, tried again
		time.Sleep(100 * time.Millisecond)
	}
	if !r.Broker.Alive() {
		t.Fatal("the broker ended")
	}
	must(t, f.Close())
	must(t, os.Remove(filler))
	r.check(job, rounds)
	r.sound()
}

// TestCheckpointsSurvive kills the host of a unit that counts in /state again and again: each time at most an interval is lost.
func TestCheckpointsSurvive(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks at processes through /proc")
	}
	every, lives, work := 2*time.Second, 3, 8*time.Second
	if soaking() {
		every, lives, work = 10*time.Second, 30, 10*time.Minute
	}
	r := newRuin(t, "hal", "ida", "jon")
	var err error
	r.file, err = filepath.Abs("../../internal/guest/wasm/testdata/counter.wasm")
	must(t, err)
	// how fast does it count here?
	steps, turns := uint64(200), uint64(20_000_000)
	probe := filepath.Join(r.Dir, "probe.yaml")
	order := func(file, name string, steps uint64, more string) string {
		text := fmt.Sprintf("kind: job\nname: %s\nprogram: %s\nargs: [count, '%d', '%d']\nunits: {count: 1}\nprice: {max: 500cr}\nverify: none\nresources: {memory: 16MiB, disk: 16MiB, time: 2h}\n%s\n",
			name, r.file, steps, turns, more)
		must(t, os.WriteFile(file, []byte(text), 0o600))
		return r.order(file)
	}
	begun := time.Now()
	id := order(probe, "probe", steps, "")
	j, err := r.Done(r.ctx, r.ada, id)
	must(t, err)
	each := time.Since(begun) / time.Duration(steps)
	steps = uint64(work / each)
	t.Logf("%v a step, %d steps", each, steps)

	crashes := []string{"state.before", "state.after"} // of the broker, before the hosts die
	for _, p := range crashes {
		must(t, r.Broker.Interrupt())
		must(t, r.Start("CROWD_CRASH="+p))
		id := order(filepath.Join(r.Dir, p+".yaml"), strings.ReplaceAll(p, ".", "-"), uint64(4*time.Second/each), "checkpoint: 1s")
		select {
		case <-r.Broker.Gone():
		case <-time.After(time.Minute):
			t.Fatalf("nobody passed %s", p)
		}
		r.revive()
		j, err := r.Done(r.ctx, r.ada, id)
		must(t, err)
		if j.State != crowd.JobDone || j.Progress.UnitsFailed > 0 {
			t.Fatalf("%s: %s %+v", p, j.State, j.Progress)
		}
	}

	begun = time.Now()
	id = order(filepath.Join(r.Dir, "count.yaml"), "count", steps, "checkpoint: "+every.String())
	killed := 0
	var deaths []time.Time
	for {
		j, err = r.Job(r.ctx, r.ada, id)
		must(t, err)
		if j.State.Ended() {
			break
		}
		if killed < lives && r.atWork(id) != nil {
			select {
			case <-time.After(every + every*time.Duration(killed%3+1)/3):
			case <-r.ctx.Done():
			}
			if h := r.atWork(id); h != nil {
				h.Kill()
				killed++
				deaths = append(deaths, time.Now())
				t.Logf("%v: killed %s, %v after the newest checkpoint", time.Since(begun).Round(100*time.Millisecond), h.Name, r.sinceCheckpoint().Round(100*time.Millisecond))
				must(t, h.Start())
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	out, err := r.Run(r.ctx, r.ada, "job", "results", id)
	must(t, err)
	if j.State != crowd.JobDone || strings.TrimSpace(out) != fmt.Sprint(steps) || killed < lives/2 {
		t.Fatalf("%s, %q after %d kills", j.State, out, killed)
	}
	// what was burnt twice is what was lost: the last attempt's fuel is the whole lineage's
	attempts, err := r.Attempts(r.ctx, r.ada, id)
	must(t, err)
	r.lineage(attempts, killed)
	logs, err := r.Run(r.ctx, r.ada, "job", "logs", id)
	must(t, err)
	r.lives(logs, deaths, every, attempts[len(attempts)-1].Fuel, work)
	r.sound()
}

// lives checks what the unit wrote of its lives: each began later by its own clock, which counts its work, than the one before. It logs what each death cost.
func (r *ruin) lives(stderr string, deaths []time.Time, every time.Duration, fuel uint64, work time.Duration) {
	r.t.Helper()
	var at []float64 // when each life began, by the unit's clock
	for line := range strings.Lines(stderr) {
		var unit int
		var clock float64
		if n, _ := fmt.Sscanf(line, "%d %f", &unit, &clock); n == 2 { // a random number follows
			at = append(at, clock)
		}
	}
	if len(at) < 2 || !slices.IsSorted(at) {
		r.t.Fatalf("lives began at %v by the unit's clock\n%s", at, stderr)
	}
	pace := float64(fuel) / 1e9 / work.Seconds() // of the unit's clock, an estimate from the undisturbed probe
	for i := 1; i < len(at); i++ {
		if at[i] <= at[i-1] {
			r.t.Errorf("life %d began where the one before did: nothing was kept", i+1)
		}
		r.t.Logf("life %d went on after %.1f s of work of the one before", i+1, (at[i]-at[i-1])/pace)
	}
	r.t.Logf("%d deaths, an interval is %v", len(deaths), every)
}

// sinceCheckpoint is how old the newest checkpoint at the broker is: what a death now costs. The zero time's age: there is none.
func (r *ruin) sinceCheckpoint() time.Duration {
	var newest time.Time
	files, _ := filepath.Glob(filepath.Join(r.Data(), "states", "job_*"))
	for _, f := range files {
		if st, err := os.Stat(f); err == nil && st.ModTime().After(newest) {
			newest = st.ModTime()
		}
	}
	return time.Since(newest)
}

// lineage checks that killed attempts were gone on with.
func (r *ruin) lineage(all []crowd.Attempt, killed int) {
	fresh := 0
	for _, a := range all {
		r.t.Logf("attempt %d of lineage %d: %s %s, fuel %d", a.N, a.Line(), a.State, a.Reason, a.Fuel)
		if a.Line() == a.N {
			fresh++
		}
	}
	if killed > 0 && fresh == len(all) {
		r.t.Errorf("no attempt went on from another's checkpoint")
	}
}

// atWork is the host that holds an attempt of a job.
func (r *ruin) atWork(job string) *rig.Host {
	rows, _ := r.HostRows(r.ctx)
	for _, h := range rows {
		if slices.ContainsFunc(h.Attempts, func(a crowd.Holding) bool { return a.Job.String() == job }) {
			return r.Hosts[h.Name]
		}
	}
	return nil
}

// TestSilentAgent halts an agent's process without a word, as a machine that hangs: its work goes elsewhere, and what it says when it goes on again counts
// for what it is.
func TestSilentAgent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("halts a process and its guests")
	}
	r := newRuin(t, "hal", "ida", "jon")
	const rounds = 600_000_000
	job := r.order(r.jobFile("silent", 6, rounds, "chunk: 1"))
	var victim *rig.Host
	for victim == nil {
		must(t, r.ctx.Err())
		victim = r.atWork(job)
		time.Sleep(50 * time.Millisecond)
	}
	must(t, victim.Stop())
	halted := time.Now()
	r.check(job, rounds)
	must(t, victim.Cont())
	attempts, err := r.Attempts(r.ctx, r.ada, job)
	must(t, err)
	if took := leasedAgain(attempts, halted); took == 0 {
		t.Errorf("nothing of %s went elsewhere: %+v", victim.Name, attempts)
	} else {
		t.Logf("leased again %v after it went silent", took)
	}
	r.sound()
}

// TestCutLink takes a host's network away, in a network namespace of its own, without a word to either end.
func TestCutLink(t *testing.T) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("needs root on linux to make a network namespace")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2")
	}
	ns := fmt.Sprintf("crowd%d", os.Getpid()%10000)
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("ip %s: %v %s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	near, far := ns+"a", ns+"b"
	ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", ns)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", near).Run() })
	third := fmt.Sprint(10 + os.Getpid()%200)
	ip("addr", "add", "10.213."+third+".1/24", "dev", near)
	ip("link", "set", near, "up")
	ip("-n", ns, "addr", "add", "10.213."+third+".2/24", "dev", far)
	ip("-n", ns, "link", "set", far, "up")
	ip("-n", ns, "link", "set", "lo", "up")

	bin, err := crashing()
	must(t, err)
	town, err := rig.New(bin, shortTemp(t))
	must(t, err)
	_, port, _ := strings.Cut(town.Listen, ":")
	town.Listen = "0.0.0.0:" + port
	town.Flags = []string{"--url", "https://10.213." + third + ".1:" + port}
	r := newRuinOf(t, town, "hal", "ida")
	far2, err := r.Join(r.ctx, "faraway", "FR")
	must(t, err)
	far2.Wrap = []string{"ip", "netns", "exec", ns}
	must(t, far2.Start())
	r.online("faraway", true)
	const rounds = 600_000_000
	job := r.order(r.jobFile("cut", 6, rounds, "chunk: 1"))
	for !r.holds("faraway", job) {
		must(t, r.ctx.Err())
		time.Sleep(50 * time.Millisecond)
	}
	ip("link", "set", near, "down")
	cut := time.Now()
	r.check(job, rounds)
	attempts, err := r.Attempts(r.ctx, r.ada, job)
	must(t, err)
	if took := leasedAgain(attempts, cut); took == 0 {
		t.Errorf("no chunk of the cut host went elsewhere: %+v", attempts)
	} else {
		t.Logf("leased again %v after the cut", took)
	}
	ip("link", "set", near, "up")
	r.online("faraway", true)
	r.sound()
}

// leasedAgain is how long after its host's loss the first chunk of it went to another owner; 0: never.
func leasedAgain(all []crowd.Attempt, loss time.Time) (took time.Duration) {
	for _, a := range all {
		if a.Reason != crowd.HostLost || !a.LeasedAt.Before(loss) {
			continue
		}
		for _, b := range all {
			if after := b.LeasedAt.Sub(loss); b.First == a.First && b.N > a.N && b.Owner != a.Owner && after > time.Second && (took == 0 || after < took) {
				took = after
			}
		}
	}
	return took.Round(10 * time.Millisecond)
}

// online waits until the broker sees a host so.
func (r *ruin) online(name string, want bool) {
	r.t.Helper()
	for r.ctx.Err() == nil {
		rows, err := r.HostRows(r.ctx)
		if err == nil && slices.ContainsFunc(rows, func(h crowd.HostRow) bool { return h.Name == name && h.Online == want }) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.t.Fatalf("%s isn't there", name)
}

// holds reports whether a host has an attempt of a job.
func (r *ruin) holds(name, job string) bool {
	rows, _ := r.HostRows(r.ctx)
	return slices.ContainsFunc(rows, func(h crowd.HostRow) bool {
		return h.Name == name && slices.ContainsFunc(h.Attempts, func(a crowd.Holding) bool { return a.Job.String() == job })
	})
}

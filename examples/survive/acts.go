package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/rig"
)

const mainJob = "survive"

// kills orders the first job and kills broker and hosts at random moments of it. In the middle the store is backed up. The last kill leaves one
// host dead with a finished chunk on its disk that the broker hasn't heard of.
func (s *story) kills(ctx context.Context, kills int) error {
	const (
		units = 400
		each  = 0.05 // seconds of a core that a unit takes
	)
	job, err := s.order(ctx, mainJob, units, uint64(s.speed*each), "chunk: 2\nverify: {quorum: 2}")
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("ada orders %d units of %.0f ms, quorum 2; from now on broker and hosts are killed (-9)", units, 1000*each), "")
	moments := make([]uint64, kills) // units decided when somebody is killed
	for i := range moments {
		moments[i] = uint64(s.rnd.IntN(units*7/10)) + 2
	}
	slices.Sort(moments)
	brokers, backup := 0, uint64(units*2/5)
	for n, at := range moments {
		if at >= backup {
			if err := s.backup(ctx, job); err != nil {
				return err
			}
			backup = units + 1
		}
		j, err := s.passes(ctx, job, at)
		if err != nil {
			return err
		}
		if n > 0 && n%(kills/4) == 0 {
			s.say(fmt.Sprintf("%d kills so far, %d of the broker; %d of %d units are decided", n, brokers, j.Progress.UnitsDone, units), "")
		}
		if err := sleep(ctx, time.Duration(s.rnd.IntN(200))*time.Millisecond); err != nil {
			return err
		}
		if s.rnd.IntN(4) == 0 {
			s.kill(s.Broker)
			brokers++
			if err := s.startBroker(); err != nil {
				return err
			}
			continue
		}
		if err := s.risen(len(hosters) - 2); err != nil {
			return err
		}
		up := s.up()
		h := up[s.rnd.IntN(len(up))]
		s.kill(h.Proc)
		s.rise(h)
	}
	if err := s.risen(0); err != nil {
		return err
	}
	for s.late == nil {
		if err := until(ctx, "at work again", 20*time.Second, func() bool { return s.atWork(ctx, job) != nil }); err != nil {
			return err
		}
		s.kill(s.Broker)
		brokers++
		before := s.unsaid()
		err := until(ctx, "finished", 10*time.Second, func() bool {
			for _, path := range s.unsaid() {
				if !slices.Contains(before, path) {
					s.late = s.Hosts[filepath.Base(filepath.Dir(filepath.Dir(path)))]
				}
			}
			return s.late != nil
		})
		if ctx.Err() != nil {
			return err
		}
		if s.late == nil { // what was at work was given just now
			if err := s.startBroker(); err != nil {
				return err
			}
		}
	}
	s.say(fmt.Sprintf("%d kills, %d of the broker", s.report.Kills, brokers), "")
	s.kill(s.late.Proc)
	s.say(fmt.Sprintf("while the broker is dead %s finishes a chunk, and dies with it on its disk; it stays off", s.late.Name), "")
	if err := s.startBroker(); err != nil {
		return err
	}
	j, err := s.Job(ctx, s.ada, job)
	if err == nil && j.State.Ended() {
		s.amiss("the job had ended before the last kill")
	}
	return err
}

// passes waits until so many units of a job are decided.
func (s *story) passes(ctx context.Context, job string, units uint64) (j crowd.JobDetail, err error) {
	err = until(ctx, fmt.Sprintf("%d units decided", units), 2*time.Minute, func() bool {
		j, err = s.Job(ctx, s.ada, job)
		return err == nil && j.Progress.UnitsDone >= units
	})
	return j, err
}

// unsaid are the finished chunks on the hosts' disks that the broker hasn't acknowledged.
func (s *story) unsaid() (paths []string) {
	for _, h := range s.Hosts {
		found, _ := filepath.Glob(filepath.Join(h.Dir, "outbox", "*"))
		for _, f := range found {
			if !strings.HasPrefix(filepath.Base(f), ".") {
				paths = append(paths, f)
			}
		}
	}
	return paths
}

func (s *story) backupFile() string { return filepath.Join(s.Dir, "middle.crowd") }

func (s *story) backup(ctx context.Context, job string) error {
	j, err := s.Job(ctx, s.ada, job)
	if err != nil {
		return err
	}
	s.kept = j.Progress.UnitsDone
	s.say(fmt.Sprintf("a backup is taken beside the running broker: %d of %d units are decided", s.kept, j.Units), "")
	_, err = s.Run(ctx, "", "broker", "backup", s.backupFile(), "--data", s.Data())
	return err
}

// turn is what a turn of counter.wasm's loop costs, in rounds of spin.wasm.
const turn = 9

// checkpoint runs a unit that counts in /state and kills its host as soon as a checkpoint of it has left that, twice.
func (s *story) checkpoint(ctx context.Context) error {
	const steps, lives = 200, 2
	work := max(12*s.pace/float64(min(runtime.GOMAXPROCS(0), len(hosters))), 8*s.speed) // rounds
	turns := uint64(work / steps / turn)
	job, err := s.orderFile(ctx, "count", fmt.Sprintf("%d\n", steps),
		fmt.Sprintf("program: %s\nargs: [count, '%d', '%d']\nunits: {count: 1}\nverify: none\ncheckpoint: 2s\n", s.counter, steps, turns))
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("one unit counts to %d in /state; a checkpoint leaves its host every 2 s", steps), "")
	for seen := ""; s.report.Checkpoint.Kills < lives; {
		kept := ""
		err := until(ctx, "a checkpoint of the counting unit", time.Minute, func() bool {
			found, _ := filepath.Glob(filepath.Join(s.Data(), "states", job+"-*"))
			if len(found) > 0 && !slices.Contains(found, seen) {
				kept = found[0]
			}
			j, err := s.Job(ctx, s.ada, job)
			return kept != "" || err == nil && j.State.Ended()
		})
		if err != nil {
			return err
		}
		if kept == "" {
			s.amiss("the counting unit ended after %d kills", s.report.Checkpoint.Kills)
			break
		}
		seen = kept
		if err := sleep(ctx, 200*time.Millisecond); err != nil { // its row follows the file
			return err
		}
		h := s.atWork(ctx, job)
		if h == nil {
			continue
		}
		s.kill(h.Proc)
		s.report.Checkpoint.Kills++
		s.say(fmt.Sprintf("%s kept a checkpoint and is killed; the unit goes on elsewhere from there", h.Name), "")
		s.rise(h)
		if err := s.risen(0); err != nil {
			return err
		}
	}
	if _, err := s.done(ctx, job); err != nil {
		return err
	}
	all, err := s.attempts(ctx, job)
	if err != nil {
		return err
	}
	c := &s.report.Checkpoint
	c.Attempts = len(all)
	for _, a := range all {
		if a.Line() != a.N {
			c.WentOn++
		}
	}
	s.say(fmt.Sprintf("it counted to the end in %d attempts, %d of which went on from another's checkpoint", c.Attempts, c.WentOn), "")
	if c.WentOn < lives {
		s.amiss("after %d kills only %d attempts went on from a checkpoint", lives, c.WentOn)
	}
	return nil
}

// atWork is the host that holds an attempt of a job.
func (s *story) atWork(ctx context.Context, job string) *rig.Host {
	rows, _ := s.HostRows(ctx)
	for _, h := range rows {
		if slices.ContainsFunc(h.Attempts, func(a crowd.Holding) bool { return a.Job.String() == job }) {
			return s.Hosts[h.Name]
		}
	}
	return nil
}

// decided waits for the end of the first job, and starts the host that was left dead with a chunk of it.
func (s *story) decided(ctx context.Context) error {
	job := s.jobNamed(mainJob).id
	j, err := s.done(ctx, job)
	if err != nil {
		return err
	}
	s.report.Attempts = j.Progress.Attempts
	s.say(fmt.Sprintf("the first job is done: %d units, %d attempts of which %d were lost", j.Units, j.Progress.Attempts, j.Progress.Lost), "")
	kept := s.unsaid()
	s.rise(s.late)
	if err := s.risen(0); err != nil {
		return err
	}
	if err := until(ctx, "heard of the late chunk", 20*time.Second, func() bool { return len(s.unsaid()) == 0 }); err != nil {
		return err
	}
	refused, err := s.refused(ctx, job)
	if err != nil {
		return err
	}
	s.report.OldRefused += len(refused)
	late := 0
	for ref := range refused {
		if slices.ContainsFunc(kept, func(path string) bool {
			return filepath.Base(path) == fmt.Sprintf("%s-%d-%d", ref.Job, ref.First, ref.N)
		}) {
			late++
		}
	}
	if late == 0 {
		s.amiss("none of %d late reports of %s was taken as too late", len(kept), s.late.Name)
		return nil
	}
	s.say(fmt.Sprintf("%s starts again and reports %s of a job that is done: decided, paid nothing", s.late.Name, plural(late, "chunk")), "")
	return nil
}

// silence halts three hosts without a word while each of the six has a unit of some seconds. What is lost so goes to others; two of the three go on as soon as
// another host has begun with their unit, and are first; the third when its unit is decided.
func (s *story) silence(ctx context.Context) error {
	const side = 6.0 // seconds that the units take, side by side
	all := len(hosters)
	if err := s.measure(ctx, "probe2"); err != nil {
		return err
	}
	job, err := s.order(ctx, "silent", uint64(all), uint64(s.pace*side/float64(all)), "chunk: 1\nverify: none")
	if err != nil {
		return err
	}
	tried := []crowd.Attempt{}
	look := func() bool {
		now, err := s.attempts(ctx, job)
		if err == nil {
			tried = now
		}
		return err == nil
	}
	if err := until(ctx, "at work on six hosts", 20*time.Second, func() bool { return look() && len(tried) == all }); err != nil {
		return err
	}
	rows, err := s.HostRows(ctx)
	if err != nil {
		return err
	}
	names := map[crowd.HostID]string{}
	for _, h := range rows {
		names[h.ID] = h.Name
	}
	order := slices.Clone(tried)
	s.rnd.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	var mute []crowd.Attempt         // who fall silent
	halted := map[uint64]time.Time{} // their chunks → when
	for _, a := range order {
		if len(mute) == 3 {
			break
		}
		if err := sleep(ctx, time.Duration(s.rnd.IntN(900))*time.Millisecond); err != nil {
			return err
		}
		if err := s.Hosts[names[a.Host]].Stop(); err != nil {
			return err
		}
		at := time.Now()
		if err := sleep(ctx, 100*time.Millisecond); err != nil { // what it said before is heard
			return err
		}
		if look(); slices.ContainsFunc(tried, func(b crowd.Attempt) bool { return b.Ref() == a.Ref() && b.State == crowd.AttemptLeased }) {
			mute, halted[a.First] = append(mute, a), at
		} else if err := s.Hosts[names[a.Host]].Cont(); err != nil { // it had finished
			return err
		}
	}
	if len(mute) < 3 {
		return fmt.Errorf("the units were too short: only %d hosts fell silent amid one", len(mute))
	}
	s.say(fmt.Sprintf("%s, %s and %s fall silent (SIGSTOP: no socket closes), each with a unit of some seconds",
		names[mute[0].Host], names[mute[1].Host], names[mute[2].Host]), "host.lost")

	var late []crowd.Attempt
	err = until(ctx, "leased to others", time.Minute, func() bool {
		look()
		for _, a := range mute {
			if len(late) < 2 && !slices.ContainsFunc(late, func(l crowd.Attempt) bool { return l.First == a.First }) && released(tried, a) {
				late = append(late, a)
				if err := s.Hosts[names[a.Host]].Cont(); err != nil {
					s.amiss("%v", err)
				}
			}
		}
		return len(releases(tried, halted)) == len(mute)
	})
	if err != nil {
		return err
	}
	s.report.Releases = spread(releases(tried, halted))
	s.say(fmt.Sprintf("their %d units were leased to other owners after %s", len(mute), s.report.Releases), "")
	if most := crowd.Term + crowd.Skew + 3*time.Second; s.report.Releases.Max > most.Seconds() {
		s.amiss("a lost unit had to wait for %.1f s, more than %v", s.report.Releases.Max, most)
	}
	if _, err := s.done(ctx, job); err != nil {
		return err
	}
	for _, a := range mute {
		if err := s.Hosts[names[a.Host]].Cont(); err != nil {
			return err
		}
	}
	if err := until(ctx, "heard of what the silent hosts had", 20*time.Second, func() bool { return len(s.unsaid()) == 0 }); err != nil {
		return err
	}
	look()
	var who, not []string
	for _, a := range mute {
		paid := slices.ContainsFunc(tried, func(b crowd.Attempt) bool {
			return a.Ref() == b.Ref() && b.State == crowd.AttemptReported && b.Paid > 0
		})
		if paid {
			s.report.LatePaid++
			who = append(who, names[a.Host])
		} else {
			not = append(not, names[a.Host])
		}
	}
	refused, err := s.refused(ctx, job)
	if err != nil {
		return err
	}
	s.report.OldRefused += len(refused)
	if len(who) == 0 || len(who) > len(late) {
		s.amiss("%d late reports were paid, %d hosts went on in time", len(who), len(late))
		return nil
	}
	s.say(fmt.Sprintf("late: %s, accepted and paid, their units were open still; too late: %s, decided and unpaid", strings.Join(who, " and "), strings.Join(not, " and ")), "")
	return nil
}

// restore throws the broker's store away and puts the backup of the middle in its place. The hosts run on.
func (s *story) restore(ctx context.Context) error {
	s.kill(s.Broker)
	var put struct {
		Incarnation int64  `json:"new_incarnation"`
		Old         string `json:"old"` // where the store is now that was in its place
	}
	if err := s.Read(ctx, &put, "", "broker", "restore", s.backupFile(), "--data", s.Data(), "--replace"); err != nil {
		return err
	}
	if err := os.RemoveAll(put.Old); put.Old == "" || err != nil {
		return fmt.Errorf("the old store isn't thrown away: %q, %w", put.Old, err)
	}
	if err := s.startBroker(); err != nil {
		return err
	}
	main := s.jobNamed(mainJob)
	j, err := s.Job(ctx, s.ada, main.id)
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("the broker's store is thrown away and the backup goes back: incarnation %d, %d of %d units decided", put.Incarnation, j.Progress.UnitsDone, j.Units), "")
	if j.State.Ended() {
		s.amiss("the backup of the middle knows the job's end")
	}
	if j.Progress.UnitsDone < s.kept {
		s.amiss("%d units were decided when the backup began, %d are in it", s.kept, j.Progress.UnitsDone)
	}
	err = until(ctx, "all hosts are back", time.Minute, func() bool {
		rows, _ := s.HostRows(ctx)
		on := 0
		for _, h := range rows {
			if h.Online {
				on++
			}
		}
		return on == len(hosters)
	})
	if err != nil {
		return err
	}
	s.say("all hosts, which ran on, have connected again by themselves", "")
	if j, err = s.done(ctx, main.id); err != nil {
		return err
	}
	before := len(s.wrong)
	if err := s.sound(ctx, []ordered{main}); err != nil {
		return err
	}
	if len(s.wrong) > before {
		return nil
	}
	s.report.Restored = true
	s.say(fmt.Sprintf("the job goes on from the middle to the same results, %d attempts in all; the audit is clean", j.Progress.Attempts), "")
	return nil
}

func (s *story) jobNamed(name string) ordered {
	for _, j := range s.jobs {
		if j.name == name {
			return j
		}
	}
	return ordered{}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/broker"
	"github.com/crowdcloud/crowd/internal/store"
)

// brokerDir is the folder of everything a broker keeps: as --data says, else the one that a broker run without it has.
func (a *app) brokerDir(data string) (string, error) {
	if data != "" {
		return data, nil
	}
	dir, err := a.stateDir()
	return filepath.Join(filepath.Dir(dir), "crowd-broker"), err
}

func newBrokerBackupCommand(a *app) *cobra.Command {
	var data string
	var force, check bool
	c := &cobra.Command{
		Use: "backup FILE", Short: "everything a broker keeps, in one file, while it runs", Args: cobra.ExactArgs(1),
		Long: "Write everything that a broker keeps, as of one instant, into one file, whether the broker runs or not. The file appears whole or not at all, and\n" +
			"carries digests: a cut or damaged one is refused when it is read. FILE can't be inside the broker's folder.\n\n" +
			"What the database names and the folder lacks is listed in it; it and --check then end with 8.\n\n" +
			"It holds the broker's key: whoever reads it can pose as the broker. Only its owner can read it; keep copies so too.",
		Example: "  crowd broker backup /backup/crowd-$(date +%F) --data /var/lib/crowd\n  crowd broker backup --check /backup/crowd-2026-03-01",
		RunE: func(cmd *cobra.Command, args []string) error {
			if check {
				if force || data != "" {
					return crowd.Errorf(crowd.Invalid, "", "--check only reads FILE: it takes neither --data nor --force")
				}
				b, err := store.CheckBackup(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.toldBackup(args[0], b, "wasn't")
			}
			dir, err := a.brokerDir(data)
			if err != nil {
				return err
			}
			b, err := store.WriteBackup(cmd.Context(), dir, args[0], force, time.Now)
			if err != nil {
				return err
			}
			a.say("it holds the broker's key: only you can read it (mode 0600); keep copies so too")
			return a.toldBackup(args[0], b, "isn't")
		},
	}
	f := c.Flags()
	f.StringVar(&data, "data", "", "folder of everything the broker keeps")
	f.BoolVar(&force, "force", false, "replace FILE if it is a backup already")
	f.BoolVar(&check, "check", false, "read FILE and check every digest; write nothing")
	return c
}

// toldBackup prints what a backup holds. One that lacks something is an error of kind Failed.
func (a *app) toldBackup(file string, b store.Backup, whole string) error {
	err := a.print(b, func() error {
		if a.quiet {
			return a.printf("%s\n", file)
		}
		return a.facts(append([]string{
			"backup", fmt.Sprintf("%s, %s", file, size(b.Size)),
			"as of", b.At.Local().Format(time.RFC3339),
			"holds", fmt.Sprintf("%s, %s; %s of %s", plural(b.Jobs, "job"), plural(b.Chunks, "chunk"), plural(b.Files, "file"), size(b.Bytes)),
			"incarnation", fmt.Sprint(b.Incarnation),
		}, lacks(b.Missing)...)...)
	})
	if err == nil && len(b.Missing) > 0 {
		err = crowd.Errorf(crowd.Failed, "", "the backup is whole, but the store %s: %s", whole, oneLine(listed(b.Missing))).WithHint("crowd broker audit --bodies all")
	}
	return err
}

// lacks are the facts of what a backup lacks, a name each.
func lacks(all []string) (facts []string) {
	for i, x := range all {
		if i == 20 {
			return append(facts, "lacks", fmt.Sprintf("and %d more", len(all)-i))
		}
		facts = append(facts, "lacks", oneLine(x))
	}
	return facts
}

// listed is "a, b, c and 4 more".
func listed(all []string) string {
	s := ""
	for i, x := range all {
		if i == 3 {
			return fmt.Sprintf("%s and %d more", s, len(all)-i)
		}
		if i > 0 {
			s += ", "
		}
		s += x
	}
	return s
}

func newBrokerRestoreCommand(a *app) *cobra.Command {
	var data string
	var o store.RestoreOptions
	c := &cobra.Command{
		Use: "restore FILE", Short: "put a backup in a broker's place, as a new incarnation", Args: cobra.ExactArgs(1),
		Long: "Put a backup in the place of a broker's folder. Everything is unpacked and checked beside it first; a crash leaves the old state or the new.\n" +
			"A store that is there is never deleted: --replace moves it aside, to DIR.old-TIME.\n\n" +
			"The restored store has a higher incarnation than the backup and the store it replaces, so that hosts know it from what they have seen. If neither is the\n" +
			"newest that hosts have seen, say that one by --least-incarnation. Unused join links are void.",
		Example: "  crowd broker restore /backup/crowd-2026-03-01 --data /var/lib/crowd\n  crowd broker restore /backup/crowd-2026-03-01 --replace",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.brokerDir(data)
			if err != nil {
				return err
			}
			r, err := store.Restore(cmd.Context(), args[0], dir, o)
			if err != nil {
				return err
			}
			at := r.At.Local().Format(time.RFC3339)
			a.say("everything told after %s is gone; API keys deleted since work again: crowd account keys", at)
			return a.print(r, func() error {
				if a.quiet {
					return a.printf("%s\n", r.Dir)
				}
				return a.facts(append([]string{
					"restored", r.Dir,
					"as of", at,
					"holds", fmt.Sprintf("%s, %s; %s of %s", plural(r.Jobs, "job"), plural(r.Chunks, "chunk"), plural(r.Files, "file"), size(r.Bytes)),
					"incarnation", fmt.Sprint(r.NewIncarnation),
					"old store", r.Old,
				}, lacks(r.Missing)...)...)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&data, "data", "", "folder to restore to")
	f.BoolVar(&o.Replace, "replace", false, "move a store that is there aside, to DIR.old-TIME")
	f.Int64Var(&o.LeastIncarnation, "least-incarnation", 0, "the highest incarnation that hosts have seen, if it is in neither store")
	return c
}

func newBrokerAuditCommand(a *app) *cobra.Command {
	var data, bodies string
	c := &cobra.Command{
		Use: "audit", Short: "recompute money, verdicts and progress from the record", Args: cobra.NoArgs,
		Long: "Recompute from the record what must follow from it: balances from postings, verdicts from votes, payments from verdicts, progress from chunks.\n" +
			"It only reads, and works beside a running broker. It exits with 1 when something is wrong.",
		Example: "  crowd broker audit --data /var/lib/crowd\n  crowd broker audit --bodies all --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.brokerDir(data)
			if err != nil {
				return err
			}
			r, err := broker.AuditDir(cmd.Context(), dir, broker.AuditBodies(bodies), time.Now())
			if err != nil {
				return err
			}
			if err := a.print(r, func() error { return a.showAudit(r) }); err != nil {
				return err
			}
			if r.Wrong > 0 {
				return crowd.Errorf(crowd.Internal, "", "the record of %s is wrong in %s", dir, plural(r.Wrong, "place")).
					WithHint("keep the folder as it is; a backup from before goes back by crowd broker restore")
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&data, "data", "", "folder of everything the broker keeps")
	f.StringVar(&bodies, "bodies", string(broker.BodiesSample), "which stored outcomes to read: sample, all or none")
	return c
}

func (a *app) showAudit(r *broker.AuditReport) error {
	rows := make([][]string, 0, len(r.Checks))
	for _, c := range r.Checks {
		state := "ok"
		if c.Wrong > 0 {
			state = "WRONG"
		} else if a.quiet {
			continue
		}
		rows = append(rows, []string{state, c.Name, thousands(c.Checked), thousands(c.Wrong), c.Means})
	}
	if err := a.table([]string{"", "check", ">looked at", ">wrong", "what must hold"}, rows); err != nil {
		return err
	}
	rows = rows[:0]
	for _, f := range r.Findings {
		chunk := ""
		if f.First != nil {
			chunk = fmt.Sprint(*f.First)
		}
		rows = append(rows, []string{f.Check, f.Job.String(), chunk, oneLine(f.Text)})
	}
	if err := a.table([]string{"wrong", "job", ">chunk", "finding"}, rows); err != nil {
		return err
	}
	if left := r.Wrong - int64(len(r.Findings)); left > 0 {
		a.say("and %s more", thousands(left))
	}
	a.say("%s, %s, %s read", plural(r.Jobs, "job"), plural(r.Chunks, "chunk"), plural(r.Bodies, "outcome"))
	return nil
}

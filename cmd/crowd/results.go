package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
)

// resultWriter hands on what units left behind, in the order of the units: their stdout to ours, or into a folder as UNIT.out and their files as UNIT/….
type resultWriter struct {
	a    *app
	c    *client.Client
	job  string
	next uint64
	root *os.Root // nil: stdout
}

func (a *app) newResultWriter(c *client.Client, job, dir string) (*resultWriter, error) {
	w := &resultWriter{a: a, c: c, job: job}
	if dir == "" || dir == "-" {
		return w, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "make the folder: %w", err)
	}
	root, err := os.OpenRoot(dir) // whatever a guest names its files, they stay in there
	if err != nil {
		return nil, crowd.Errorf(crowd.Invalid, "", "open the folder: %w", err)
	}
	w.root = root
	return w, nil
}

func (w *resultWriter) close() {
	if w.root != nil {
		_ = w.root.Close()
	}
}

// more writes the units that are decided now, as far as they come in one row.
func (w *resultWriter) more(ctx context.Context, d *crowd.JobDetail) error {
	for w.next < d.Units && (d.Progress.UnitsDone > w.next || d.State.Ended()) {
		p, err := w.c.Results(ctx, w.job, w.next, 500, "stdout")
		if err != nil {
			return err
		}
		if len(p.Items) == 0 {
			return nil
		}
		for i := range p.Items {
			u := &p.Items[i]
			if u.State == crowd.ChunkOpen {
				if !d.State.Ended() {
					return nil
				}
			} else if err := w.unit(ctx, u); err != nil {
				return err
			}
			w.next = u.Unit + 1
		}
	}
	return nil
}

// unitLine is a unit in JSON Lines.
type unitLine struct {
	Unit   uint64            `json:"unit"`
	State  crowd.ChunkState  `json:"state"`
	Result *crowd.UnitResult `json:"result,omitempty"`
	Stdout *string           `json:"stdout,omitempty"`
}

func (w *resultWriter) unit(ctx context.Context, u *crowd.UnitRow) error {
	if w.root != nil {
		if err := w.save(ctx, u); err != nil {
			return err
		}
	}
	if w.a.json {
		l := unitLine{u.Unit, u.State, u.Result, nil}
		if w.root == nil {
			s := string(u.Stdout)
			l.Stdout = &s
		}
		return w.a.flow("unit", l)
	}
	if w.root != nil || len(u.Stdout) == 0 {
		return nil
	}
	_, err := w.a.out.Write(u.Stdout)
	return stdoutError(err)
}

// save writes a unit's stdout and files.
func (w *resultWriter) save(ctx context.Context, u *crowd.UnitRow) error {
	if u.Result == nil {
		return nil
	}
	if err := w.put(fmt.Sprintf("%d.out", u.Unit), u.Stdout); err != nil {
		return err
	}
	for _, f := range u.Result.Files {
		b, err := w.c.UnitFile(ctx, w.job, u.Unit, f.Path)
		if err != nil {
			return err
		}
		if err := w.put(path.Join(fmt.Sprint(u.Unit), f.Path), b); err != nil {
			return err
		}
	}
	return nil
}

func (w *resultWriter) put(name string, b []byte) error {
	name = filepath.FromSlash(name)
	err := w.root.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = w.root.WriteFile(name, b, 0o644)
	}
	if err != nil {
		return crowd.Errorf(crowd.Invalid, "", "write %s: %w", name, err)
	}
	return nil
}

func newResultsCommand(a *app) *cobra.Command {
	var dir string
	var unit int64
	var digests bool
	cmd := &cobra.Command{
		Use: "results JOB", Short: "what the units printed, and the files they left", Args: cobra.ExactArgs(1),
		Example: "  crowd job results gwsearch | sort -n\n  crowd job results gwsearch -o DIR\n  crowd job results gwsearch --unit 17\n  crowd job results gwsearch --digests",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, _, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			if digests {
				return a.printDigests(ctx, c, d, unit)
			}
			w, err := a.newResultWriter(c, d.ID.String(), dir)
			if err != nil {
				return err
			}
			defer w.close()
			if unit >= 0 {
				return a.oneUnit(ctx, c, w, d, uint64(unit))
			}
			missing := uint64(0)
			for u, err := range eachUnit(ctx, c, d, "stdout") {
				if err != nil {
					return err
				}
				if u.State == crowd.ChunkOpen {
					missing++
				} else if err := w.unit(ctx, u); err != nil {
					return err
				}
			}
			if missing > 0 {
				a.say("%s of %s not decided yet", plural(missing, "unit"), d.Name)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&dir, "output", "o", "", "write UNIT.out and the files, as UNIT/NAME, into this folder")
	f.Int64Var(&unit, "unit", -1, "of this unit only")
	f.BoolVar(&digests, "digests", false, "unit, exit, size, digest and name of each result")
	return cmd
}

// eachUnit walks along a job's units.
func eachUnit(ctx context.Context, c *client.Client, d *crowd.JobDetail, with ...string) func(yield func(*crowd.UnitRow, error) bool) {
	return func(yield func(*crowd.UnitRow, error) bool) {
		for next := uint64(0); next < d.Units; {
			p, err := c.Results(ctx, d.ID.String(), next, 500, with...)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(p.Items) == 0 {
				return
			}
			for i := range p.Items {
				if !yield(&p.Items[i], nil) {
					return
				}
			}
			next = p.Items[len(p.Items)-1].Unit + 1
		}
	}
}

func (a *app) oneUnit(ctx context.Context, c *client.Client, w *resultWriter, d *crowd.JobDetail, unit uint64) error {
	r, err := c.Unit(ctx, d.ID.String(), unit)
	if err != nil {
		return err
	}
	b, err := c.UnitStdout(ctx, d.ID.String(), unit)
	if err != nil {
		return err
	}
	return w.unit(ctx, &crowd.UnitRow{Unit: unit, State: crowd.ChunkDecided, Result: r, Stdout: bytes.Clone(b)})
}

// digestRow is a result by its digest.
type digestRow struct {
	Unit   uint64       `json:"unit"`
	Exit   uint32       `json:"exit"`
	Reason crowd.Reason `json:"reason,omitempty"`
	Name   string       `json:"name"` // "stdout" or a file's path
	Size   int64        `json:"size_bytes"`
	Digest crowd.Digest `json:"digest,omitzero"`
}

func (a *app) printDigests(ctx context.Context, c *client.Client, d *crowd.JobDetail, unit int64) error {
	var rows []digestRow
	for u, err := range eachUnit(ctx, c, d) {
		if err != nil {
			return err
		}
		if u.Result == nil || unit >= 0 && u.Unit != uint64(unit) {
			continue
		}
		r := u.Result
		rows = append(rows, digestRow{u.Unit, r.Exit, r.Reason, "stdout", r.Stdout.Size, r.Stdout.Digest})
		for _, f := range r.Files {
			rows = append(rows, digestRow{u.Unit, r.Exit, r.Reason, f.Path, f.Size, f.Digest})
		}
	}
	return a.print(listOf(rows, ""), func() error {
		var cells [][]string
		for _, r := range rows {
			cells = append(cells, []string{fmt.Sprint(r.Unit), fmt.Sprint(r.Exit), fmt.Sprint(r.Size), r.Digest.String(), oneLine(r.Name)})
		}
		return a.table([]string{">unit", ">exit", ">bytes", "digest", "name"}, cells)
	})
}

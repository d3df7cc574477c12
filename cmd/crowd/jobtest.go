package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
)

func newTestCommand(a *app) *cobra.Command {
	var o orderFlags
	var unit uint64
	var dir string
	cmd := &cobra.Command{
		Use: "test FILE|PROG.wasm [-- ARGS]", Short: "run one unit here, in the same engine and cage, with its limits", Args: cobra.MinimumNArgs(1),
		Long:    "Run one unit on this machine, in the same engine and cage and with the same limits as hosts do, and print its outcome.\nNothing is ordered and no broker is asked. The unit's stdout goes to stdout.",
		Example: "  crowd job test job.yaml\n  crowd job test job.yaml --unit 17 -o DIR",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			order, err := o.resolve(ctx, args)
			if err != nil {
				return err
			}
			r, err := a.testUnit(ctx, order, unit)
			if err != nil {
				return err
			}
			if dir != "" && dir != "-" {
				if err := r.save(dir); err != nil {
					return err
				}
			}
			if err := a.showTest(r); err != nil {
				return err
			}
			if r.Result.Failed() {
				e := crowd.Errorf(crowd.Failed, r.Result.Reason, "unit %d ended with exit %d", unit, r.Result.Exit)
				if r.Result.Reason != "" {
					e.Message, e.Hint = fmt.Sprintf("unit %d: %s", unit, crowd.Reasons[r.Result.Reason].Means), crowd.Reasons[r.Result.Reason].WayOut
				}
				return e
			}
			return nil
		},
	}
	o.add(cmd)
	cmd.Flags().Uint64Var(&unit, "unit", 0, "which unit")
	cmd.Flags().StringVarP(&dir, "output", "o", "", "write its stdout and files into this folder")
	return cmd
}

// unitTest is one unit that ran here.
type unitTest struct {
	Unit    uint64           `json:"unit"`
	Args    []string         `json:"args"`
	Result  crowd.UnitResult `json:"result"`
	Digest  crowd.Digest     `json:"digest"` // of the outcome: what a host that does this unit alone would vote
	Seconds float64          `json:"seconds"`
	Stdout  string           `json:"stdout"`
	Stderr  string           `json:"stderr"`

	content crowd.UnitContent
}

func (a *app) testUnit(ctx context.Context, order *client.Order, unit uint64) (*unitTest, error) {
	spec := &order.Spec
	if n := spec.NumUnits(); unit >= n {
		return nil, crowd.Errorf(crowd.NotFound, "", "there is no unit %d, the job has %d", unit, n)
	}
	local := localBlobs{}
	for _, u := range order.Uploads {
		local[u.Digest] = u
	}
	item, err := local.item(spec, unit)
	if err != nil {
		return nil, err
	}
	job := scratchJob()
	plan, err := spec.Plan(job, unit, item)
	if err != nil {
		return nil, err
	}
	program, err := crowd.ParseDigest(spec.Program)
	if err != nil {
		return nil, err
	}
	engine, err := newEngine(a.log())
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	slot, err := engine.Slot(ctx, job)
	if err != nil {
		return nil, err
	}
	defer slot.Close()
	begun := time.Now()
	out, contents, err := slot.Run(ctx, guest.Task{Job: job, Program: program, First: unit, Plans: []crowd.Plan{plan}, Limits: guest.LimitsOf(spec), Keep: spec.Outputs.Keep}, local, func(uint64, uint64) {})
	if err != nil {
		return nil, err
	}
	if len(out.Units) != 1 || len(contents) != 1 {
		return nil, crowd.Errorf(crowd.Internal, "", "the engine returned %d units", len(out.Units))
	}
	return &unitTest{Unit: unit, Args: plan.Args, Result: out.Units[0], Digest: digest.Of(out.Manifest()), Seconds: time.Since(begun).Seconds(),
		Stdout: string(contents[0].Stdout), Stderr: string(contents[0].Stderr), content: contents[0]}, nil
}

func scratchJob() crowd.JobID {
	var r [10]byte
	_, _ = rand.Read(r[:])
	var id crowd.JobID
	makeID(&id, r)
	return id
}

// makeID lets the compiler find the kind of id.
func makeID[K crowd.Kind](id *crowd.ID[K], r [10]byte) { *id = crowd.MakeID[K](time.Now(), r) }

func (a *app) showTest(r *unitTest) error {
	if a.json {
		return a.printJSON(r)
	}
	if _, err := a.out.Write(r.content.Stdout); err != nil {
		return stdoutError(err)
	}
	if text := strings.TrimRight(plainText(r.Stderr), "\n"); text != "" && !a.quiet {
		_, _ = fmt.Fprintln(a.err, text)
	}
	end := fmt.Sprintf("exit %d", r.Result.Exit)
	if r.Result.Reason != "" {
		end = string(r.Result.Reason)
	}
	a.say("unit %d: %s in %.2f s, %.2f Gfuel, %s on stdout, %s; outcome %s", r.Unit, end, r.Seconds, float64(r.Result.Fuel)/1e9, size(r.Result.Stdout.Size), plural(len(r.Result.Files), "file"), r.Digest.Short())
	return nil
}

func (r *unitTest) save(dir string) error {
	w, err := (&app{}).newResultWriter(nil, "", dir)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.put(fmt.Sprintf("%d.out", r.Unit), r.content.Stdout); err != nil {
		return err
	}
	for i, f := range r.Result.Files {
		if err := w.put(filepath.ToSlash(filepath.Join(fmt.Sprint(r.Unit), f.Path)), r.content.Files[i]); err != nil {
			return err
		}
	}
	return nil
}

package main

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/guest"
	"github.com/crowdcloud/crowd/internal/guest/wasm"
	"github.com/crowdcloud/crowd/internal/host"
)

// devHostCommand is one simulated hoster's process; `crowd dev` starts it.
func devHostCommand(a *app) *cobra.Command {
	var dir, from string
	var cheat bool
	c := &cobra.Command{
		Use: "host", Short: "one simulated hoster (crowd dev starts these)", Hidden: true, Args: cobra.NoArgs,
		Example: "  crowd dev host --state-dir DIR --from 127.1.0.1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := netip.ParseAddr(from)
			if err != nil || !addr.IsLoopback() {
				return crowd.Errorf(crowd.Invalid, "", "--from: wanted a loopback address, found %q", from)
			}
			p, err := host.LoadProfile(dir)
			if err != nil {
				return err
			}
			var engine guest.Engine
			if engine, err = wasm.New(wasm.Options{Pool: 1, Log: a.log()}); err != nil {
				return err
			}
			defer engine.Close()
			if cheat {
				engine = &cheatEngine{Engine: engine}
			}
			agent, err := host.New(host.Options{Dir: dir, Engine: engine, Capacity: p.Host.Capacity, Platform: p.Host.Platform, Log: a.log(), LocalAddr: addr})
			if err != nil {
				return err
			}
			lean()
			ctx, stop := context.WithCancel(cmd.Context())
			go func() { // ends with the process
				_, _ = io.Copy(io.Discard, a.in)
				stop()
			}()
			return agent.Run(ctx)
		},
	}
	c.Flags().StringVar(&dir, "state-dir", "", "the agent's folder")
	c.Flags().StringVar(&from, "from", "", "loopback address to dial from")
	c.Flags().BoolVar(&cheat, "cheat", false, "give wrong answers")
	return c
}

// cheatEngine is a host that lies: it changes what the last unit of each attempt printed. It shows what a quorum is for.
type cheatEngine struct{ guest.Engine }

func (e *cheatEngine) Slot(ctx context.Context, job crowd.JobID) (guest.Slot, error) {
	s, err := e.Engine.Slot(ctx, job)
	if err != nil {
		return nil, err
	}
	return &cheatSlot{s}, nil
}

type cheatSlot struct{ guest.Slot }

func (s *cheatSlot) Run(ctx context.Context, t guest.Task, blobs guest.Blobs, progress func(done, fuel uint64)) (*crowd.Outcome, []crowd.UnitContent, error) {
	o, contents, err := s.Slot.Run(ctx, t, blobs, progress)
	if err != nil {
		return o, contents, err
	}
	last := len(contents) - 1
	out := slices.Clone(contents[last].Stdout)
	if i := bytes.LastIndexAny(out, "012345678"); i >= 0 {
		out[i]++ // a lie that looks like an answer
	} else {
		out = append(out, '!')
	}
	contents[last].Stdout = out
	o.Units[last].Stdout = crowd.ContentRef{Size: int64(len(out)), Digest: digest.Of(out)}
	return o, contents, nil
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/client"
	"github.com/crowdcloud/crowd/internal/digest"
)

// orderFlags say what is ordered, over what the file says.
type orderFlags struct {
	set    []string
	units  uint64
	in     []string
	max    crowd.UCR
	quote  string
	repeat string
}

func (o *orderFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&o.set, "set", nil, "KEY=VALUE over the file's, as units.count=64")
	f.Var(unitsFlag{&o.units}, "units", "so many units of a .wasm program (default 1)")
	f.StringArrayVar(&o.in, "in", nil, "a file that each unit of a .wasm program sees under /in")
	f.Var(creditFlag{&o.max}, "max", "the most that it may cost, as 10cr")
}

// resolve reads a job file, or makes an order of a .wasm program and its arguments; nothing is sent yet.
func (o *orderFlags) resolve(ctx context.Context, args []string) (*client.Order, error) {
	var jf *client.JobFile
	var err error
	if strings.HasSuffix(args[0], ".wasm") {
		jf, err = o.program(args[0], args[1:])
	} else {
		switch {
		case len(args) > 1:
			return nil, crowd.Errorf(crowd.Invalid, "", "arguments stand in the file; only a .wasm program takes them here").WithHint("args: [%s] in %s", strings.Join(args[1:], ", "), args[0])
		case o.units > 0:
			o.set = append(o.set, fmt.Sprintf("units.count=%d", o.units))
		}
		jf, err = client.ReadJobFile(args[0], o.set)
	}
	if err != nil {
		return nil, err
	}
	order, err := jf.Resolve(ctx, digest.Reader)
	if err != nil {
		return nil, err
	}
	if o.max > 0 {
		order.Spec.Price.Max = o.max
	}
	return order, nil
}

// program is the order of a .wasm program; with --set it goes by a file, so that the same keys work.
func (o *orderFlags) program(name string, args []string) (*client.JobFile, error) {
	if len(o.set) == 0 {
		return client.ProgramSpec(name, args, o.units, o.in)
	}
	jf, err := client.ProgramSpec(name, args, o.units, o.in)
	if err != nil {
		return nil, err
	}
	whole := func(path string) string {
		if abs, err := filepath.Abs(path); err == nil && !strings.HasPrefix(path, "b3:") {
			return abs
		}
		return path
	}
	file := map[string]any{"kind": "job", "name": jf.Spec.Name, "program": whole(name), "units": map[string]any{"count": max(1, o.units)}}
	if len(args) > 0 {
		file["args"] = args
	}
	var in []any
	for _, x := range jf.Spec.Inputs {
		in = append(in, map[string]string{"from": whole(x.From), "as": x.As})
	}
	if len(in) > 0 {
		file["inputs"] = in
	}
	b, err := json.Marshal(file)
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "encode order: %w", err)
	}
	dir, err := os.MkdirTemp("", "crowd-order-")
	if err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "%w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "job.yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, crowd.Errorf(crowd.Internal, "", "%w", err)
	}
	return client.ReadJobFile(path, o.set)
}

// capOrder puts the profile's max_cost where the file says no price.
func capOrder(order *client.Order, s client.Settings) error {
	if order.Spec.Price.Max > 0 {
		return nil
	}
	if s.MaxCost.Value == "" {
		return crowd.Errorf(crowd.Invalid, crowd.CustomerPrice, "what may this cost at most? neither the file nor the context says").
			WithHint("--max 10cr · or price: {max: 10cr} in the file · or max_cost: 10cr in the context")
	}
	m, err := parseCredits(s.MaxCost.Value)
	if err != nil {
		return crowd.Errorf(crowd.Invalid, "", "max_cost of %s: %w", s.MaxCost.From, err)
	}
	order.Spec.Price.Max = m
	return nil
}

// upload sends what the broker hasn't got.
func (a *app) upload(ctx context.Context, c *client.Client, order *client.Order) error {
	for _, u := range order.Uploads {
		r, err := u.Open()
		if err != nil {
			return err
		}
		p := a.uploadProgress(u.Name)
		err = c.Upload(ctx, u.Digest, u.Size, r, p.tell)
		p.end()
		_ = r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// submit resolves, uploads and orders.
func (a *app) submit(ctx context.Context, c *client.Client, s client.Settings, o *orderFlags, args []string) (*crowd.Job, error) {
	order, err := o.resolve(ctx, args)
	if err != nil {
		return nil, err
	}
	if err := capOrder(order, s); err != nil {
		return nil, err
	}
	if err := a.upload(ctx, c, order); err != nil {
		return nil, err
	}
	j, err := c.Submit(idempotent(ctx, o.repeat), &order.Spec, o.quote)
	if err != nil && ctx.Err() != nil {
		a.say("whether it was ordered is not known: crowd ls")
	}
	return j, err
}

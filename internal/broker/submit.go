package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/crowdcloud/crowd"
	"github.com/crowdcloud/crowd/internal/crash"
	"github.com/crowdcloud/crowd/internal/digest"
	"github.com/crowdcloud/crowd/internal/ledger"
	"github.com/crowdcloud/crowd/internal/sched"
	"github.com/crowdcloud/crowd/internal/store"
)

// Submit is SubmitQuoted at the broker's price of now.
func (b *Broker) Submit(ctx context.Context, c Caller, spec crowd.JobSpec) (crowd.Job, error) {
	return b.SubmitQuoted(ctx, c, spec, "")
}

// SubmitQuoted takes an order: what it says, whether the crowd can ever do it and whether it is paid for are checked first; then its maximum goes
// into escrow and the job is there, in one transaction. Its price is that of the quote, if one is named.
func (b *Broker) SubmitQuoted(ctx context.Context, c Caller, spec crowd.JobSpec, quoteRef string) (crowd.Job, error) {
	if err := need(c, crowd.ScopeOrder); err != nil {
		return crowd.Job{}, err
	}
	perGfuel, quoted, err := b.heldPrice(ctx, c, quoteRef)
	if err != nil {
		return crowd.Job{}, err
	}
	order, items, units, err := b.examine(ctx, c, &spec, perGfuel)
	if err != nil {
		return crowd.Job{}, err
	}
	if !quoted.IsZero() && quoted != digest.Of(crowd.Canonical(&spec)) {
		return crowd.Job{}, crowd.Errorf(crowd.Conflict, "", "%s was made for another order", clipText(quoteRef)).WithHint("ask for a new one, or order without it")
	}
	if err := b.checkPrice(ctx, c, spec.Price.Max); err != nil {
		return crowd.Job{}, err
	}
	b.mu.Lock()
	err = order.Satisfiable(b.candidates())
	open := b.ordering[c.Account.ID] // one by one below the limit, or many at once would pass it
	for _, j := range b.jobs {
		if j.Account == c.Account.ID {
			open++
		}
	}
	closing := b.closing
	ok := err == nil && !closing && open < crowd.Limits.OpenJobs
	if ok {
		b.ordering[c.Account.ID]++
	}
	b.mu.Unlock()
	if ok {
		defer b.ordered(c.Account.ID)
	}
	switch {
	case err != nil:
		return crowd.Job{}, err
	case closing:
		return crowd.Job{}, crowd.Errorf(crowd.Unavailable, crowd.BrokerDrained, "the broker takes no new work now").WithHint("try again later")
	case open >= crowd.Limits.OpenJobs:
		return crowd.Job{}, crowd.Errorf(crowd.Exhausted, crowd.CustomerQuota, "%s has %d jobs open, the most there may be", c.Account.Name, open).
			WithHint("wait for some to end, or cancel some")
	}
	now := b.now()
	row := crowd.Job{
		Account: c.Account.ID, Key: c.Key.ID, Spec: spec, Units: units, State: crowd.JobQueued, Escrow: spec.Price.Max, PerGfuel: perGfuel, Created: now, Version: 1,
	}
	mint(b, &row.ID)
	if row.Deadline, err = deadlineOf(spec.Deadline, now); err != nil {
		return crowd.Job{}, err
	}
	for try := 1; try <= 100; try++ {
		row.Name = b.freeName(c.Account.ID, spec.Name)
		var ops []store.Op
		if ops, err = b.orderOps(ctx, c, row); err != nil {
			return crowd.Job{}, err
		}
		crash.Point("order.before")
		err = b.commit(ctx, ops...)
		if !crowd.KindIs(err, crowd.Conflict) {
			break
		}
		if k, ok := ctx.Value(idemKey{}).(store.PutIdem); ok {
			if _, e := b.st.Idem(ctx, c.Account.ID, k.Key); e == nil {
				break
			}
		}
	}
	if err != nil {
		return crowd.Job{}, b.refusal(ctx, c, spec.Price.Max, err)
	}
	crash.Point("order.after")
	b.mu.Lock()
	j := b.newJob(row)
	j.items, j.bumped = items, now
	b.jobs[j.ID] = j
	b.ring.Add(j.Account, j.ID, 1)
	b.mu.Unlock()
	b.met.jobsTaken.Inc()
	b.rouseAll()
	return row, nil
}

// orderOps are the one transaction of an order.
func (b *Broker) orderOps(ctx context.Context, c Caller, row crowd.Job) ([]store.Op, error) {
	legs, err := ledger.Order(row.ID, row.Account, row.Escrow, row.Created)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("%s: %d units, at most %s", row.Name, row.Units, money(row.Escrow))
	ev := b.event(row.ID.String(), row.Account, "job.queued", "", text, crowd.EventData{Job: row.ID, UCR: row.Escrow})
	ev.Event.Actor = c.Account.ID.String()
	ops := []store.Op{store.Spend{Key: row.Key, Amount: row.Escrow}, store.Post{Postings: legs}, store.AddJob{Job: row}, ev}
	if row.Key.IsZero() {
		ops = ops[1:]
	}
	if k, ok := ctx.Value(idemKey{}).(store.PutIdem); ok {
		answer, err := json.Marshal(row)
		if err == nil {
			k.Account, k.Status, k.Answer, k.At = c.Account.ID, 201, answer, b.now()
			ops = append(ops, k)
		}
	}
	return ops, nil
}

// examine checks what an order says and refers to.
func (b *Broker) examine(ctx context.Context, c Caller, spec *crowd.JobSpec, perGfuel crowd.UCR) (o sched.Order, it *items, units uint64, err error) {
	if err = checkSpec(spec); err != nil {
		return o, nil, 0, err
	}
	units = spec.NumUnits()
	var faults []crowd.Fault
	owned := func(path string, d crowd.Digest) error {
		has, err := b.st.HasBlob(ctx, c.Account.ID, d)
		if err == nil && !has {
			faults = append(faults, crowd.Fault{Path: path, Text: "there is no blob " + d.String() + " of yours", Hint: "upload it first: PUT /v1/blobs/" + d.String()})
		}
		return err
	}
	program, err := crowd.ParseDigest(spec.Program)
	if err != nil {
		return o, nil, 0, invalid([]crowd.Fault{{Path: "program", Text: "wanted the digest of an uploaded program, b3:…"}})
	}
	if err := owned("program", program); err != nil {
		return o, nil, 0, err
	}
	for i, in := range spec.Inputs {
		if err := owned(fmt.Sprintf("inputs[%d]", i), in.Digest); err != nil {
			return o, nil, 0, err
		}
	}
	if !spec.Units.Items.IsZero() {
		if err := owned("units.items", spec.Units.Items); err != nil {
			return o, nil, 0, err
		}
	}
	if len(faults) > 0 {
		return o, nil, 0, invalid(faults)
	}
	if !spec.Units.Items.IsZero() {
		if it, err = b.checkItems(ctx, c, spec); err != nil {
			return o, nil, 0, err
		}
		units = it.count()
		spec.Units.N = units
		if units > crowd.Limits.Units {
			return o, nil, 0, invalid([]crowd.Fault{{Path: "units.items", Text: "it lists too many files"}})
		}
	}
	if _, err := b.checkProgram(ctx, c, program); err != nil {
		return o, nil, 0, err
	}
	b.mu.Lock()
	group := b.groupOf(c.Account.ID)
	b.mu.Unlock()
	return sched.NewOrder(spec, group, perGfuel), it, units, nil
}

// checkItems reads the list of the units' files: each must be clean and the caller's.
func (b *Broker) checkItems(ctx context.Context, c Caller, spec *crowd.JobSpec) (*items, error) {
	it := &items{path: b.blobPath(spec.Units.Items), at: []int64{0}}
	owned := map[crowd.Digest]bool{}
	err := it.scan(func(in crowd.Input) error {
		if !owned[in.Digest] {
			has, err := b.st.HasBlob(ctx, c.Account.ID, in.Digest)
			if err != nil {
				return err
			}
			if !has {
				return crowd.Errorf(crowd.Invalid, crowd.CustomerFile, "units.items: line %d: there is no blob %s of yours", len(it.at), in.Digest)
			}
			owned[in.Digest] = true
		}
		return checkItem(spec, in, len(it.at))
	})
	switch {
	case err != nil:
		return nil, err
	case it.count() == 0:
		return nil, invalid([]crowd.Fault{{Path: "units.items", Text: "it lists no files"}})
	case spec.Units.N != 0 && spec.Units.N != it.count():
		return nil, invalid([]crowd.Fault{{Path: "units.n", Text: fmt.Sprintf("it is %d, but the list has %d files", spec.Units.N, it.count())}})
	}
	return it, nil
}

// checkProgram validates a program once and says what it is.
func (b *Broker) checkProgram(ctx context.Context, c Caller, d crowd.Digest) (crowd.Program, error) {
	if p, err := b.st.Program(ctx, d); err == nil || !crowd.KindIs(err, crowd.NotFound) {
		return p, err
	}
	f, err := b.openFile(d)
	if err != nil {
		return crowd.Program{}, err
	}
	defer f.Close()
	wasm, err := io.ReadAll(io.LimitReader(f, crowd.Limits.ProgramBytes+1))
	if err != nil {
		return crowd.Program{}, crowd.Errorf(crowd.Internal, "", "read program: %w", err)
	}
	if int64(len(wasm)) > crowd.Limits.ProgramBytes {
		return crowd.Program{}, invalid([]crowd.Fault{{Path: "program", Text: fmt.Sprintf("a program has at most %d bytes", crowd.Limits.ProgramBytes)}})
	}
	var p crowd.Program
	if b.cfg.CheckProgram != nil {
		if p, err = b.cfg.CheckProgram(ctx, wasm); err != nil {
			e := crowd.AsError(err)
			if e.Kind != crowd.Invalid || len(e.Faults) > 0 {
				return p, err
			}
			return p, invalid([]crowd.Fault{{Path: "program", Text: e.Message, Hint: e.Hint}})
		}
	}
	p.Digest, p.Account, p.Size, p.Created = d, c.Account.ID, int64(len(wasm)), b.now()
	return p, b.commit(ctx, store.PutProgram{Program: p})
}

// checkPrice refuses an order that isn't paid for; the store makes sure of it again.
func (b *Broker) checkPrice(ctx context.Context, c Caller, most crowd.UCR) error {
	if most <= 0 {
		return invalid([]crowd.Fault{{Path: "price.max", Text: "an order says the most that it may cost", Hint: "price: {max: 10cr}"}})
	}
	free, err := b.st.Balance(ctx, crowd.BalanceBook(c.Account.ID))
	if err != nil {
		return err
	}
	if most > free {
		return noCredit(c, most, free)
	}
	return nil
}

func noCredit(c Caller, most, free crowd.UCR) error {
	short := int64(math.Ceil(float64(most-free)/float64(10*crowd.Credit))) * 10
	if most-free < 10*crowd.Credit {
		short = int64((most - free + crowd.Credit - 1) / crowd.Credit)
	}
	hint := fmt.Sprintf("the broker's operator: crowd account grant %s %dcr", c.Account.Name, short)
	if free >= crowd.Credit {
		hint += fmt.Sprintf(" · or price.max: %dcr", free/crowd.Credit)
	}
	return &crowd.Error{
		Kind: crowd.Exhausted, Status: 402, Reason: crowd.CustomerCredit,
		Message: fmt.Sprintf("not enough credit: this may cost %s, %s has %s free", money(most), c.Account.Name, cents(free)),
		Hint:    hint, Faults: []crowd.Fault{{Path: "price.max_ucr", Text: "above free credit"}},
	}
}

// refusal turns the store's refusal of an order into words for its customer.
func (b *Broker) refusal(ctx context.Context, c Caller, most crowd.UCR, err error) error {
	e := crowd.AsError(err)
	switch e.Reason {
	case crowd.CustomerCredit:
		free, balErr := b.st.Balance(ctx, crowd.BalanceBook(c.Account.ID))
		if balErr != nil {
			return balErr
		}
		return noCredit(c, most, free)
	case crowd.CustomerCap:
		x := *e
		x.Status = 402
		x.Message = fmt.Sprintf("the cap of key %s doesn't cover %s", c.Key.Hint, money(most))
		return &x
	}
	return err
}

// freeName is the wanted name, with -2, -3 … if a living job of the account has it.
func (b *Broker) freeName(a crowd.AccountID, want string) string {
	if want == "" {
		want = "job"
	}
	taken := map[string]bool{}
	b.mu.Lock()
	for _, j := range b.jobs {
		if j.Account == a {
			taken[j.Name] = true
		}
	}
	b.mu.Unlock()
	if !taken[want] {
		return want
	}
	for n := 2; ; n++ {
		suffix := "-" + strconv.Itoa(n)
		if name := want[:min(len(want), crowd.Limits.NameBytes-len(suffix))] + suffix; !taken[name] {
			return name
		}
	}
}

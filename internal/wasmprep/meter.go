package wasmprep

// Meter is the host's side of the fuel contract: pure arithmetic over one run of a prepared module. Not for concurrent
// use; the guest waits inside poll while the host asks it.
//
// The contract. The module counts down the i64 global "crowd_fuel", which starts at 0, and calls crowd.poll, without
// parameters or results, whenever a charge has taken it below 0. The first charge of a run therefore polls before
// anything else happens. In poll the host reads the global; what was spent is what it had put there last minus what is
// there now. It then either traps the guest, or sets the global to what may be spent until the next poll, at least 0. A
// poll that returns with the global still below 0 traps.
//
// What is charged: at every function entry the number of instructions of that function outside all loops, at every loop
// head, each time round, the number of instructions directly in that loop, counted in the code as it was, at least 1,
// all branches together; n/16 for memory.fill, copy and init of n bytes and for table.fill, copy, init and grow of n
// elements; 4096 per page that memory.grow adds. So the sum depends on the module and its input alone: not on the
// engine, the processor or when the host chose to be polled.
//
// With [Meter.Poll] a run whose charges sum up to L passes under Limit L and is stopped under L-1, always at the same
// charge, however Slice is chosen. An engine's own limit on the depth of calls is not part of this: hosts must report
// running out of stack as a failure of the attempt, not as a result.
type Meter struct {
	Limit int64 // what the run may spend, at most 1<<62
	Slice int64 // what it may spend between polls, the host's choice; 0 means all of Limit

	spent   int64
	granted int64
}

// Poll takes the value of the global during a poll, and gives its next value, or false when the guest has spent more
// than Limit and must be trapped.
func (m *Meter) Poll(fuel int64) (refill int64, ok bool) {
	m.spent += m.granted - fuel
	m.granted = fuel
	left := m.Limit - m.spent
	if left < 0 {
		return fuel, false
	}
	if m.Slice > 0 {
		left = min(left, m.Slice)
	}
	m.granted = left
	return left, true
}

// Spent gives the sum of all charges so far; fuel is the value of the global now.
func (m *Meter) Spent(fuel int64) int64 { return m.spent + m.granted - fuel }

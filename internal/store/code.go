package store

import (
	"encoding/json"
	"time"

	"github.com/crowdcloud/crowd"
)

// How values stand in columns; see the first migration.

var chunkStates = []crowd.ChunkState{crowd.ChunkOpen, crowd.ChunkDecided, crowd.ChunkFailed}

var attemptStates = []crowd.AttemptState{crowd.AttemptLeased, crowd.AttemptExpired, crowd.AttemptReported, crowd.AttemptFailed, crowd.AttemptVoid}

// codes maps states to their column values, from to the set of states (bit i: value i) that may move to a state.
func codes[S interface {
	comparable
	May(S) bool
}](states []S) (code, from map[S]int64) {
	code, from = map[S]int64{}, map[S]int64{}
	for i, s := range states {
		code[s] = int64(i)
		for _, to := range states {
			if s.May(to) {
				from[to] |= 1 << i
			}
		}
	}
	return code, from
}

var (
	chunkCode, chunkFrom     = codes(chunkStates)
	attemptCode, attemptFrom = codes(attemptStates)
)

func stateOf[S any](states []S, code int64) (s S) {
	if code >= 0 && code < int64(len(states)) {
		s = states[code]
	}
	return s
}

// nanos and instant convert times; the zero time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// orNull gives NULL for a zero id or digest, or an empty text.
func idOrNull[K crowd.Kind](id crowd.ID[K]) any {
	if id.IsZero() {
		return nil
	}
	return id[:]
}

func digestOrNull(d crowd.Digest) any {
	if d.IsZero() {
		return nil
	}
	return d[:]
}

func textOrNull[T ~string](s T) any {
	if s == "" {
		return nil
	}
	return string(s)
}

func toDigest(b []byte) (d crowd.Digest) {
	copy(d[:], b)
	return d
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// seatOf is what stands for an owner's group on a chunk: the id of the account that the group is named by or, without a group, the owner's; else
// the name, marked so that it is never an id.
func seatOf(owner crowd.AccountID, group string) []byte {
	if group == "" {
		return owner[:]
	}
	if id, err := parseAccount(group); err == nil {
		return id[:]
	}
	return append([]byte("group "), group...)
}

func parseAccount(s string) (id crowd.AccountID, err error) {
	err = id.UnmarshalText([]byte(s))
	return id, err
}

func marshal(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", crowd.Errorf(crowd.Internal, "", "store: encode: %w", err)
	}
	return string(b), nil
}

func unmarshal(s string, v any) error {
	if err := json.Unmarshal([]byte(s), v); err != nil {
		return crowd.Errorf(crowd.Internal, "", "store: a row is not as it was written: %w", err)
	}
	return nil
}

// jobRest is what SetJob replaces, but for the state.
type jobRest struct {
	Reason   crowd.Reason   `json:"reason,omitempty"`
	Escrow   crowd.UCR      `json:"held_ucr"`
	Paid     crowd.UCR      `json:"paid_ucr"`
	Returned crowd.UCR      `json:"returned_ucr"`
	PerGfuel crowd.UCR      `json:"ucr_per_gfuel"`
	Started  time.Time      `json:"started,omitzero"`
	Ended    time.Time      `json:"ended,omitzero"`
	Deadline time.Time      `json:"deadline,omitzero"`
	Version  int64          `json:"version"`
	Progress crowd.Progress `json:"progress"`
}

func restOf(j crowd.Job) jobRest {
	return jobRest{j.Reason, j.Escrow, j.Paid, j.Returned, j.PerGfuel, j.Started, j.Ended, j.Deadline, j.Version, j.Progress}
}

func (r jobRest) into(j *crowd.Job) {
	j.Reason, j.Escrow, j.Paid, j.Returned, j.PerGfuel = r.Reason, r.Escrow, r.Paid, r.Returned, r.PerGfuel
	j.Started, j.Ended, j.Deadline, j.Version, j.Progress = r.Started, r.Ended, r.Deadline, r.Version, r.Progress
}

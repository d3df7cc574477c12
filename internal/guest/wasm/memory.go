package wasm

import (
	"github.com/tetratelabs/wazero/experimental"
)

// memory is the linear memory of one unit: address space for all that it may ever have, of which the system gives pages
// as they are touched. It never moves and is gone when the unit is.
type memory struct {
	space   []byte
	usable  uint64
	limit   uint64
	refused func()      // called when the guest asked for more than its limit
	failed  func(error) // called when the system doesn't give what the guest may have; doesn't return
}

func (m *memory) Allocate(_, most uint64) experimental.LinearMemory {
	space, err := reserve(min(most, m.limit))
	if err != nil {
		m.failed(err)
	}
	m.space = space
	return m
}

// Reallocate makes the first size bytes usable.
func (m *memory) Reallocate(size uint64) []byte {
	if size > m.limit {
		m.refused()
		return nil
	}
	if size > m.usable {
		if err := commit(m.space[:size]); err != nil {
			m.failed(err)
		}
		m.usable = size
	}
	return m.space[:size:size]
}

func (m *memory) Free() {
	if m.space != nil {
		release(m.space)
		m.space, m.usable = nil, 0
	}
}

package link

import (
	"bytes"
	"sync"
)

type buffer = bytes.Buffer

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func getBuffer() *buffer { return buffers.Get().(*buffer) }

// putBuffer gives b back; nothing decoded from it may alias it (encoding/json copies).
func putBuffer(b *buffer) {
	if b.Cap() > keepBuffer {
		return
	}
	b.Reset()
	buffers.Put(b)
}

package edge

import (
	"math/bits"
	"sync"
)

// Buffer is a pooled run of bytes. It belongs to one owner at a time.
type Buffer struct {
	B     []byte // what is filled; its capacity is fixed
	class int
}

// BufferMax is the most data that a Buffer has room for, in bytes.
const BufferMax = 1 << classMax

// Buffers come in classes of 2^k bytes and a 64th more, room for headers:
// TurnMax reads of 4 KiB fit into one of StreamBytes.
const (
	classMin = 12
	classMax = 25
)

var pools [classMax + 1]sync.Pool

// GetBuffer returns an empty buffer with room for n bytes of data, at most
// BufferMax, and at least a 64th of that for the headers around them.
func GetBuffer(n int) *Buffer {
	k := classMin
	if n > 1<<classMin {
		k = bits.Len(uint(n - 1))
	}
	if b, ok := pools[k].Get().(*Buffer); ok {
		return b
	}
	return &Buffer{B: make([]byte, 0, 1<<k+1<<(k-6)), class: k}
}

// Put gives b back. Nobody may use it or its bytes afterwards.
func (b *Buffer) Put() {
	b.B = b.B[:0]
	pools[b.class].Put(b)
}

// Left is how many more bytes fit.
func (b *Buffer) Left() int { return cap(b.B) - len(b.B) }

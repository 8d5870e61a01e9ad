package nbd

import (
	"math/bits"
	"sync"
)

// buffer is a pooled run of bytes that goes to the socket as a whole: one or
// more replies.
type buffer struct {
	b       []byte // what is filled; cap is fixed by the class
	sent    int    // bytes of b that the socket has taken
	replies int    // replies in b
	class   int
}

// Buffers come in classes of 2^k bytes and a 64th more, room for the reply
// headers: TurnMax reads of 4 KiB fit into one of class 18.
const (
	classMin    = 12
	classMax    = 25 // PayloadMax
	classStream = 18 // the buffer replies are gathered in, and the one for input
	classChunk  = 20 // ChunkMax
)

var pools [classMax + 1]sync.Pool

func classSize(k int) int { return 1<<k + 1<<(k-6) }

// getBuffer returns an empty buffer with room for a reply with n bytes of data.
func getBuffer(n int) *buffer {
	k := classMin
	if n > 1<<classMin {
		k = bits.Len(uint(n - 1))
	}
	return getClass(k)
}

func getClass(k int) *buffer {
	if b, ok := pools[k].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 0, classSize(k)), class: k}
}

// put gives b back. Nobody may use it or its bytes afterwards.
func (b *buffer) put() {
	b.b, b.sent, b.replies = b.b[:0], 0, 0
	pools[b.class].Put(b)
}

// room tells whether n more bytes fit.
func (b *buffer) room(n int) bool { return cap(b.b)-len(b.b) >= n }

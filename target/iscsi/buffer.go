package iscsi

import (
	"math/bits"
	"sync"

	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

// buffer is a pooled run of bytes.
type buffer struct {
	b     []byte // what is filled; cap is fixed by the class
	class int
}

// Buffers come in classes of 2^k bytes and a 64th more, room for the headers.
const (
	classMin    = 12
	classMax    = 23 // scsi.TransferMax
	classLogin  = 15 // the input of a login: login.TextMax and what is around it
	classStream = 18 // the buffer responses are gathered in, and the one for input

	// classStreamData leaves room for the headers and digests of one PDU.
	classStreamData = 1 << classStream
)

var pools [classMax + 1]sync.Pool

const _ = uint(1<<classMax - scsi.TransferMax) // the longest transfer fits

func classSize(k int) int { return 1<<k + 1<<(k-6) }

// getBuffer returns a buffer of n bytes, 0 <= n <= scsi.TransferMax.
func getBuffer(n int) *buffer {
	k := classMin
	if n > 1<<classMin {
		k = bits.Len(uint(n - 1))
	}
	b := getClass(k)
	b.b = b.b[:n]
	return b
}

// getClass returns an empty buffer of class k.
func getClass(k int) *buffer {
	if b, ok := pools[k].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 0, classSize(k)), class: k}
}

// put gives b back. Nobody may use it or its bytes afterwards.
func (b *buffer) put() {
	b.b = b.b[:0]
	pools[b.class].Put(b)
}

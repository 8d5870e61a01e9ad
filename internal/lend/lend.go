// Package lend lends large buffers. Extents pass through a node whole, and each would
// be garbage soon after it came: collecting it takes cores from those who wait for a flush, and
// stops everybody until the threads of copies, which have the lowest priority, got a turn too.
package lend

import (
	"math/bits"
	"sync"
)

const (
	// Min and Max bound what is lent, in bytes; what is smaller or larger is made anew.
	Min = 64 << 10
	Max = 4 << 20
	// steps is the number of sizes from one power of two to the next.
	steps = 4
)

// Poison makes what is given back unreadable at once, for tests and simulations: set
// before anything is lent.
var Poison bool

var pools [steps*6 + 1]sync.Pool // Min, 5/4 Min, ... Max

// class is the number of the smallest size that holds n bytes, and that size. n is in [Min, Max].
func class(n int) (i, size int) {
	k := bits.Len(uint(n)) - 1 // of the power of two below
	step := 1 << k / steps
	up := (n - 1<<k + step - 1) / step
	return (k-bits.Len(Min)+1)*steps + up, 1<<k + up*step
}

// Get returns n bytes of any content, which are the caller's.
func Get(n int) []byte {
	if n < Min || n > Max {
		return make([]byte, n)
	}
	i, size := class(n)
	if p, ok := pools[i].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, size)
}

// Copy returns a copy of b that is lent.
func Copy(b []byte) []byte {
	if len(b) < Min || len(b) > Max {
		return append([]byte(nil), b...)
	}
	c := Get(len(b))
	copy(c, b)
	return c
}

// Put gives back what Get returned, from its first byte on; nobody may read it or write it any
// more. It need not be given back, and what was not lent may be: it is left
// to the collector.
func Put(b []byte) {
	size := cap(b)
	if size < Min || size > Max {
		return
	}
	i, exact := class(size)
	if exact != size {
		return
	}
	b = b[:size]
	if Poison {
		for i := range b {
			b[i] = 0xdb
		}
	}
	pools[i].Put(&b)
}

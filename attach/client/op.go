package client

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// op is one request from its submission until nobody needs it any more.
//
// refs counts who does: the engine, from submission until the request is
// answered (a change: until it is no longer kept), and a sender while it writes
// it to a socket. All other fields belong to Engine.mu, but for data, which is
// read by the sender and written by the receiver that own the op then.
type op struct {
	cmd   proto.Command
	flags uint16
	off   int64
	n     int
	buf   *buffer // data of a write or a read
	done  func(error)
	since time.Time // when it was submitted
	sent  time.Time // when it was last given to a sender

	refs     atomic.Int32
	cookie   uint64
	answered uint64 // a change: the number of its answer; 0: none yet
	mark     uint64 // a flush: it covers answers up to this number
	over     bool   // done was called
}

// changes tells whether o changes contents.
func (o *op) changes() bool { return o.cmd != proto.CmdRead && o.cmd != proto.CmdFlush }

func (o *op) overlaps(x *op) bool {
	return o.off < x.off+int64(x.n) && x.off < o.off+int64(o.n)
}

// size is what o holds in memory, in bytes, roughly.
func (o *op) size() int64 {
	if o.buf != nil {
		return opSize + int64(cap(o.buf.b))
	}
	return opSize
}

const opSize = 256

var ops = sync.Pool{New: func() any { return new(op) }}

func newOp(cmd proto.Command, flags uint16, off int64, n int, done func(error)) *op {
	o := ops.Get().(*op)
	*o = op{cmd: cmd, flags: flags, off: off, n: n, done: done, since: time.Now()}
	o.refs.Store(1)
	return o
}

// release gives up one reference.
func (o *op) release() {
	if o.refs.Add(-1) > 0 {
		return
	}
	if o.buf != nil {
		o.buf.put()
	}
	o.buf, o.done = nil, nil
	ops.Put(o)
}

// buffer is a pooled piece of memory of 2^class bytes.
type buffer struct {
	b     []byte
	class int
}

const classMin, classMax = 9, 22 // 512 bytes to writeMax

var buffers [classMax + 1]sync.Pool

// getBuffer returns a buffer of n bytes, at most writeMax.
func getBuffer(n int) *buffer {
	k := max(classMin, bits.Len(uint(n-1)))
	b, ok := buffers[k].Get().(*buffer)
	if !ok {
		b = &buffer{b: make([]byte, 1<<k), class: k}
	}
	b.b = b.b[:n]
	return b
}

func (b *buffer) put() { buffers[b.class].Put(b) }

package nbd

import (
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// request is one command between decoding and completion. Requests belong to
// their connection and are used again, with their callbacks already bound, so
// that a command allocates nothing.
type request struct {
	c      *conn
	cmd    proto.Command
	cookie uint64
	off    int64 // bytes
	n      int   // bytes
	held   int64 // what it counts in conn.held until it is answered
	df     bool  // DF or REQ_ONE: one piece
	start  time.Time
	buf    *edge.Buffer // the reply of a READ or BLOCK_STATUS
	picked []uint32
	// salvaged says that buf is the answer to a READ although it failed.
	salvaged bool

	// left counts the device operations that are under way for this command,
	// and the reader itself while it may still begin more.
	left atomic.Int32
	err  error // the first one; guarded by c's lock until left is 0

	done   func(error) // part, bound
	read   func()      // readAt, bound
	status func()      // describe, bound
	cache  func()      // warm, bound
}

func newRequest(c *conn) *request {
	q := &request{c: c}
	q.done, q.read, q.status, q.cache = q.part, q.readAt, q.describe, q.warm
	return q
}

// part is the completion of one device operation. It runs on any goroutine and
// never blocks.
func (q *request) part(err error) {
	if err != nil {
		q.c.Lock()
		if q.err == nil {
			q.err = err
		}
		q.c.Unlock()
	}
	switch left := q.left.Add(-1); {
	case left > 0:
		return
	case left < 0:
		panic("nbd: a device completed one operation twice")
	}
	q.c.finish(q)
}

// readAt is a READ that has to wait, on a goroutine of its own.
func (q *request) readAt() {
	c, head := q.c, q.c.style.ReadSize()
	q.buf = edge.GetBuffer(q.n)
	q.buf.B = q.buf.B[:head+q.n]
	err := c.sess.ReadAt(c.Context(), q.buf.B[head:], q.off)
	switch {
	case err == nil:
		n := c.pack(q.buf.B, q.cookie, q.off, q.df)
		q.buf.B = q.buf.B[:n]
	case c.style != proto.Simple && fault.Is(err, fault.Corrupt) && !mutant.On("vague-error"):
		q.salvage(err)
	}
	q.part(err)
}

// salvageStep is the length of the pieces in which a damaged range is read
// again, in bytes.
const salvageStep = 64 << 10

// salvage looks for the first damaged block of a READ that failed with err, and
// makes the answer of what stands before it and an error that names it, so that
// a client that copies a device loses one block and not 32 MiB.
func (q *request) salvage(err error) {
	c, head, good := q.c, q.c.style.ReadSize(), 0
	block := c.sess.BlockSize()
	for step := salvageStep; good < q.n; {
		n := min(step, q.n-good)
		switch {
		case c.sess.ReadAt(c.Context(), q.buf.B[head+good:head+good+n], q.off+int64(good)) == nil:
			good += n
		case n > block:
			step = block
		default:
			b := q.buf.B[:0]
			if good > 0 {
				c.style.PutReadHeader(q.buf.B, q.cookie, uint64(q.off), uint64(q.off), good, false)
				b = q.buf.B[:head+good]
			}
			if cap(b)-len(b) < proto.ErrorSizeMax {
				return
			}
			q.buf.B = c.style.AppendErrorOffset(b, proto.ErrnoOf(err), q.cookie, uint64(q.off), err.Error(), uint64(q.off)+uint64(good))
			q.salvaged = true
			return
		}
	}
}

// finish answers a command whose operations are all over.
func (c *conn) finish(q *request) {
	if f := c.srv.cfg.Observe; f != nil {
		f(q.cmd.String(), q.n, time.Since(q.start), q.err)
	}
	if q.err != nil {
		c.log.Debug("command failed", "cmd", q.cmd.String(), "offset_bytes", q.off,
			"length_bytes", q.n, "error", q.err)
	}
	answered := q.buf != nil && (q.err == nil || q.salvaged)
	c.Lock()
	c.held.Add(-q.held)
	switch {
	case c.Dead():
	case answered:
		c.appendReply(q)
	case q.err != nil:
		c.appendError(q)
	default:
		c.appendDone(q)
	}
	if q.buf != nil {
		q.buf.Put()
		q.buf = nil
	}
	q.err, q.salvaged = nil, false
	c.idle = append(c.idle, q)
	c.async--
	c.UnlockAndSend(c.async == 0)
}

// appendReply appends a reply that stands in the request's own buffer, under
// the lock. A long one goes out from there, a short one is copied so that several go
// out together.
func (c *conn) appendReply(q *request) {
	n := len(q.buf.B)
	c.held.Add(int64(n))
	if n <= copyMax {
		copy(c.Room(n), q.buf.B)
	} else {
		c.Refer(q.buf.B, q.buf, 0)
		q.buf = nil
	}
	c.End()
}

// copyMax is the longest reply that is copied to the gathered ones, in bytes.
const copyMax = 64<<10 + proto.ExtendedChunkSize + 8

// appendDone appends a reply without data, under the lock.
func (c *conn) appendDone(q *request) {
	n := c.style.DoneSize()
	c.held.Add(int64(n))
	c.style.PutDone(c.Room(n), q.cookie, uint64(q.off))
	c.End()
}

// appendError appends a reply that tells of q.err, under the lock.
func (c *conn) appendError(q *request) {
	e := proto.ErrnoOf(q.err)
	if c.over() {
		e = proto.ESHUTDOWN // whatever else it says: the client may have it done elsewhere
	}
	b := c.style.AppendReplyError(nil, e, q.cookie, uint64(q.off), q.err.Error())
	c.held.Add(int64(len(b)))
	copy(c.Room(len(b)), b)
	c.End()
}

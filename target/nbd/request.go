package nbd

import (
	"sync/atomic"
	"time"

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
	start  time.Time
	buf    *buffer // of a READ: where data go, behind room for the header

	// left counts the device operations that are under way for this command,
	// and the reader itself while it may still begin more.
	left atomic.Int32
	err  error // the first one; guarded by c.mu until left is 0

	done func(error) // part, bound
	read func()      // readAt, bound
}

func newRequest(c *conn) *request {
	q := &request{c: c}
	q.done, q.read = q.part, q.readAt
	return q
}

// part is the completion of one device operation. It runs on any goroutine and
// never blocks.
func (q *request) part(err error) {
	if err != nil {
		q.c.mu.Lock()
		if q.err == nil {
			q.err = err
		}
		q.c.mu.Unlock()
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
	q.buf = getBuffer(q.n)
	q.buf.b = q.buf.b[:proto.SimpleReplySize+q.n]
	q.part(q.c.sess.ReadAt(q.c.ctx, q.buf.b[proto.SimpleReplySize:], q.off))
}

// finish answers a command whose operations are all over.
func (c *conn) finish(q *request) {
	if f := c.srv.cfg.Observe; f != nil {
		f(q.cmd.String(), q.n, time.Since(q.start), q.err)
	}
	e := proto.ErrnoOf(q.err)
	if q.err != nil && c.over() {
		e = proto.ESHUTDOWN // whatever else it says: the client may have it done elsewhere
	}
	if q.err != nil {
		c.log.Debug("command failed", "cmd", q.cmd.String(), "offset_bytes", q.off,
			"length_bytes", q.n, "error", q.err)
	}
	c.mu.Lock()
	if q.cmd == proto.CmdRead && e == proto.OK && !c.dead {
		c.appendRead(q)
	} else {
		c.held.Add(-reserved(q.cmd, q.n))
		if !c.dead {
			c.appendAnswer(e, q.cookie)
		}
	}
	if q.buf != nil {
		q.buf.put()
		q.buf = nil
	}
	q.err = nil
	c.idle = append(c.idle, q)
	c.async--
	flush := c.nudge()
	c.mu.Unlock()
	if flush {
		c.flush()
	}
}

// reserved is what a command counts in conn.held between its admission and its
// reply, in bytes: the wire bytes of a read's reply, the data of a write.
func reserved(cmd proto.Command, n int) int64 {
	switch cmd {
	case proto.CmdRead:
		return proto.SimpleReplySize + int64(n)
	case proto.CmdWrite:
		return int64(n)
	}
	return 0
}

// appendRead appends the reply of a READ, under mu. A long one takes the
// read's own buffer, a short one is copied so that several go out together.
func (c *conn) appendRead(q *request) {
	proto.PutSimpleReply(q.buf.b, proto.OK, q.cookie)
	if len(q.buf.b) <= copyMax {
		t := c.tailWithRoom(len(q.buf.b))
		t.b = append(t.b, q.buf.b...)
		t.replies++
		return
	}
	c.cutTail()
	q.buf.replies = 1
	c.queue = append(c.queue, q.buf)
	q.buf = nil
}

// copyMax is the longest reply that is copied to the gathered ones, in bytes.
const copyMax = 64<<10 + proto.SimpleReplySize

// appendAnswer appends a reply without data, under mu.
func (c *conn) appendAnswer(e proto.Errno, cookie uint64) {
	c.held.Add(proto.SimpleReplySize)
	c.tailWithRoom(proto.SimpleReplySize).answer(e, cookie)
}

// tailWithRoom returns the buffer that replies are gathered in, with room for n
// bytes, under mu.
func (c *conn) tailWithRoom(n int) *buffer {
	if c.tail != nil && !c.tail.room(n) {
		c.cutTail()
	}
	if c.tail == nil {
		c.tail = getClass(classStream)
	}
	return c.tail
}

// cutTail ends the gathering buffer, under mu: what comes next goes behind it.
func (c *conn) cutTail() {
	if c.tail != nil {
		c.queue = append(c.queue, c.tail)
		c.tail = nil
	}
}

package nbd

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// Sending. Whoever sets flushing under mu owns the socket's write side and
// conn.sending, until it finds nothing more to send, or hands both to the
// writer goroutine because the socket is full. The reader and completions only
// ever try to write; the writer alone waits.

// nudge decides, under mu, what is to be done about replies just appended, and
// reports whether the caller must call flush after unlocking.
//
// With nothing else under way the reply goes out here and now: that is the
// shortest way for a shallow queue. Otherwise completions tend to come in
// bursts, and the writer is woken once for all of them.
func (c *conn) nudge() bool {
	if c.waiting > 0 {
		c.cond.Broadcast()
	}
	if c.hold || c.flushing {
		return false // the reader, or who flushes, comes to it
	}
	if c.async == 0 || c.dead || (c.tail != nil && c.tail.replies >= TurnMax) {
		return c.take()
	}
	c.callWriter()
	return false
}

// callWriter wakes the writer, under mu.
func (c *conn) callWriter() {
	if !c.called {
		c.called = true
		c.wake <- struct{}{} // room for one, and called says that it is empty
	}
}

// take moves everything queued to sending, under mu, and reports whether there
// is something; the caller then owns flushing.
func (c *conn) take() bool {
	c.cutTail()
	c.flushing = len(c.queue) > 0
	c.sending, c.queue = c.queue, c.sending[:0]
	return c.flushing
}

// flush sends until there is nothing left, or leaves the rest to the writer.
// The caller owns flushing. It never blocks.
func (c *conn) flush() {
	for {
		full := c.try()
		c.mu.Lock()
		if full {
			c.handed = true
			c.callWriter()
			c.mu.Unlock()
			return
		}
		more := c.next()
		c.mu.Unlock()
		if !more {
			return
		}
	}
}

// next takes up what was queued meanwhile, under mu, and reports whether there
// is something. If not, flushing ends.
func (c *conn) next() bool {
	c.shrink()
	if c.waiting > 0 {
		c.cond.Broadcast()
	}
	return c.take()
}

// try writes sending as far as the socket takes it and reports whether it is full.
func (c *conn) try() (full bool) {
	for i, b := range c.sending {
		for b.sent < len(b.b) {
			n, err := c.tryWrite(b.b[b.sent:])
			b.sent += n
			if err != nil {
				c.kill(err)
				c.drop(i)
				return false
			}
			if n == 0 {
				c.sending = append(c.sending[:0], c.sending[i:]...)
				return true
			}
		}
		c.account(b)
	}
	c.sending = c.sending[:0]
	return false
}

// account is called when b is sent or never will be.
func (c *conn) account(b *buffer) {
	c.held.Add(-int64(len(b.b)))
	c.pending.Add(-int32(b.replies))
	b.put()
}

// drop forgets sending[i:].
func (c *conn) drop(i int) {
	for _, b := range c.sending[i:] {
		c.account(b)
	}
	c.sending = c.sending[:0]
}

// tryWrite writes what the socket takes without waiting: 0 when it is full, or
// when it cannot be written to in this way.
func (c *conn) tryWrite(p []byte) (int, error) {
	if c.raw == nil {
		return 0, nil
	}
	c.rawData, c.rawN, c.rawErr = p, 0, nil
	err := c.raw.Write(c.rawWrite)
	c.rawData = nil
	if err == nil {
		err = c.rawErr
	}
	return c.rawN, err
}

// writeFD is one attempt; true tells the poller not to wait for another.
func (c *conn) writeFD(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), c.rawData)
		switch err {
		case nil:
			c.rawN = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			c.rawErr = err
		}
		return true
	}
}

// writer waits where nobody else may. It ends when ended is closed.
func (c *conn) writer() {
	defer c.wg.Done()
	for {
		select {
		case <-c.wake:
		case <-c.ended:
			return
		}
		c.mu.Lock()
		c.called = false
		mine := c.handed
		c.handed = false
		if !mine && !c.flushing {
			mine = c.take()
		}
		c.mu.Unlock()
		for mine {
			if c.try() {
				c.await()
			}
			c.mu.Lock()
			if len(c.sending) == 0 {
				mine = c.next()
			}
			c.mu.Unlock()
		}
	}
}

// await writes the first buffer of sending, waiting for the client as long as
// StallTimeout.
func (c *conn) await() {
	b := c.sending[0]
	c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.StallTimeout))
	n, err := c.nc.Write(b.b[b.sent:])
	b.sent += n
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fault.Newf(fault.Timeout, "nbd.reply", c.peer,
				"the client took no reply for %v", c.srv.cfg.StallTimeout)
		}
		c.kill(err)
		c.drop(0)
		return
	}
	c.nc.SetWriteDeadline(time.Time{})
}

// shrink gives back what this connection took from the shared budget and no
// longer needs, under mu. Some is kept so that a busy connection does not come
// back for every request.
func (c *conn) shrink() {
	if c.granted == 0 {
		return
	}
	need := max(0, c.held.Load()-BytesFree)
	if need > 0 {
		need += grantStep
	}
	if excess := c.granted - need; excess > 0 && (need == 0 || excess >= 4*grantStep) {
		c.granted -= excess
		c.srv.budget.release(excess)
	}
}

// grantStep is the unit of taking from the shared budget, in bytes.
const grantStep = 1 << 20

// push queues the reader's own replies, under mu. Few gathered replies are
// copied behind them to spare a system call.
func (c *conn) push() {
	b := c.mine
	if b == nil {
		return
	}
	c.mine = nil
	if t := c.tail; t != nil && len(t.b) <= 4<<10 && b.room(len(t.b)) {
		b.b = append(b.b, t.b...)
		b.replies += t.replies
		c.tail = nil
		t.put()
	}
	c.cutTail()
	c.queue = append(c.queue, b)
}

// mineWithRoom returns the reader's own reply buffer with room for n bytes, at
// most a whole one's. Only the reader calls it, without mu.
func (c *conn) mineWithRoom(n int) *buffer {
	if c.mine != nil && !c.mine.room(n) {
		c.turnOver()
	}
	if c.mine == nil {
		c.mine = getClass(classStream)
	}
	return c.mine
}

// refuse answers a request that is not executed. Only the reader calls it.
func (c *conn) refuse(e proto.Errno, r proto.Request, why string) {
	b := c.mineWithRoom(proto.ErrorSizeMax)
	at := len(b.b)
	b.b = c.style.AppendReplyError(b.b, e, r.Cookie, r.Offset, why)
	c.held.Add(int64(len(b.b) - at))
	b.replies++
}

package iscsi

import (
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Sending. Whoever sets flushing under mu owns the socket's write side and
// conn.sending, until it finds nothing more to send, or hands both to the
// writer goroutine because the socket is full. The reader and completions only
// ever try to write; the writer alone waits.

// chunk is a run of output.
type chunk struct {
	p    []byte
	buf  *buffer // given back when p is sent; nil if it has further chunks
	held int     // bytes to release then
	pdus int     // PDUs that end in it
}

// iovMax is how many chunks go into one system call.
const iovMax = 64

// output is what a connection has to send. Guarded by conn.mu, except for the
// second part, which belongs to whoever set flushing.
type output struct {
	tail     *buffer // gathers headers and short data
	from     int     // what of tail is not in queue yet begins here
	tailPDUs int
	queue    []chunk
	bytes    int // not sent yet, as far as queued or being sent
	pdus     int

	flushing bool // somebody owns what follows
	handed   bool // it is the writer, once it wakes
	called   bool // a wake is on its way
	sending  []chunk
	done     sent
	iov      [iovMax]syscall.Iovec
	rawN     int
	rawErr   error
}

// sent sums up what was sent since it was last accounted for.
type sent struct{ bytes, held, pdus int }

// room returns n bytes at the end of the output, under mu; n is at most what a
// gathering buffer holds.
func (c *conn) room(n int) []byte {
	o := &c.out
	if o.tail != nil && cap(o.tail.b)-len(o.tail.b) < n {
		c.retire()
	}
	if o.tail == nil {
		o.tail, o.from = getClass(classStream), 0
	}
	at := len(o.tail.b)
	o.tail.b = o.tail.b[:at+n]
	o.bytes += n
	return o.tail.b[at : at+n : at+n]
}

// cut moves the end of the gathering buffer to the queue, under mu.
func (c *conn) cut() {
	o := &c.out
	if o.tail == nil || len(o.tail.b) == o.from {
		return
	}
	o.queue = append(o.queue, chunk{p: o.tail.b[o.from:], pdus: o.tailPDUs})
	o.from, o.tailPDUs = len(o.tail.b), 0
}

// retire ends the use of the gathering buffer, under mu.
func (c *conn) retire() {
	o := &c.out
	if o.tail == nil {
		return
	}
	o.queue = append(o.queue, chunk{p: o.tail.b[o.from:], buf: o.tail, pdus: o.tailPDUs})
	o.tail, o.tailPDUs = nil, 0
}

// appendRef queues p without copying, under mu. buf and held as in chunk.
func (c *conn) appendRef(p []byte, buf *buffer, held int) {
	c.cut()
	c.out.queue = append(c.out.queue, chunk{p: p, buf: buf, held: held})
	c.out.bytes += len(p)
}

// endPDU notes that a PDU is complete, under mu.
func (c *conn) endPDU() {
	o := &c.out
	o.pdus++
	if n := len(o.queue); n > 0 && (o.tail == nil || len(o.tail.b) == o.from) {
		o.queue[n-1].pdus++
		return
	}
	o.tailPDUs++
}

// nudge decides, under mu, what is to be done about responses just appended,
// and reports whether the caller must call flush after unlocking.
//
// With nothing else under way the response goes out here and now: that is the
// shortest way for a shallow queue. Otherwise completions tend to come in
// bursts, and the writer is woken once for all of them.
func (c *conn) nudge() bool {
	if c.waiting > 0 {
		c.cond.Broadcast()
	}
	if c.hold || c.out.flushing {
		return false // the reader, or who flushes, comes to it
	}
	if c.executing == 0 || c.dead || c.out.pdus >= TurnMax {
		return c.take()
	}
	c.callWriter()
	return false
}

// callWriter wakes the writer, under mu.
func (c *conn) callWriter() {
	if !c.out.called {
		c.out.called = true
		c.wake <- struct{}{} // room for one, and called says that it is empty
	}
}

// take moves everything queued to sending, under mu, and reports whether there
// is something; the caller then owns flushing.
func (c *conn) take() bool {
	c.retire()
	o := &c.out
	o.flushing = len(o.queue) > 0
	o.sending, o.queue = o.queue, o.sending[:0]
	return o.flushing
}

// flush sends until there is nothing left, or leaves the rest to the writer.
// The caller owns flushing. It never blocks.
func (c *conn) flush() {
	for {
		full := c.try()
		c.mu.Lock()
		if full {
			c.account()
			c.out.handed = true
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
	c.account()
	return c.take()
}

// account takes note of what was sent, under mu.
func (c *conn) account() {
	o := &c.out
	o.bytes -= o.done.bytes
	o.pdus -= o.done.pdus
	c.release(o.done.held)
	o.done = sent{}
	if c.waiting > 0 {
		c.cond.Broadcast()
	}
}

// try writes sending as far as the socket takes it and reports whether it is full.
func (c *conn) try() (full bool) {
	for {
		c.advance(0) // chunks without bytes
		if len(c.out.sending) == 0 {
			return false
		}
		n, err := c.tryWrite()
		if err != nil {
			c.kill(err)
			c.drop()
			return false
		}
		if n == 0 {
			return true
		}
		c.advance(n)
	}
}

// advance takes n sent bytes off sending.
func (c *conn) advance(n int) {
	o := &c.out
	o.done.bytes += n
	i := 0
	for ; i < len(o.sending); i++ {
		k := &o.sending[i]
		if n < len(k.p) {
			k.p = k.p[n:]
			break
		}
		n -= len(k.p)
		c.spent(k)
	}
	rest := copy(o.sending, o.sending[i:])
	clear(o.sending[rest:])
	o.sending = o.sending[:rest]
}

// spent is called when k is sent or never will be.
func (c *conn) spent(k *chunk) {
	c.out.done.pdus += k.pdus
	c.out.done.held += k.held
	if k.buf != nil {
		k.buf.put()
	}
}

// drop forgets sending.
func (c *conn) drop() {
	o := &c.out
	for i := range o.sending {
		o.done.bytes += len(o.sending[i].p)
		c.spent(&o.sending[i])
	}
	clear(o.sending)
	o.sending = o.sending[:0]
}

// tryWrite writes what the socket takes without waiting: 0 when it is full, or
// when it cannot be written to in this way.
func (c *conn) tryWrite() (int, error) {
	if c.raw == nil {
		return 0, nil
	}
	c.out.rawN, c.out.rawErr = 0, nil
	err := c.raw.Write(c.rawWrite)
	if err == nil {
		err = c.out.rawErr
	}
	return c.out.rawN, err
}

// writeFD is one attempt; true tells the poller not to wait for another.
func (c *conn) writeFD(fd uintptr) bool {
	o := &c.out
	n := 0
	for i := range o.sending {
		if p := o.sending[i].p; len(p) > 0 {
			o.iov[n].Base = unsafe.SliceData(p)
			o.iov[n].SetLen(len(p))
			if n++; n == iovMax {
				break
			}
		}
	}
	defer clear(o.iov[:n])
	for {
		w, _, errno := syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&o.iov[0])), uintptr(n))
		switch errno {
		case 0:
			o.rawN = int(w)
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			o.rawErr = errno
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
		o := &c.out
		o.called = false
		mine := o.handed
		o.handed = false
		if !mine && !o.flushing {
			mine = c.take()
		}
		c.mu.Unlock()
		for mine {
			if c.try() {
				c.await()
			}
			c.mu.Lock()
			c.account()
			if len(o.sending) == 0 {
				mine = c.take()
			}
			c.mu.Unlock()
		}
	}
}

// await writes the first chunk of sending, waiting for the client as long as
// StallTimeout.
func (c *conn) await() {
	p := c.out.sending[0].p
	c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.StallTimeout))
	n, err := c.nc.Write(p)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fault.Newf(fault.Timeout, "iscsi.response", c.peer,
				"the initiator took no response for %v", c.srv.cfg.StallTimeout)
		}
		c.kill(err)
		c.drop()
		return
	}
	c.advance(n)
	c.nc.SetWriteDeadline(time.Time{})
}

package nbd

import (
	"time"

	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// execute carries out or refuses r, whose header is consumed and whose payload,
// if it has one, is still in the input. An error ends the connection.
func (c *conn) execute(r proto.Request) error {
	e, why := c.check(r)
	if e != proto.OK {
		return c.reject(r, e, why)
	}
	off, n := int64(r.Offset), int64(r.Length)
	fua := r.Flags&proto.FlagFUA != 0 && !mutant.On("lose-fua")
	if r.Cmd == proto.CmdRead && c.readNow(r) {
		return nil
	}
	if r.Cmd == proto.CmdBlockStatus {
		return c.blockStatus(r)
	}
	q := c.begin(r)
	switch r.Cmd {
	case proto.CmdRead:
		go q.read()
	case proto.CmdCache:
		go q.cache()
	case proto.CmdWrite:
		return c.write(q, fua)
	case proto.CmdFlush:
		c.dirty = true
		c.sess.Flush(q.done)
	case proto.CmdTrim:
		c.dirty = true
		c.sess.Trim(off, n, fua, q.done)
	case proto.CmdWriteZeroes:
		// NO_HOLE asks for space to be set aside. There is none to set aside in
		// a log-structured volume: a later write takes new space in any case.
		c.dirty = true
		c.sess.Zero(off, n, fua, q.done)
	}
	return nil
}

// check decides about r, with the size that the device has now.
func (c *conn) check(r proto.Request) (proto.Errno, string) {
	e, why := r.Check(c.geo)
	if e != proto.OK {
		if g := c.geometry(); g != c.geo { // it grew
			c.geo = g
			return r.Check(g)
		}
	}
	return e, why
}

// reject answers r with e and skips its payload.
func (c *conn) reject(r proto.Request, e proto.Errno, why string) error {
	c.held.Add(-c.reserved(r))
	if err := c.Skip(int(r.Payload(c.style))); err != nil {
		return c.srv.conns.EndOfInput(err, false)
	}
	c.refuse(e, r, why)
	return nil
}

// readNow answers a READ here if the device has the bytes at hand.
func (c *conn) readNow(r proto.Request) bool {
	n := int(r.Length)
	if n > InlineMax {
		return false // it would hold up what comes behind it
	}
	var start time.Time
	observe := c.srv.cfg.Observe
	if observe != nil {
		start = time.Now()
	}
	head := c.style.ReadSize()
	b := c.Own(head + n)
	at := len(b.B)
	p := b.B[at : at+head+n]
	if !c.sess.TryReadAt(p[head:], int64(r.Offset)) {
		return false
	}
	k := c.pack(p, r.Cookie, int64(r.Offset), r.Flags&proto.FlagDF != 0)
	if k != len(p) {
		c.held.Add(int64(k - len(p)))
	}
	b.B = b.B[:at+k]
	c.EndOwn()
	if observe != nil {
		observe(proto.CmdRead.String(), n, time.Since(start), nil)
	}
	return true
}

// begin takes a request from those at rest.
func (c *conn) begin(r proto.Request) *request {
	c.Lock()
	if len(c.free) == 0 {
		c.free, c.idle = c.idle, c.free
	}
	c.async++
	c.Unlock()
	var q *request
	if n := len(c.free); n > 0 {
		q, c.free = c.free[n-1], c.free[:n-1]
	} else {
		q = newRequest(c)
		c.made++
	}
	q.cmd, q.cookie, q.off, q.n = r.Cmd, r.Cookie, int64(r.Offset), int(r.Length)
	q.held, q.df = c.reserved(r), r.Flags&(proto.FlagDF|proto.FlagReqOne) != 0
	q.left.Store(1)
	if c.srv.cfg.Observe != nil {
		q.start = time.Now()
	}
	return q
}

// write hands a WRITE to the device: from the input buffer if it fits there,
// otherwise in pieces of ChunkMax as they arrive.
func (c *conn) write(q *request, fua bool) error {
	if q.n <= InlineMax {
		if err := c.fill(q.n, false); err != nil {
			q.part(err)
			return err
		}
		p := c.Next(q.n)
		c.dirty = true
		c.sess.Write(p, q.off, fua, q.done)
		return nil
	}
	b := edge.GetBuffer(ChunkMax)
	defer b.Put()
	for at := 0; at < q.n; {
		p := b.B[:min(ChunkMax, q.n-at)]
		if err := c.ReadFull(p); err != nil {
			err = c.srv.conns.EndOfInput(err, false)
			q.part(err)
			return err
		}
		q.left.Add(1)
		c.dirty = true
		c.sess.Write(p, q.off+int64(at), fua, q.done)
		at += len(p)
	}
	q.part(nil)
	return nil
}

// refuse answers a request that is not executed. Only the reader calls it.
func (c *conn) refuse(e proto.Errno, r proto.Request, why string) {
	b := c.Own(proto.ErrorSizeMax)
	at := len(b.B)
	b.B = c.style.AppendReplyError(b.B, e, r.Cookie, r.Offset, why)
	c.held.Add(int64(len(b.B) - at))
	c.EndOwn()
}

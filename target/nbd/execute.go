package nbd

import (
	"time"

	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// execute carries out or refuses r, whose header is consumed and whose data, if
// it is a WRITE, are still in the input. An error ends the connection.
func (c *conn) execute(r proto.Request) error {
	e := r.Check(c.geo)
	if e != proto.OK {
		if g := geometry(c.sess); g != c.geo { // it grew
			c.geo = g
			e = r.Check(g)
		}
	}
	if e != proto.OK {
		return c.reject(r, e)
	}
	off, n := int64(r.Offset), int(r.Length)
	fua := r.Flags&proto.FlagFUA != 0
	if r.Cmd == proto.CmdRead && c.readNow(r.Cookie, off, n) {
		return nil
	}
	q := c.begin(r)
	switch r.Cmd {
	case proto.CmdRead:
		go q.read()
	case proto.CmdWrite:
		return c.write(q, fua)
	case proto.CmdFlush:
		c.dirty = true
		c.sess.Flush(q.done)
	case proto.CmdTrim:
		c.dirty = true
		c.sess.Trim(off, int64(n), fua, q.done)
	case proto.CmdWriteZeroes:
		// NO_HOLE asks for space to be set aside. There is none to set aside in
		// a log-structured volume: a later write takes new space in any case.
		c.dirty = true
		c.sess.Zero(off, int64(n), fua, q.done)
	}
	return nil
}

// reject answers r with e and skips its data.
func (c *conn) reject(r proto.Request, e proto.Errno) error {
	if r.Length <= proto.PayloadMax {
		c.held.Add(-reserved(r.Cmd, int(r.Length)))
	}
	if r.Cmd == proto.CmdWrite {
		for n := int(r.Length); n > 0; {
			if err := c.fill(1); err != nil {
				return err
			}
			k := min(n, c.w-c.r)
			c.r += k
			n -= k
		}
	}
	c.refuse(e, r.Cookie)
	return nil
}

// readNow answers a READ here if the device has the bytes at hand.
func (c *conn) readNow(cookie uint64, off int64, n int) bool {
	if n > InlineMax {
		return false // it would hold up what comes behind it
	}
	var start time.Time
	observe := c.srv.cfg.Observe
	if observe != nil {
		start = time.Now()
	}
	b := c.mineWithRoom(proto.SimpleReplySize + n)
	at := len(b.b)
	p := b.b[at : at+proto.SimpleReplySize+n]
	if !c.sess.TryReadAt(p[proto.SimpleReplySize:], off) {
		return false
	}
	proto.PutSimpleReply(p, proto.OK, cookie)
	b.b = b.b[:at+len(p)]
	b.replies++
	if observe != nil {
		observe(proto.CmdRead.String(), n, time.Since(start), nil)
	}
	return true
}

// begin takes a request from those at rest.
func (c *conn) begin(r proto.Request) *request {
	c.mu.Lock()
	if len(c.free) == 0 {
		c.free, c.idle = c.idle, c.free
	}
	c.async++
	c.mu.Unlock()
	var q *request
	if n := len(c.free); n > 0 {
		q, c.free = c.free[n-1], c.free[:n-1]
	} else {
		q = newRequest(c)
		c.made++
	}
	q.cmd, q.cookie, q.off, q.n = r.Cmd, r.Cookie, int64(r.Offset), int(r.Length)
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
		if err := c.fill(q.n); err != nil {
			q.part(err)
			return err
		}
		p := c.in.b[c.r : c.r+q.n]
		c.r += q.n
		c.dirty = true
		c.sess.Write(p, q.off, fua, q.done)
		return nil
	}
	b := getClass(classChunk)
	defer b.put()
	for at := 0; at < q.n; {
		p := b.b[:min(ChunkMax, q.n-at)]
		if err := c.readFull(p); err != nil {
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

// readFull fills p, first from what is buffered, then past the buffer.
func (c *conn) readFull(p []byte) error {
	n := copy(p, c.in.b[c.r:c.w])
	c.r += n
	if n == len(p) {
		return nil
	}
	c.pause()
	for n < len(p) {
		k, err := c.nc.Read(p[n:])
		n += k
		if err != nil && n < len(p) {
			return c.readError(err, false)
		}
	}
	c.resume()
	return nil
}

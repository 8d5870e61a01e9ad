package scsi

import (
	"bytes"
	"sync"
)

// scratch is pooled memory for commands that look at what they write or
// verify.
var scratch = sync.Pool{New: func() any { return new([pieceMax]byte) }}

// byteCheck is the field BYTCHK.
func byteCheck(cdb []byte) byte { return cdb[1] >> 1 & 3 }

// verify is VERIFY(10), (12) and (16) (SBC-3, 5.36).
func verify(c *Command) {
	check := byteCheck(c.CDB)
	if check == 2 {
		c.failField(1, 2)
		return
	}
	_, n, ok := c.inside(TransferMax)
	if !ok {
		return
	}
	if _, want := c.lu().Transfer(c.CDB); len(c.Out) < want {
		c.fail(illegalInformationUnit)
		return
	}
	if n == 0 {
		c.good(0)
		return
	}
	c.spawn(verifyWaiting)
}

func verifyWaiting(c *Command) {
	lba, blocks := extentOf(c.CDB)
	block := int64(c.t.dev.BlockSize())
	off, n := int64(lba)*block, int64(blocks)*block
	if c.t.op.class == changes {
		n = min(n, int64(len(c.Out))) // as much as was written
	}
	c.verifyRange(off, n, byteCheck(c.CDB))
}

// verifyRange reads [off, off+n) and compares it with data-out as BYTCHK asks: 0
// not at all, 1 byte by byte, 3 each block with the only one.
func (c *Command) verifyRange(off, n int64, check byte) {
	room := scratch.Get().(*[pieceMax]byte)
	defer scratch.Put(room)
	block := int64(c.t.dev.BlockSize())
	for at := int64(0); at < n; {
		p := room[:min(pieceMax, n-at)]
		if err := c.t.dev.ReadAt(c.t.n.ctx, p, off+at); err != nil {
			c.failError(err)
			return
		}
		switch check {
		case 1:
			if i := differ(p, c.Out[at:]); i >= 0 {
				c.failCompare(uint64(at) + uint64(i))
				return
			}
		case 3:
			for b := int64(0); b < int64(len(p)); b += block {
				if i := differ(p[b:b+block], c.Out); i >= 0 {
					c.failCompare(uint64(i))
					return
				}
			}
		}
		at += int64(len(p))
	}
	c.good(0)
}

// failCompare ends c because byte at of data-out is not what the medium has.
func (c *Command) failCompare(at uint64) {
	c.failWith(miscompare, detail{information: at, hasInformation: true})
}

// differ is the index of the first byte where q, which is at least as long,
// differs from p, or -1.
func differ(p, q []byte) int {
	if bytes.Equal(p, q[:len(p)]) {
		return -1
	}
	for i := range p {
		if p[i] != q[i] {
			return i
		}
	}
	return -1
}

// writeAndVerify is WRITE AND VERIFY(10), (12) and (16) (SBC-3, 5.47). Nothing
// else changes its blocks before they are compared: the task set sees to it.
func writeAndVerify(c *Command) {
	if byteCheck(c.CDB) > 1 {
		c.failField(1, 2)
		return
	}
	off, n, ok := c.sourceOrPart()
	switch {
	case !ok:
	case n == 0:
		c.good(0)
	default:
		c.store(c.Out[:n], off, true, func(c *Command, err error) {
			if err != nil {
				c.failError(err)
				return
			}
			c.spawn(verifyWaiting)
		})
	}
}

// compareAndWrite is COMPARE AND WRITE (SBC-3, 5.2): the first half of data-out is
// compared, the second written if all is equal. The task set keeps all that
// would change these blocks away meanwhile.
func compareAndWrite(c *Command) {
	if int(c.CDB[13]) > compareBlocksMax(c.t.dev.BlockSize()) {
		c.failField(13, -1)
		return
	}
	_, n, ok := c.source(2)
	switch {
	case !ok || c.excessive(13):
	case n == 0:
		c.good(0)
	default:
		c.spawn(compareWaiting)
	}
}

func compareWaiting(c *Command) {
	off, n, _ := c.inside(TransferMax)
	room := scratch.Get().(*[pieceMax]byte)
	p := room[:n]
	err := c.t.dev.ReadAt(c.t.n.ctx, p, off)
	at := -1
	if err == nil {
		at = differ(p, c.Out[:n])
	}
	scratch.Put(room)
	switch {
	case err != nil:
		c.failError(err)
	case at >= 0:
		c.failCompare(uint64(at))
	default:
		c.finished(c.wait(func(done func(error)) { c.t.dev.Write(c.Out[n:2*n], off, c.fua(), done) }))
	}
}

// orWrite is ORWRITE(16) (SBC-3, 5.11): data-out is or-ed to what is there, as one
// step with respect to other writes.
func orWrite(c *Command) {
	_, n, ok := c.source(1)
	switch {
	case !ok:
	case n == 0:
		c.good(0)
	default:
		c.spawn(orWaiting)
	}
}

func orWaiting(c *Command) {
	off, n, _ := c.inside(TransferMax)
	room := scratch.Get().(*[pieceMax]byte)
	defer scratch.Put(room)
	for at := int64(0); at < n; {
		p := room[:min(pieceMax, n-at)]
		err := c.t.dev.ReadAt(c.t.n.ctx, p, off+at)
		if err == nil {
			for i := range p {
				p[i] |= c.Out[at+int64(i)]
			}
			err = c.wait(func(done func(error)) { c.t.dev.Write(p, off+at, c.fua(), done) })
		}
		if err != nil {
			c.failError(err)
			return
		}
		at += int64(len(p))
	}
	c.good(0)
}

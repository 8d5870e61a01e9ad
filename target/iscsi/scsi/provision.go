package scsi

import (
	"encoding/binary"
	"math"

	"github.com/gabion-storage/gabion/target"
)

// unmap is UNMAP (SBC-3, 5.35). All descriptors are checked before the first takes
// effect.
func unmap(c *Command) {
	n := int(number(c.CDB, 7, 2))
	switch {
	case c.CDB[1]&1 != 0: // ANCHOR
		c.failField(1, 0)
	case n == 0:
		c.good(0)
	case n < 8:
		c.fail(illegalParameterLength)
	case !c.writable():
	case len(c.Out) < n:
		c.fail(illegalInformationUnit)
	default:
		c.unmapRanges(c.Out[:n])
	}
}

func (c *Command) unmapRanges(p []byte) {
	length := int(binary.BigEndian.Uint16(p[2:]))
	p = p[8:]
	p = p[:min(length, len(p))/16*16] // a descriptor that is cut short is ignored
	block := uint64(c.t.dev.BlockSize())
	total := uint64(c.t.dev.Size()) / block
	if len(p) > 16*unmapRangesMax {
		c.failParameter(2)
		return
	}
	sum := uint64(0)
	for at := 0; at < len(p); at += 16 {
		lba, blocks := binary.BigEndian.Uint64(p[at:]), uint64(binary.BigEndian.Uint32(p[at+8:]))
		if lba > total || blocks > total-lba {
			c.failRange(lba)
			return
		}
		if sum += blocks; sum > uint64(unmapCountMax(int(block))) {
			c.failParameter(8 + at + 8)
			return
		}
	}
	c.expect((*Command).finished)
	for at := 0; at < len(p); at += 16 {
		lba, blocks := binary.BigEndian.Uint64(p[at:]), uint64(binary.BigEndian.Uint32(p[at+8:]))
		if blocks > 0 {
			c.t.left.Add(1)
			c.t.dev.Trim(int64(lba*block), int64(blocks*block), false, c.t.part)
		}
	}
	c.lu().pending()
	c.t.part(nil)
}

// writeSame is WRITE SAME(10) and (16) (SBC-3, 5.49). Zeros, which is also what
// unmapped blocks read as, cost one record; another pattern is written.
func writeSame(c *Command) {
	flags := c.CDB[1]
	noData := c.CDB[0] == 0x93 && flags&1 != 0 // NDOB
	_, blocks := extentOf(c.CDB)
	switch {
	case flags&flagAnchor != 0:
		c.failField(1, 4)
		return
	case flags&0x06 != 0: // PBDATA, LBDATA, obsolete
		c.failField(1, 2)
		return
	case c.CDB[0] == 0x41 && flags&1 != 0: // RELADR, obsolete
		c.failField(1, 0)
		return
	case blocks == 0: // WSNZ
		c.failField(lengthField(c.CDB), -1)
		return
	}
	off, n, ok := c.inside(c.sameMax())
	if !ok || !c.writable() {
		return
	}
	block := c.t.dev.BlockSize()
	if !noData && len(c.Out) < block {
		c.fail(illegalInformationUnit)
		return
	}
	if c.excessive(lengthField(c.CDB)) {
		return
	}
	if !noData && !zero(c.Out[:block]) {
		c.spawn(repeat)
		return
	}
	c.expect((*Command).finished)
	lu := c.lu() // c is over, and perhaps another command, once part has run
	c.t.dev.Zero(off, n, false, c.t.part)
	lu.pending()
}

// sameMax is the longest WRITE SAME in bytes.
func (c *Command) sameMax() int64 { return writeSameBlocksMax * int64(c.t.dev.BlockSize()) }

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// repeat writes the block of data-out over and over.
func repeat(c *Command) {
	off, n, _ := c.inside(c.sameMax())
	room := scratch.Get().(*[pieceMax]byte)
	defer scratch.Put(room)
	block := c.t.dev.BlockSize()
	for at := 0; at < int(min(pieceMax, n)); at += block {
		copy(room[at:], c.Out[:block])
	}
	for at := int64(0); at < n; {
		k := min(pieceMax, n-at)
		err := c.t.n.ctx.Err() // the session is over: so is this
		if err == nil {
			err = c.wait(func(done func(error)) { c.t.dev.Write(room[:k], off+at, false, done) })
		}
		if err != nil {
			c.failError(err)
			return
		}
		at += k
	}
	c.good(0)
}

// Limits of GET LBA STATUS.
const (
	statusBytesMax   = 16 << 30 // how far one command looks
	statusStretchMax = 256      // descriptors of one answer
)

// getLBAStatus is GET LBA STATUS (SBC-3, 5.6).
func getLBAStatus(c *Command) {
	lba := number(c.CDB, 2, 8)
	total := uint64(c.t.dev.Size()) / uint64(c.t.dev.BlockSize())
	if lba >= total {
		c.failRange(lba)
		return
	}
	c.spawn(statusWaiting)
}

func statusWaiting(c *Command) {
	dev, lba := c.t.dev, number(c.CDB, 2, 8)
	block := int64(dev.BlockSize())
	off := int64(lba) * block
	n := min(dev.Size()-off, statusBytesMax)
	stretches := []target.Stretch{{Length: n}}
	if m, ok := dev.(target.Mapper); ok {
		var err error
		limit := min(statusStretchMax, max(1, (len(c.In)-8)/16))
		if stretches, err = m.Map(c.t.n.ctx, off, n, "", limit, stretches[:0]); err != nil {
			c.failError(err)
			return
		}
	}
	b := make([]byte, 8, 8+16*len(stretches))
	for i := 0; i < len(stretches); {
		unmapped := stretches[i].Flags&target.Hole != 0
		length := int64(0)
		for ; i < len(stretches) && stretches[i].Flags&target.Hole != 0 == unmapped; i++ {
			length += stretches[i].Length
		}
		blocks := min(length/block, math.MaxUint32)
		b = binary.BigEndian.AppendUint64(b, lba)
		b = binary.BigEndian.AppendUint32(b, uint32(blocks))
		b = append(b, setIf(unmapped, 1), 0, 0, 0)
		lba += uint64(blocks)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	c.data(b)
}

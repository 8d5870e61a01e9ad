package scsi

import (
	"encoding/binary"
	"math"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// Fields of byte 1 of READ, WRITE, VERIFY and the like (SBC-3, 5).
const (
	flagProtect = 0xe0 // RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT: there is no protection information
	flagFUA     = 0x08
	flagUnmap   = 0x08 // of WRITE SAME
	flagAnchor  = 0x10 // of WRITE SAME: nothing can be anchored
)

const (
	inlineMax = 64 << 10 // a longer read is not answered on the transport's goroutine
	pieceMax  = 1 << 20  // the longest single operation of the device that has data
)

// extentOf reads LBA and number of blocks of a READ, WRITE, VERIFY and the like.
func extentOf(cdb []byte) (lba, blocks uint64) {
	switch {
	case cdb[0] == 0x89: // COMPARE AND WRITE
		return number(cdb, 2, 8), uint64(cdb[13])
	case cdb[0]>>5 == 0:
		return uint64(binary.BigEndian.Uint32(cdb) & 0x1fffff), uint64(cdb[4]-1) + 1
	case cdb[0]>>5 <= 2:
		return number(cdb, 2, 4), number(cdb, 7, 2)
	case cdb[0]>>5 == 5:
		return number(cdb, 2, 4), number(cdb, 6, 4)
	}
	return number(cdb, 2, 8), number(cdb, 10, 4)
}

// lengthField is the byte where the number of blocks begins.
func lengthField(cdb []byte) int {
	switch {
	case cdb[0] == 0x89:
		return 13
	case cdb[0]>>5 == 0:
		return 4
	case cdb[0]>>5 <= 2:
		return 7
	case cdb[0]>>5 == 5:
		return 6
	}
	return 10
}

// extent notes which bytes c changes, for the order of the task set.
func (lu *LU) extent(c *Command, block int) {
	switch {
	case c.t.op.class != changes:
	case c.t.op.code == 0x42: // UNMAP: its ranges are not read yet
		c.t.lo, c.t.hi = 0, math.MaxInt64
	default:
		lba, blocks := extentOf(c.CDB)
		const most = math.MaxInt64 >> 1
		c.t.lo = int64(min(lba, most/4096)) * int64(block)
		c.t.hi = c.t.lo + int64(min(blocks, math.MaxUint32))*int64(block)
	}
}

// inside checks protection, length and range of c and returns its bytes. max is the
// greatest length in bytes. Otherwise it has ended c.
func (c *Command) inside(max int64) (off, n int64, ok bool) {
	lba, blocks := extentOf(c.CDB)
	block := uint64(c.t.dev.BlockSize())
	total := uint64(c.t.dev.Size()) / block
	switch {
	case len(c.t.op.usage) > 6 && c.CDB[1]&flagProtect != 0:
		c.failField(1, 7)
	case blocks > uint64(max)/block:
		c.failField(lengthField(c.CDB), -1)
	case lba >= total || blocks > total-lba:
		c.failRange(lba)
	default:
		return int64(lba * block), int64(blocks * block), true
	}
	return 0, 0, false
}

// writable tells whether the medium can be written; otherwise it has ended c.
func (c *Command) writable() bool {
	switch {
	case c.t.dev.ReadOnly():
		c.fail(protectReadOnly)
	case c.lu().writeProtect.Load():
		c.fail(protectSoftware)
	default:
		return true
	}
	return false
}

// source is what inside and writable say of a command with ratio bytes of data-out
// for each byte of the medium. Less data-out than that is an error; excess
// cannot come here, for the transport keeps it.
func (c *Command) source(ratio int64) (off, n int64, ok bool) {
	off, n, ok = c.inside(TransferMax)
	if !ok || !c.writable() {
		return 0, 0, false
	}
	if int64(len(c.Out)) < n*ratio {
		c.fail(illegalInformationUnit)
		return 0, 0, false
	}
	return off, n, true
}

// sourceOrPart is source for a WRITE: with less data-out it writes the whole blocks
// that there are, as if the rest were beyond its length (FCP-4, 9.4.2 leaves the
// choice; the initiator sees the residual). A part of a block is not written.
func (c *Command) sourceOrPart() (off, n int64, ok bool) {
	off, n, ok = c.inside(TransferMax)
	if !ok || !c.writable() {
		return 0, 0, false
	}
	n = min(n, int64(len(c.Out)))
	if n%int64(c.t.dev.BlockSize()) != 0 {
		c.fail(illegalInformationUnit)
		return 0, 0, false
	}
	return off, n, true
}

// excessive ends a command whose initiator announces more data-out than it has a
// use for: one that overwrites by comparison or repetition had better not guess.
func (c *Command) excessive(field int) bool {
	if c.t.op.out == nil || c.Expected <= int(c.t.op.out(c.CDB, c.t.dev.BlockSize())) {
		return false
	}
	c.failField(field, -1)
	return true
}

func (c *Command) fua() bool { return c.CDB[1]&flagFUA != 0 && len(c.t.op.usage) > 6 }

// readNow answers a READ on the spot if the device has the bytes at hand and
// nothing is irregular.
func (lu *LU) readNow(c *Command) bool {
	if lu.tasks.barriers.Load() != 0 || c.Attr >= Ordered || c.CDB[1]&(flagProtect|flagFUA) != 0 {
		return false
	}
	dev := c.t.dev
	lba, blocks := extentOf(c.CDB)
	block := uint64(dev.BlockSize())
	total := uint64(dev.Size()) / block
	n := blocks * block
	if n == 0 || n > inlineMax || lba >= total || blocks > total-lba || uint64(len(c.In)) < n {
		return false
	}
	if !dev.TryReadAt(c.In[:n], int64(lba*block)) {
		return false
	}
	c.N = int(n)
	c.Done(c)
	return true
}

// read is READ(6), (10), (12) and (16) (SBC-3, 5.16).
func read(c *Command) {
	_, n, ok := c.inside(TransferMax)
	switch {
	case !ok:
	case int64(len(c.In)) < n:
		c.fail(hardwareInternal) // the transport has not asked Transfer
	case n == 0:
		c.good(0)
	case c.fua():
		// What is in a volatile cache must be on the medium before it is read.
		c.expect(func(c *Command, err error) {
			if err != nil {
				c.failError(err)
				return
			}
			c.spawn(readWaiting)
		})
		lu := c.lu() // c is over, and perhaps another command, once part has run
		c.t.dev.Flush(c.t.part)
		lu.pending()
	default:
		c.spawn(readWaiting)
	}
}

func readWaiting(c *Command) {
	lba, blocks := extentOf(c.CDB)
	block := uint64(c.t.dev.BlockSize())
	n := int(blocks * block)
	if err := c.t.dev.ReadAt(c.t.n.ctx, c.In[:n], int64(lba*block)); err != nil {
		c.failError(err)
		return
	}
	c.good(n)
}

// write is WRITE(6), (10), (12) and (16) (SBC-3, 5.43).
func write(c *Command) {
	off, n, ok := c.sourceOrPart()
	switch {
	case !ok:
	case n == 0:
		c.good(0)
	default:
		c.store(c.Out[:n], off, c.fua(), (*Command).finished)
	}
}

// store writes p at off in pieces; then runs when all have ended.
func (c *Command) store(p []byte, off int64, fua bool, then func(*Command, error)) {
	c.expect(then)
	dev, lu := c.t.dev, c.lu()
	for len(p) > 0 {
		n := min(len(p), pieceMax)
		c.t.left.Add(1)
		dev.Write(p[:n], off, fua, c.t.part)
		p, off = p[n:], off+int64(n)
	}
	lu.pending()
	c.t.part(nil)
}

// pending notes that the device has operations that wait for a Kick.
func (lu *LU) pending() {
	if !lu.unkicked.Load() {
		lu.unkicked.Store(true)
	}
}

// synchronizeCache is SYNCHRONIZE CACHE(10) and (16) (SBC-3, 5.33): whatever the
// range, the whole volume is flushed.
func synchronizeCache(c *Command) {
	if !c.stretch() {
		return
	}
	if mutant.On("sync-nothing") {
		c.good(0)
		return
	}
	if c.CDB[1]&2 != 0 { // IMMED
		c.t.dev.Flush(func(error) {})
		c.lu().pending()
		c.good(0)
		return
	}
	c.expect((*Command).finished)
	lu := c.lu()
	c.t.dev.Flush(c.t.part)
	lu.pending()
}

// stretch checks a range whose length 0 means all that follows.
func (c *Command) stretch() bool {
	lba, blocks := extentOf(c.CDB)
	total := uint64(c.t.dev.Size()) / uint64(c.t.dev.BlockSize())
	if lba >= total || blocks > total-lba {
		c.failRange(lba)
		return false
	}
	return true
}

// prefetch is PRE-FETCH(10) and (16) (SBC-3, 5.13). No room in a cache is
// promised, so that the status is GOOD and not CONDITION MET.
func prefetch(c *Command) {
	if c.stretch() {
		c.good(0)
	}
}

// readCapacity10 is READ CAPACITY(10) (SBC-3, 5.17).
func readCapacity10(c *Command) {
	if c.CDB[8]&1 == 0 && number(c.CDB, 2, 4) != 0 {
		c.failField(2, -1)
		return
	}
	blocks, block := c.lu().capacity()
	b := binary.BigEndian.AppendUint32(nil, uint32(min(blocks-1, math.MaxUint32)))
	c.data(binary.BigEndian.AppendUint32(b, uint32(block)))
}

// readCapacity16 is READ CAPACITY(16) (SBC-3, 5.18).
func readCapacity16(c *Command) {
	if c.CDB[14]&1 == 0 && number(c.CDB, 2, 8) != 0 {
		c.failField(2, -1)
		return
	}
	blocks, block := c.lu().capacity()
	b := make([]byte, 32)
	binary.BigEndian.PutUint64(b, blocks-1)
	binary.BigEndian.PutUint32(b[8:], uint32(block))
	for block<<b[13] < physicalBlock {
		b[13]++ // logical blocks per physical block, as a power of two
	}
	b[14] = 0xc0 // LBPME, LBPRZ
	c.data(b)
}

// readDefectData is READ DEFECT DATA(10) and (12) (SBC-3, 5.19 and 5.20): a volume
// has no defects that an initiator could know of. The lists asked for are valid,
// in the format asked for, and empty.
func readDefectData(c *Command) {
	if c.CDB[0] == 0x37 {
		c.data([]byte{0, c.CDB[2] & 0x1f, 0, 0})
		return
	}
	c.data([]byte{0, c.CDB[1] & 0x1f, 0, 0, 0, 0, 0, 0})
}

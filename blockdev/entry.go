package blockdev

import (
	"encoding/binary"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// A log entry of a map block (quorum.EntryData) is one operation on the
// volume, in 4 KiB blocks, little-endian:
//
//	offset size
//	0      1    op: 1 write, 2 zero, 3 extent, 4 nothing
//	1      7    zero
//	8      8    first block
//	16     8    count of blocks
//	24     ...  op 1: count*4096 bytes of data
//	            op 2, 4: nothing
//	            op 3: one extent record (60 bytes), then count pointers (18 bytes each)
//
// An extent record is number u64, address 32 bytes, epoch u64, blocks u16,
// bytes u32, six zero bytes. A pointer is ext u64, off u32, len u16, crc u32.
const (
	opWrite   = 1
	opZero    = 2
	opExtent  = 3
	opNothing = 4

	entryHead       = 24
	entryExtentLen  = 60
	entryPtrLen     = 18
	BlockSize       = extentmap.BlockSize
	entryBlocksMax  = 256             // blocks of one write or extent entry
	entryZeroMax    = uint64(1) << 56 // blocks of one zero entry
	entryWriteBytes = entryHead + BlockSize
)

// entry is one decoded operation. Data and the byte slices it was decoded from
// are shared.
type entry struct {
	op     byte
	block  uint64
	count  uint64
	data   []byte // op write
	extent packed // op extent
	ptrs   []extentmap.Ptr
}

// packed is an extent that is stored but not yet in the extent table.
type packed struct {
	number uint64
	addr   ident.Addr
	epoch  uint64
	blocks uint16
	bytes  uint32
	// Not part of the entry: its slot, and the holders that did not take it.
	slot   uint64
	missed []overlay.BrickRef
}

func putEntryHead(b []byte, op byte, block, count uint64) {
	clear(b[:8])
	b[0] = op
	binary.LittleEndian.PutUint64(b[8:], block)
	binary.LittleEndian.PutUint64(b[16:], count)
}

// encodeExtentEntry lays out an extent entry in b, which has
// extentEntrySize(len(ptrs)) bytes.
func encodeExtentEntry(b []byte, block uint64, x packed, ptrs []extentmap.Ptr) {
	putEntryHead(b, opExtent, block, uint64(len(ptrs)))
	r := b[entryHead:]
	binary.LittleEndian.PutUint64(r, x.number)
	copy(r[8:40], x.addr[:])
	binary.LittleEndian.PutUint64(r[40:], x.epoch)
	binary.LittleEndian.PutUint16(r[48:], x.blocks)
	binary.LittleEndian.PutUint32(r[50:], x.bytes)
	clear(r[54:60])
	r = r[entryExtentLen:]
	for _, p := range ptrs {
		binary.LittleEndian.PutUint64(r, p.Ext)
		binary.LittleEndian.PutUint32(r[8:], p.Off)
		binary.LittleEndian.PutUint16(r[12:], p.Len)
		binary.LittleEndian.PutUint32(r[14:], p.CRC)
		r = r[entryPtrLen:]
	}
}

func extentEntrySize(ptrs int) int { return entryHead + entryExtentLen + ptrs*entryPtrLen }

// decodeEntry reads one operation. Data refers to b. Anything malformed or
// beyond the named limits is a fault of kind Corrupt.
func decodeEntry(b []byte) (entry, error) {
	bad := func(why string) (entry, error) {
		return entry{}, fault.Newf(fault.Corrupt, "blockdev.decodeEntry", "", "log entry of %d bytes: %s", len(b), why)
	}
	if len(b) < entryHead {
		return bad("shorter than its head")
	}
	for _, z := range b[1:8] {
		if z != 0 {
			return bad("reserved bytes are not zero")
		}
	}
	e := entry{op: b[0], block: binary.LittleEndian.Uint64(b[8:]), count: binary.LittleEndian.Uint64(b[16:])}
	if e.count == 0 || e.count > entryZeroMax || e.block > entryZeroMax {
		return bad("range out of bounds")
	}
	body := b[entryHead:]
	switch e.op {
	case opWrite:
		if e.count > entryBlocksMax || uint64(len(body)) != e.count*BlockSize {
			return bad("data length does not match the count")
		}
		e.data = body
	case opZero, opNothing:
		if len(body) != 0 {
			return bad("an entry without data carries some")
		}
	case opExtent:
		if e.count > entryBlocksMax || len(body) != entryExtentLen+int(e.count)*entryPtrLen {
			return bad("pointer list length does not match the count")
		}
		e.extent = packed{
			number: binary.LittleEndian.Uint64(body),
			addr:   ident.Addr(body[8:40]),
			epoch:  binary.LittleEndian.Uint64(body[40:]),
			blocks: binary.LittleEndian.Uint16(body[48:]),
			bytes:  binary.LittleEndian.Uint32(body[50:]),
		}
		e.ptrs = make([]extentmap.Ptr, e.count)
		r := body[entryExtentLen:]
		for i := range e.ptrs {
			p := extentmap.Ptr{
				Ext: binary.LittleEndian.Uint64(r), Off: binary.LittleEndian.Uint32(r[8:]),
				Len: binary.LittleEndian.Uint16(r[12:]), CRC: binary.LittleEndian.Uint32(r[14:]),
			}
			if p.Ext != e.extent.number || p.Ext == 0 || p.Ext >= 1<<48 || p.Len == 0 || p.Len > BlockSize || p.Off >= 1<<21 {
				return bad("a pointer is out of bounds")
			}
			e.ptrs[i] = p
			r = r[entryPtrLen:]
		}
	default:
		return bad("unknown operation")
	}
	return e, nil
}

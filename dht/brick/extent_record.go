package brick

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/ident"
)

// An extent stands in its segment after a record header, at a multiple of 4096
// so that a hole gives back all of it. Little endian:
//
//	 0  4  "gbx1"
//	 4  4  CRC32C over bytes [8,96)
//	 8 32  address
//	40 16  volume
//	56  8  number
//	64  8  epoch
//	72  4  size of the extent in bytes
//	76 20  zero
//	96     the extent
const (
	extentMagic  = "gbx1"
	extentHeader = 96
	extentAlign  = 4096
)

// recordSpan is the room that an extent of n bytes takes in a segment.
func recordSpan(n int64) int64 {
	return (extentHeader + n + extentAlign - 1) &^ (extentAlign - 1)
}

func encodeExtentHeader(b []byte, x *Extent) {
	le := binary.LittleEndian
	clear(b[:extentHeader])
	copy(b, extentMagic)
	copy(b[8:], x.Addr[:])
	copy(b[40:], x.Volume[:])
	le.PutUint64(b[56:], x.Number)
	le.PutUint64(b[64:], x.Epoch)
	le.PutUint32(b[72:], uint32(len(x.Data)))
	le.PutUint32(b[4:], crc32.Checksum(b[8:extentHeader], castagnoli))
}

// checkExtentHeader reports whether b is the header of the extent addr of size
// bytes.
func checkExtentHeader(b []byte, addr ident.Addr, size uint32) bool {
	le := binary.LittleEndian
	return len(b) >= extentHeader && string(b[:4]) == extentMagic &&
		le.Uint32(b[4:]) == crc32.Checksum(b[8:extentHeader], castagnoli) &&
		ident.Addr(b[8:40]) == addr && le.Uint32(b[72:]) == size
}

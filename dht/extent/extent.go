// Package extent is the encoded form of an extent: up to 256 blocks of 4096
// bytes of one volume, packed and compressed one by one, so that any single
// block can be read and verified without the others. The package is pure: bytes
// in, bytes out.
package extent

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// Layout of an encoded extent, version 1. All integers are little-endian.
//
//	off   size      field
//	0     4         magic "GBNX"
//	4     2         version, 1
//	6     2         flags, 0
//	8     16        volume id
//	24    8         number of the extent within the volume, from 1
//	32    8         epoch of the attachment that wrote it
//	40    4         count of blocks, 1..256
//	44    4         payload length P in bytes
//	48    12        zero
//	60    4         CRC32C of bytes 0..59
//	64    P         payload: the stored blocks, one after another
//	64+P  count*8   owners: what each block was when it was written
//
// The owners stand behind the payload because their count is known last: so a
// block's offset is final as soon as it has been added. Volume, number and
// epoch make the address unique to one attempt of one volume: equal data in
// two volumes never shares an extent, and deleting needs no reference count.
const (
	// BlockSize is the size of a raw block in bytes.
	BlockSize = 4096
	// BlocksMax bounds the blocks of one extent.
	BlocksMax = 256
	// HeaderSize is the length of the header in bytes.
	HeaderSize = 64
	// OwnerSize is the length of one entry of the owners table in bytes.
	OwnerSize = 8
	// CompressedMax is the largest stored form of a compressed block: one that
	// does not shrink by at least an eighth is stored raw, since the reader
	// would pay for decompression and get no space in return.
	CompressedMax = BlockSize - BlockSize/8
	// SizeMax is the length of the largest encoded extent in bytes.
	SizeMax = HeaderSize + BlocksMax*(BlockSize+OwnerSize)

	version = 1
	magic   = 0x584e4247 // "GBNX"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of a raw block, as map pointers carry it.
func Checksum(block []byte) uint32 { return crc32.Checksum(block, castagnoli) }

// Address is the name of an encoded extent.
func Address(encoded []byte) ident.Addr {
	if mutant.On("address-of-content") {
		encoded = encoded[min(HeaderSize, len(encoded)):]
	}
	return ident.AddrOf(encoded)
}

// Header is the fixed part of an extent.
type Header struct {
	Volume     ident.VolumeID
	Number     uint64
	Epoch      uint64
	Count      int // blocks
	PayloadLen int // bytes
}

// Size is the length of the whole encoded extent in bytes.
func (h Header) Size() int { return HeaderSize + h.PayloadLen + h.Count*OwnerSize }

func (h Header) encode(b []byte) {
	clear(b[:HeaderSize])
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	le.PutUint16(b[4:], version)
	copy(b[8:24], h.Volume[:])
	le.PutUint64(b[24:], h.Number)
	le.PutUint64(b[32:], h.Epoch)
	le.PutUint32(b[40:], uint32(h.Count))
	le.PutUint32(b[44:], uint32(h.PayloadLen))
	le.PutUint32(b[60:], Checksum(b[:60]))
}

func corrupt(format string, args ...any) error {
	return fault.Newf(fault.Corrupt, "extent.decode", "", format, args...)
}

// ParseHeader reads the first HeaderSize bytes of an extent; what follows is
// not looked at. Corrupt: too short, not an extent, of an unknown version, or
// damaged. A header without error is within all limits.
func ParseHeader(b []byte) (Header, error) {
	le := binary.LittleEndian
	if len(b) < HeaderSize {
		return Header{}, corrupt("%d bytes are too few for the header of an extent", len(b))
	}
	if le.Uint32(b) != magic {
		return Header{}, corrupt("these bytes are not an extent: no magic")
	}
	if got, want := Checksum(b[:60]), le.Uint32(b[60:]); got != want {
		return Header{}, corrupt("header has checksum %08x, not %08x", got, want)
	}
	if v, flags := le.Uint16(b[4:]), le.Uint16(b[6:]); v != version || flags != 0 {
		return Header{}, corrupt("extent of version %d with flags %#x; this gabion reads version %d without flags", v, flags, version)
	}
	for _, c := range b[48:60] {
		if c != 0 {
			return Header{}, corrupt("reserved bytes of the header are not zero")
		}
	}
	h := Header{
		Volume: ident.VolumeID(b[8:24]),
		Number: le.Uint64(b[24:]), Epoch: le.Uint64(b[32:]),
	}
	count, payload := le.Uint32(b[40:]), le.Uint32(b[44:])
	if count == 0 || count > BlocksMax {
		return Header{}, corrupt("extent of %d blocks; 1 to %d are possible", count, BlocksMax)
	}
	if payload < count || payload > count*BlockSize {
		return Header{}, corrupt("payload of %d bytes cannot hold %d blocks", payload, count)
	}
	h.Count, h.PayloadLen = int(count), int(payload)
	return h, nil
}

// Extent is a decoded extent. It refers to the bytes it was decoded from.
type Extent struct {
	Header
	Payload []byte
	owners  []byte
}

// Owner tells what block i was when the extent was written; i in [0, Count).
func (x Extent) Owner(i int) uint64 {
	return binary.LittleEndian.Uint64(x.owners[i*OwnerSize:])
}

// Decode reads a whole encoded extent without copying: the result refers to b.
// Corrupt: damaged, or of another length than its header says. The payload is
// covered by the address and by the checksums of the map, not verified here.
func Decode(b []byte) (Extent, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return Extent{}, err
	}
	if len(b) != h.Size() {
		return Extent{}, corrupt("extent %d has %d bytes, its header says %d", h.Number, len(b), h.Size())
	}
	end := HeaderSize + h.PayloadLen
	return Extent{Header: h, Payload: b[HeaderSize:end:end], owners: b[end:]}, nil
}

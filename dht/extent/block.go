package extent

import (
	"github.com/klauspost/compress/s2"

	"github.com/gabion-storage/gabion/internal/fault"
)

// appendBlock appends the stored form of a raw block to dst: s2 where that
// saves at least an eighth, else the block itself. dst must have room for
// scratchSize more bytes, so that it never moves.
//
// s2 and not zstd: on single blocks zstd's fastest level saves a third more, but
// costs 4 to 7 times the CPU to write and 6 to 13 times to read (BenchmarkCodec),
// and a decompression stands in the way of every read.
func appendBlock(dst, block []byte) []byte {
	n := len(dst)
	out := s2.Encode(dst[n:n+scratchSize:n+scratchSize], block)
	if len(out) > CompressedMax {
		return append(dst, block...)
	}
	return dst[:n+len(out)]
}

// scratchSize is what s2 wants to have free before it encodes a block.
var scratchSize = s2.MaxEncodedLen(BlockSize)

// StoredLen tells whether n can be the length of a stored block in bytes.
func StoredLen(n int) bool { return n == BlockSize || n > 0 && n <= CompressedMax }

// ReadBlock turns the stored bytes of one block into its raw 4096 bytes in dst
// and checks them against crc, the CRC32C of the raw block. dst and stored must
// not overlap. Corrupt: the bytes cannot be a stored block or do not match; dst
// is then undefined. It never allocates on good data.
func ReadBlock(dst, stored []byte, crc uint32) error {
	if len(dst) != BlockSize {
		return fault.Newf(fault.Invalid, "extent.read", "", "a block has %d bytes, not %d", BlockSize, len(dst))
	}
	switch {
	case len(stored) == BlockSize:
		copy(dst, stored)
	case !StoredLen(len(stored)):
		return corrupt("%d bytes cannot be a stored block", len(stored))
	default:
		// s2 trusts the length it finds; a wrong one would make it allocate.
		if n, err := s2.DecodedLen(stored); err != nil || n != BlockSize {
			return corrupt("stored block does not decompress to %d bytes", BlockSize)
		}
		if _, err := s2.Decode(dst, stored); err != nil {
			return fault.New(fault.Corrupt, "extent.read", "", err)
		}
	}
	if got := Checksum(dst); got != crc {
		return corrupt("block has checksum %08x, not %08x", got, crc)
	}
	return nil
}

package extent

import (
	"encoding/binary"
	"fmt"

	"github.com/gabion-storage/gabion/internal/ident"
)

// Builder packs blocks into one extent after another and reuses its memory. It
// belongs to one goroutine. The zero value is ready for Reset.
type Builder struct {
	head   Header
	buf    []byte // header space, then payload
	owners []uint64
	done   bool
	dense  int // blocks in a row that could not be compressed
}

const (
	// After denseRun blocks in a row that could not be compressed, one in denseTry is
	// tried, until one can: a volume of encrypted or compressed files would
	// pay for the compressor with each block, and get nothing.
	denseRun = 16
	denseTry = 8
)

// bufferSize is enough for the largest extent and the scratch space that the
// compressor wants beyond the last block.
var bufferSize = SizeMax + scratchSize

// Reset starts the extent with the given identity. Bytes that Finish returned
// before become invalid.
func (b *Builder) Reset(v ident.VolumeID, number, epoch uint64) {
	if b.buf == nil {
		b.buf = make([]byte, HeaderSize, bufferSize)
		b.owners = make([]uint64, 0, BlocksMax)
	}
	b.head = Header{Volume: v, Number: number, Epoch: epoch}
	b.buf, b.owners, b.done, b.dense = b.buf[:HeaderSize], b.owners[:0], false, 0
}

// Count is the number of blocks added since Reset.
func (b *Builder) Count() int { return len(b.owners) }

// Full tells that no further block fits.
func (b *Builder) Full() bool { return len(b.owners) == BlocksMax }

// Len is the number of bytes the extent would have if it were finished now.
func (b *Builder) Len() int { return len(b.buf) + len(b.owners)*OwnerSize }

// Add packs one raw block of 4096 bytes and returns where its stored form
// stands: length bytes from off, counted from the start of the encoded extent.
// length is 4096 for a raw block and less for a compressed one. block is not
// kept. Adding to a full or finished extent, or a block of another length, is a
// defect of the caller and panics.
func (b *Builder) Add(owner uint64, block []byte) (off uint32, length uint16) {
	if len(block) != BlockSize {
		panic(fmt.Sprintf("extent: block of %d bytes", len(block)))
	}
	b.claim(owner)
	at := len(b.buf)
	if b.dense >= denseRun && b.dense%denseTry != 0 {
		b.dense++
		b.buf = append(b.buf, block...)
	} else if b.buf = appendBlock(b.buf, block); len(b.buf)-at == BlockSize {
		b.dense++
	} else {
		b.dense = 0
	}
	return uint32(at), uint16(len(b.buf) - at)
}

// AddStored is Add for bytes that are in stored form already, as compaction
// copies them from an older extent. They are not verified.
func (b *Builder) AddStored(owner uint64, stored []byte) (off uint32, length uint16) {
	if !StoredLen(len(stored)) {
		panic(fmt.Sprintf("extent: stored block of %d bytes", len(stored)))
	}
	b.claim(owner)
	at := len(b.buf)
	b.buf = append(b.buf, stored...)
	return uint32(at), uint16(len(stored))
}

func (b *Builder) claim(owner uint64) {
	if b.buf == nil || b.done || b.Full() {
		panic("extent: block added to a full, finished or never begun extent")
	}
	b.owners = append(b.owners, owner)
}

// Finish returns the encoded extent. It belongs to the builder and is valid
// until the next Reset. Finishing an extent without blocks panics.
func (b *Builder) Finish() []byte {
	if len(b.owners) == 0 {
		panic("extent: finish without blocks")
	}
	if !b.done {
		b.head.Count, b.head.PayloadLen = len(b.owners), len(b.buf)-HeaderSize
		b.head.encode(b.buf)
		for _, o := range b.owners {
			b.buf = binary.LittleEndian.AppendUint64(b.buf, o)
		}
		b.done = true
	}
	return b.buf
}

package brick

import (
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/lend"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// gentlePiece is how much a gentle put or read has in the queue of the disk at a time. A write
// that someone waits for comes after it at worst: a third of a millisecond at 400 MB/s.
const gentlePiece = 128 << 10

// PutExtentsGently is PutExtents for copies that nobody waits for: it writes in small
// pieces, past the page cache, so that neither the queue of the disk nor its cache is
// full of them when a journal is synced. Calls take turns. Kinds and durability as for PutExtents.
func (b *Brick) PutExtentsGently(xs []Extent) error { return b.putExtents(xs, true) }

// writeGently writes the concatenation of bufs at off, piece by piece.
func writeGently(f vfs.File, bufs [][]byte, off int64) error {
	var piece [][]byte
	var size int64
	flush := func() error {
		if size == 0 {
			return nil
		}
		if err := vfs.WriteDirect(f, piece, off); err != nil {
			return err
		}
		off += size
		piece, size = piece[:0], 0
		return nil
	}
	for _, b := range bufs {
		for len(b) > 0 {
			n := min(int64(len(b)), gentlePiece-size)
			piece = append(piece, b[:n])
			b = b[n:]
			if size += n; size == gentlePiece {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// ReadExtentGently is ReadExtent of the first len(p) bytes for a copy that nobody waits for: it
// reads in small pieces, past the page cache. What the system would read ahead is megabytes, and a
// journal that is synced then waits for all of them. Calls take turns. The bytes are as the disk gives
// them: the caller verifies them. Kinds as for ReadExtent: NotFound, Invalid, Corrupt.
func (b *Brick) ReadExtentGently(addr ident.Addr, p []byte) error {
	b.extents.reading.Lock()
	defer b.extents.reading.Unlock()
	return b.readExtent(addr, p, 0, true)
}

// readGently fills head and then p from off, piece by piece, and tells how much of p it filled.
func readGently(f vfs.File, head, p []byte, off int64) (n int, err error) {
	first := lend.Get(min(gentlePiece, len(head)+len(p)))
	defer lend.Put(first)
	got, err := vfs.ReadDirect(f, first, off)
	n = copy(p, first[copy(head, first[:got]):got])
	if err != nil {
		return n, err
	}
	got, err = readPieces(f, p[n:], off+int64(len(head)+n))
	return n + got, err
}

// readPieces fills p from off, past the page cache, piece by piece.
func readPieces(f vfs.File, p []byte, off int64) (n int, err error) {
	for err == nil && n < len(p) {
		var got int
		got, err = vfs.ReadDirect(f, p[n:min(n+gentlePiece, len(p))], off+int64(n))
		n += got
	}
	return n, err
}

package brick

import "github.com/gabion-storage/gabion/internal/vfs"

// gentlePiece is how much a gentle put has in the queue of the disk at a time. A write
// that someone waits for comes after it at worst: a third of a millisecond at 400 MB/s.
const gentlePiece = 128 << 10

// PutExtentsGently is PutExtents for copies that nobody waits for: it writes in small
// pieces, past the page cache, so that neither the queue of the disk nor its cache is
// full of them when a journal is synced. Calls take turns.
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

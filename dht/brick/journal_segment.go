package brick

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// A journal segment is a file of fixed size, written once with zeros so that
// later syncs change no metadata. It begins with a block of 4096 bytes whose
// first sector holds the header, little endian:
//
//	 0  8  "gabjseg1"
//	 8  4  CRC32C over bytes [12,72)
//	12  4  state: 0 free, 1 live
//	16 16  brick
//	32  8  nonce of this life of the file
//	40  8  sequence: order of live segments
//	48  8  first: Pos of the first frame
//	56  8  synced: everything before this Pos was durable
//	64  8  size of the file in bytes
const (
	segmentMagic      = "gabjseg1"
	segmentHeaderSize = 72
	segmentDataOff    = 4096
	segmentFree       = 0
	segmentLive       = 1
)

type segmentHeader struct {
	state         uint32
	brick         ident.BrickID
	nonce, seq    uint64
	first, synced Pos
	size          int64
}

func (h segmentHeader) encode(b []byte) {
	le := binary.LittleEndian
	copy(b, segmentMagic)
	le.PutUint32(b[12:], h.state)
	copy(b[16:], h.brick[:])
	le.PutUint64(b[32:], h.nonce)
	le.PutUint64(b[40:], h.seq)
	le.PutUint64(b[48:], uint64(h.first))
	le.PutUint64(b[56:], uint64(h.synced))
	le.PutUint64(b[64:], uint64(h.size))
	le.PutUint32(b[8:], crc32.Checksum(b[12:segmentHeaderSize], castagnoli))
}

func decodeSegmentHeader(b []byte) (h segmentHeader, ok bool) {
	le := binary.LittleEndian
	if len(b) < segmentHeaderSize || string(b[:8]) != segmentMagic ||
		le.Uint32(b[8:]) != crc32.Checksum(b[12:segmentHeaderSize], castagnoli) {
		return h, false
	}
	h.state = le.Uint32(b[12:])
	copy(h.brick[:], b[16:])
	h.nonce, h.seq = le.Uint64(b[32:]), le.Uint64(b[40:])
	h.first, h.synced = Pos(le.Uint64(b[48:])), Pos(le.Uint64(b[56:]))
	h.size = int64(le.Uint64(b[64:]))
	ok = h.state <= segmentLive && h.first >= 0 && h.first%frameAlign == 0 && h.synced >= 0 &&
		h.synced <= h.first && h.size > segmentDataOff && h.size <= segmentSizeMax
	return h, ok
}

// segmentSizeMax bounds what a header may claim, in bytes.
const segmentSizeMax = 1 << 40

// jseg is one segment file of the journal. The header is constant while the
// segment lives; the other fields are guarded by Journal.mu.
type jseg struct {
	f      vfs.File
	name   string
	h      segmentHeader
	seed   uint32
	end    Pos  // where the next segment begins; 0 in the active one
	dirty  bool // in Journal.dirty
	placed bool // the header is in the page cache
	proven bool // the header is durable
}

func (s *jseg) offset(p Pos) int64 { return segmentDataOff + int64(p-s.h.first) }

// fits reports whether a frame of size bytes at p stays inside the segment.
func (s *jseg) fits(p Pos, size int64) bool { return s.offset(p)+size <= s.h.size }

// begin starts a life of the file at position first.
func (s *jseg) begin(seq uint64, first, synced Pos) {
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		panic("brick: no randomness: " + err.Error())
	}
	s.h.state, s.h.seq, s.h.first, s.h.synced = segmentLive, seq, first, synced
	s.h.nonce = binary.LittleEndian.Uint64(nonce[:])
	s.seed = frameSeed(s.h.brick, s.h.nonce)
	s.end, s.placed, s.proven = 0, false, false
}

func (s *jseg) writeHeader() error {
	var b [segmentHeaderSize]byte
	s.h.encode(b[:])
	_, err := s.f.WriteAt(b[:], 0)
	return err
}

func (s *jseg) scan() *frameScan {
	return &frameScan{f: s.f, seed: s.seed, first: s.h.first, dataOff: segmentDataOff,
		end: s.h.size, bodyMax: RecordMax}
}

func journalName(number uint64) string { return fmt.Sprintf("journal/%08d", number) }

// createSegment writes a free segment. It appears under its name only when its
// zeros and its header are durable.
func (c *core) createSegment(number uint64, size int64) (*jseg, error) {
	name := journalName(number)
	f, err := c.fs.Create(name + ".tmp")
	if err != nil {
		return nil, err
	}
	s := &jseg{f: f, name: name, h: segmentHeader{brick: c.id, size: size}}
	err = writeZeros(f, 0, size)
	if err == nil {
		err = s.writeHeader()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = c.fs.Rename(name+".tmp", name)
	}
	if err == nil {
		err = c.fs.SyncDir("journal")
	}
	if err != nil {
		f.Close()
		_ = c.fs.Remove(name + ".tmp") // the first error says what is wrong
		return nil, err
	}
	c.count.segmentsNew.Add(1)
	return s, nil
}

// openSegment opens a segment file and believes its header only if it verifies.
func (c *core) openSegment(name string) (*jseg, error) {
	f, err := c.fs.Open(name)
	if err != nil {
		return nil, err
	}
	var b [segmentHeaderSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil && !isEOF(err) {
		f.Close()
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return nil, err
	}
	h, ok := decodeSegmentHeader(b[:])
	switch {
	case !ok:
		err = fault.Newf(fault.Corrupt, "brick.open", name, "damaged journal segment header")
	case h.brick != c.id:
		err = fault.Newf(fault.Corrupt, "brick.open", name, "a journal segment of brick %s, not of %s", h.brick, c.id)
	case h.size > size:
		err = fault.Newf(fault.Corrupt, "brick.open", name, "%d bytes long, its header says %d", size, h.size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &jseg{f: f, name: name, h: h, seed: frameSeed(c.id, h.nonce), placed: true, proven: true}, nil
}

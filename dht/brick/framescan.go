package brick

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/gabion-storage/gabion/internal/vfs"
)

// scanWindow is how much of a log is read at once.
const scanWindow = 1 << 20

// frameScan reads the frames of one file. The frame at position p stands at
// offset dataOff + (p - first) of the file; frames end before offset end.
type frameScan struct {
	f       vfs.File
	seed    uint32
	first   Pos
	dataOff int64
	end     int64
	bodyMax int
	direct  bool                // read what the disk has, not the page cache
	pace    func(n int64) error // told of every read; nil: at will

	buf   []byte // window
	start int64  // offset of buf in the file
}

func (s *frameScan) offset(p Pos) int64 { return s.dataOff + int64(p-s.first) }

// view returns bytes [off, off+n) of the file, fewer at its end. They are valid
// until the next call.
func (s *frameScan) view(off, n int64) ([]byte, error) {
	n = min(n, s.end-off)
	if n <= 0 {
		return nil, nil
	}
	if off < s.start || off+n > s.start+int64(len(s.buf)) {
		size := min(max(n, scanWindow), s.end-off)
		if int64(cap(s.buf)) < size {
			s.buf = make([]byte, size)
		}
		if s.pace != nil {
			if err := s.pace(size); err != nil {
				s.buf = s.buf[:0]
				return nil, err
			}
		}
		read := s.f.ReadAt
		if s.direct {
			read = func(p []byte, off int64) (int, error) { return readDisk(s.f, p, off) }
		}
		m, err := read(s.buf[:size], off)
		if err != nil && !errors.Is(err, io.EOF) {
			s.buf = s.buf[:0]
			return nil, err
		}
		clear(s.buf[m:size]) // a file shorter than it should be reads as zeros
		s.buf, s.start = s.buf[:size], off
	}
	return s.buf[off-s.start:][:n], nil
}

// at returns the verified frame at p, or ok false.
func (s *frameScan) at(p Pos) (body []byte, synced Pos, ok bool, err error) {
	b, err := s.view(s.offset(p), frameHeader)
	if err != nil {
		return nil, 0, false, err
	}
	n, ok := frameLength(b, p, s.bodyMax)
	if !ok {
		return nil, 0, false, nil
	}
	if b, err = s.view(s.offset(p), frameSize(n)); err != nil {
		return nil, 0, false, err
	}
	body, synced, ok = decodeFrame(b, s.seed, p, s.bodyMax)
	return body, synced, ok, nil
}

// frames calls fn for each valid frame from p on, in order, and returns where
// the run ends: at limit (if limit > 0) or at the first byte that is no frame.
func (s *frameScan) frames(p, limit Pos, fn func(p, synced Pos, body []byte) error) (Pos, error) {
	for limit == 0 || p < limit {
		body, synced, ok, err := s.at(p)
		if err != nil || !ok {
			return p, err
		}
		if err := fn(p, synced, body); err != nil {
			return p, err
		}
		p += Pos(frameSize(len(body)))
	}
	return p, nil
}

// later looks for valid frames after bad, where a frame should be and is not:
// the highest synced mark among them, and whether there is any.
func (s *frameScan) later(bad Pos) (synced Pos, found bool, err error) {
	for p := bad + frameAlign; s.offset(p)+frameHeader <= s.end; {
		b, err := s.view(s.offset(p), frameHeader)
		if err != nil {
			return 0, false, err
		}
		if Pos(binary.LittleEndian.Uint64(b[8:])) != p {
			p += frameAlign
			continue
		}
		body, mark, ok, err := s.at(p)
		if err != nil {
			return 0, false, err
		}
		if !ok {
			p += frameAlign
			continue
		}
		found, synced = true, max(synced, mark)
		p += Pos(frameSize(len(body)))
	}
	return synced, found, nil
}

// rewrite writes bytes [from, to) of f over themselves. After a failed sync the
// kernel holds such bytes as clean although the disk never got them; a later
// sync of another process would then promise what is not there.
func rewrite(f vfs.File, from, to int64) error {
	buf := make([]byte, min(scanWindow, max(0, to-from)))
	for from < to {
		b := buf[:min(int64(len(buf)), to-from)]
		if _, err := f.ReadAt(b, from); err != nil {
			return err
		}
		if _, err := f.WriteAt(b, from); err != nil {
			return err
		}
		from += int64(len(b))
	}
	return nil
}

// writeZeros writes zeros over bytes [from, to) of f.
func writeZeros(f vfs.File, from, to int64) error {
	buf := make([]byte, min(scanWindow, max(0, to-from)))
	for from < to {
		b := buf[:min(int64(len(buf)), to-from)]
		if _, err := f.WriteAt(b, from); err != nil {
			return err
		}
		from += int64(len(b))
	}
	return nil
}

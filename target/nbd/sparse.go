package nbd

import (
	"bytes"

	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// Zeros in the answer to a READ are sent as holes. They are found by looking at
// the bytes, not by asking the device for its map: data almost always betray
// themselves in the first word of a block, the answer cannot contradict the
// bytes that it was made from, and written zeros are spared the wire too.

const (
	// holeUnit is the grain in which zeros are looked for, in bytes.
	holeUnit = 4096
	// holeMin is the shortest hole inside an answer, in bytes: each piece costs
	// a client at least one system call more. An answer that is all zeros is
	// one hole however short.
	holeMin = 16 << 10
)

var zeros [holeUnit]byte

// zero tells whether p, at most holeUnit bytes, is all zeros.
func zero(p []byte) bool { return p[0] == 0 && bytes.Equal(p, zeros[:len(p)]) }

// zeroRun is the length of the zeros at the beginning of p, in whole units and
// perhaps a last one that is shorter.
func zeroRun(p []byte) (n int) {
	for n < len(p) {
		k := min(holeUnit, len(p)-n)
		if !zero(p[n : n+k]) {
			break
		}
		n += k
	}
	return n
}

// dataRun is the length of p up to the first run of zeros that makes a hole.
func dataRun(p []byte) (n int) {
	for n < len(p) {
		k := min(holeUnit, len(p)-n)
		if !zero(p[n : n+k]) {
			n += k
			continue
		}
		if run := zeroRun(p[n:]); run >= holeMin {
			return n
		} else {
			n += run
		}
	}
	return n
}

// pack makes the answer to a READ at off in place: p has room for the header
// and then the bytes read. It returns the length of the answer, which is never
// longer than p. one forbids more than one piece.
func (c *conn) pack(p []byte, cookie uint64, off int64, one bool) int {
	s, head := c.style, c.style.ReadSize()
	data := p[head:]
	if s == proto.Simple || !zero(data[:min(len(data), holeUnit)]) && dataRun(data) == len(data) {
		s.PutReadHeader(p, cookie, uint64(off), uint64(off), len(data), true)
		return len(p)
	}
	if zeroRun(data) == len(data) {
		s.PutHole(p, cookie, uint64(off), uint64(off), len(data), true)
		return s.HoleSize()
	}
	if one {
		s.PutReadHeader(p, cookie, uint64(off), uint64(off), len(data), true)
		return len(p)
	}
	return c.packPieces(p, cookie, off)
}

// packPieces makes an answer of several pieces. It works in place: a hole is
// longer than its own chunk and the header of the data behind it, so that what
// is written never overtakes what is still to be read.
func (c *conn) packPieces(p []byte, cookie uint64, off int64) int {
	s, head := c.style, c.style.ReadSize()
	at := func(r int) uint64 { return uint64(off) + uint64(r-head) }
	w := 0
	for r := head; r < len(p); {
		if n := zeroRun(p[r:]); n >= holeMin || n == len(p)-r && n > 0 {
			place := at(r)
			if mutant.On("shift-hole") {
				place += 512
			}
			s.PutHole(p[w:], cookie, uint64(off), place, n, r+n == len(p))
			w += s.HoleSize()
			r += n
			continue
		}
		n := dataRun(p[r:])
		copy(p[w+head:], p[r:r+n])
		s.PutReadHeader(p[w:], cookie, uint64(off), at(r), n, r+n == len(p))
		w += head + n
		r += n
	}
	return w
}

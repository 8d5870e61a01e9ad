package brick

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// A frame is one record of a log (journal or index). Little endian:
//
//	 0  4  length of the body in bytes; 0 is a marker that carries only synced
//	 4  4  CRC32C, seeded, over bytes [0,4) and [8,24+length)
//	 8  8  Pos: where this frame stands in its log
//	16  8  synced: everything before this Pos was durable when the frame was made
//	24     body, then zeros up to a multiple of 8
//
// The seed comes from the brick's identity and a nonce of the file, so that
// bytes of another brick, or of an earlier life of the file, never verify.
const (
	frameHeader = 24
	frameAlign  = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Pos is a logical position in a log, in bytes. It only grows, is a multiple of
// 8, and is never 0 for a record.
type Pos int64

// frameSize is the number of bytes that a body of n bytes takes.
func frameSize(n int) int64 {
	return frameHeader + (int64(n)+frameAlign-1)&^(frameAlign-1)
}

// frameSeed makes the CRC seed of one file of a brick.
func frameSeed(brick ident.BrickID, nonce uint64) uint32 {
	var b [24]byte
	copy(b[:], brick[:])
	binary.LittleEndian.PutUint64(b[16:], nonce)
	return crc32.Checksum(b[:], castagnoli)
}

// appendFrame appends the frame whose body is the concatenation of bufs.
func appendFrame(dst []byte, seed uint32, pos, synced Pos, bufs ...[]byte) []byte {
	var head [frameHeader]byte
	start := len(dst)
	dst = append(dst, head[:]...)
	for _, b := range bufs {
		dst = append(dst, b...)
	}
	f := dst[start:]
	n := len(f) - frameHeader
	binary.LittleEndian.PutUint32(f, uint32(n))
	binary.LittleEndian.PutUint64(f[8:], uint64(pos))
	binary.LittleEndian.PutUint64(f[16:], uint64(synced))
	binary.LittleEndian.PutUint32(f[4:], frameCRC(f, seed))
	var zeros [frameAlign]byte
	return append(dst, zeros[:frameSize(n)-int64(len(f))]...)
}

// frameCRC is the checksum of f, a header with its body and nothing after.
func frameCRC(f []byte, seed uint32) uint32 {
	return crc32.Update(crc32.Update(seed, castagnoli, f[:4]), castagnoli, f[8:])
}

// frameLength looks at a header and reports the length of the body if a frame
// can stand here: right position, sane synced mark, length at most bodyMax.
func frameLength(head []byte, pos Pos, bodyMax int) (n int, ok bool) {
	if len(head) < frameHeader || Pos(binary.LittleEndian.Uint64(head[8:])) != pos {
		return 0, false
	}
	length := binary.LittleEndian.Uint32(head)
	synced := Pos(binary.LittleEndian.Uint64(head[16:]))
	if uint64(length) > uint64(bodyMax) || synced < 0 || synced > pos {
		return 0, false
	}
	return int(length), true
}

// decodeFrame verifies the frame at the start of b. body aliases b.
func decodeFrame(b []byte, seed uint32, pos Pos, bodyMax int) (body []byte, synced Pos, ok bool) {
	n, ok := frameLength(b, pos, bodyMax)
	if !ok || frameSize(n) > int64(len(b)) {
		return nil, 0, false
	}
	f := b[:frameHeader+n]
	if binary.LittleEndian.Uint32(f[4:]) != frameCRC(f, seed) && !mutant.On("frame-wrong-crc") {
		return nil, 0, false
	}
	return f[frameHeader:], Pos(binary.LittleEndian.Uint64(f[16:])), true
}

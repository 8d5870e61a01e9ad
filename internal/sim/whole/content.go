package whole

import (
	"bytes"
	"encoding/binary"
)

const (
	blockSize  = 4096
	sectorSize = 512
	sectors    = blockSize / sectorSize
)

// fill writes what the write called id puts into the sectors from sector at on:
// its name and the place first, then bytes that both determine. Those of every
// fourth write do not compress.
func fill(p []byte, id uint32, at int64) {
	for ; len(p) > 0; p, at = p[sectorSize:], at+1 {
		x := uint64(id)<<32 | uint64(uint32(at))
		binary.LittleEndian.PutUint64(p, uint64(id)|uint64(at)<<32)
		w := mix(x)
		for k := 8; k < sectorSize; k += 8 {
			binary.LittleEndian.PutUint64(p[k:], w)
			if id%4 == 0 {
				w = mix(w)
			}
		}
	}
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

var zeroSector [sectorSize]byte

// name tells which write the bytes of sector at are from, 0 for zeros. False: no
// write ever put these bytes there.
func name(p []byte, at int64, last uint32) (uint32, bool) {
	p = p[:sectorSize]
	if bytes.Equal(p, zeroSector[:]) {
		return 0, true
	}
	id := binary.LittleEndian.Uint32(p)
	if id == 0 || id > last {
		return id, false
	}
	var want [sectorSize]byte
	fill(want[:], id, at)
	return id, bytes.Equal(p, want[:])
}

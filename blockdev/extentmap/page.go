package extentmap

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Page is one page of the map: 256 pointers to data blocks (level 0) or to
// pages of the level below.
type Page [Fanout]Ptr

// A stored page, little endian:
//
//	0    4  magic "gmap"
//	4    1  version, 1
//	5    3  zero
//	8   32  bitmap: bit i%8 of byte i/8 is set when pointer i is not a hole
//	40 15n  the n present pointers in order:
//	        6 Ext, 5 (Off | (Len-1)<<21, upper 7 bits zero), 4 CRC
//	..      zero up to 4096
//
// The level is not stored: whoever follows a pointer knows the level, and the
// owners table of the extent repeats it. Integrity is the pointer's CRC; the
// decoder still bounds everything, because a CRC does not stop a defect.
const (
	pageMagic   = 'g' | 'm'<<8 | 'a'<<16 | 'p'<<24
	pageVersion = 1
	pageHead    = pageMagic | pageVersion<<32
	bitmapAt    = 8
	pointersAt  = bitmapAt + Fanout/8
	pointerSize = 15
)

// Encode fills dst, which is exactly BlockSize bytes, with the stored form. It
// panics on a pointer that is not Valid: a defect must not reach a disk.
func (pg *Page) Encode(dst []byte) {
	if len(dst) != BlockSize {
		panic(fmt.Sprintf("extentmap: a page is %d bytes, not %d", BlockSize, len(dst)))
	}
	binary.LittleEndian.PutUint64(dst, pageHead)
	at := pointersAt
	for w := range Fanout / 64 {
		var word uint64
		for i := range 64 {
			p := &pg[w*64+i]
			if !p.Valid() {
				panic(fmt.Sprintf("extentmap: pointer %d of a page is %#v", w*64+i, *p))
			}
			if p.Ext == 0 {
				continue
			}
			word |= 1 << i
			// Two overlapping 8-byte stores; the spilled zero byte is the
			// next pointer's first, or part of the zero rest.
			place := uint64(p.Off) | uint64(p.Len-1)<<21
			binary.LittleEndian.PutUint64(dst[at:], p.Ext|place<<48)
			binary.LittleEndian.PutUint64(dst[at+8:], place>>16|uint64(p.CRC)<<24)
			at += pointerSize
		}
		binary.LittleEndian.PutUint64(dst[bitmapAt+8*w:], word)
	}
	clear(dst[at:])
}

// Decode fills the page from its stored form, src of exactly BlockSize bytes.
// Corrupt: src is not what Encode makes; the page is then unspecified.
func (pg *Page) Decode(src []byte) error {
	if len(src) != BlockSize {
		return corruptf("decode map page", "a page is %d bytes, not %d", BlockSize, len(src))
	}
	if binary.LittleEndian.Uint64(src) != pageHead {
		return corruptf("decode map page", "it begins with %x: not a page of version %d", src[:8], pageVersion)
	}
	clear(pg[:])
	at := pointersAt
	for w := range Fanout / 64 {
		word := binary.LittleEndian.Uint64(src[bitmapAt+8*w:])
		for ; word != 0; word &= word - 1 {
			i := w*64 + bits.TrailingZeros64(word)
			lo := binary.LittleEndian.Uint64(src[at:])
			hi := binary.LittleEndian.Uint64(src[at+8:])
			place := lo>>48 | hi&(1<<24-1)<<16
			p := Ptr{
				Ext: lo & (extLimit - 1),
				Off: uint32(place & (offLimit - 1)),
				Len: uint16(place>>21&(BlockSize-1)) + 1,
				CRC: uint32(hi >> 24),
			}
			if p.Ext == 0 || place>>33 != 0 {
				return corruptf("decode map page", "pointer %d is out of range", i)
			}
			pg[i] = p
			at += pointerSize
		}
	}
	if !allZero(src[at:]) {
		return corruptf("decode map page", "there are bytes after the last pointer")
	}
	return nil
}

// empty reports whether the page has only holes.
func (pg *Page) empty() bool {
	for i := range pg {
		if pg[i].Ext != 0 {
			return false
		}
	}
	return true
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func corruptf(op, format string, args ...any) error {
	return fault.Newf(fault.Corrupt, op, "", format, args...)
}

func invalidf(op, format string, args ...any) error {
	return fault.Newf(fault.Invalid, op, "", format, args...)
}

package brick

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
)

var goldenBrick = ident.BrickID{0: 0xb0, 15: 0x0f}

// TestFrameGolden pins the bytes on disk.
func TestFrameGolden(t *testing.T) {
	seed := frameSeed(goldenBrick, 7)
	got := appendFrame([]byte{0xee}, seed, 4096, 128, []byte("gab"), []byte("ion!!"), nil, []byte("x"))
	const want = "ee" + "09000000" + "0d553f3b" + "0010000000000000" + "8000000000000000" +
		"676162696f6e21217800000000000000"
	if hex.EncodeToString(got) != want {
		t.Fatalf("frame\n%x, want\n%s", got, want)
	}
	body, synced, ok := decodeFrame(got[1:], seed, 4096, 9)
	if !ok || string(body) != "gabion!!x" || synced != 128 {
		t.Fatalf("decoded %q %d %v", body, synced, ok)
	}
}

func TestHeaderGolden(t *testing.T) {
	h := segmentHeader{state: segmentLive, brick: goldenBrick, nonce: 7, seq: 3, first: 8192, synced: 4096, size: 65536}
	b := make([]byte, segmentHeaderSize)
	h.encode(b)
	if got, ok := decodeSegmentHeader(b); !ok || got != h {
		t.Fatalf("decoded %+v %v", got, ok)
	}
	x := &indexLog{core: &core{id: goldenBrick}, gen: 2}
	if got := hex.EncodeToString(x.header()[:indexHeaderSize]); got != goldenIndexHeader {
		t.Fatalf("index header\n%s, want\n%s", got, goldenIndexHeader)
	}
	if got := hex.EncodeToString(b); got != goldenSegmentHeader {
		t.Fatalf("segment header\n%s, want\n%s", got, goldenSegmentHeader)
	}
	e := make([]byte, extentHeader)
	encodeExtentHeader(e, &Extent{Addr: ident.Addr{0: 1, 31: 2}, Volume: ident.VolumeID{3}, Number: 4, Epoch: 5, Data: make([]byte, 6)})
	if got := hex.EncodeToString(e); got != goldenExtentHeader {
		t.Fatalf("extent header\n%s, want\n%s", got, goldenExtentHeader)
	}
}

const (
	goldenSegmentHeader = "6761626a73656731e76949b501000000b000000000000000000000000000000f" +
		"0700000000000000030000000000000000200000000000000010000000000000" +
		"0000010000000000"
	goldenIndexHeader = "676162696e6478314da868d8b000000000000000000000000000000f02000000" +
		"00000000"
	goldenExtentHeader = "67627831ab4d8079010000000000000000000000000000000000000000000000" +
		"0000000000000002030000000000000000000000000000000400000000000000" +
		"0500000000000000060000000000000000000000000000000000000000000000"
)

// TestFrameRejectsEveryFlippedBit also covers a frame that moved, one of
// another brick and one of another life of the file.
func TestFrameRejectsEveryFlippedBit(t *testing.T) {
	seed := frameSeed(goldenBrick, 7)
	f := appendFrame(nil, seed, 4096, 128, []byte("gabion!!"))
	for i := range f {
		for bit := range 8 {
			f[i] ^= 1 << bit
			if _, _, ok := decodeFrame(f, seed, 4096, 100); ok {
				t.Fatalf("bit %d of byte %d flipped and nobody noticed", bit, i)
			}
			f[i] ^= 1 << bit
		}
	}
	for name, ok := range map[string]bool{
		"moved":      decodes(f, seed, 4104, 100),
		"other seed": decodes(f, frameSeed(goldenBrick, 8), 4096, 100),
		"other id":   decodes(f, frameSeed(ident.BrickID{1}, 7), 4096, 100),
		"too long":   decodes(f, seed, 4096, 7),
		"cut":        decodes(f[:len(f)-1], seed, 4096, 100),
		"zeros":      decodes(make([]byte, 100), seed, 0, 100),
	} {
		if ok {
			t.Errorf("accepted: %s", name)
		}
	}
}

func decodes(b []byte, seed uint32, pos Pos, max int) bool {
	_, _, ok := decodeFrame(b, seed, pos, max)
	return ok
}

func FuzzDecodeFrame(f *testing.F) {
	seed := frameSeed(goldenBrick, 7)
	f.Add(appendFrame(nil, seed, 4096, 128, []byte("gabion")), int64(4096))
	f.Add(appendFrame(nil, seed, 8, 8), int64(8))
	f.Add(make([]byte, 40), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, pos int64) {
		body, synced, ok := decodeFrame(b, seed, Pos(pos), 1000)
		if !ok {
			return
		}
		again := appendFrame(nil, seed, Pos(pos), synced, body)
		n := frameHeader + len(body) // the padding is not covered, nor used
		if !bytes.Equal(again[:n], b[:n]) {
			t.Fatalf("decoded and encoded again: %x, was %x", again, b)
		}
	})
}

func FuzzDecodeHeaders(f *testing.F) {
	b := make([]byte, segmentHeaderSize)
	segmentHeader{state: 1, brick: goldenBrick, nonce: 7, seq: 3, first: 8192, synced: 4096, size: 65536}.encode(b)
	f.Add(b)
	e := make([]byte, extentHeader)
	encodeExtentHeader(e, &Extent{Data: make([]byte, 6)})
	f.Add(e)
	f.Add(identity{Format: 1, Brick: goldenBrick}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := decodeSegmentHeader(b); ok {
			again := make([]byte, segmentHeaderSize)
			h.encode(again)
			if !bytes.Equal(again, b[:segmentHeaderSize]) {
				t.Fatalf("segment header %x became %x", b, again)
			}
		}
		checkExtentHeader(b, ident.Addr{}, 6)
		if id, err := decodeIdentity(b); err == nil {
			if again, err := decodeIdentity(id.encode()); err != nil || again != id {
				t.Fatalf("identity %+v became %+v: %v", id, again, err)
			}
		}
	})
}

func FuzzDecodeOps(f *testing.F) {
	var b []byte
	for _, op := range []indexOp{
		{code: opPut, addr: ident.Addr{1}, volume: ident.VolumeID{2}, number: 3, epoch: 4, segment: 5, offset: 6, size: 7},
		{code: opDelete, addr: ident.Addr{1}}, {code: opOpen, segment: 9}, {code: opClean, segment: 9},
	} {
		b = op.append(b)
	}
	f.Add(b)
	f.Add(b[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		if err := decodeOps(b, func(op *indexOp) { again = op.append(again) }); err == nil && !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%x is not how %x begins", again, b)
		}
	})
}

// FuzzScan feeds a file of any content to recovery: it must end, and never
// invent a record.
func FuzzScan(f *testing.F) {
	seed := frameSeed(goldenBrick, 7)
	two := appendFrame(nil, seed, 0, 0, []byte("one"))
	two = appendFrame(two, seed, Pos(len(two)), 0, []byte("two"))
	f.Add(two)
	f.Add(append([]byte{1}, two[1:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &frameScan{f: bytesFile{b}, seed: seed, end: int64(len(b)), bodyMax: 1000}
		stop, err := s.frames(0, 0, func(p, _ Pos, body []byte) error {
			if !decodes(b[p:], seed, p, 1000) {
				t.Fatalf("invented a record at %d", p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.later(stop); err != nil {
			t.Fatal(err)
		}
	})
}

package extent

import (
	"bytes"
	"encoding/hex"
	"math/rand"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

var testVolume = ident.VolumeID{0: 0xaa, 15: 0x55}

// pages returns blocks of the kinds a volume holds.
func pages(seed int64) map[string][]byte {
	r := rand.New(rand.NewSource(seed))
	random := make([]byte, BlockSize)
	r.Read(random)
	return map[string][]byte{"text": text(r), "page": page(r), "random": random, "zero": make([]byte, BlockSize)}
}

// text is 4 KiB of words with the repetition of ordinary prose and logs.
func text(r *rand.Rand) []byte {
	words := make([]string, 600)
	for i := range words {
		w := make([]byte, 2+r.Intn(8))
		for j := range w {
			w[j] = "etaoinshrdlucmfwyp"[r.Intn(18)]
		}
		words[i] = string(w)
	}
	var b []byte
	for len(b) < BlockSize {
		b = append(append(b, words[int(r.ExpFloat64()*60)%len(words)]...), ' ')
	}
	return b[:BlockSize]
}

// page is a database page: a header, free space, rows of numbers and text.
func page(r *rand.Rand) []byte {
	b := make([]byte, BlockSize)
	copy(b[2048:3072], text(r))
	for i := 3072; i < 4096; i += 16 {
		r.Read(b[i : i+4])
		b[i+8] = byte(i >> 4)
	}
	return b
}

func TestBuilderRoundTrip(t *testing.T) {
	var b Builder
	for round, kinds := range [][]string{{"zero"}, {"text", "random", "page", "zero"}} {
		b.Reset(testVolume, uint64(round+1), 7)
		type where struct {
			off    uint32
			length uint16
			raw    []byte
		}
		var at []where
		src := pages(int64(round))
		for !b.Full() {
			raw := src[kinds[b.Count()%len(kinds)]]
			off, n := b.Add(uint64(b.Count())<<33, raw)
			at = append(at, where{off, n, raw})
		}
		if b.Len() != len(b.Finish()) || b.Len() > SizeMax {
			t.Fatalf("Len %d, finished %d", b.Len(), len(b.Finish()))
		}
		x, err := Decode(b.Finish())
		if err != nil {
			t.Fatal(err)
		}
		if x.Volume != testVolume || x.Number != uint64(round+1) || x.Epoch != 7 || x.Count != BlocksMax {
			t.Fatalf("header %+v", x.Header)
		}
		dst := make([]byte, BlockSize)
		for i, w := range at {
			if x.Owner(i) != uint64(i)<<33 {
				t.Fatalf("owner %d = %#x", i, x.Owner(i))
			}
			stored := x.Payload[w.off-HeaderSize:][:w.length] // offsets count from the start of the extent
			if err := ReadBlock(dst, stored, Checksum(w.raw)); err != nil || !bytes.Equal(dst, w.raw) {
				t.Fatalf("block %d: %v", i, err)
			}
			if err := ReadBlock(dst, stored, Checksum(w.raw)+1); !fault.Is(err, fault.Corrupt) {
				t.Fatalf("wrong checksum: %v", err)
			}
		}
	}
}

func TestAddStoredKeepsBytes(t *testing.T) {
	for kind, raw := range pages(3) {
		var a, b Builder
		a.Reset(testVolume, 1, 1)
		off, n := a.Add(5, raw)
		stored := a.Finish()[off:][:n]
		b.Reset(testVolume, 2, 2)
		off2, n2 := b.AddStored(5, stored)
		if off2 != off || n2 != n || !bytes.Equal(b.Finish()[off2:][:n2], stored) {
			t.Fatalf("%s: stored bytes changed", kind)
		}
	}
}

func TestIncompressibleStaysRaw(t *testing.T) {
	var b Builder
	b.Reset(testVolume, 1, 1)
	if _, n := b.Add(0, pages(1)["random"]); n != BlockSize {
		t.Fatalf("random block stored in %d bytes", n)
	}
	if _, n := b.Add(0, pages(1)["zero"]); int(n) > 64 {
		t.Fatalf("zero block stored in %d bytes", n)
	}
	if _, n := b.Add(0, pages(1)["page"]); int(n) > CompressedMax {
		t.Fatalf("page stored in %d bytes", n)
	}
}

// Blocks that do not compress are tried less and less often, but what compresses after
// them is soon found again.
func TestCompressionLooksAgain(t *testing.T) {
	src := pages(7)
	var b Builder
	b.Reset(ident.VolumeID{1}, 1, 1)
	add := func(kind string) bool {
		_, n := b.Add(1, src[kind])
		return n < BlockSize
	}
	for range denseRun {
		if add("random") {
			t.Fatal("random bytes were compressed")
		}
	}
	raw := 0
	for !add("text") {
		if raw++; raw == denseTry {
			t.Fatalf("%d blocks of text were not tried", raw)
		}
	}
	for i := range 20 {
		if !add("text") {
			t.Fatalf("block %d of text was not compressed", i)
		}
	}
	for range denseRun + 1 {
		add("random")
	}
	b.Reset(ident.VolumeID{1}, 2, 1)
	if !add("text") {
		t.Fatal("an extent began as the one before ended")
	}
}

func TestEqualDataOfOtherAttemptsHasOtherAddresses(t *testing.T) {
	seen := map[ident.Addr]bool{}
	for _, h := range []Header{{Number: 1, Epoch: 1}, {Number: 2, Epoch: 1}, {Number: 1, Epoch: 2}, {Volume: testVolume, Number: 1, Epoch: 1}} {
		var b Builder
		b.Reset(h.Volume, h.Number, h.Epoch)
		b.Add(0, make([]byte, BlockSize))
		seen[Address(b.Finish())] = true
	}
	if len(seen) != 4 {
		t.Fatalf("%d addresses for 4 extents", len(seen))
	}
}

// The bytes of version 1 never change.
func TestGolden(t *testing.T) {
	var b Builder
	b.Reset(testVolume, 0x1234, 0x56)
	block := make([]byte, BlockSize)
	copy(block, "gabion")
	b.Add(0x0102030405060708, block)
	b.Add(9, make([]byte, BlockSize))
	const header = "47424e5801000000" + "aa000000000000000000000000000055" +
		"3412000000000000" + "5600000000000000" + "02000000"
	const owners = "0807060504030201" + "0900000000000000"
	got := hex.EncodeToString(b.Finish())
	if got[:len(header)] != header || got[len(got)-len(owners):] != owners {
		t.Fatalf("encoded bytes changed:\n%s", got)
	}
	// A whole extent without the compressor's freedom in it.
	b.Reset(testVolume, 1, 2)
	b.AddStored(3, []byte{0xde, 0xad})
	const whole = "47424e5801000000aa00000000000000000000000000005501000000000000000200000000000000" +
		"0100000002000000000000000000000000000000fbf69fbfdead0300000000000000"
	if got := hex.EncodeToString(b.Finish()); got != whole {
		t.Fatalf("encoded bytes changed:\n%s", got)
	}
}

func TestDecodeRefusesDamage(t *testing.T) {
	var b Builder
	b.Reset(testVolume, 1, 1)
	b.Add(1, pages(1)["random"])
	good := bytes.Clone(b.Finish())
	for i := 0; i < HeaderSize; i++ {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := Decode(bad); !fault.Is(err, fault.Corrupt) {
			t.Fatalf("byte %d damaged: %v", i, err)
		}
	}
	for _, n := range []int{0, 1, HeaderSize - 1, HeaderSize, len(good) - 1} {
		if _, err := Decode(good[:n]); !fault.Is(err, fault.Corrupt) {
			t.Fatalf("cut to %d: %v", n, err)
		}
	}
	if _, err := Decode(append(bytes.Clone(good), 0)); !fault.Is(err, fault.Corrupt) {
		t.Fatal("longer than its header says")
	}
	for _, h := range []Header{{Count: 0, PayloadLen: 1}, {Count: BlocksMax + 1, PayloadLen: BlockSize},
		{Count: 1, PayloadLen: BlockSize + 1}, {Count: 2, PayloadLen: 1}} {
		bad := bytes.Clone(good[:HeaderSize])
		h.encode(bad)
		if _, err := ParseHeader(bad); !fault.Is(err, fault.Corrupt) {
			t.Fatalf("%+v accepted", h)
		}
	}
}

func TestMisusePanics(t *testing.T) {
	panics := func(name string, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", name)
			}
		}()
		f()
	}
	block := make([]byte, BlockSize)
	panics("add before reset", func() { new(Builder).Add(0, block) })
	panics("empty finish", func() { b := new(Builder); b.Reset(testVolume, 1, 1); b.Finish() })
	panics("short block", func() { b := new(Builder); b.Reset(testVolume, 1, 1); b.Add(0, block[1:]) })
	panics("bad stored length", func() { b := new(Builder); b.Reset(testVolume, 1, 1); b.AddStored(0, block[1:]) })
	panics("add after finish", func() {
		b := new(Builder)
		b.Reset(testVolume, 1, 1)
		b.Add(0, block)
		b.Finish()
		b.Add(0, block)
	})
	panics("257th block", func() {
		b := new(Builder)
		b.Reset(testVolume, 1, 1)
		for range BlocksMax + 1 {
			b.Add(0, block)
		}
	})
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	var b Builder
	src := pages(1)
	dst := make([]byte, BlockSize)
	crc := Checksum(src["text"])
	n := testing.AllocsPerRun(50, func() {
		b.Reset(testVolume, 1, 1)
		off, length := b.Add(1, src["text"])
		b.Add(2, src["random"])
		if ReadBlock(dst, b.Finish()[off:][:length], crc) != nil {
			t.Fatal("unreadable")
		}
	})
	if n > 0.5 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	var b Builder
	for _, raw := range pages(1) {
		b.Reset(testVolume, 1, 1)
		b.Add(1, raw)
		b.Add(2, raw)
		f.Add(bytes.Clone(b.Finish()))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		x, err := Decode(p)
		if err != nil {
			if !fault.Is(err, fault.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		again := bytes.Clone(p)
		x.Header.encode(again)
		if !bytes.Equal(again, p) {
			t.Fatal("re-encoded header differs")
		}
		for i := range x.Count {
			x.Owner(i)
		}
	})
}

func FuzzReadBlock(f *testing.F) {
	var b Builder
	for _, raw := range pages(1) {
		b.Reset(testVolume, 1, 1)
		off, n := b.Add(1, raw)
		f.Add(bytes.Clone(b.Finish()[off:][:n]), Checksum(raw))
	}
	f.Fuzz(func(t *testing.T, stored []byte, crc uint32) {
		dst := make([]byte, BlockSize)
		if err := ReadBlock(dst, stored, crc); err == nil {
			if Checksum(dst) != crc {
				t.Fatal("returned without error, but not what the checksum covers")
			}
		} else if !fault.Is(err, fault.Corrupt) {
			t.Fatal(err)
		}
	})
}

package tail

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
)

// flat is the slow oracle: one Hit for each block of a small volume.
type flat struct{ hits []Hit }

func (f *flat) check(t *testing.T, tl *Tail) {
	t.Helper()
	for b, want := range f.hits {
		sameHit(t, uint64(b), tl.Get(uint64(b)), want)
	}
}

func sameHit(t *testing.T, block uint64, got, want Hit) {
	t.Helper()
	if got.Kind != want.Kind || got.Ptr != want.Ptr || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("block %d: got %v %v, want %v %v", block, got.Kind, got.Ptr, want.Kind, want.Ptr)
	}
}

// checkFold compares a Fold with the oracle: zeros then items must give it.
func (f *flat) checkFold(t *testing.T, tl *Tail) {
	t.Helper()
	fold := tl.Fold(0)
	got := make([]Hit, len(f.hits))
	last := uint64(0)
	for i, z := range fold.Zeros {
		if z.From >= z.To || (i > 0 && z.From <= last) {
			t.Fatalf("zero range [%d,%d) follows %d", z.From, z.To, last)
		}
		last = z.To
		for b := z.From; b < z.To; b++ {
			got[b] = Hit{Kind: Zero}
		}
	}
	next, n := uint64(0), 0
	_ = fold.Each(func(block uint64, h Hit) error {
		if block < next {
			t.Fatalf("block %d out of order", block)
		}
		next, n = block+1, n+1
		got[block] = h
		return nil
	})
	if n != fold.Len() {
		t.Fatalf("%d of %d blocks visited", n, fold.Len())
	}
	for b := range got {
		sameHit(t, uint64(b), got[b], f.hits[b])
	}
}

func (f *flat) step(rng *rand.Rand, tl *Tail, serial uint64) {
	size := uint64(len(f.hits))
	from := rng.Uint64N(size)
	n := 1 + rng.Uint64N(min(size-from, 1+rng.Uint64N(24)))
	switch rng.IntN(8) {
	case 0, 1:
		if rng.IntN(6) == 0 {
			n = 1 + rng.Uint64N(size-from)
		}
		tl.Zero(from, from+n)
		for b := from; b < from+n; b++ {
			f.hits[b] = Hit{Kind: Zero}
		}
	case 2:
		ptrs := make([]extentmap.Ptr, n)
		for i := range ptrs {
			if rng.IntN(10) > 0 {
				ptrs[i] = extentmap.Ptr{Ext: serial, Off: uint32(i), Len: 7, CRC: rng.Uint32()}
				f.hits[from+uint64(i)] = Hit{Kind: Extent, Ptr: ptrs[i]}
			} else {
				f.hits[from+uint64(i)] = Hit{Kind: Zero}
			}
		}
		tl.PutExtent(from, ptrs)
	default:
		data := tl.Alloc(int(n) * blockSize)
		for i := range n {
			b := data[i*blockSize:][:blockSize]
			clear(b)
			binary.LittleEndian.PutUint64(b, serial)
			b[blockSize-1] = byte(i)
			f.hits[from+i] = Hit{Kind: Data, Data: bytes.Clone(b)}
		}
		tl.Put(from, data)
	}
}

func TestTailAgreesWithFlatArray(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		f := &flat{hits: make([]Hit, 64+rng.IntN(1500))}
		tl := New()
		for serial := range uint64(300) {
			f.step(rng, tl, serial+1)
			if serial%50 == 49 {
				f.check(t, tl)
				f.checkFold(t, tl)
			}
		}
		tl.Release()
	}
}

package tail

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// Put of one block of a 10 GiB volume, with its memory; a tail is released
// after 16384 of them (64 MiB).
func BenchmarkPut(b *testing.B) {
	for _, zeros := range []int{0, 1000} {
		b.Run(fmt.Sprintf("zeros=%d", zeros), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 1))
			tl, n := New(), 0
			b.ReportAllocs()
			for b.Loop() {
				if n == 0 {
					for range zeros {
						tl.Zero(rng.Uint64N(10<<18), 10<<18)
					}
				}
				tl.Put(rng.Uint64N(10<<18), tl.Alloc(blockSize))
				if n++; n == 16384 {
					tl.Release()
					n = 0
				}
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	for _, entries := range []int{16384, 262144} {
		for _, zeros := range []int{0, 1000, 100000} {
			b.Run(fmt.Sprintf("entries=%d/zeros=%d", entries, zeros), func(b *testing.B) {
				const blocks = 1 << 20
				rng := rand.New(rand.NewPCG(1, 1))
				tl := New()
				data := tl.Alloc(blockSize)
				for range entries {
					tl.Put(rng.Uint64N(blocks), data)
				}
				for range zeros {
					from := rng.Uint64N(blocks)
					tl.Zero(from, from+2)
				}
				b.ReportAllocs()
				var hits [4]int
				for b.Loop() {
					hits[tl.Get(rng.Uint64N(blocks)).Kind]++
				}
			})
		}
	}
}

func BenchmarkZero(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	tl, n := New(), 0
	data := tl.Alloc(blockSize)
	for b.Loop() {
		from := rng.Uint64N(1 << 30)
		tl.Put(from, data)
		tl.Zero(from, from+1+rng.Uint64N(1<<10))
		if n++; n == 100000 {
			tl, n = New(), 0
			data = tl.Alloc(blockSize)
		}
	}
}

func BenchmarkFold(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	tl := New()
	data := tl.Alloc(blockSize)
	for range 16384 {
		tl.Put(rng.Uint64N(10<<18), data)
	}
	b.ReportAllocs()
	for b.Loop() {
		tl.Fold(0)
	}
}

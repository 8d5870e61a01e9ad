package extentmap

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// cache is a Loader of decoded pages, as a holder has it in steady state.
type cache struct {
	pages map[Ptr]*Page
	next  uint64
}

func (c *cache) LoadPage(p Ptr, level int) (*Page, error) { return c.pages[p], nil }

func (c *cache) write(o Owner, pg *Page) (Ptr, error) {
	c.next++
	keep := *pg
	p := Ptr{Ext: c.next, Len: BlockSize}
	c.pages[p] = &keep
	return p, nil
}

// encodeOnly is a write function that encodes and keeps nothing.
func encodeOnly() func(o Owner, pg *Page) (Ptr, error) {
	buf := make([]byte, BlockSize)
	next := uint64(1 << 41)
	return func(o Owner, pg *Page) (Ptr, error) {
		pg.Encode(buf)
		next++
		return Ptr{Ext: next, Len: BlockSize}, nil
	}
}

func randomChanges(rng *rand.Rand, n int, blocks uint64) []Change {
	m := make(map[uint64]bool, n)
	for len(m) < n {
		m[rng.Uint64N(blocks)] = true
	}
	cs := make([]Change, 0, n)
	for _, b := range slices.Sorted(maps.Keys(m)) {
		cs = append(cs, Change{b, Ptr{Ext: 1 + rng.Uint64N(1<<30), Len: BlockSize, CRC: rng.Uint32()}})
	}
	return cs
}

func BenchmarkPageEncode(b *testing.B) {
	for _, fill := range []int{5, 50, 100} {
		b.Run(fmt.Sprintf("fill=%d%%", fill), func(b *testing.B) {
			pg := randomPage(rand.New(rand.NewPCG(1, 1)), fill)
			buf := make([]byte, BlockSize)
			for b.Loop() {
				pg.Encode(buf)
			}
		})
	}
}

func BenchmarkPageDecode(b *testing.B) {
	for _, fill := range []int{5, 50, 100} {
		b.Run(fmt.Sprintf("fill=%d%%", fill), func(b *testing.B) {
			buf := make([]byte, BlockSize)
			randomPage(rand.New(rand.NewPCG(1, 1)), fill).Encode(buf)
			var pg Page
			for b.Loop() {
				if err := pg.Decode(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// tree is a map of size bytes with n random blocks written.
func tree(b *testing.B, size int64, n int) (Root, *cache) {
	b.Helper()
	c := &cache{pages: map[Ptr]*Page{}, next: 1 << 40}
	level := LevelFor(size)
	cs := randomChanges(rand.New(rand.NewPCG(1, 1)), n, uint64(size/BlockSize))
	r, err := Update(Root{Level: level}, level, nil, cs, nil, c, c.write, func(Ptr) {})
	if err != nil {
		b.Fatal(err)
	}
	return r, c
}

func BenchmarkLookup(b *testing.B) {
	for _, c := range []struct {
		name string
		size int64
		len  int
	}{
		{"10GiB/4KiB", 10 << 30, 1}, {"10GiB/128KiB", 10 << 30, 32}, {"1TiB/4KiB", 1 << 40, 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			r, l := tree(b, c.size, 16384)
			rng := rand.New(rand.NewPCG(2, 2))
			out := make([]Ptr, c.len)
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Lookup(rng.Uint64N(uint64(c.size/BlockSize)), out, l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// 16k random changes of blocks; the leaves they fall in are there.
func BenchmarkUpdate16k(b *testing.B) {
	for _, size := range []int64{10 << 30, 1 << 40} {
		b.Run(fmt.Sprintf("%dGiB", size>>30), func(b *testing.B) {
			r, l := tree(b, size, 16384)
			cs := randomChanges(rand.New(rand.NewPCG(1, 1)), 16384, uint64(size/BlockSize))
			for i := range cs {
				cs[i].Ptr.CRC++
			}
			write := encodeOnly()
			freed := 0
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Update(r, r.Level, nil, cs, nil, l, write, func(Ptr) { freed++ }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(freed)/float64(b.N), "freed/op")
		})
	}
}

func bigTable(extents int) *Table {
	tab := NewTable()
	tx := tab.Begin()
	for n := range uint64(extents) {
		tx.Add(Extent{Number: n + 1, Blocks: 256, Live: 256, Bytes: 1 << 20})
	}
	tx.Commit()
	return tab
}

func BenchmarkTableGet(b *testing.B) {
	tab := bigTable(1 << 20)
	rng := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := tab.Get(1 + rng.Uint64N(1<<20)); !ok {
			b.Fatal("an extent is missing")
		}
	}
}

func BenchmarkTableSparse(b *testing.B) {
	tab := bigTable(1 << 20)
	for b.Loop() {
		tab.Sparse(0, 256, 1000)
	}
}

// A checkpoint's change: 16k blocks freed all over a table of 1M extents, 128
// extents added.
func BenchmarkTableTx(b *testing.B) {
	tab := bigTable(1 << 20)
	rng := rand.New(rand.NewPCG(1, 1))
	next, left := uint64(1<<20), 0
	for b.Loop() {
		if left--; left < 0 {
			b.StopTimer()
			tab, next, left = bigTable(1<<20), 1<<20, 50
			b.StartTimer()
		}
		tx := tab.Begin()
		for range 16384 {
			tx.Free(Ptr{Ext: 1 + rng.Uint64N(1<<20), Len: 1})
		}
		for range 128 {
			next++
			tx.Add(Extent{Number: next, Blocks: 256, Live: 256})
		}
		tx.Delta()
		tx.Commit()
	}
}

// BenchmarkDropSnapshot drops one of two snapshots between which every extent of
// a volume of 64 GiB was overwritten.
func BenchmarkDropSnapshot(b *testing.B) {
	const extents = 1 << 16
	tab := NewTable()
	tx := tab.Begin()
	for n := range uint64(extents) {
		tx.Add(newExtent(n+1, 256, 256))
	}
	tx.Cut(1, extents+1)
	tx.Commit()
	tx = tab.Begin()
	for n := range uint64(extents) {
		for range 256 {
			tx.Free(Ptr{Ext: n + 1, Len: 1})
		}
	}
	tx.Cut(2, extents+1)
	tx.Commit()
	for b.Loop() {
		tx := tab.Begin()
		if tx.Drop(1); tx.Err() != nil {
			b.Fatal(tx.Err())
		}
	}
}

package tail

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
)

// Memory that Alloc gives never overlaps, and none of it can be appended into
// its neighbour.
func TestAllocGivesEveryByteOnce(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	tl := New()
	var all [][]byte
	for i := range 400 {
		n := []int{0, 1, 24, blockSize, 16 * blockSize, ownMin - 1, ownMin, ChunkSize, ChunkSize + 1}[rng.IntN(9)]
		b := tl.Alloc(n)
		if len(b) != n || cap(b) != n {
			t.Fatalf("%d bytes of %d, asked for %d", len(b), cap(b), n)
		}
		for k := range b {
			b[k] = byte(i)
		}
		all = append(all, b)
	}
	var sum int64
	for i, b := range all {
		sum += int64(len(b))
		for k := range b {
			if b[k] != byte(i) {
				t.Fatalf("allocation %d was overwritten at byte %d", i, k)
			}
		}
	}
	if held := tl.Bytes(); held < sum || held > sum*3/2 {
		t.Errorf("%d bytes are held for %d", held, sum)
	}
	tl.Release()
	if tl.Bytes() != 0 || tl.Entries() != 0 || tl.Zeros() != 0 {
		t.Error("a released tail is not empty")
	}
}

// The free list takes what it can hold and leaves the rest to the collector.
func TestFreeChunksAreBounded(t *testing.T) {
	for range FreeChunksMax {
		giveChunk(new([ChunkSize]byte))
	}
	giveChunk(new([ChunkSize]byte))
	if n := len(freeChunks); n != FreeChunksMax {
		t.Fatalf("%d chunks are kept", n)
	}
	tl := New()
	for range 3 * ChunkSize / blockSize {
		tl.Alloc(blockSize)
	}
	if n := len(freeChunks); n != FreeChunksMax-3 {
		t.Fatalf("%d chunks are kept while 3 are used", n)
	}
	tl.Release()
	if n := len(freeChunks); n != FreeChunksMax {
		t.Fatalf("%d chunks are kept after release", n)
	}
	for len(freeChunks) > 0 {
		<-freeChunks
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	blocks := make([]uint64, 20000)
	for i := range blocks {
		blocks[i] = rng.Uint64N(1 << 32)
	}
	tl := New()
	run := func() {
		for i, b := range blocks {
			tl.Put(b, tl.Alloc(blockSize))
			if i%1000 == 0 {
				tl.Zero(b, b+1000)
			}
			if tl.Get(b+1).Kind > Extent {
				t.Fatal("no such kind")
			}
		}
	}
	run()
	chunks := len(tl.arena.chunks)
	for range chunks + 2 { // what the next runs take
		giveChunk(new([ChunkSize]byte))
	}
	tl.arena.chunks = append(make([]*[ChunkSize]byte, 0, 8*chunks), tl.arena.chunks...)
	if n := testing.AllocsPerRun(1, func() { run() }); n > 200 {
		t.Errorf("%v allocations for %d writes", n, len(blocks))
	}
}

// Every stride of a database or file system keeps probes short.
func TestIndexSpreadsAlignedBlocks(t *testing.T) {
	for _, stride := range []uint64{1, 2, 4, 8, 16, 32, 256, 4096, 65536, 1 << 20} {
		var x index
		const n = 1 << 15
		for i := range uint64(n) {
			x.put(i * stride)
		}
		probes := 0
		for i := range x.shards {
			slots := x.shards[i].slots
			mask := uint64(len(slots)) - 1
			for at := range slots {
				if k := slots[at].key; k != 0 {
					probes += int((uint64(at)-home(hash(k-1), k-1))&mask) + 1
				}
			}
		}
		if x.n != n || float64(probes)/n > 6 {
			t.Errorf("stride %d: %d blocks, %.1f probes each", stride, x.n, float64(probes)/n)
		}
	}
}

// Reads may overlap with each other and with a Fold.
func TestReadsRunTogether(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	f, tl := &flat{hits: make([]Hit, 2000)}, New()
	for serial := range uint64(500) {
		f.step(rng, tl, serial+1)
	}
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for b := range f.hits {
				if h := tl.Get(uint64(b)); h.Kind != f.hits[b].Kind {
					t.Errorf("block %d is %v, not %v", b, h.Kind, f.hits[b].Kind)
				}
			}
			tl.Fold(0)
			tl.Bytes()
			tl.Entries()
			tl.Zeros()
		})
	}
	readers.Wait()
}

// Discards that follow each other are one range, however many.
func TestZeroRangesJoin(t *testing.T) {
	tl := New()
	data := tl.Alloc(blockSize)
	for i := range uint64(10000) {
		tl.Zero(i*10, i*10+10)
	}
	if tl.Zeros() != 1 {
		t.Errorf("%d ranges", tl.Zeros())
	}
	tl.Put(5, data)
	tl.Zero(100000, 100010) // later than the put: not one with the first
	if tl.Zeros() != 2 || tl.Get(5).Kind != Data || tl.Get(6).Kind != Zero {
		t.Errorf("%d ranges, block 5 is %v", tl.Zeros(), tl.Get(5).Kind)
	}
	if f := tl.Fold(0); len(f.Zeros) != 1 || f.Zeros[0] != (extentmap.Range{From: 0, To: 100010}) || f.Len() != 1 {
		t.Errorf("%v, %d blocks", f.Zeros, f.Len())
	}
	tl.Zero(0, 1<<40) // swallows all
	if tl.Zeros() != 1 || tl.Get(5).Kind != Zero || tl.Fold(0).Len() != 0 {
		t.Errorf("%d ranges, block 5 is %v", tl.Zeros(), tl.Get(5).Kind)
	}
	tl.Zero(7, 7)
	if tl.Zeros() != 1 || tl.Get(1<<40).Kind != Miss {
		t.Error("an empty range did something")
	}
}

// Many ranges in any order stay disjoint and in order, run by run.
func TestZeroSetKeepsItsShape(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 2))
		const size = 20000
		gens := make([]uint32, size) // 0: not zeroed
		var z zeroSet
		gen := uint32(0)
		for range 4000 {
			if rng.IntN(2) == 0 || gen == 0 {
				gen++
			}
			from := rng.Uint64N(size)
			to := from + 1 + rng.Uint64N(min(size-from, 1+rng.Uint64N(12)))
			if rng.IntN(500) == 0 {
				to = from + 1 + rng.Uint64N(size-from)
			}
			to = min(to, size)
			z.put(from, to, gen, uint64(gen))
			for b := from; b < to; b++ {
				gens[b] = gen
			}
		}
		n, last := 0, uint64(0)
		for _, r := range z.runs {
			if len(r) == 0 || len(r) > runMax {
				t.Fatalf("a run of %d", len(r))
			}
			for _, o := range r {
				if o.from < last || o.from >= o.to {
					t.Fatalf("[%d,%d) follows %d", o.from, o.to, last)
				}
				n, last = n+1, o.to
			}
		}
		if n != z.n {
			t.Fatalf("%d ranges, counted %d", n, z.n)
		}
		for b := range gens {
			if got, ok := z.at(uint64(b)); got.gen != gens[b] || got.entry < uint64(gens[b]) || ok != (gens[b] > 0) {
				t.Fatalf("seed %d: block %d is of generation %d and entry %d, not %d", seed, b, got.gen, got.entry, gens[b])
			}
		}
	}
}

func TestPutWantsWholeBlocks(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("half a block was put")
		}
	}()
	tl := New()
	tl.Put(0, tl.Alloc(blockSize/2))
}

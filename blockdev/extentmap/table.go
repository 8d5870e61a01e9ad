package extentmap

import (
	"container/heap"
	"sort"
	"sync"

	"github.com/gabion-storage/gabion/internal/ident"
)

// Extent is what a volume knows of one of its extents.
type Extent struct {
	Number uint64 // 1 <= Number < 2^48, unique in the volume
	Addr   ident.Addr
	Blocks uint16 // blocks stored in it, at least 1
	Live   uint16 // how many of them the map still uses, at most Blocks
	Bytes  uint32 // encoded size
}

func (e *Extent) valid() bool {
	return e.Number >= 1 && e.Number < extLimit && e.Blocks >= 1 && e.Live <= e.Blocks
}

// ChunkExtents is the number of extents a chunk of a Table holds at most. A
// chunk is rebuilt when extents come or go in it.
const ChunkExtents = 128

// chunk is a run of extents by ascending number: never empty, its slice
// allocated to measure.
type chunk struct {
	first uint64 // es[0].Number
	es    []Extent
}

// Table counts the live blocks of all extents of a volume, by number. It takes
// at most 64 bytes for each extent (about 50 measured).
//
// Get, Stats, Sparse and All may run on any goroutine at any time. Begin, the
// Tx it gives, and Snapshot belong to one owner, who has at most one Tx in use.
type Table struct {
	seq uint64 // transactions applied since the table was made; the owner's

	mu     sync.RWMutex // guards all below against Commit, which holds it for some 10 µs at a time
	chunks []chunk      // by ascending first; the slice is replaced, not changed
	sum    sums
	past   []interval // snapshots, oldest first; the slice is replaced, not changed
	head   deadlist   // blocks that the newest snapshot has and the map has not
	held   int64      // blocks on all deadlists
}

// sums are the totals over a table's extents.
type sums struct{ extents, blocks, live, bytes int64 }

func (s *sums) add(e *Extent, sign int64) {
	s.extents += sign
	s.blocks += sign * int64(e.Blocks)
	s.live += sign * int64(e.Live)
	s.bytes += sign * int64(e.Bytes)
}

// NewTable makes an empty table.
func NewTable() *Table { return &Table{} }

// Get finds an extent by number.
func (t *Table) Get(number uint64) (Extent, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := find(t.chunks, number); e != nil {
		return *e, true
	}
	return Extent{}, false
}

// find returns the place of an extent, nil if there is none.
func find(chunks []chunk, number uint64) *Extent {
	c := chunkOf(chunks, number)
	if c < 0 {
		return nil
	}
	es := chunks[c].es
	i := sort.Search(len(es), func(i int) bool { return es[i].Number >= number })
	if i == len(es) || es[i].Number != number {
		return nil
	}
	return &es[i]
}

// chunkOf is the last chunk that begins at or before number, -1 if none does.
func chunkOf(chunks []chunk, number uint64) int {
	lo, hi := 0, len(chunks)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); chunks[mid].first <= number {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// Stats are the totals: extents, blocks stored and live in them, encoded bytes.
func (t *Table) Stats() (extents int, blocks, live, bytes int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return int(t.sum.extents), t.sum.blocks, t.sum.live, t.sum.bytes
}

// All calls f for every extent by ascending number until it returns false. No
// lock is held during f; a Commit meanwhile may or may not be seen, extent by
// extent.
func (t *Table) All(f func(Extent) bool) { t.allFrom(0, f) }

// allFrom is All from a number on.
func (t *Table) allFrom(next uint64, f func(Extent) bool) {
	buf := make([]Extent, 0, ChunkExtents)
	for {
		buf = t.copyFrom(next, buf[:0])
		if len(buf) == 0 {
			return
		}
		for _, e := range buf {
			if !f(e) {
				return
			}
		}
		next = buf[len(buf)-1].Number + 1
	}
}

// copyFrom appends to buf the rest, from number on, of the first chunk that
// has any.
func (t *Table) copyFrom(number uint64, buf []Extent) []Extent {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for c := max(0, chunkOf(t.chunks, number)); c < len(t.chunks); c++ {
		es := t.chunks[c].es
		i := sort.Search(len(es), func(i int) bool { return es[i].Number >= number })
		if i < len(es) {
			return append(buf, es[i:]...)
		}
	}
	return buf
}

// StatsFrom are the blocks stored and live in the extents from number on.
func (t *Table) StatsFrom(number uint64) (blocks, live int64) {
	if number == 0 {
		_, blocks, live, _ = t.Stats()
		return blocks, live
	}
	t.allFrom(number, func(e Extent) bool {
		blocks += int64(e.Blocks)
		live += int64(e.Live)
		return true
	})
	return blocks, live
}

// Sparse returns up to max extents with live blocks and numbers from from on, of
// which at most maxLivePermille of a thousand are live, the sparsest first and
// of equals the oldest. It looks at the whole table from there.
func (t *Table) Sparse(from uint64, max int, maxLivePermille int) []Extent {
	if max <= 0 {
		return nil
	}
	var worst sparseHeap // the densest of those kept on top
	t.allFrom(from, func(e Extent) bool {
		if e.Live == 0 || int64(e.Live)*1000 > int64(maxLivePermille)*int64(e.Blocks) {
			return true
		}
		if len(worst) < max {
			heap.Push(&worst, e)
		} else if sparser(&e, &worst[0]) {
			worst[0] = e
			heap.Fix(&worst, 0)
		}
		return true
	})
	sort.Slice(worst, func(i, j int) bool { return sparser(&worst[i], &worst[j]) })
	return worst
}

// sparser orders by the live fraction, then by number.
func sparser(a, b *Extent) bool {
	x, y := uint32(a.Live)*uint32(b.Blocks), uint32(b.Live)*uint32(a.Blocks)
	if x != y {
		return x < y
	}
	return a.Number < b.Number
}

type sparseHeap []Extent

func (h sparseHeap) Len() int           { return len(h) }
func (h sparseHeap) Less(i, j int) bool { return sparser(&h[j], &h[i]) }
func (h sparseHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *sparseHeap) Push(x any)        { *h = append(*h, x.(Extent)) }
func (h *sparseHeap) Pop() any          { panic("extentmap: nothing is popped") }

package extentmap

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// counts is the slow oracle of a Table.
type counts map[uint64]Extent

func addrOf(n uint64) ident.Addr {
	rng := rand.New(rand.NewPCG(n, 5))
	var a ident.Addr
	for i := range a {
		a[i] = byte(rng.Uint32())
	}
	return a
}

func newExtent(n uint64, blocks, live uint16) Extent {
	return Extent{Number: n, Addr: addrOf(n), Blocks: blocks, Live: live, Bytes: uint32(blocks) * 3000}
}

func (c counts) sorted() []Extent {
	es := make([]Extent, 0, len(c))
	for _, e := range c {
		es = append(es, e)
	}
	slices.SortFunc(es, func(a, b Extent) int { return int(a.Number) - int(b.Number) })
	return es
}

func (c counts) check(t *testing.T, tab *Table, top uint64) {
	t.Helper()
	es := c.sorted()
	var got []Extent
	tab.All(func(e Extent) bool { got = append(got, e); return true })
	if !slices.Equal(got, es) {
		t.Fatalf("the table has %d extents that are not the oracle's %d", len(got), len(es))
	}
	var blocks, live, size int64
	for _, e := range es {
		blocks, live, size = blocks+int64(e.Blocks), live+int64(e.Live), size+int64(e.Bytes)
	}
	if n, b, l, s := tab.Stats(); n != len(es) || b != blocks || l != live || s != size {
		t.Fatalf("totals %d %d %d %d, not %d %d %d %d", n, b, l, s, len(es), blocks, live, size)
	}
	for n := range top {
		e, ok := tab.Get(n)
		if want, there := c[n]; ok != there || e != want {
			t.Fatalf("extent %d is %v %v", n, e, ok)
		}
	}
	for i, ch := range tab.chunks {
		if len(ch.es) == 0 || len(ch.es) > ChunkExtents || ch.first != ch.es[0].Number {
			t.Fatalf("chunk %d begins at %d with %d extents", i, ch.first, len(ch.es))
		}
	}
}

func (c counts) checkSparse(t *testing.T, tab *Table, rng *rand.Rand) {
	t.Helper()
	permille := rng.IntN(1001)
	want := slices.DeleteFunc(c.sorted(), func(e Extent) bool {
		return float64(e.Live)/float64(e.Blocks) > float64(permille)/1000
	})
	slices.SortStableFunc(want, func(a, b Extent) int {
		return int(a.Live)*int(b.Blocks) - int(b.Live)*int(a.Blocks)
	})
	most := rng.IntN(40)
	if got := tab.Sparse(0, most, permille); !slices.Equal(got, want[:min(most, len(want))]) {
		t.Fatalf("the sparsest %d of at most %d permille are wrong", most, permille)
	}
}

// step draws one transaction, applied to the oracle too; next is the lowest
// number never used, of which some are left out to be used later.
func (c counts) step(rng *rand.Rand, tx *Tx, next uint64, late *[]uint64) uint64 {
	add := func(n uint64) {
		blocks := uint16(1 + rng.IntN(256))
		e := newExtent(n, blocks, uint16(rng.IntN(int(blocks)+1)))
		tx.Add(e)
		c[n] = e
	}
	for range rng.IntN(120) {
		if rng.IntN(10) == 0 {
			*late = append(*late, next)
		} else {
			add(next)
		}
		next++
	}
	for len(*late) > 0 && rng.IntN(2) == 0 {
		add((*late)[0])
		*late = (*late)[1:]
	}
	es := c.sorted()
	for i := range es {
		e := &es[i]
		if rng.IntN(3) > 0 {
			continue
		}
		for range rng.IntN(int(e.Live) + 1) {
			tx.Free(Ptr{Ext: e.Number, Len: 1})
			e.Live--
		}
		if rng.IntN(4) == 0 {
			for ; e.Live > 0; e.Live-- {
				tx.Free(Ptr{Ext: e.Number, Len: 1})
			}
		}
		c[e.Number] = *e
	}
	return next
}

func TestTableAgreesWithCounts(t *testing.T) {
	for seed := range uint64(15) {
		rng := rand.New(rand.NewPCG(seed, 11))
		tab, c, next, late := NewTable(), counts{}, uint64(1), []uint64(nil)
		var snapshot []byte
		var deltas [][]byte
		for range 40 {
			before := tab.Snapshot()
			tx := tab.Begin()
			tx.Free(Ptr{}) // a hole
			next = c.step(rng, tx, next, &late)
			var dead []Extent
			for _, e := range c.sorted() {
				if e.Live == 0 {
					dead = append(dead, e)
					delete(c, e.Number)
				}
			}
			if tx.Err() != nil || !slices.Equal(tx.Dead(), dead) {
				t.Fatalf("%v; %d dead, not %d", tx.Err(), len(tx.Dead()), len(dead))
			}
			delta, after := tx.Delta(), tx.Snapshot()
			n, b, l, s := tx.Stats()
			if !bytes.Equal(before, tab.Snapshot()) {
				t.Fatal("the table changed before the commit")
			}
			tx.Commit()
			c.check(t, tab, next)
			c.checkSparse(t, tab, rng)
			if n2, b2, l2, s2 := tab.Stats(); n != n2 || b != b2 || l != l2 || s != s2 {
				t.Fatal("the totals before the commit are not those after")
			}
			if !bytes.Equal(after, tab.Snapshot()) {
				t.Fatal("the snapshot before the commit is not the one after")
			}
			if deltas = append(deltas, delta); rng.IntN(8) == 0 {
				snapshot, deltas = after, nil
			}
			c.checkLoad(t, snapshot, deltas, next)
		}
	}
}

// checkLoad loads what was stored, as separate strings and end to end, and
// sees that a lost or repeated delta is noticed.
func (c counts) checkLoad(t *testing.T, snapshot []byte, deltas [][]byte, top uint64) {
	t.Helper()
	tab, err := LoadTable(snapshot, deltas...)
	if err != nil {
		t.Fatal(err)
	}
	c.check(t, tab, top)
	if len(deltas) == 0 {
		return
	}
	if tab, err = LoadTable(snapshot, slices.Concat(deltas...)); err != nil {
		t.Fatal(err)
	}
	c.check(t, tab, top)
	if snapshot == nil {
		if tab, err = LoadTable(deltas[0], deltas[1:]...); err != nil {
			t.Fatal(err)
		}
		c.check(t, tab, top)
	}
	if last := deltas[len(deltas)-1]; len(deltas) > 1 && len(last) > tableHead+tableFoot {
		if _, err := LoadTable(snapshot, append(slices.Clone(deltas), last)...); !fault.Is(err, fault.Corrupt) {
			t.Fatalf("a delta twice: %v", err)
		}
		if len(deltas[len(deltas)-2]) == tableHead+tableFoot {
			return // an empty one may be lost
		}
		if _, err := LoadTable(snapshot, append(slices.Clone(deltas[:len(deltas)-2]), last)...); !fault.Is(err, fault.Corrupt) {
			t.Fatalf("a delta lost: %v", err)
		}
	}
}

func TestTxKeepsItsFirstError(t *testing.T) {
	tab := NewTable()
	tx := tab.Begin()
	tx.Add(newExtent(7, 3, 1))
	tx.Commit()
	for name, c := range map[string]struct {
		kind fault.Kind
		do   func(tx *Tx)
	}{
		"unknown extent":     {fault.Corrupt, func(tx *Tx) { tx.Free(Ptr{Ext: 8, Len: 1}) }},
		"below zero":         {fault.Corrupt, func(tx *Tx) { tx.Free(Ptr{Ext: 7, Len: 1}); tx.Free(Ptr{Ext: 7, Len: 1}) }},
		"below zero, new":    {fault.Corrupt, func(tx *Tx) { tx.Add(newExtent(9, 1, 0)); tx.Free(Ptr{Ext: 9, Len: 1}) }},
		"number taken":       {fault.Invalid, func(tx *Tx) { tx.Add(newExtent(7, 1, 1)) }},
		"added twice":        {fault.Invalid, func(tx *Tx) { tx.Add(newExtent(9, 1, 1)); tx.Add(newExtent(9, 1, 1)) }},
		"number zero":        {fault.Invalid, func(tx *Tx) { tx.Add(newExtent(0, 1, 1)) }},
		"number too large":   {fault.Invalid, func(tx *Tx) { tx.Add(newExtent(extLimit, 1, 1)) }},
		"no blocks":          {fault.Invalid, func(tx *Tx) { tx.Add(newExtent(9, 0, 0)) }},
		"more live than has": {fault.Invalid, func(tx *Tx) { tx.Add(newExtent(9, 3, 4)) }},
	} {
		tx := tab.Begin()
		c.do(tx)
		first := tx.Err()
		tx.Add(Extent{})
		if !fault.Is(first, c.kind) || tx.Err() != first {
			t.Errorf("%s: %v, then %v", name, first, tx.Err())
		}
		if !panics(tx.Commit) {
			t.Errorf("%s: it was committed", name)
		}
	}
	a, b := tab.Begin(), tab.Begin()
	a.Free(Ptr{Ext: 7, Len: 1})
	b.Free(Ptr{Ext: 7, Len: 1})
	a.Commit()
	if !panics(a.Commit) || !panics(b.Commit) {
		t.Error("a change was committed that is not the newest of its table")
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

// A chunk whose extents only count down, and which is joined with the next one
// in the same change, has the new counts.
func TestJoinedChunksKeepTheirCounts(t *testing.T) {
	tab, c := NewTable(), counts{}
	tx := tab.Begin()
	for n := uint64(1); n <= 2*ChunkExtents; n++ {
		c[n] = newExtent(n, 10, 10)
		tx.Add(c[n])
	}
	tx.Commit()
	kill := func(tx *Tx, from, to uint64) {
		for n := from; n < to; n++ {
			for range 10 {
				tx.Free(Ptr{Ext: n, Len: 1})
			}
			delete(c, n)
		}
	}
	tx = tab.Begin()
	kill(tx, 10, ChunkExtents+1)
	tx.Commit()
	c.check(t, tab, 2*ChunkExtents+1)
	tx = tab.Begin()
	e := c[3]
	tx.Free(Ptr{Ext: 3, Len: 1})
	e.Live--
	c[3] = e
	kill(tx, ChunkExtents+10, 2*ChunkExtents)
	tx.Commit()
	c.check(t, tab, 2*ChunkExtents+1)
	if len(tab.chunks) != 1 {
		t.Errorf("%d chunks are not joined", len(tab.chunks))
	}
}

// A change of nothing may be stored or not.
func TestEmptyTxLeavesNoTrace(t *testing.T) {
	base := goldenTx()
	base.Commit()
	tab := base.t
	before := tab.Snapshot()
	tx := tab.Begin()
	tx.Add(newExtent(1000, 4, 0))
	empty, after := tx.Delta(), tx.Snapshot()
	tx.Commit()
	if !bytes.Equal(before, after) || !bytes.Equal(before, tab.Snapshot()) {
		t.Error("the snapshot changed")
	}
	tx = tab.Begin()
	tx.Free(Ptr{Ext: 1, Len: 1})
	delta := tx.Delta()
	for _, deltas := range [][][]byte{{delta}, {empty, delta}, {empty, empty, delta, tx.t.Begin().Delta()}} {
		_, err := LoadTable(before, deltas...)
		if wrong := len(deltas) == 4; wrong != (err != nil) {
			t.Errorf("%d deltas: %v", len(deltas), err)
		}
	}
}

// Readers see every extent that lives throughout while others come and go.
func TestGetDuringCommit(t *testing.T) {
	tab := NewTable()
	tx := tab.Begin()
	for n := uint64(1); n <= 4000; n++ {
		tx.Add(newExtent(n, 256, 256))
	}
	tx.Commit()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range uint64(2) {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(r, 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := 2 * (1 + rng.Uint64N(2000))
				if e, ok := tab.Get(n); !ok || e.Number != n || e.Blocks != 256 || e.Live == 0 {
					t.Errorf("extent %d is %v %v", n, e, ok)
					return
				}
				if rng.IntN(500) == 0 {
					tab.Stats()
					tab.Sparse(0, 10, 900)
				}
			}
		})
	}
	for round := range uint64(40) {
		tx := tab.Begin()
		for n := uint64(1); n <= 4000; n++ {
			if n%2 == 0 {
				tx.Free(Ptr{Ext: n, Len: 1})
			} else if n%79 == round {
				for range 256 {
					tx.Free(Ptr{Ext: n, Len: 1})
				}
			}
		}
		for i := range uint64(100) {
			tx.Add(newExtent(5000+round*100+i, 256, 1))
		}
		tx.Commit()
	}
	close(stop)
	readers.Wait()
}

// The memory of a table stays in its bound, when it was just built and after
// three quarters of its extents died at random.
func TestHazardBookkeepingByBlock(t *testing.T) {
	const extents, bound = 1_000_000, 64
	tab := NewTable()
	before := heapNow()
	for n := uint64(1); n <= extents; {
		tx := tab.Begin()
		for range 50_000 {
			tx.Add(Extent{Number: n, Blocks: 256, Live: 1, Bytes: 1 << 20})
			n++
		}
		tx.Commit()
	}
	built := heapNow() - before
	rng := rand.New(rand.NewPCG(1, 1))
	for range 10 {
		tx := tab.Begin()
		tab.All(func(e Extent) bool {
			if rng.IntN(8) == 0 {
				tx.Free(Ptr{Ext: e.Number, Len: 1})
			}
			return true
		})
		tx.Commit()
	}
	left := heapNow() - before
	n, _, _, _ := tab.Stats()
	t.Logf("%d bytes for each of %d extents, %d for each of the %d left", built/extents, extents, left/int64(n), n)
	if built/extents > bound || left/int64(n) > bound {
		t.Errorf("more than %d bytes for each extent", bound)
	}
	runtime.KeepAlive(tab)
}

func heapNow() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestExtentThatNeverLivedHasNoPlace adds one among extents that stay as they are.
func TestExtentThatNeverLivedHasNoPlace(t *testing.T) {
	tab := NewTable()
	tx := tab.Begin()
	tx.Add(newExtent(1, 9, 9))
	tx.Add(newExtent(5, 9, 9))
	tx.Commit()
	tx = tab.Begin()
	tx.Free(Ptr{Ext: 1, Len: 1})
	tx.Add(newExtent(3, 4, 0))
	tx.Commit()
	counts{1: newExtent(1, 9, 8), 5: newExtent(5, 9, 9)}.check(t, tab, 10)
}

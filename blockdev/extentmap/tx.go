package extentmap

import (
	"fmt"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Tx is a change of a Table that is being put together: the extents that a
// checkpoint adds and the blocks that it frees. The table does not change
// until Commit. A Tx is used by one goroutine; dropping it discards it.
type Tx struct {
	t       *Table
	seq     uint64 // t.seq at Begin
	touched map[uint64]*touch
	err     error
	sorted  []*touch // by number; nil when touched changed since
	done    bool

	past    []interval // as Drop leaves them; shared with the table until Commit
	head    deadlist   // likewise
	dropped []uint64   // ids, in order
	held    deadlist   // what Free adds to head
	cut     *interval  // made at the end
}

// touch is one extent as the Tx leaves it.
type touch struct {
	e     Extent
	freed uint16 // of an extent that was in the table; Live is already less
	added bool
}

// Begin starts a change.
func (t *Table) Begin() *Tx {
	return &Tx{t: t, seq: t.seq, touched: make(map[uint64]*touch), past: t.past, head: t.head}
}

// Err is the first rule that a call on the Tx broke, nil if none: kind Invalid
// for Add, kind Corrupt for Free, since then map and table disagree. A Tx with
// an error must not be persisted.
func (tx *Tx) Err() error { return tx.err }

func (tx *Tx) fail(k fault.Kind, format string, args ...any) {
	if tx.err == nil {
		tx.err = fault.Newf(k, "change extent table", "", format, args...)
	}
}

// Add puts in a new extent whose Live blocks the new map uses. Its number must
// not be in the table; numbers need not ascend. An extent whose Live is or
// becomes 0 in this Tx is in Dead and never enters the table.
func (tx *Tx) Add(e Extent) {
	if !e.valid() {
		tx.fail(fault.Invalid, "extent %d with %d of %d blocks live cannot be added", e.Number, e.Live, e.Blocks)
		return
	}
	_, there := tx.t.Get(e.Number)
	if !there {
		_, there = tx.touched[e.Number]
	}
	if there {
		tx.fail(fault.Invalid, "extent %d is added twice", e.Number)
		return
	}
	tx.touched[e.Number] = &touch{e: e, added: true}
	tx.sorted = nil
}

// Free tells that the map no longer uses the block that p names, in extent
// p.Ext, which is in the table or was added in this Tx. A block that may be a
// snapshot's is kept; any other is counted down. A hole is nothing to free.
func (tx *Tx) Free(p Ptr) {
	switch {
	case p.IsHole():
	case p.Ext < horizonOf(tx.past):
		tx.hold(p.Ext)
	default:
		tx.countDown(p.Ext, 1)
	}
}

// countDown counts down n live blocks of an extent.
func (tx *Tx) countDown(number uint64, n uint16) {
	c := tx.touched[number]
	if c == nil {
		e, ok := tx.t.Get(number)
		if !ok {
			tx.fail(fault.Corrupt, "a block of extent %d is freed, which is not in the table", number)
			return
		}
		c = &touch{e: e}
		tx.touched[number] = c
		tx.sorted = nil
	}
	if c.e.Live < n {
		tx.fail(fault.Corrupt, "more blocks of extent %d are freed than were live", number)
		return
	}
	c.e.Live -= n
	if !c.added {
		c.freed += n
	}
}

// changes are the touched extents by ascending number.
func (tx *Tx) changes() []*touch {
	if tx.sorted == nil {
		tx.sorted = make([]*touch, 0, len(tx.touched))
		for _, c := range tx.touched {
			tx.sorted = append(tx.sorted, c)
		}
		slices.SortFunc(tx.sorted, func(a, b *touch) int {
			if a.e.Number < b.e.Number {
				return -1
			}
			return 1
		})
	}
	return tx.sorted
}

// Dead are the extents that the Tx leaves without a live block, by ascending
// number. They are to be deleted after the checkpoint that carries the Tx is
// chosen, never before.
func (tx *Tx) Dead() []Extent {
	var dead []Extent
	for _, c := range tx.changes() {
		if c.e.Live == 0 {
			dead = append(dead, c.e)
		}
	}
	return dead
}

// Stats are the totals of the table as it will be after Commit.
func (tx *Tx) Stats() (extents int, blocks, live, bytes int64) {
	s := tx.sums()
	return int(s.extents), s.blocks, s.live, s.bytes
}

func (tx *Tx) sums() sums {
	s := tx.t.sum
	for _, c := range tx.changes() {
		if !c.added {
			before := c.e
			before.Live += c.freed
			s.add(&before, -1)
		}
		if c.e.Live > 0 {
			s.add(&c.e, 1)
		}
	}
	return s
}

// counts reports whether the change is one that a delta carries: an extent
// that came and died in the same Tx leaves no trace.
func (c *touch) counts() bool { return !c.added || c.e.Live > 0 }

// effective reports whether there is anything to remember.
func (tx *Tx) effective() bool {
	return tx.listsChange() || slices.ContainsFunc(tx.changes(), (*touch).counts)
}

// CommitBatch is how many live counts Commit changes under the lock at a time.
const CommitBatch = 64

// Commit makes the change. It panics if the Tx has an error, was committed
// before, or is not the newest of its table: the caller persisted something
// that cannot be.
func (tx *Tx) Commit() {
	t := tx.t
	if tx.err != nil || tx.done || tx.seq != t.seq {
		panic(fmt.Sprintf("extentmap: commit of a change that cannot be made (done %v, base %d of %d): %v",
			tx.done, tx.seq, t.seq, tx.err))
	}
	tx.done = true
	cs := tx.changes()
	if !tx.effective() {
		return
	}
	tx.commitLists()
	// Only the owner changes chunks, so it may read them without the lock.
	var inPlace []*touch
	rebuilt := false
	b := builder{chunks: make([]chunk, 0, len(t.chunks)+len(cs)/ChunkExtents+1)}
	for c := -1; c < len(t.chunks); c++ {
		var n int
		n, cs = len(cs), upTo(t.chunks, c, cs)
		mine := tx.sorted[len(tx.sorted)-n : len(tx.sorted)-len(cs)]
		switch {
		case structural(mine):
			rebuilt = true
			var old []Extent
			if c >= 0 {
				old = t.chunks[c].es
			}
			b.merge(old, mine)
		case c >= 0:
			for _, m := range mine {
				if m.counts() { // what came and died in this Tx has no place
					inPlace = append(inPlace, m)
				}
			}
			b.chunks = append(b.chunks, t.chunks[c])
		}
	}
	s := tx.sums()
	t.seq++
	t.mu.Lock()
	t.sum = s
	if rebuilt {
		t.chunks = b.chunks
	}
	t.mu.Unlock()
	// Only now: a chunk kept above may have been joined with the next one.
	for batch := range slices.Chunk(inPlace, CommitBatch) {
		t.mu.Lock()
		for _, c := range batch {
			find(t.chunks, c.e.Number).Live = c.e.Live
		}
		t.mu.Unlock()
	}
}

// upTo is what is left of cs after the changes that fall in chunk c, which
// takes every number below the first of the next chunk.
func upTo(chunks []chunk, c int, cs []*touch) []*touch {
	if c+1 == len(chunks) {
		return nil
	}
	end := chunks[c+1].first
	n := 0
	for n < len(cs) && cs[n].e.Number < end {
		n++
	}
	return cs[n:]
}

// structural reports whether extents come or go.
func structural(cs []*touch) bool {
	for _, c := range cs {
		if c.added != (c.e.Live == 0) {
			return true
		}
	}
	return false
}

// builder collects the chunks of a new table.
type builder struct {
	chunks []chunk
	buf    []Extent
}

// merge appends chunks of old with the changes cs applied. A small rest is
// joined with the chunk before it, so that chunks stay at least a quarter full
// on average.
func (b *builder) merge(old []Extent, cs []*touch) {
	b.buf = b.buf[:0]
	for len(old) > 0 || len(cs) > 0 {
		if len(cs) == 0 || (len(old) > 0 && old[0].Number < cs[0].e.Number) {
			b.buf = append(b.buf, old[0])
			old = old[1:]
			continue
		}
		if len(old) > 0 && old[0].Number == cs[0].e.Number {
			old = old[1:]
		}
		if cs[0].e.Live > 0 {
			b.buf = append(b.buf, cs[0].e)
		}
		cs = cs[1:]
	}
	if n := len(b.chunks); n > 0 && len(b.buf) > 0 && len(b.chunks[n-1].es)+len(b.buf) <= ChunkExtents*3/4 {
		b.buf = slices.Concat(b.chunks[n-1].es, b.buf)
		b.chunks = b.chunks[:n-1]
	}
	b.add(b.buf)
}

// add appends chunks with copies of es.
func (b *builder) add(es []Extent) {
	for part := range slices.Chunk(es, ChunkExtents) {
		own := make([]Extent, len(part))
		copy(own, part)
		b.chunks = append(b.chunks, chunk{first: own[0].Number, es: own})
	}
}

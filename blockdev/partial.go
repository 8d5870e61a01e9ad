package blockdev

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/dht/extent"
)

// Volumes with 512-byte logical blocks may be written in parts of a 4 KiB
// block. The holder merges such a part with the rest of the block before it
// logs the whole block, so that everything below speaks of whole blocks only.
// The merge and the choice of the slot happen under mu; if the rest of the
// block is not in memory it is read first, without mu, and the merge is done
// only if nothing touched the block meanwhile.

// writePartial writes a range whose ends are not on 4 KiB boundaries.
func (v *Volume) writePartial(p []byte, off int64, fua bool, done func(error)) {
	q := append([]byte(nil), p...)
	v.mu.Lock()
	if refused := v.admit(len(p) + 2*BlockSize); v.err == nil && refused != nil {
		v.turnAway(refused, func() { v.writePartial(q, off, fua, done) }, done)
		return
	}
	v.mu.Unlock()
	if ok, slot, full, err := v.tryPartial(q, off, nil); ok {
		v.wrote(slot, err, fua, full, done)
		return
	}
	if err := v.spawn(func() {
		slot, full, err := v.mergePartial(q, off)
		v.wrote(slot, err, fua, full, done)
		v.log.Kick()
	}); err != nil {
		done(err)
	}
}

// edge is the block at one end of a partial write, as read from the map.
type edge struct {
	block uint64
	gen   uint64 // mapGen when it was read
	data  [BlockSize]byte
}

// mergePartial reads the blocks at the ends until a merge succeeds.
func (v *Volume) mergePartial(p []byte, off int64) (slot uint64, full bool, err error) {
	first, last := uint64(off/BlockSize), uint64((off+int64(len(p))-1)/BlockSize)
	ctx, cancel := context.WithTimeout(v.ctx, v.cfg.IOTimeout)
	defer cancel()
	for {
		var edges []*edge
		for _, b := range [2]uint64{first, last} {
			if len(edges) == 1 && b == first {
				break
			}
			e := &edge{block: b}
			v.mu.RLock()
			e.gen = v.mapGen
			v.mu.RUnlock()
			// What is not settled yet comes before the merged write in the log.
			if _, err := v.readMap(ctx, e.data[:], b); err != nil {
				if gone := v.Err(); gone != nil {
					err = gone
				}
				return 0, false, err
			}
			edges = append(edges, e)
		}
		if ok, slot, full, err := v.tryPartial(p, off, edges); ok {
			return slot, full, err
		}
	}
}

// tryPartial merges p with the present content of its edge blocks, taken from
// the tail or, where the tail has nothing, from edges read at the present
// state of the map. It reports false if it lacks an edge.
func (v *Volume) tryPartial(p []byte, off int64, edges []*edge) (ok bool, slot uint64, full bool, err error) {
	first := off / BlockSize * BlockSize
	end := (off + int64(len(p)) + BlockSize - 1) / BlockSize * BlockSize
	buf := make([]byte, end-first)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return true, 0, false, v.err
	}
	for _, at := range [2]int64{first, end - BlockSize} {
		if at >= off && at+BlockSize <= off+int64(len(p)) {
			continue // wholly overwritten
		}
		if !v.edgeLocked(buf[at-first:at-first+BlockSize], uint64(at/BlockSize), edges) {
			return false, 0, false, nil
		}
	}
	copy(buf[off-first:], p)
	slot, err = v.appendWrite(buf, uint64(first/BlockSize))
	return true, slot, v.tailFull(), err
}

func (v *Volume) edgeLocked(dst []byte, block uint64, edges []*edge) bool {
	switch h := v.tailGet(block); h.Kind {
	case tail.Data:
		copy(dst, h.Data)
		return true
	case tail.Zero:
		return true
	case tail.Miss:
		for _, e := range edges {
			if e.block == block && e.gen == v.mapGen {
				copy(dst, e.data[:])
				return true
			}
		}
	case tail.Extent:
		// the pointer may have changed since an edge was read; the map read
		// of a tail extent is keyed by what the tail says now
		for _, e := range edges {
			if e.block == block && e.gen == v.mapGen && extent.Checksum(e.data[:]) == h.Ptr.CRC {
				copy(dst, e.data[:])
				return true
			}
		}
	}
	return false
}

// zeroEdges zeroes a range whose ends are not on 4 KiB boundaries: the middle
// as one record, the ends as partial writes of zeros.
func (v *Volume) zeroEdges(off, n, from, to int64, fua bool, done func(error)) {
	var left atomic.Int32
	var mu sync.Mutex
	var first error
	part := func(err error) {
		mu.Lock()
		if first == nil {
			first = err
		}
		mu.Unlock()
		if left.Add(-1) == 0 {
			done(first)
		}
	}
	if from > to { // within one block
		left.Store(1)
		v.writePartial(make([]byte, n), off, fua, part)
		return
	}
	head, foot := from*BlockSize-off, off+n-to*BlockSize
	parts := int32(0)
	for _, x := range [3]int64{head, foot, to - from} {
		if x > 0 {
			parts++
		}
	}
	left.Store(parts)
	if head > 0 {
		v.writePartial(make([]byte, head), off, fua, part)
	}
	if to > from {
		v.zeroBlocks(uint64(from), uint64(to), fua, part)
	}
	if foot > 0 {
		v.writePartial(make([]byte, foot), to*BlockSize, fua, part)
	}
}

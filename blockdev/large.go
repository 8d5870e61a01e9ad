package blockdev

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
)

// writeLarge stores whole blocks as extents first and then logs entries that
// name them, so that a long write crosses the network and each disk once. An
// entry is proposed only after its extent is durable on enough holders: a log
// must never name what a power cut could take away. The other holders are not
// waited for before the answer.
func (v *Volume) writeLarge(p []byte, off int64, fua bool, done func(error)) {
	w := &largeWrite{v: v, fua: fua, done: done}
	var pieces []*piece
	block := uint64(off / BlockSize)
	for len(p) > 0 {
		n := min(len(p), extent.BlocksMax*BlockSize)
		x := &piece{b: builders.Get().(*extent.Builder), number: v.number(), block: block, ptrs: make([]extentmap.Ptr, n/BlockSize)}
		x.b.Reset(v.cfg.ID, x.number, v.epoch)
		for i := range x.ptrs {
			raw := p[i*BlockSize : (i+1)*BlockSize]
			at, length := x.b.Add(uint64(extentmap.DataOwner(block+uint64(i))), raw)
			x.ptrs[i] = extentmap.Ptr{Ext: x.number, Off: at, Len: length, CRC: extent.Checksum(raw)}
		}
		pieces = append(pieces, x)
		p, block = p[n:], block+uint64(n/BlockSize)
	}
	w.left = len(pieces)
	v.largeWrites.Add(1)
	for _, x := range pieces {
		if err := v.spawn(func() { w.store(x) }); err != nil {
			builders.Put(x.b)
			w.ended(0, false, err)
		}
	}
}

// piece is the part of a large write that becomes one extent.
type piece struct {
	b      *extent.Builder
	number uint64
	block  uint64 // the first
	ptrs   []extentmap.Ptr
}

// largeWrite is one write on its way into extents.
type largeWrite struct {
	v    *Volume
	fua  bool
	done func(error)

	mu   sync.Mutex
	left int    // pieces
	slot uint64 // the newest entry
	full bool
	err  error
}

// store puts a piece, and has the log name it as soon as enough holders have it.
func (w *largeWrite) store(x *piece) {
	v := w.v
	ctx, cancel := context.WithTimeout(v.ctx, v.cfg.IOTimeout)
	defer cancel()
	var refused error
	stored, err := v.putPatiently(ctx, x.b, x.number, func(stored packed) {
		slot, full, err := v.logExtent(stored, x.block, x.ptrs)
		if refused = err; err == nil {
			w.ended(slot, full, nil)
		}
	})
	builders.Put(x.b)
	if err == nil && refused == nil {
		v.maintain.missed(stored.missed)
		if _, named := v.addrOf(x.number); !named {
			// It died before the last holder had it, and came there after its
			// deletion: nobody but reconciliation would look for it.
			v.maintain.missed(v.cfg.Extents.Holders(stored.addr, v.cfg.Replicas))
		}
		return
	}
	v.forget(x.number, stored)
	w.ended(0, false, cmp.Or(err, refused))
}

// ended counts a piece whose fate is decided; the last one answers the write.
func (w *largeWrite) ended(slot uint64, full bool, err error) {
	w.mu.Lock()
	w.slot, w.full = max(w.slot, slot), w.full || full
	if w.err == nil {
		w.err = err
	}
	w.left--
	last := w.left == 0
	w.mu.Unlock()
	if !last {
		return
	}
	v := w.v
	v.largeWrites.Add(-1)
	if fault.Is(w.err, fault.NoSpace) {
		v.startCheckpoint() // may give space back
	}
	v.wrote(w.slot, w.err, w.fua, w.full, w.done)
	v.log.Kick()
}

// putPatiently puts an extent and tries again while holders are out of reach or fail,
// as a write through the log would wait for them, until ctx ends.
func (v *Volume) putPatiently(ctx context.Context, b *extent.Builder, number uint64, durable func(packed)) (packed, error) {
	for {
		x, err := v.putExtent(ctx, b, number, false, durable)
		if err == nil || lasting(err) || !paused(ctx, putPause) {
			return x, err
		}
	}
}

// lasting tells whether a failure of the extent store stays what it is however
// often one tries: not that of a brick or a node, whose part others can do.
func lasting(err error) bool {
	switch fault.KindOf(err) {
	case fault.NoSpace, fault.Fenced, fault.Corrupt, fault.Invalid, fault.NotFound:
		return true
	}
	return false
}

// putPause is the time between two tries to put an extent of a large write.
const putPause = 200 * time.Millisecond

// logExtent proposes the entry that names a stored extent.
func (v *Volume) logExtent(x packed, block uint64, ptrs []extentmap.Ptr) (slot uint64, full bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return 0, false, v.err
	}
	body := v.active.Alloc(extentEntrySize(len(ptrs)))
	encodeExtentEntry(body, block, x, ptrs)
	if slot, err = v.log.Propose(quorum.EntryData, body); err != nil {
		return 0, false, err
	}
	v.active.Entry(slot)
	v.active.PutExtent(block, ptrs)
	x.slot = slot
	v.loose[x.number] = x
	v.looseActive = append(v.looseActive, x.number)
	v.looseBytes += int64(x.bytes)
	delete(v.inflight, x.number)
	return slot, v.tailFull(), nil
}

// forget gives up an extent number that no log entry names, and deletes what
// was stored under it.
func (v *Volume) forget(number uint64, stored packed) {
	v.mu.Lock()
	delete(v.inflight, number)
	v.mu.Unlock()
	if stored.number != 0 {
		v.deleteDead(v.ctx, []ident.Addr{stored.addr})
	}
}

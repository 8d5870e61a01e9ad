package whole

import (
	"math"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
)

// What clients work on: small writes meet in a few hot blocks, large ones in
// the stretch behind them.
const (
	volumeSize = 1 << 20
	hotBlocks  = 24
	wideBlocks = 96
	allBlocks  = hotBlocks + wideBlocks
)

// volume is a volume as its clients know it.
type volume struct {
	name      string
	id        ident.VolumeID
	replicas  int
	blockSize int
	cache     string
	clients   int
	home      int    // machine that clients turn to first
	epoch     uint64 // the newest that answered anything
	deleted   bool
	hist      history
}

// never is the end of an operation whose outcome is unknown: it may take effect
// at any time or not at all.
const never = math.MaxInt64

type opKind uint8

const (
	opRead opKind = iota
	opWrite
	opFlush
	// opLoss is a moment from which on what was not flushed may be gone.
	opLoss
)

func (k opKind) String() string { return [...]string{"read", "write", "flush", "loss"}[k] }

// row is an operation on one block, from moment call to moment ret.
type row struct {
	call, ret int64
	kind      opKind
	mask      uint8 // sectors
	fua       bool
	epoch     uint64          // of the session
	lo, hi    uint64          // slots of the log that it used, or saw: from lo on, none beyond hi
	maybe     bool            // it may also have done nothing
	id        uint32          // of a write; 0 writes zeros
	got       [sectors]uint32 // by a read, in the sectors of mask
	where     string
	at        time.Duration // when it ended
}

// history is everything that clients did to a volume and saw of it.
type history struct {
	mu      sync.Mutex
	blocks  [allBlocks][]row
	flushes []row
	losses  []row
	last    uint32           // id of the newest write
	first   map[uint64]int64 // for each epoch, when it first answered anything
	forced  *forcing         // nil: never
	checked int
	// undecided counts blocks of whose history only a beginning was judged, or none.
	undecided int
}

func (h *history) next() uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	return h.last
}

func (h *history) newest() uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

func (h *history) add(block int, r row) {
	h.mu.Lock()
	h.blocks[block] = append(h.blocks[block], r)
	h.mu.Unlock()
}

// flushed notes a flush that succeeded. It ends the danger of losses that were
// there when it began.
func (h *history) flushed(r row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushes = append(h.flushes, r)
	for i := range h.losses {
		if l := &h.losses[i]; l.call < r.call && l.ret > r.ret {
			l.ret = r.ret
		}
	}
}

// answered notes that an operation succeeded.
func (h *history) answered(r row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first == nil {
		h.first = map[uint64]int64{}
	}
	if _, ok := h.first[r.epoch]; !ok {
		h.first[r.epoch] = r.ret
	}
}

// settled is when what is left of an epoch has taken effect or never will: when
// a later one has answered, in the world that is looked at.
func (h *history) settled(epoch uint64, in world) int64 {
	at := int64(never)
	for e, t := range h.first {
		if e > epoch && in.knows(e) {
			at = min(at, t)
		}
	}
	return at
}

func (h *history) lost(call int64, why string) {
	h.mu.Lock()
	h.losses = append(h.losses, row{kind: opLoss, call: call, ret: never, where: why})
	h.mu.Unlock()
}

// lose notes that a machine lost what it had not synced.
func (w *World) lose(why string) {
	at := w.tick(0)
	for _, v := range append(w.volumes, w.passing...) {
		v.hist.lost(at, why)
	}
}

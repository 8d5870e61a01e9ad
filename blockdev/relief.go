package blockdev

import (
	"cmp"
	"context"
	"slices"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// When the bricks have no room for all that a frozen tail holds, its oldest
// entries are folded alone, a little at a time. Whatever later entries zeroed or
// wrote again is given back with the first part already: once an entry is chosen,
// the map may have a hole there before the log is cut, since replaying the entry
// over it comes to the same. Each part also empties a few of the sparsest extents. So a
// trim makes room however full the bricks are.

// reliefBytes is how much data the first part holds at most, beyond one entry.
// Bricks let the small extents of a part use some of their reserve, and no others.
const reliefBytes = 128 << 10

// foldInParts folds parts of the frozen tail for as long as each gives more
// space back than it takes, then the rest without moving anything. It returns nil if all is folded, else
// why the rest does not fit. With a change it ends when that is made.
func (v *Volume) foldInParts(ctx context.Context, frozen *tail.Tail, upTo uint64, change *snapshotChange, why error) error {
	if mutant.On("no-relief") {
		return why
	}
	for budget := int64(reliefBytes); ; {
		early, err := v.superseded(ctx)
		if err != nil {
			return err
		}
		f := v.newPart(frozen, upTo, change, early, budget)
		switch err := v.fold(ctx, f); {
		case err == nil && (f.to == upTo || change != nil):
			return nil // what change was for is done; the rest can wait
		case err == nil:
			budget *= 2
		case !fault.Is(err, fault.NoSpace):
			return err
		case budget > reliefBytes:
			budget = reliefBytes
		case budget > 0:
			budget = 0
		default:
			f := v.newFold(frozen, upTo, change)
			f.early, f.lean = early, true
			return v.fold(ctx, f)
		}
	}
}

// worthwhile refuses a part that would not give space back, nor leave much less
// alive for the next part to move: the reserve of the bricks is for making room,
// not for more data.
func (f *fold) worthwhile() error {
	_, _, live, stored := f.v.table.Stats()
	_, _, liveAfter, storedAfter := f.tx.Stats()
	// A snapshot that is given up lets later writes free what it kept.
	if !f.partial || f.change != nil || storedAfter < stored || liveAfter <= live-max(extent.BlocksMax, live/8) {
		return nil
	}
	return fault.Newf(fault.NoSpace, "volume.checkpoint", f.v.cfg.Name, "nothing was trimmed or overwritten that would make room")
}

// superseded lists the blocks that entries after the frozen tail have replaced,
// once those entries are chosen.
func (v *Volume) superseded(ctx context.Context) ([]extentmap.Range, error) {
	v.mu.RLock()
	work := v.active.Fold(0)
	newest := v.log.Next() - 1
	v.mu.RUnlock()
	var put []extentmap.Range
	_ = work.Each(func(block uint64, _ tail.Hit) error {
		put = append(put, extentmap.Range{From: block, To: block + 1})
		return nil
	})
	v.log.Sync(newest)
	v.log.Kick()
	return union(work.Zeros, put), v.pend.waitDurable(ctx, newest)
}

// newPart plans the fold of the oldest entries, of about budget bytes; 0: of the
// oldest one, and nothing is moved.
func (v *Volume) newPart(frozen *tail.Tail, upTo uint64, change *snapshotChange, early []extentmap.Range, budget int64) *fold {
	f := v.newFold(frozen, upTo, change)
	f.early, f.partial, f.lean = early, true, budget == 0
	var slots []uint64 // one for each block of data
	_ = frozen.Fold(f.from).Each(func(block uint64, h tail.Hit) error {
		if h.Kind == tail.Data && !within(early, block) {
			slots = append(slots, h.Slot)
		}
		return nil
	})
	slices.Sort(slots)
	if n := budget / BlockSize; int64(len(slots)) > n {
		// Entries are folded whole: the last one that fits, at least the first.
		f.to = max(slots[n]-1, slots[0])
	}
	return f
}

// union joins two lists of disjoint, ascending ranges into one.
func union(a, b []extentmap.Range) []extentmap.Range {
	if len(b) == 0 {
		return a
	}
	all := append(slices.Clone(a), b...)
	slices.SortFunc(all, func(x, y extentmap.Range) int { return cmp.Compare(x.From, y.From) })
	out := all[:1]
	for _, r := range all[1:] {
		if last := &out[len(out)-1]; r.From <= last.To {
			last.To = max(last.To, r.To)
		} else {
			out = append(out, r)
		}
	}
	return out
}

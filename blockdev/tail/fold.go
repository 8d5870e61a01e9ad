package tail

import (
	"cmp"
	"slices"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
)

// Fold is what a tail comes to, in the order that a map update wants: first
// Zeros, then the blocks of Each.
type Fold struct {
	// Zeros are the zeroed blocks, disjoint, not touching, ascending. Blocks
	// that were put again after may lie within.
	Zeros []extentmap.Range

	t    *Tail
	live []*slot // by ascending block
}

// Fold takes what is left of the entries of slots from on; 0: of all. It stays
// valid until the tail is changed or released.
func (t *Tail) Fold(from uint64) *Fold {
	f := &Fold{t: t, live: make([]*slot, 0, t.index.n)}
	for _, r := range t.zeros.runs {
		for _, z := range r {
			// What joined this range was zeroed before any later put, so that its
			// newest entry speaks for all of it.
			if z.entry < from {
				continue
			}
			if n := len(f.Zeros); n > 0 && f.Zeros[n-1].To == z.from {
				f.Zeros[n-1].To = z.to
			} else {
				f.Zeros = append(f.Zeros, extentmap.Range{From: z.from, To: z.to})
			}
		}
	}
	for i := range t.index.shards {
		slots := t.index.shards[i].slots
		for k := range slots {
			at := &slots[k]
			if at.key == 0 || at.entry < from {
				continue
			}
			if t.zeros.n > 0 {
				if z, ok := t.zeros.at(at.key - 1); ok && at.gen < z.gen {
					continue
				}
			}
			f.live = append(f.live, at)
		}
	}
	slices.SortFunc(f.live, func(a, b *slot) int { return cmp.Compare(a.key, b.key) })
	return f
}

// Len is the number of blocks that Each visits.
func (f *Fold) Len() int { return len(f.live) }

// Each visits every live block by ascending number: h is Data, Extent, or Zero
// for a hole that PutExtent gave. It ends at an error and returns it.
func (f *Fold) Each(visit func(block uint64, h Hit) error) error {
	for _, at := range f.live {
		if err := visit(at.key-1, f.t.hit(at)); err != nil {
			return err
		}
	}
	return nil
}

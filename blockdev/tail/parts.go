package tail

import (
	"cmp"
	"slices"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
)

// Part is the blocks [From, To), of all of which a tail knows the same Kind.
type Part struct {
	From, To uint64
	Kind     Kind
}

// Shards is the number of shards that BlocksIn takes.
const Shards = shards

// BlocksIn appends to out, in no order and one by one, the blocks of one shard
// that lie in [from, to) and were not zeroed since they were put. A caller that
// guards the tail with a lock takes the shards one at a time, so that writers
// get their turn in between.
func (t *Tail) BlocksIn(shard int, from, to uint64, out []Part) []Part {
	slots := t.index.shards[shard].slots
	for k := range slots {
		at := &slots[k]
		if at.key <= from || at.key > to { // key is the block plus 1
			continue
		}
		block := at.key - 1
		if t.zeros.n > 0 {
			if z, ok := t.zeros.at(block); ok && at.gen < z.gen {
				continue
			}
		}
		out = append(out, Part{block, block + 1, t.hit(at).Kind})
	}
	return out
}

// ZerosIn appends to out what lies in [from, to) of the zeroed ranges, in
// order. Blocks that were put again since may lie within.
func (t *Tail) ZerosIn(from, to uint64, out []extentmap.Range) []extentmap.Range {
	for run, at := t.zeros.find(from); run < len(t.zeros.runs); run, at = run+1, 0 {
		for _, z := range t.zeros.runs[run][at:] {
			if z.from >= to {
				return out
			}
			out = append(out, extentmap.Range{From: max(z.from, from), To: min(z.to, to)})
		}
	}
	return out
}

// Join puts blocks, which come from BlocksIn and are sorted in place, over
// zeros, which come from ZerosIn: disjoint parts by ascending block.
func Join(zeros []extentmap.Range, blocks []Part) []Part {
	slices.SortFunc(blocks, func(a, b Part) int { return cmp.Compare(a.From, b.From) })
	over := make([]Part, 0, len(zeros))
	for _, z := range zeros {
		over = append(over, Part{z.From, z.To, Zero})
	}
	return Cover(over, blocks)
}

// Cover puts the parts of upper over those of lower; each list is disjoint and
// ascending, and so is the result, in which neighbours of one kind are joined.
func Cover(lower, upper []Part) []Part {
	out := make([]Part, 0, len(lower)+len(upper))
	add := func(p Part) {
		if n := len(out); n > 0 && out[n-1].To == p.From && out[n-1].Kind == p.Kind {
			out[n-1].To = p.To
		} else if p.From < p.To {
			out = append(out, p)
		}
	}
	covered := uint64(0) // everything below is in out, or in neither list
	for _, l := range lower {
		for len(upper) > 0 && upper[0].From < l.To {
			u := upper[0]
			upper = upper[1:]
			add(Part{max(l.From, covered), max(u.From, l.From, covered), l.Kind})
			add(u)
			covered = u.To
		}
		add(Part{max(l.From, covered), max(l.To, covered), l.Kind})
	}
	for _, u := range upper {
		add(u)
	}
	return out
}

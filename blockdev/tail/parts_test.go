package tail

import (
	"math/rand/v2"
	"testing"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
)

// Parts of a range say of every block what Get says.
func TestPartsAreWhatGetSays(t *testing.T) {
	const blocks = 400
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		tails := [2]*Tail{New(), New()}
		for i := range 120 {
			tl, b, n := tails[i%2], rng.Uint64N(blocks), 1+rng.Uint64N(20)
			n = min(n, blocks-b)
			switch rng.IntN(3) {
			case 0:
				tl.Zero(b, b+n)
			case 1:
				tl.Put(b, tl.Alloc(int(n)*blockSize))
			default:
				ptrs := make([]extentmap.Ptr, n)
				ptrs[0] = extentmap.Ptr{Ext: 1, Len: 1}
				tl.PutExtent(b, ptrs)
			}
		}
		from := rng.Uint64N(blocks)
		to := from + 1 + rng.Uint64N(blocks-from)
		var parts [2][]Part
		for i, tl := range tails {
			var list []Part
			for s := range Shards {
				list = tl.BlocksIn(s, from, to, list)
			}
			parts[i] = Join(tl.ZerosIn(from, to, nil), list)
			checkParts(t, parts[i], from, to, func(b uint64) Kind { return tl.Get(b).Kind })
		}
		checkParts(t, Cover(parts[0], parts[1]), from, to, func(b uint64) Kind {
			if k := tails[1].Get(b).Kind; k != Miss {
				return k
			}
			return tails[0].Get(b).Kind
		})
	}
}

func checkParts(t *testing.T, parts []Part, from, to uint64, kind func(uint64) Kind) {
	t.Helper()
	got := map[uint64]Kind{}
	last := from
	for i, p := range parts {
		if p.From < last || p.To <= p.From || p.To > to {
			t.Fatalf("part %d is %v after %d, in [%d,%d)", i, p, last, from, to)
		}
		if i > 0 && p.From == last && parts[i-1].Kind == p.Kind {
			t.Fatalf("%v and %v are not joined", parts[i-1], p)
		}
		last = p.To
		for b := p.From; b < p.To; b++ {
			got[b] = p.Kind
		}
	}
	for b := from; b < to; b++ {
		if got[b] != kind(b) {
			t.Fatalf("block %d is %v, not %v", b, got[b], kind(b))
		}
	}
}

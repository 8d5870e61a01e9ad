package paxos

import (
	"math/rand/v2"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
)

func testBallot(e int) Ballot { return Ballot{Epoch: uint64(e), Node: ident.NodeID{1}} }

// TestStaircaseKillsWhatItsCutsKill compares the staircase with the plain set.
func TestStaircaseKillsWhatItsCutsKill(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var set, stairs []Cut
		for range rng.IntN(8) {
			c := Cut{testBallot(1 + rng.IntN(9)), uint64(rng.IntN(9))}
			set = append(set, c)
			before := append([]Cut(nil), stairs...)
			next := addCut(stairs, c)
			for i := range before {
				if before[i] != stairs[i] {
					t.Fatal("addCut changed its argument")
				}
			}
			stairs = next
		}
		for i := 1; i < len(stairs); i++ {
			if !stairs[i-1].Ballot.Less(stairs[i].Ballot) || stairs[i-1].Slot >= stairs[i].Slot {
				t.Fatalf("%v is no staircase (from %v)", stairs, set)
			}
		}
		commit := uint64(rng.IntN(9))
		pruned := pruneCuts(stairs, commit)
		for slot := uint64(1); slot < 12; slot++ {
			for b := range 12 {
				want, got, after := false, false, false
				for _, c := range set {
					want = want || c.kills(slot, testBallot(b))
				}
				for _, c := range stairs {
					got = got || c.kills(slot, testBallot(b))
				}
				for _, c := range pruned {
					after = after || c.kills(slot, testBallot(b))
				}
				if want != got || slot > commit && want != after {
					t.Fatalf("%v: slot %d ballot %d: set says %v, stairs %v %v, pruned at %d %v %v",
						set, slot, b, want, stairs, got, commit, pruned, after)
				}
			}
		}
	}
}

// TestSlotLogMatchesPlainMap drives the log and a map with the same operations.
func TestSlotLogMatchesPlainMap(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var l slotLog
		type entry struct {
			b    Ballot
			size int32
		}
		plain := map[uint64]entry{}
		b := testBallot(1)
		epoch := 1
		received := func() uint64 {
			if len(l.runs) > 0 && l.runs[0].Ballot == b {
				return l.runs[0].To
			}
			return l.base
		}
		for range 300 {
			switch rng.IntN(10) {
			case 0: // another ballot opens
				epoch++
				b = testBallot(epoch)
				c := Cut{b, l.base + uint64(rng.IntN(int(l.last()-l.base)+1))}
				l.kill(c)
				for s, e := range plain {
					if c.kills(s, e.b) {
						delete(plain, s)
					}
				}
			case 1:
				base := l.base + uint64(rng.IntN(6))
				l.advance(base)
				for s := range plain {
					if s <= base {
						delete(plain, s)
					}
				}
			default:
				s := received() + 1
				e := entry{b, int32(rng.IntN(50))}
				l.put(s, b, slotMeta{pos: int64(s), size: e.size}, nil)
				plain[s] = e
			}
			var bytes int64
			for s, e := range plain {
				if s <= l.base || s > l.last() || l.runAt(s).Ballot != e.b || l.at(s).size != e.size {
					t.Fatalf("seed %d: slot %d is %v in the map; log %+v", seed, s, e, l)
				}
				bytes += int64(e.size)
			}
			if int(l.last()-l.base) != len(plain) || l.bytes != bytes {
				t.Fatalf("seed %d: %d slots %d bytes, not %d and %d", seed, l.last()-l.base, l.bytes, len(plain), bytes)
			}
		}
	}
}

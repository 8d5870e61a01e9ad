package placement

import (
	"cmp"
	"math"
	"slices"
)

const none = -1

// plan is the working state of one Plan. Bricks, nodes, racks and zones are
// numbered; prefix[i] are the final bricks of lane i, later[i] the old ones
// that its following positions would like to keep (none where there is none).
type plan struct {
	bricks    []Brick
	node      []int // of a brick
	rack      []int
	zone      []int
	nodes     int
	tree      []zoneTree
	laneCount int
	lanes     [][]int
	later     [][]int
	load      []int     // per brick, over the positions done
	target    []float64 // per brick, what load should be
	zoneCap   []int     // by number of positions: at most so many in one zone
	rackCap   []int
}

func newPlan(bricks []Brick, lanes int) *plan {
	p := &plan{laneCount: lanes}
	p.bricks = slices.DeleteFunc(slices.Clone(bricks), func(b Brick) bool { return b.Weight == 0 })
	slices.SortFunc(p.bricks, func(a, b Brick) int {
		return cmp.Or(a.ID.Compare(b.ID), a.Node.Compare(b.Node), cmp.Compare(a.Zone, b.Zone),
			cmp.Compare(a.Rack, b.Rack), cmp.Compare(a.Weight, b.Weight))
	})
	p.bricks = slices.CompactFunc(p.bricks, func(a, b Brick) bool { return a.ID == b.ID })
	p.number()
	p.load = make([]int, len(p.bricks))
	p.target = make([]float64, len(p.bricks))
	p.lanes = make([][]int, lanes)
	p.later = make([][]int, lanes)
	p.zoneCap, p.rackCap = []int{0}, []int{0}
	for n := 1; n <= p.nodes; n++ {
		z, r := p.caps(n)
		p.zoneCap, p.rackCap = append(p.zoneCap, z), append(p.rackCap, r)
	}
	return p
}

// adopt takes the old lanes over as wishes.
func (p *plan) adopt(old Table, w int) {
	index := make(map[Ref]int, len(p.bricks))
	for i, b := range p.bricks {
		index[Ref{Node: b.Node, Brick: b.ID}] = i
	}
	for i := range p.lanes {
		p.later[i] = make([]int, w)
		for k := range w {
			p.later[i][k] = none
			if i < len(old.Lanes) && k < len(old.Lanes[i]) {
				if b, ok := index[old.Lanes[i][k]]; ok && !slices.Contains(p.later[i][:k], b) {
					p.later[i][k] = b
				}
			}
		}
	}
}

// position decides position k of every lane: keep what may stay, fill what is
// empty, then balance.
func (p *plan) position(k, w int) {
	p.target = p.targets(k+1, p.target)
	var empty []int
	for i := range p.lanes {
		b := p.later[i][k]
		p.later[i][k] = none
		if b == none || !p.fits(p.lanes[i], b) {
			b = none
			empty = append(empty, i)
		} else {
			p.load[b]++
		}
		p.lanes[i] = append(p.lanes[i], b)
	}
	for _, i := range empty {
		b := p.choose(i, k)
		p.lanes[i][k] = b
		p.load[b]++
	}
	p.balance(k)
}

// choose picks the brick for an empty position: one that pushes out none of
// the lane's later bricks if possible, then the one that is filled least.
func (p *plan) choose(lane, k int) int {
	best, bestConflict, bestFill, bestTie := none, true, math.Inf(1), uint64(0)
	prefix := p.lanes[lane][:k]
	for b := range p.bricks {
		if !p.fits(prefix, b) {
			continue
		}
		conflict := p.conflicts(prefix, b, p.later[lane][k+1:])
		fill := (float64(p.load[b]) + 0.5) / max(p.target[b], 1e-9)
		tie := mix(uint64(lane), uint64(k), p.bricks[b].ID)
		better := best == none || (!conflict && bestConflict)
		if !better && conflict == bestConflict {
			better = fill < bestFill || (fill == bestFill && tie < bestTie)
		}
		if better {
			best, bestConflict, bestFill, bestTie = b, conflict, fill, tie
		}
	}
	if best == none { // the caps guarantee that a lane can be completed
		panic("placement: a lane cannot be completed")
	}
	return best
}

// fits tells whether b may follow prefix under the caps for their number.
func (p *plan) fits(prefix []int, b int) bool {
	n := len(prefix) + 1
	zones, racks := 1, 1
	for _, o := range prefix {
		if p.node[o] == p.node[b] {
			return false
		}
		if p.rack[o] == p.rack[b] {
			racks++
		}
		if p.zone[o] == p.zone[b] {
			zones++
		}
	}
	return zones <= p.zoneCap[n] && racks <= p.rackCap[n]
}

// conflicts tells whether choosing b after prefix makes one of the later
// bricks impossible that was possible without it.
func (p *plan) conflicts(prefix []int, b int, later []int) bool {
	var room [16]int
	lane := append(append(room[:0], prefix...), b)
	for _, o := range later {
		if o == none || !p.fits(prefix, o) {
			continue
		}
		if !p.fits(lane, o) {
			return true
		}
		lane = append(lane, o)
	}
	return false
}

// mix hashes a lane, a position and a brick: an order for ties that differs
// from lane to lane, so that bricks meet different partners.
func mix(lane, k uint64, id [16]byte) uint64 {
	h := uint64(0x9e3779b97f4a7c15) ^ lane<<8 ^ k
	for _, c := range id {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	h ^= h >> 31
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 29
	return h
}

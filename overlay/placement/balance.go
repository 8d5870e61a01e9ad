package placement

import "math"

// balance moves position k of single lanes between bricks until every brick's
// load is within one of its target, or nothing more can be moved. Each move
// chain takes one lane from the brick that is most above its target to one
// that is below: first along chains that disturb no later position, then along
// any.
func (p *plan) balance(k int) {
	byBrick := make([][]int, len(p.bricks)) // lanes whose position k it holds
	for i, l := range p.lanes {
		byBrick[l[k]] = append(byBrick[l[k]], i)
	}
	for _, gentle := range []bool{true, false} {
		stuck := make([]bool, len(p.bricks))
		for {
			from, forced := p.mostOver(stuck)
			if from == none {
				break
			}
			if !p.chain(k, from, forced, gentle, byBrick) {
				stuck[from] = true
				continue
			}
			clear(stuck)
		}
	}
}

// over is how far a brick is above its target; negative below it.
func (p *plan) over(b int) float64 { return float64(p.load[b]) - p.target[b] }

// mostOver returns the brick to take a lane from, or none when all is well. It
// is forced when the brick is itself out of bounds; otherwise it only has more
// than its target while another one starves.
func (p *plan) mostOver(stuck []bool) (b int, forced bool) {
	best, most, starving := none, 1e-6, false
	for b := range p.bricks {
		if p.over(b) <= -1 {
			starving = true
		}
		if o := p.over(b); !stuck[b] && o > most && p.load[b] > 0 {
			best, most = b, o
		}
	}
	if best == none || (most < 1 && !starving) {
		return none, false
	}
	return best, most >= 1
}

// step is one edge of a chain: lane gives its position k to brick to.
type step struct{ from, lane int }

// chain searches breadth first from brick `from` for the nearest brick that
// should get a lane, and carries out the moves on the way. It prefers the
// emptiest of the nearest.
func (p *plan) chain(k, from int, forced, gentle bool, byBrick [][]int) bool {
	limit := -1.0 // the receiver starves
	if forced {
		limit = -1e-6 // or is at least below its target
	}
	prev := make([]step, len(p.bricks))
	seen := make([]bool, len(p.bricks))
	seen[from] = true
	ring := []int{from}
	for len(ring) > 0 {
		var next []int
		best, bestOver := none, math.Inf(1)
		for _, b := range ring {
			for _, lane := range byBrick[b] {
				for c := range p.bricks {
					if seen[c] || !p.canTake(k, lane, c, gentle) {
						continue
					}
					seen[c], prev[c] = true, step{b, lane}
					next = append(next, c)
					if o := p.over(c); o <= limit && o < bestOver {
						best, bestOver = c, o
					}
				}
				if len(next) == len(p.bricks)-1 {
					break
				}
			}
		}
		if best != none {
			p.carry(k, from, best, prev, byBrick)
			return true
		}
		ring = next
	}
	return false
}

func (p *plan) canTake(k, lane, b int, gentle bool) bool {
	prefix := p.lanes[lane][:k]
	if !p.fits(prefix, b) {
		return false
	}
	return !gentle || !p.conflicts(prefix, b, p.later[lane][k+1:])
}

// carry moves one lane along each edge of the chain that ends at `to`. The
// lanes of a shortest chain are all different, so the moves do not disturb
// each other.
func (p *plan) carry(k, from, to int, prev []step, byBrick [][]int) {
	for b := to; b != from; {
		s := prev[b]
		p.lanes[s.lane][k] = b
		p.load[b]++
		p.load[s.from]--
		byBrick[b] = append(byBrick[b], s.lane)
		l := byBrick[s.from]
		for i, lane := range l {
			if lane == s.lane {
				byBrick[s.from] = append(l[:i], l[i+1:]...)
				break
			}
		}
		b = s.from
	}
}

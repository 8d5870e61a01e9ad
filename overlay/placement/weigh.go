package placement

import (
	"cmp"
	"slices"

	"github.com/gabion-storage/gabion/internal/ident"
)

// The pool as a tree: zones, racks, nodes, bricks; each by number.
type (
	zoneTree struct{ racks []rackTree }
	rackTree struct{ nodes []nodeTree }
	nodeTree struct{ bricks []int }
)

// number builds the tree. A node's place is that of its first brick, so that
// contradicting labels on one node cannot break rule 1.
func (p *plan) number() {
	type place struct {
		zone, rack string
		node       ident.NodeID
	}
	at := map[ident.NodeID]place{}
	order := make([]int, len(p.bricks))
	places := make([]place, len(p.bricks))
	for i, b := range p.bricks {
		pl, ok := at[b.Node]
		if !ok {
			pl = place{b.Zone, b.Rack, b.Node}
			at[b.Node] = pl
		}
		order[i], places[i] = i, pl
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := places[i], places[j]
		return cmp.Or(cmp.Compare(a.zone, b.zone), cmp.Compare(a.rack, b.rack), a.node.Compare(b.node))
	})
	n := len(p.bricks)
	p.node, p.rack, p.zone = make([]int, n), make([]int, n), make([]int, n)
	racks := 0
	for at, i := range order {
		var prev place
		if at > 0 {
			prev = places[order[at-1]]
		}
		pl := places[i]
		newZone := at == 0 || prev.zone != pl.zone
		newRack := newZone || prev.rack != pl.rack
		newNode := newRack || prev.node != pl.node
		if newZone {
			p.tree = append(p.tree, zoneTree{})
		}
		z := &p.tree[len(p.tree)-1]
		if newRack {
			z.racks = append(z.racks, rackTree{})
			racks++
		}
		r := &z.racks[len(z.racks)-1]
		if newNode {
			r.nodes = append(r.nodes, nodeTree{})
			p.nodes++
		}
		d := &r.nodes[len(r.nodes)-1]
		d.bricks = append(d.bricks, i)
		p.zone[i], p.rack[i], p.node[i] = len(p.tree)-1, racks-1, p.nodes-1
	}
}

// caps returns the smallest numbers z and r so that n bricks can be placed
// with at most z in one zone and, given that, at most r in one rack.
func (p *plan) caps(n int) (z, r int) {
	most := func(zoneCap, rackCap int) int {
		sum := 0
		for _, zone := range p.tree {
			sum += min(zoneCap, zone.most(rackCap))
		}
		return sum
	}
	for z = 1; most(z, n) < n; z++ {
	}
	for r = 1; most(z, r) < n; r++ {
	}
	return z, r
}

// most is how many different nodes of the zone one lane can use.
func (z zoneTree) most(rackCap int) int {
	sum := 0
	for _, r := range z.racks {
		sum += min(rackCap, len(r.nodes))
	}
	return sum
}

// share is one vessel of pour: its weight, what it has already, what it can
// hold.
type share struct{ weight, floor, limit float64 }

// targets shares lanes*n places among the bricks by weight, under the caps and
// never below floor, the targets for n-1: whoever is capped leaves the rest to
// its siblings.
func (p *plan) targets(n int, floor []float64) []float64 {
	t := make([]float64, len(p.bricks))
	lanes := float64(p.laneCount)
	nodes := func(r rackTree) (s []share) {
		for _, d := range r.nodes {
			v := share{limit: lanes}
			for _, b := range d.bricks {
				v.weight += float64(p.bricks[b].Weight)
				v.floor += floor[b]
			}
			s = append(s, v)
		}
		return s
	}
	racks := func(z zoneTree) (s []share) {
		for _, r := range z.racks {
			s = append(s, sum(nodes(r), lanes*float64(p.rackCap[n])))
		}
		return s
	}
	var zones []share
	for _, z := range p.tree {
		zones = append(zones, sum(racks(z), lanes*float64(p.zoneCap[n])))
	}
	for i, amount := range pour(lanes*float64(n), zones) {
		z := p.tree[i]
		for i, amount := range pour(amount, racks(z)) {
			r := z.racks[i]
			for i, amount := range pour(amount, nodes(r)) {
				var disks []share
				for _, b := range r.nodes[i].bricks {
					disks = append(disks, share{float64(p.bricks[b].Weight), floor[b], lanes})
				}
				for j, amount := range pour(amount, disks) {
					t[r.nodes[i].bricks[j]] = amount
				}
			}
		}
	}
	return t
}

// sum joins the shares of siblings into that of their parent.
func sum(parts []share, limit float64) share {
	var s share
	for _, p := range parts {
		s.weight += p.weight
		s.floor += p.floor
		s.limit += p.limit
	}
	s.limit = min(s.limit, limit)
	return s
}

// pour divides amount among vessels so that each holds level*weight, but not
// less than its floor nor more than its limit. amount lies between the sums of
// both.
func pour(amount float64, vessels []share) []float64 {
	out := make([]float64, len(vessels))
	fill := func(level float64) float64 {
		sum := 0.0
		for i, v := range vessels {
			out[i] = max(v.floor, min(v.limit, level*v.weight))
			sum += out[i]
		}
		return sum
	}
	lo, hi := 0.0, 1.0
	for _, v := range vessels {
		hi = max(hi, v.limit/v.weight)
	}
	for range 64 { // 64 halvings leave less than a rounding error
		if mid := (lo + hi) / 2; fill(mid) < amount {
			lo = mid
		} else {
			hi = mid
		}
	}
	fill(hi)
	return out
}

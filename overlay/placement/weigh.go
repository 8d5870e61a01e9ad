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

// targets shares lanes*n places among the bricks by weight, under the caps:
// whoever is capped gives the rest to its siblings.
func (p *plan) targets(n int) []float64 {
	t := make([]float64, len(p.bricks))
	lanes := float64(p.laneCount)
	zw, zc := make([]float64, len(p.tree)), make([]float64, len(p.tree))
	for i, z := range p.tree {
		zc[i] = lanes * float64(min(p.zoneCap[n], z.most(p.rackCap[n])))
		for _, r := range z.racks {
			zw[i] += p.rackWeight(r)
		}
	}
	for i, amount := range pour(lanes*float64(n), zw, zc) {
		racks := p.tree[i].racks
		rw, rc := make([]float64, len(racks)), make([]float64, len(racks))
		for j, r := range racks {
			rw[j], rc[j] = p.rackWeight(r), lanes*float64(min(p.rackCap[n], len(r.nodes)))
		}
		for j, amount := range pour(amount, rw, rc) {
			nodes := racks[j].nodes
			nw, nc := make([]float64, len(nodes)), make([]float64, len(nodes))
			for l, d := range nodes {
				nw[l], nc[l] = p.nodeWeight(d), lanes
			}
			for l, amount := range pour(amount, nw, nc) {
				for _, b := range nodes[l].bricks {
					t[b] = amount * float64(p.bricks[b].Weight) / nw[l]
				}
			}
		}
	}
	return t
}

func (p *plan) nodeWeight(d nodeTree) float64 {
	sum := 0.0
	for _, b := range d.bricks {
		sum += float64(p.bricks[b].Weight)
	}
	return sum
}

func (p *plan) rackWeight(r rackTree) float64 {
	sum := 0.0
	for _, d := range r.nodes {
		sum += p.nodeWeight(d)
	}
	return sum
}

// pour divides amount among vessels in proportion to weight, none above its
// cap. amount must not exceed the sum of caps.
func pour(amount float64, weight, caps []float64) []float64 {
	out := make([]float64, len(weight))
	full := make([]bool, len(weight))
	for {
		rest, open := amount, 0.0
		for i := range out {
			if full[i] {
				rest -= caps[i]
			} else {
				open += weight[i]
			}
		}
		again := false
		for i := range out {
			if full[i] {
				continue
			}
			out[i] = rest * weight[i] / open
			if out[i] > caps[i] {
				out[i], full[i], again = caps[i], true, true
			}
		}
		if !again {
			return out
		}
	}
}

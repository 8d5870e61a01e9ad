// Package placement decides which bricks hold which lane. It is a pure
// function of the old table and the bricks there are: no clock, no
// randomness, no I/O.
//
// Invariants, strongest first:
//
//  1. The bricks of a lane are on different nodes.
//  2. For every n, the first n bricks of a lane are spread over zones, and then
//     over racks, as evenly as n bricks of this pool can be: in different zones
//     if there are n zones with bricks, else with the smallest possible maximum
//     in one zone.
//  3. For every n, the load of a brick within the first n positions follows its
//     weight as far as 1 and 2 allow.
//  4. A lane changes only where 1 to 3 demand it.
//
// The caps of rule 1 and 2 are nested (nodes in racks in zones), which makes
// the allowed sets of a lane a laminar matroid: whatever was chosen for the
// first positions, a lane can always be completed, so no search is needed to
// satisfy them. Balance is restored by moving single lanes along shortest
// chains of bricks.
package placement

import (
	"slices"

	"github.com/gabion-storage/gabion/internal/ident"
)

// Ref names a brick and the node that serves it.
type Ref struct {
	Node  ident.NodeID  `json:"node"`
	Brick ident.BrickID `json:"brick"`
}

// Brick is one disk that may hold lanes. Zone and Rack are labels of its node;
// a rack is told apart by its zone and name; nodes without a label share the
// empty one. Weight is in any unit, usually bytes of capacity; a brick of
// weight 0 is given nothing.
type Brick struct {
	ID     ident.BrickID
	Node   ident.NodeID
	Zone   string
	Rack   string
	Weight uint64
}

// Table says which bricks hold each lane, in order. The zero Table has no
// lanes.
type Table struct {
	Lanes [][]Ref `json:"lanes"`
}

// Clone copies the table deeply.
func (t Table) Clone() Table {
	c := Table{Lanes: make([][]Ref, len(t.Lanes))}
	for i, l := range t.Lanes {
		c.Lanes[i] = slices.Clone(l)
	}
	return c
}

// Plan computes a table of `lanes` lanes with min(width, nodes with bricks)
// bricks each. It neither keeps nor changes its arguments, and gives the same
// table for the same bricks in any order. Bricks named by old but absent from
// bricks are replaced. A brick that appears twice is taken once.
func Plan(old Table, bricks []Brick, lanes, width int) Table {
	p := newPlan(bricks, max(lanes, 0))
	w := min(width, p.nodes)
	if w <= 0 {
		return Table{Lanes: make([][]Ref, max(lanes, 0))}
	}
	p.adopt(old, w)
	for k := range w {
		p.position(k, w)
	}
	t := Table{Lanes: make([][]Ref, p.laneCount)}
	for i := range t.Lanes {
		l := make([]Ref, w)
		for k, b := range p.lanes[i] {
			l[k] = Ref{Node: p.bricks[b].Node, Brick: p.bricks[b].ID}
		}
		t.Lanes[i] = l
	}
	return t
}

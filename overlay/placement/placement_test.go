package placement

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func brickOf(node, disk int, zone, rack string, weight uint64) Brick {
	b := Brick{Zone: zone, Rack: rack, Weight: weight}
	b.Node[0], b.Node[1], b.Node[2] = byte(node>>8), byte(node), 1
	b.ID[0], b.ID[1], b.ID[2], b.ID[3] = byte(node*37), byte(node), byte(disk), 1
	return b
}

// drawPool draws up to 12 nodes in up to 4 zones and 3 racks with 1 to 3 bricks.
func drawPool(t *rapid.T) []Brick {
	zones := rapid.IntRange(1, 4).Draw(t, "zones")
	racks := rapid.IntRange(1, 3).Draw(t, "racks")
	equal := rapid.Bool().Draw(t, "equal")
	var bricks []Brick
	for n := range rapid.IntRange(1, 12).Draw(t, "nodes") {
		z := fmt.Sprint("z", rapid.IntRange(1, zones).Draw(t, "zone"))
		r := fmt.Sprint("r", rapid.IntRange(1, racks).Draw(t, "rack"))
		for d := range rapid.IntRange(1, 3).Draw(t, "disks") {
			w := uint64(100)
			if !equal {
				w = rapid.Uint64Range(10, 1000).Draw(t, "weight")
			}
			bricks = append(bricks, brickOf(n, d, z, r, w))
		}
	}
	return bricks
}

// check verifies invariants 1 and 2 and the shape of the table.
func check(t *rapid.T, tab Table, bricks []Brick, lanes, width int) {
	t.Helper()
	p := newPlan(bricks, lanes)
	by := map[Ref]int{}
	for i, b := range p.bricks {
		by[Ref{b.Node, b.ID}] = i
	}
	if len(tab.Lanes) != lanes {
		t.Fatalf("%d lanes, want %d", len(tab.Lanes), lanes)
	}
	for i, l := range tab.Lanes {
		if len(l) != max(0, min(width, p.nodes)) {
			t.Fatalf("lane %d has %d bricks of %d wanted on %d nodes", i, len(l), width, p.nodes)
		}
		nodes, zones, racks := map[int]int{}, map[int]int{}, map[int]int{}
		for k, r := range l {
			b, ok := by[r]
			if !ok {
				t.Fatalf("lane %d names the unknown brick %v", i, r)
			}
			nodes[p.node[b]]++
			zones[p.zone[b]]++
			racks[p.rack[b]]++
			if nodes[p.node[b]] > 1 {
				t.Fatalf("lane %d uses a node twice", i)
			}
			// rule 2 holds for every prefix
			if zones[p.zone[b]] > p.zoneCap[k+1] || racks[p.rack[b]] > p.rackCap[k+1] {
				t.Fatalf("lane %d: first %d bricks are not spread: %v", i, k+1, l)
			}
			if len(p.tree) >= k+1 && zones[p.zone[b]] > 1 {
				t.Fatalf("lane %d: %d zones, yet two of the first %d bricks share one", i, len(p.tree), k+1)
			}
		}
	}
}

// slack is the distance allowed in an arbitrary tree of unequal bricks: what
// was decided for earlier positions is not undone for later ones.
func slack(lanes int) float64 { return 5 + 0.05*float64(lanes) }

// worst is the largest distance of a brick's load from its target over all
// prefixes.
func worst(tab Table, bricks []Brick, width int) float64 {
	p := newPlan(bricks, len(tab.Lanes))
	by := map[Ref]int{}
	for i, b := range p.bricks {
		by[Ref{b.Node, b.ID}] = i
	}
	load := make([]int, len(p.bricks))
	far := 0.0
	for k := range min(width, p.nodes) {
		for _, l := range tab.Lanes {
			load[by[l[k]]]++
		}
		p.target = p.targets(k+1, p.target)
		for b, want := range p.target {
			far = max(far, math.Abs(float64(load[b])-want))
		}
	}
	return far
}

func TestPlanSpreadsAndBalances(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bricks := drawPool(t)
		lanes := rapid.IntRange(0, 200).Draw(t, "lanes")
		width := rapid.IntRange(1, 5).Draw(t, "width")
		tab := Plan(Table{}, bricks, lanes, width)
		check(t, tab, bricks, lanes, width)
		if far := worst(tab, bricks, width); far > slack(lanes) {
			t.Fatalf("a brick is %.2f lanes off its target", far)
		}
	})
}

func TestPlanIsDeterministicAndIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bricks := drawPool(t)
		lanes := rapid.IntRange(1, 64).Draw(t, "lanes")
		a := Plan(Table{}, bricks, lanes, 3)
		shuffled := rapid.Permutation(bricks).Draw(t, "order")
		b := Plan(Table{}, shuffled, lanes, 3)
		if !equal(a, b) {
			t.Fatal("the order of bricks changes the plan")
		}
		if c := Plan(a, bricks, lanes, 3); !equal(a, c) {
			t.Fatalf("planning again moves %d copies", movedCopies(a, c, 3))
		}
	})
}

func equal(a, b Table) bool {
	return slices.EqualFunc(a.Lanes, b.Lanes, func(x, y []Ref) bool { return slices.Equal(x, y) })
}

func TestPlanMovesLittleWhenABrickJoins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lanes, width := 128, rapid.IntRange(1, 3).Draw(t, "width")
		nodes := rapid.IntRange(width, 12).Draw(t, "nodes")
		var bricks []Brick
		for n := range nodes {
			bricks = append(bricks, brickOf(n, 0, "", "", 100))
		}
		before := Plan(Table{}, bricks, lanes, width)
		bricks = append(bricks, brickOf(nodes, 0, "", "", 100))
		after := Plan(before, bricks, lanes, width)
		check(t, after, bricks, lanes, width)
		fair := float64(lanes*width) / float64(nodes+1)
		if m := movedCopies(before, after, width); float64(m) > fair+2 {
			t.Fatalf("%d copies moved to a brick that should get %.1f", m, fair)
		}
		if far := worst(after, bricks, width); far > 2 {
			t.Fatalf("a brick is %.2f lanes off its target", far)
		}
	})
}

func TestPlanMovesOnlyTheLostWhenABrickLeaves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lanes, width := 128, rapid.IntRange(1, 3).Draw(t, "width")
		nodes := rapid.IntRange(width+1, 12).Draw(t, "nodes")
		var bricks []Brick
		for n := range nodes {
			bricks = append(bricks, brickOf(n, 0, "", "", 100))
		}
		before := Plan(Table{}, bricks, lanes, width)
		gone := rapid.IntRange(0, nodes-1).Draw(t, "gone")
		lost := 0
		for _, l := range before.Lanes {
			for _, r := range l {
				if r.Brick == bricks[gone].ID {
					lost++
				}
			}
		}
		rest := slices.Delete(slices.Clone(bricks), gone, gone+1)
		after := Plan(before, rest, lanes, width)
		check(t, after, rest, lanes, width)
		if m := movedCopies(before, after, width); m < lost || m > lost+lost/4+4 {
			t.Fatalf("%d copies moved for %d lost", m, lost)
		}
		if far := worst(after, rest, width); far > 2 {
			t.Fatalf("a brick is %.2f lanes off its target", far)
		}
	})
}

func TestPlanGrowsThroughAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lanes, width := rapid.IntRange(1, 100).Draw(t, "lanes"), rapid.IntRange(1, 4).Draw(t, "width")
		tab := Table{}
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			bricks := drawPool(t)
			old := tab.Clone()
			next := Plan(tab, bricks, lanes, width)
			if !equal(old, tab) {
				t.Fatal("Plan changed its argument")
			}
			check(t, next, bricks, lanes, width)
			if far := worst(next, bricks, width); far > slack(lanes) {
				t.Fatalf("a brick is %.2f lanes off its target", far)
			}
			tab = next
		}
	})
}

func TestPlanWorksWithOneBrickAndWithNone(t *testing.T) {
	one := []Brick{brickOf(1, 1, "", "", 1)}
	tab := Plan(Table{}, one, 8, 3)
	for _, l := range tab.Lanes {
		if !slices.Equal(l, []Ref{{one[0].Node, one[0].ID}}) {
			t.Fatalf("lane %v", l)
		}
	}
	tab = Plan(tab, nil, 8, 3)
	if len(tab.Lanes) != 8 || len(tab.Lanes[0]) != 0 {
		t.Fatalf("table without bricks: %v", tab)
	}
	if tab = Plan(tab, []Brick{brickOf(1, 1, "", "", 0)}, 8, 3); len(tab.Lanes[0]) != 0 {
		t.Fatal("a brick of weight 0 was used")
	}
}

func BenchmarkPlanJoinOf100(b *testing.B) {
	var bricks []Brick
	for n := range 100 {
		bricks = append(bricks, brickOf(n, 0, fmt.Sprint(n%4), "", 100))
	}
	before := Plan(Table{}, bricks, 4096, 3)
	bricks = append(bricks, brickOf(100, 0, "1", "", 100))
	for b.Loop() {
		Plan(before, bricks, 4096, 3)
	}
}

// movedCopies counts the bricks that must receive a copy of a lane when a becomes b,
// for volumes that use the first n bricks of a lane.
func movedCopies(a, b Table, n int) int {
	moved := 0
	for i, lane := range b.Lanes {
		var old []Ref
		if i < len(a.Lanes) {
			old = a.Lanes[i][:min(n, len(a.Lanes[i]))]
		}
		for _, r := range lane[:min(n, len(lane))] {
			if !slices.Contains(old, r) {
				moved++
			}
		}
	}
	return moved
}

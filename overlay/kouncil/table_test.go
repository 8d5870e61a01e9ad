package kouncil

import (
	"slices"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/placement"
)

// Everything above compares table versions to know whether extents may have to
// move, so the version must not change with what moves nothing.
func TestTableVersionFollowsLanesOnly(t *testing.T) {
	pool(t, 2, func(r *rig) {
		k := New(Config{Transport: link.NewMemory(1).Node(ident.NodeID{9})})
		ref := func(n byte) placement.Ref {
			return placement.Ref{Node: ident.NodeID{n}, Brick: ident.BrickID{n}}
		}
		table := func(ls ...[]placement.Ref) [][]placement.Ref { return ls }
		told := 0
		k.OnChange(func() { told++ })
		r.want(k.TableVersion() == 0 && k.LaneCount() == 0 && k.Lane(0) == nil, "a table before the first")
		for i, c := range []struct {
			version uint64
			lanes   [][]placement.Ref
			want    uint64
			lane0   int
		}{
			{3, nil, 3, 0}, // the first counts in any case
			{4, table([]placement.Ref{ref(1)}), 4, 1},         // lanes appear
			{5, table([]placement.Ref{ref(1)}), 4, 1},         // equal ones in other memory
			{6, table([]placement.Ref{ref(1), ref(2)}), 6, 2}, // wider
			{6, table([]placement.Ref{ref(2)}), 6, 2},         // the same version again
			{2, table([]placement.Ref{ref(2)}), 6, 2},         // an old one
			{7, table([]placement.Ref{ref(2), ref(1)}), 7, 2}, // the order matters
			{8, table([]placement.Ref{ref(2), ref(1)}, []placement.Ref{ref(1)}), 8, 2},
			{9, table([]placement.Ref{ref(2), ref(1)}, []placement.Ref{ref(1)}), 8, 2},
			{10, table([]placement.Ref{ref(2), {Node: ident.NodeID{1}, Brick: ident.BrickID{7}}}, []placement.Ref{ref(1)}), 10, 2}, // a new disk
		} {
			before := told
			k.SetTable(c.version, r.table[:1+i%2], c.lanes)
			if k.TableVersion() != c.want || len(k.Lane(0)) != c.lane0 {
				t.Fatalf("table %d: version %d, lane of %d; want %d and %d", i, k.TableVersion(), len(k.Lane(0)), c.want, c.lane0)
			}
			if fresh := c.version != 2 && i != 4; (told > before) != fresh {
				t.Fatalf("table %d: told %d times", i, told-before)
			}
		}
	})
}

func TestNodesAreSortedAndTheTableIsNotTouched(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a := r.nodes[0]
		backwards := slices.Clone(r.table)
		slices.Reverse(backwards)
		given := slices.Clone(backwards)
		a.SetTable(2, given, nil)
		for i := range given {
			r.want(given[i].ID == backwards[i].ID, "the caller's slice was sorted")
		}
		for i, n := range a.Nodes() {
			r.want(n.ID == r.table[i].ID && n.State == overlay.Alive && n.Boot == 1, "not sorted, or not filled in")
		}
		a.Nodes()[1].Name = "changed"
		n, ok := a.Node(r.table[1].ID)
		r.want(ok && n.Name == "n1", "the caller has the inner slice")
		self, ok := a.Node(a.Self())
		r.want(ok && self.LastHeard == 0 && self.State == overlay.Alive, "itself")
	})
}

// What was heard of a node outlives its absence from the table, so that a table
// that comes and goes makes nobody dead.
func TestLivenessOutlivesTheTable(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a, b := r.nodes[0], r.nodes[1]
		mark, ok := a.LeaseMark(r.ids())
		r.want(ok, "no lease")
		a.SetTable(2, r.table[:1], nil)
		a.SetTable(3, r.table, nil)
		again, ok := a.LeaseMark(r.ids())
		r.want(ok && again == mark && a.State(b.self) == overlay.Alive, "forgotten")
	})
}

func TestBoundariesOfStatesAndPatience(t *testing.T) {
	pool(t, 2, func(r *rig) {
		a, id := r.nodes[0], r.nodes[1].self
		r.net.Isolate(id)
		r.after(0)
		at := a.cfg.Clock() - a.Heard(id)
		until := func(d time.Duration) { r.after(at + d - a.cfg.Clock()) }
		until(SuspectAfterDefault - 1)
		r.want(a.State(id) == overlay.Alive, "suspect too early")
		until(SuspectAfterDefault)
		r.want(a.State(id) == overlay.Suspect, "alive too long")
		until(LeaseDurationDefault + LeaseMarginDefault - 1)
		r.want(a.HolderMayLive(id), "the patience is too short")
		until(LeaseDurationDefault + LeaseMarginDefault)
		r.want(!a.HolderMayLive(id), "the patience is too long")
		until(DownAfterDefault - 1)
		r.want(a.State(id) == overlay.Suspect, "down too early")
		until(DownAfterDefault)
		r.want(a.State(id) == overlay.Down, "suspect too long")
	})
}

// A node that has just started takes everybody for one that spoke at that
// moment where it could break a promise, and for nobody where it would count on
// him.
func TestFreshStartPromisesAndTrustsNothing(t *testing.T) {
	now := time.Hour
	k := New(Config{Transport: link.NewMemory(1).Node(ident.NodeID{1}), Clock: func() time.Duration { return now }})
	other := ident.NodeID{2}
	k.SetTable(1, []overlay.Node{{ID: other}, {ID: ident.NodeID{1}}}, nil)
	if k.State(other) != overlay.Down || k.LeaseValid([]ident.NodeID{{1}, other, {3}}) {
		t.Fatal("it trusts whom it never heard")
	}
	now += LeaseDurationDefault + LeaseMarginDefault - 1
	if !k.HolderMayLive(other) || !k.HolderMayLive(ident.NodeID{3}) {
		t.Fatal("it lets another holder in at once")
	}
	if now++; k.HolderMayLive(other) {
		t.Fatal("it waits for ever")
	}
	if !k.LeaseValid([]ident.NodeID{{1}}) {
		t.Fatal("alone it is a majority")
	}
}

func TestBoottimeOnlyGrows(t *testing.T) {
	a := Boottime()
	if b := Boottime(); a <= 0 || b < a {
		t.Fatal(a, b)
	}
}

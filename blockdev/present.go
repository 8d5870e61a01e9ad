package blockdev

import (
	"math"
	"slices"

	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// placing is where extents were by the newest lane table under which nothing in reach was
// found to lack any. While a newer table moves them they still are there: a copy is
// dropped when all of those of the newer table are made.
type placing struct {
	version uint64
	lanes   [][]overlay.BrickRef        // each cut to the volume's replicas; read only
	lapse   map[overlay.BrickRef]uint64 // of the bricks that were complete: maintenance.lapse then
}

// lanes are the bricks that hold each lane of the volume, by the present table.
func (v *Volume) lanes() [][]overlay.BrickRef {
	out := make([][]overlay.BrickRef, v.cfg.View.LaneCount())
	for i := range out {
		lane := v.cfg.View.Lane(i)
		out[i] = lane[:min(len(lane), v.cfg.Replicas)]
	}
	return out
}

// place notes that nothing in reach lacks anything by the table of that version.
func (v *Volume) place(version uint64) {
	lanes := v.lanes()
	if v.cfg.View.TableVersion() != version {
		return // they may be of two tables
	}
	m := &v.maintain
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &placing{version: version, lanes: lanes, lapse: map[overlay.BrickRef]uint64{}}
	for b, at := range m.clean {
		if at == version {
			p.lapse[b] = m.lapse[b]
		}
	}
	m.base = p
}

// Present counts the complete copies that are reachable now: the least over the
// quorum and all lanes.
func (v *Volume) Present() int {
	n, _ := v.present()
	return n
}

// present is Present. sure is false while bricks have not been compared since the volume was
// attached: there may be more.
func (v *Volume) present() (n int, sure bool) {
	voters := 0
	for _, m := range v.log.Status() {
		if m.Member.Role == quorum.Voter && (m.State == "ok" || m.Member.Node == v.cfg.View.Self()) {
			voters++
		}
	}
	version := v.cfg.View.TableVersion()
	lanes := v.lanes()
	reach := map[overlay.BrickRef]bool{}
	for _, x := range v.cfg.View.Nodes() {
		for _, b := range x.Bricks {
			if x.State == overlay.Alive && !b.Leaving {
				reach[overlay.BrickRef{Node: x.ID, Brick: b.ID}] = true
			}
		}
	}
	v.maintain.mu.Lock()
	defer v.maintain.mu.Unlock()
	n = v.maintain.copies(lanes, version, reach)
	return min(voters, n), v.maintain.base != nil || n >= v.cfg.Replicas
}

// copies counts the copies of the extent that has the fewest, in lanes of the table of
// that version. Two kinds of extents are told apart: those from before the table,
// which are on bricks that have caught up with it or where the table before put them;
// and those put since, on all bricks of its lanes that missed nothing. mu is held.
func (m *maintenance) copies(lanes [][]overlay.BrickRef, version uint64, reach map[overlay.BrickRef]bool) int {
	clean := func(b overlay.BrickRef) bool { at, ok := m.clean[b]; return ok && at == version && reach[b] }
	kept := func(b overlay.BrickRef) bool {
		if m.base == nil || !reach[b] {
			return false
		}
		l, ok := m.base.lapse[b]
		return ok && l == m.lapse[b]
	}
	taking := func(b overlay.BrickRef) bool { return clean(b) || kept(b) || reach[b] && m.lapse[b] == m.seen[b] }
	least := func(lanes [][]overlay.BrickRef, ok func(int, overlay.BrickRef) bool) int {
		out := math.MaxInt
		for i, lane := range lanes {
			n := 0
			for _, b := range lane {
				if ok(i, b) {
					n++
				}
			}
			out = min(out, n)
		}
		return out
	}
	caughtUp := least(lanes, func(_ int, b overlay.BrickRef) bool { return clean(b) })
	if m.base == nil {
		return caughtUp
	}
	since := least(lanes, func(_ int, b overlay.BrickRef) bool { return taking(b) })
	if len(lanes) != len(m.base.lanes) { // lanes of the one are not those of the other
		return max(caughtUp, min(since, least(m.base.lanes, func(_ int, b overlay.BrickRef) bool { return kept(b) })))
	}
	both := make([][]overlay.BrickRef, len(lanes))
	for i, lane := range m.base.lanes {
		both[i] = slices.Clone(lane)
		for _, b := range lanes[i] {
			if !slices.Contains(lane, b) {
				both[i] = append(both[i], b)
			}
		}
	}
	before := least(both, func(i int, b overlay.BrickRef) bool {
		return slices.Contains(lanes[i], b) && clean(b) || slices.Contains(m.base.lanes[i], b) && kept(b)
	})
	return min(before, since)
}

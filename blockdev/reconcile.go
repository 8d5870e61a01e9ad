package blockdev

import (
	"context"
	"slices"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
)

// wantedBricks lists the bricks that hold extents of this volume.
func (v *Volume) wantedBricks() []overlay.BrickRef {
	seen := map[overlay.BrickRef]bool{}
	var out []overlay.BrickRef
	for i := range v.cfg.View.LaneCount() {
		lane := v.cfg.View.Lane(i)
		for _, b := range lane[:min(len(lane), v.cfg.Replicas)] {
			if !seen[b] {
				seen[b] = true
				out = append(out, b)
			}
		}
	}
	slices.SortFunc(out, func(a, b overlay.BrickRef) int { return a.Brick.Compare(b.Brick) })
	return out
}

// named is an extent that the state names.
type named struct {
	number uint64
	bytes  int64 // encoded
}

// wanted is the set of addresses that the volume's state names.
type wanted struct {
	keep    map[ident.Addr]named
	epoch   uint64 // of this attachment
	next    uint64
	flights map[uint64]struct{}
}

func (v *Volume) wanted() wanted {
	w := wanted{epoch: v.epoch, keep: map[ident.Addr]named{}, flights: map[uint64]struct{}{}}
	v.mu.RLock()
	defer v.mu.RUnlock()
	v.table.All(func(x extentmap.Extent) bool { w.keep[x.Addr] = named{x.Number, int64(x.Bytes)}; return true })
	for _, r := range v.tableRefs {
		w.keep[r.Addr] = named{r.Number, int64(r.Bytes)}
	}
	for _, x := range v.loose {
		if !mutant.On("forget-tail") {
			w.keep[x.addr] = named{x.number, int64(x.bytes)}
		}
	}
	for n := range v.inflight {
		w.flights[n] = struct{}{}
	}
	w.next = v.nextExt
	return w
}

// garbage tells whether a brick may drop what it lists: nothing names it, and
// either its number was drawn here and settled, or it is of an earlier holder,
// whose puts the bricks refuse since this one opened.
func (w wanted) garbage(r brick.Ref) bool {
	_, named := w.keep[r.Addr]
	_, open := w.flights[r.Number]
	return !named && !open && (r.Number < w.next || r.Epoch < w.epoch)
}

// settled reports whether no extent is in flight that an older lane table may
// have placed: such a one is named by nothing yet and would be overlooked.
func (v *Volume) settled(w wanted) bool {
	v.maintain.mu.Lock()
	defer v.maintain.mu.Unlock()
	for n := range w.flights {
		if n < v.maintain.barrier {
			return false
		}
	}
	return true
}

// dropSurplus deletes copies on bricks that no longer hold their lane. It runs
// only after every brick of the present table is complete. It reports whether
// there is nothing left to delete in reach: a brick out of reach has its turn when it is back, which is an event.
func (v *Volume) dropSurplus(ctx context.Context, version uint64) (all bool) {
	todo := v.uncleared(version)
	if len(todo) == 0 {
		return true
	}
	held, err := v.listAll(ctx)
	if err != nil {
		return false
	}
	all = true
	for _, b := range todo {
		if v.cfg.View.TableVersion() != version {
			return false // the lanes moved again; what was listed says nothing
		}
		if !v.dropSurplusOf(ctx, b, held, version) {
			all = false
			continue
		}
		v.maintain.mu.Lock()
		v.maintain.cleared[b] = version
		v.maintain.mu.Unlock()
	}
	return all
}

// uncleared lists the bricks in reach from which surplus copies were not removed yet.
func (v *Volume) uncleared(version uint64) (todo []overlay.BrickRef) {
	nodes := v.cfg.View.Nodes()
	v.maintain.mu.Lock()
	defer v.maintain.mu.Unlock()
	for _, n := range nodes {
		for _, bi := range n.Bricks {
			b := overlay.BrickRef{Node: n.ID, Brick: bi.ID}
			if at, ok := v.maintain.cleared[b]; n.State == overlay.Alive && (!ok || at != version) {
				todo = append(todo, b)
			}
		}
	}
	return todo
}

// dropSurplusOf is dropSurplus for one brick; false if something is left.
func (v *Volume) dropSurplusOf(ctx context.Context, b overlay.BrickRef, held holdings, version uint64) bool {
	refs, err := v.cfg.Extents.List(ctx, b, v.cfg.ID)
	if err != nil {
		return false
	}
	all := true
	w := v.wanted()
	var drop []ident.Addr
	for _, r := range refs {
		holders := v.cfg.Extents.Holders(r.Addr, v.cfg.Replicas)
		if slices.Contains(holders, b) {
			continue
		}
		if _, named := w.keep[r.Addr]; named && held.onAll(r.Addr, holders) || w.garbage(r) {
			drop = append(drop, r.Addr)
		} else {
			all = false // it may be the last copy, or somebody is about to name it
		}
	}
	if v.cfg.View.TableVersion() != version {
		return false
	}
	if mutant.On("keep-surplus") {
		drop = nil
	}
	return (len(drop) == 0 || v.cfg.Extents.DeleteAt(ctx, b, v.cfg.ID, v.epoch, drop) == nil) && all
}

// holdings is which bricks list which extents.
type holdings map[overlay.BrickRef]map[ident.Addr]struct{}

func (h holdings) onAll(a ident.Addr, bs []overlay.BrickRef) bool {
	for _, b := range bs {
		if _, ok := h[b][a]; !ok {
			return false
		}
	}
	return len(bs) > 0
}

// listAll lists the bricks that should hold the volume.
func (v *Volume) listAll(ctx context.Context) (holdings, error) {
	h := holdings{}
	for _, b := range v.wantedBricks() {
		refs, err := v.cfg.Extents.List(ctx, b, v.cfg.ID)
		if err != nil {
			return nil, err
		}
		h[b] = make(map[ident.Addr]struct{}, len(refs))
		for _, r := range refs {
			h[b][r.Addr] = struct{}{}
		}
	}
	return h, nil
}

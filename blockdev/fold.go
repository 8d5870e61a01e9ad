package blockdev

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Limits of compaction. Blocks stored are kept below storedPerLivePermille of
// those alive; extents with a larger live share than sparsePermille are left
// alone; one checkpoint moves the live blocks of at most compactMax extents.
const (
	storedPerLivePermille = 1500
	sparsePermille        = 850
	reliefPermille        = 700 // in place of sparsePermille while bricks are full
	reliefMoveMax         = 110 // blocks moved then by one checkpoint
	compactMax            = 512
	leanBlocksMax         = 64 // blocks of an extent when hardly anything fits
	tableDeltasMax        = 64
)

// fold is one attempt to fold a frozen tail. It owns its transaction and its
// packer; nothing of the volume changes until install.
type fold struct {
	v        *Volume
	tail     *tail.Tail
	from, to uint64            // the slots to fold: from <= slot <= to
	early    []extentmap.Range // replaced by later entries, which are chosen
	root     extentmap.Root
	refs     []extentmap.TableRef
	tx       *extentmap.Tx
	pack     *packer
	fromTail []uint64     // extents of large writes that this tail names
	numbers  []uint64     // extent numbers drawn
	oldRefs  []ident.Addr // table extents replaced by a new snapshot
	lean     bool         // move nothing out of sparse extents
	partial  bool         // part of the tail, to get room for the rest
	snaps    []extentmap.Snapshot
	snapSeq  uint64
	change   *snapshotChange // nil for none
}

func (v *Volume) newFold(t *tail.Tail, to uint64, change *snapshotChange) *fold {
	v.mu.RLock()
	defer v.mu.RUnlock()
	f := &fold{v: v, tail: t, from: v.foldFrom, to: to, root: v.root, refs: v.tableRefs, tx: v.table.Begin(),
		snaps: v.stored(), snapSeq: v.snapSeq, change: change}
	if change != nil {
		f.lean = true // somebody waits for it
		if change.drop != 0 {
			f.tx.Drop(change.drop)
		}
	}
	return f
}

// number draws the next extent number; its fate is open until install or abandon.
func (v *Volume) number() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.nextExt
	v.nextExt++
	v.inflight[n] = struct{}{}
	return n
}

// abandon gives up the attempt and deletes what it put.
func (f *fold) abandon() {
	v := f.v
	if f.pack != nil {
		f.pack.wait()
		v.deleteDead(v.ctx, f.pack.addrs())
	}
	v.mu.Lock()
	for _, n := range f.numbers {
		delete(v.inflight, n)
	}
	v.mu.Unlock()
}

func (f *fold) draw() uint64 {
	n := f.v.number()
	f.numbers = append(f.numbers, n)
	return n
}

func (f *fold) run(ctx context.Context) (*extentmap.State, error) {
	v := f.v
	f.pack = newPacker(ctx, v, f.draw)
	if f.partial {
		f.pack.relief = true
		if f.lean { // the last resort: nothing is larger than bricks take then
			f.pack.most = leanBlocksMax
		}
	}
	zeros, changes, err := f.packTail()
	if err != nil {
		return nil, err
	}
	moved, changes, err := f.compact(ctx, zeros, changes)
	if err != nil {
		return nil, err
	}
	load := waiting{v, ctx}
	level := max(extentmap.LevelFor(v.Size()), f.root.Level)
	write := func(o extentmap.Owner, pg *extentmap.Page) (extentmap.Ptr, error) {
		var raw [BlockSize]byte
		pg.Encode(raw[:])
		p, err := f.pack.add(uint64(o), raw[:])
		if err == nil {
			keep := *pg
			v.pages.add(p, &keep)
		}
		return p, err
	}
	root, err := extentmap.Update(f.root, level, zeros, changes, moved, load, write, f.tx.Free)
	if err != nil {
		return nil, err
	}
	if err := f.pack.finish(); err != nil {
		return nil, err
	}
	for _, x := range f.pack.done {
		f.tx.Add(extentmap.Extent{Number: x.number, Addr: x.addr, Blocks: x.blocks, Live: x.blocks, Bytes: x.bytes})
	}
	snaps, seq := f.snapshotsAfter(root, v.nextNumber())
	if err := f.tx.Err(); err != nil {
		return nil, err
	}
	if err := f.worthwhile(); err != nil {
		return nil, err
	}
	refs, err := f.writeTable(ctx)
	if err != nil {
		return nil, err
	}
	_, _, live, stored := f.tx.Stats()
	return &extentmap.State{Root: root, Size: v.Size(), NextExt: v.nextNumber(), Epoch: v.epoch, Table: refs, LiveBlocks: live, StoredBytes: stored,
		Snapshots: snaps, SnapshotSeq: seq}, nil
}

// nextNumber is above every extent number drawn up to now.
func (v *Volume) nextNumber() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.nextExt
}

// packTail packs the live blocks of the tail in order of their place, so that
// neighbours lie together, and returns what changes in the map.
func (f *fold) packTail() ([]extentmap.Range, []extentmap.Change, error) {
	work := f.tail.Fold(f.from)
	zeros := union(work.Zeros, f.early)
	changes := make([]extentmap.Change, 0, work.Len())
	refs := map[uint64]uint16{}
	err := work.Each(func(block uint64, h tail.Hit) (err error) {
		if h.Slot > f.to || within(f.early, block) {
			return nil
		}
		at := h.Ptr
		switch h.Kind {
		case tail.Data:
			if at, err = f.pack.add(uint64(extentmap.DataOwner(block)), h.Data); err != nil {
				return err
			}
			f.v.stats.FoldedBlocks.Add(1)
		case tail.Extent:
			refs[at.Ext]++
		}
		changes = append(changes, extentmap.Change{Block: block, Ptr: at})
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	f.v.mu.RLock()
	defer f.v.mu.RUnlock()
	for _, n := range f.v.looseFrozen {
		x := f.v.loose[n]
		if x.slot > f.to {
			continue
		}
		f.fromTail = append(f.fromTail, n)
		f.tx.Add(extentmap.Extent{Number: n, Addr: x.addr, Blocks: x.blocks, Live: refs[n], Bytes: x.bytes})
	}
	return zeros, changes, nil
}

// compact moves the live blocks out of sparse extents while more than the
// allowed share of what is stored is dead. What a snapshot may name stays where
// it is and does not count.
func (f *fold) compact(ctx context.Context, zeros []extentmap.Range, changes []extentmap.Change) ([]extentmap.Owner, []extentmap.Change, error) {
	v := f.v
	horizon := v.table.Horizon()
	blocks, live := v.table.StatsFrom(horizon)
	// What this checkpoint adds counts too: as a rule it replaces as much, and
	// so leaves as many dead blocks behind.
	excess := blocks + int64(len(changes)) - live*storedPerLivePermille/1000
	sparse, most := int64(sparsePermille), int64(math.MaxInt64) // blocks to move
	if f.partial {
		// Room is what is wanted, and there is hardly any to move blocks to.
		sparse, most, excess = reliefPermille, reliefMoveMax, math.MaxInt64
	}
	if excess <= 0 || f.lean {
		return nil, changes, nil
	}
	taken := make(map[uint64]bool, len(changes))
	for _, c := range changes {
		taken[c.Block] = true
	}
	var moved []extentmap.Owner
	var extra []extentmap.Change
	for _, x := range v.table.Sparse(horizon, compactMax, int(sparse)) {
		if excess <= 0 {
			break
		}
		if most -= int64(x.Live); most < 0 {
			most += int64(x.Live)
			continue
		}
		excess -= int64(x.Blocks - x.Live)
		raw, err := v.cfg.Extents.Get(ctx, x.Addr)
		if err != nil {
			// a sparse extent that cannot be read now is no reason to stop
			v.cfg.Log.Warn("cannot compact an extent", "volume", v.cfg.Name, "extent", x.Addr.Short(), "error", err)
			continue
		}
		h, err := extent.Decode(raw)
		if err != nil {
			return nil, nil, err
		}
		for i := 0; i < h.Count; i++ {
			o := extentmap.Owner(h.Owner(i))
			if o.IsPage() {
				at, err := f.root.PageAt(o.Level(), o.Index(), waiting{v, ctx})
				if err != nil {
					return nil, nil, err
				}
				if at.Ext == x.Number {
					moved = append(moved, o)
				}
				continue
			}
			c, ok, err := f.moveBlock(ctx, o.Block(), x.Number, zeros, taken)
			if err != nil {
				return nil, nil, err
			}
			if ok {
				extra = append(extra, c)
			}
		}
	}
	slices.SortFunc(moved, func(a, b extentmap.Owner) int { return cmp.Compare(a, b) })
	moved = slices.Compact(moved)
	v.stats.MovedBlocks.Add(int64(len(extra) + len(moved)))
	if len(extra) > 0 {
		changes = append(changes, extra...)
		slices.SortFunc(changes, func(a, b extentmap.Change) int { return cmp.Compare(a.Block, b.Block) })
	}
	return moved, changes, nil
}

// moveBlock packs one data block again if the map still finds it in the extent
// and the tail does not replace it.
func (f *fold) moveBlock(ctx context.Context, block, number uint64, zeros []extentmap.Range, taken map[uint64]bool) (extentmap.Change, bool, error) {
	if taken[block] || within(zeros, block) {
		return extentmap.Change{}, false, nil
	}
	var at [1]extentmap.Ptr
	if err := f.root.Lookup(block, at[:], waiting{f.v, ctx}); err != nil {
		return extentmap.Change{}, false, err
	}
	if at[0].Ext != number {
		return extentmap.Change{}, false, nil
	}
	var raw [BlockSize]byte
	if err := f.v.readBlock(ctx, at[0], raw[:]); err != nil {
		return extentmap.Change{}, false, err
	}
	p, err := f.pack.add(uint64(extentmap.DataOwner(block)), raw[:])
	taken[block] = true
	return extentmap.Change{Block: block, Ptr: p}, err == nil, err
}

func within(rs []extentmap.Range, block uint64) bool {
	i, _ := slices.BinarySearchFunc(rs, block, func(r extentmap.Range, b uint64) int {
		switch {
		case b < r.From:
			return 1
		case b >= r.To:
			return -1
		}
		return 0
	})
	return i < len(rs) && rs[i].From <= block && block < rs[i].To
}

// deadAddrs lists the extents that nothing names once the checkpoint is chosen.
func (f *fold) deadAddrs() []ident.Addr {
	var out []ident.Addr
	for _, x := range f.tx.Dead() {
		out = append(out, x.Addr)
	}
	return append(out, f.oldRefs...)
}

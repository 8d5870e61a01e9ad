package blockdev

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// A checkpoint folds the frozen tail into the map:
//
//  1. freeze: the active tail becomes frozen, writes go on into a new one;
//  2. wait until the frozen tail is chosen (durable on a majority);
//  3. pack live blocks, and what sparse extents still hold, into new extents;
//     rewrite the touched pages up to a new root; put all extents;
//  4. propose the checkpoint and wait until it is chosen;
//  5. install the new root, then delete the extents that died.
//
// Nothing is freed before step 4 is done. A checkpoint that fails leaves the
// frozen tail where it is; the next attempt folds it again under new numbers.

const (
	// checkpointPause is the least time between a failed checkpoint and the next.
	checkpointPause = 900 * time.Millisecond
	// checkpointMax bounds one attempt.
	checkpointMax = 5 * time.Minute
	// deleteMax bounds how long a brick that does not answer keeps the next checkpoint waiting
	// while extents are given back.
	deleteMax = 5 * time.Second
)

// startCheckpoint begins a checkpoint in the background unless one is under way.
func (v *Volume) startCheckpoint() {
	if at := v.failedAt.Load(); at != 0 && time.Since(time.Unix(0, at)) < checkpointPause {
		return // the ticker tries again
	}
	if !v.checkpointing.CompareAndSwap(false, true) {
		return
	}
	if v.spawn(func() {
		ctx, cancel := context.WithTimeout(v.ctx, checkpointMax)
		defer cancel()
		err := v.checkpoint(ctx)
		v.judge(err)
		v.checkpointing.Store(false)
		if err == nil || fault.Is(err, fault.NoSpace) {
			v.unstall()
		}
		v.touch()
	}) != nil {
		v.checkpointing.Store(false)
	}
}

// judge takes note of how a checkpoint ended.
func (v *Volume) judge(err error) {
	if v.ctx.Err() != nil {
		return
	}
	full := fault.Is(err, fault.NoSpace)
	v.mu.Lock()
	was := v.full
	v.full = full
	v.mu.Unlock()
	v.failedAt.Store(0)
	if err != nil {
		v.failedAt.Store(time.Now().UnixNano())
		v.stats.CheckpointErrors.Add(1)
	}
	switch {
	case full && !was:
		v.cfg.Log.Error("the bricks are full: writes fail until there is space", "volume", v.cfg.Name, "error", err)
	case err != nil && !full:
		v.cfg.Log.Warn("checkpoint failed, will be tried again", "volume", v.cfg.Name, "error", err)
	case err == nil && was:
		v.cfg.Log.Info("there is space again: writes go on", "volume", v.cfg.Name)
	}
}

// Checkpoint folds the tail now and waits for it. Kinds: Unavailable, NoSpace,
// Fenced, Timeout.
func (v *Volume) Checkpoint(ctx context.Context) error {
	if err := v.claimCheckpoint(ctx); err != nil {
		return err
	}
	defer v.unstall()
	defer v.checkpointing.Store(false)
	err := v.checkpoint(ctx)
	v.judge(err)
	return err
}

// unstall runs the operations that waited for room, in order.
func (v *Volume) unstall() {
	v.mu.Lock()
	q := v.stalled
	v.stalled = nil
	v.mu.Unlock()
	// While the bricks are full these fail at once, by the rule for new writes.
	for _, w := range q {
		w.run()
	}
	if len(q) > 0 {
		v.log.Kick()
	}
}

// dirty reports whether a tail says anything.
func dirty(t *tail.Tail) bool { return t.Entries() > 0 || t.Zeros() > 0 }

// freeze gives the active tail to a checkpoint, if it says anything or always.
// always adds an entry to an empty one: a checkpoint that lets no entry go is
// none to the members.
func (v *Volume) freeze(always bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if always && v.frozen == nil && !dirty(v.active) {
		body := make([]byte, entryHead)
		putEntryHead(body, opNothing, 0, 1)
		if _, err := v.log.Propose(quorum.EntryData, body); err != nil {
			return // the attachment is over, as the wait for the entry will tell
		}
	}
	if v.frozen == nil && (always || dirty(v.active)) {
		v.frozen, v.frozenTo = v.active, v.log.Next()-1
		v.looseFrozen, v.looseActive, v.looseBytes = v.looseActive, nil, 0
		v.active = tail.New()
	}
}

func (v *Volume) checkpoint(ctx context.Context) error { return v.checkpointWith(ctx, nil) }

// checkpointWith folds the tail and changes the snapshots as change says, which
// may be nil.
func (v *Volume) checkpointWith(ctx context.Context, change *snapshotChange) error {
	v.freeze(change != nil)
	v.mu.RLock()
	frozen, upTo := v.frozen, v.frozenTo
	v.mu.RUnlock()
	if frozen == nil && change != nil {
		return fault.Newf(fault.Unavailable, "volume.checkpoint", v.cfg.Name, "its log takes no entry")
	}
	if frozen == nil {
		return nil
	}
	v.log.Sync(upTo)
	v.log.Kick()
	if err := v.pend.waitDurable(ctx, upTo); err != nil {
		return err
	}
	err := v.fold(ctx, v.newFold(frozen, upTo, change))
	if fault.Is(err, fault.NoSpace) && (change == nil || change.create == nil) {
		// A snapshot is of the whole tail. One that is given up makes room.
		err = v.foldInParts(ctx, frozen, upTo, change, err)
	}
	return err
}

// fold folds what f says and takes the checkpoint.
func (v *Volume) fold(ctx context.Context, f *fold) error {
	st, err := f.run(ctx)
	if err != nil {
		f.abandon()
		return err
	}
	if mutant.On("free-before-commit") {
		v.deleteDead(ctx, f.deadAddrs())
	}
	slot, err := v.log.Checkpoint(f.to, st.Encode())
	if err != nil {
		f.abandon()
		return err
	}
	v.log.Kick()
	// From here on the outcome is the log's to decide. While it is open the
	// frozen tail and all extents, old and new, stay.
	if err := v.pend.waitDurable(v.ctx, slot); err != nil {
		return err
	}
	dead := f.install(st)
	v.maintain.missed(f.pack.missed)
	v.lastCheckpoint.Store(time.Now().UnixNano())
	v.stats.Checkpoints.Add(1)
	v.deleteDead(ctx, dead)
	return nil
}

// install makes the folded state the current one and reports what died.
func (f *fold) install(st *extentmap.State) []ident.Addr {
	v := f.v
	dead := f.deadAddrs()
	v.mu.Lock()
	f.tx.Commit()
	v.root, v.tableRefs = st.Root, st.Table
	v.setSnapshots(st.Snapshots, st.SnapshotSeq)
	if !mutant.On("stale-map") {
		v.mapGen++
	}
	v.foldFrom = f.to + 1
	if mutant.On("fold-too-far") {
		v.foldFrom = v.log.Next()
	}
	for _, n := range f.fromTail {
		delete(v.loose, n)
	}
	v.looseFrozen = slices.DeleteFunc(v.looseFrozen, func(n uint64) bool { return slices.Contains(f.fromTail, n) })
	if f.to >= v.frozenTo {
		v.frozen = nil
	}
	for _, n := range f.numbers {
		delete(v.inflight, n)
	}
	v.mu.Unlock()
	return dead
}

// deleteDead gives dead extents back. Bricks that cannot be reached now, or take longer
// than deleteMax, are reconciled when they can.
func (v *Volume) deleteDead(ctx context.Context, dead []ident.Addr) {
	ctx, cancel := context.WithTimeout(ctx, deleteMax)
	defer cancel()
	share := map[overlay.BrickRef][]ident.Addr{}
	for _, a := range dead {
		for _, b := range v.cfg.Extents.Holders(a, v.cfg.Replicas) {
			share[b] = append(share[b], a)
		}
	}
	var wg sync.WaitGroup
	for b, addrs := range share {
		wg.Go(func() {
			if err := v.cfg.Extents.DeleteAt(ctx, b, v.cfg.ID, v.epoch, addrs); err != nil {
				v.maintain.missed([]overlay.BrickRef{b})
			}
		})
	}
	wg.Wait()
}

// waitDurable waits until the durable watermark reaches slot.
func (p *pending) waitDurable(ctx context.Context, slot uint64) error {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		p.marks.Broadcast()
		p.mu.Unlock()
	})
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.durable < slot {
		if p.err != nil {
			return p.err
		}
		if ctx.Err() != nil {
			return fault.New(fault.Timeout, "volume.checkpoint", "", ctx.Err())
		}
		p.marks.Wait()
	}
	return nil
}

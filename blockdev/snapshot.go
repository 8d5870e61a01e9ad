package blockdev

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// A snapshot is a root that a checkpoint keeps. Making one freezes the tail,
// which is the point in the log: everything answered before is at or below it,
// everything after it goes on into a new tail. The checkpoint that folds the
// frozen tail carries the new root twice, as the volume's and as the snapshot's,
// so that one chosen log entry decides both. Deleting one is a checkpoint that
// leaves it out. Either costs what any checkpoint of the tail costs, whatever
// the size of the volume.

// publishMax bounds one try to have the catalog show the snapshots.
const publishMax = 10 * time.Second

// snapshot is one that this volume has.
type snapshot struct {
	extentmap.Snapshot
	gone chan struct{} // closed when it is deleted, or the attachment is over
	end  func()
}

func (v *Volume) newSnapshot(x extentmap.Snapshot) *snapshot {
	s := &snapshot{Snapshot: x, gone: make(chan struct{})}
	s.end = sync.OnceFunc(func() { close(s.gone) })
	context.AfterFunc(v.ctx, s.end)
	return s
}

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	Name    string    `json:"name"`
	Size    int64     `json:"size"` // of the volume at the time, in bytes
	Created time.Time `json:"created"`
	// OwnBytes is about what deleting it alone would give back of one copy: its
	// share of the extents that hold blocks which nothing else has.
	OwnBytes int64 `json:"own_bytes"`
}

// SnapshotInfos describes the snapshots, oldest first, and their revision: the
// number of creations and deletions that there were.
func (v *Volume) SnapshotInfos() (list []SnapshotInfo, revision uint64) {
	v.mu.RLock()
	snaps := v.snaps
	revision = v.snapSeq
	v.mu.RUnlock()
	for _, s := range snaps {
		_, own, _ := v.table.Own(s.ID)
		list = append(list, SnapshotInfo{Name: s.Name, Size: s.Size, Created: time.Unix(0, s.Created), OwnBytes: own})
	}
	return list, revision
}

// CreateSnapshot keeps what the volume holds now under a name: everything that
// was answered before the call, and of what is under way a prefix in the order of
// the log. When it returns, the snapshot is chosen. Kinds: Exists, NoSpace (the
// limit, or full bricks), Fenced, Unavailable and Timeout, after which it may
// still come to be.
func (v *Volume) CreateSnapshot(ctx context.Context, name string) error {
	const op = "snapshot create"
	if len(name) < 1 || len(name) > extentmap.SnapshotNameMax {
		return fault.Newf(fault.Invalid, op, v.cfg.Name, "the name of a snapshot has 1 to %d characters", extentmap.SnapshotNameMax)
	}
	return v.changeSnapshots(ctx, func() (*snapshotChange, error) {
		if v.findSnapshot(name) != nil {
			return nil, fault.Newf(fault.Exists, op, v.cfg.Name, "it has a snapshot %q already; choose another name or delete it first", name)
		}
		if n := len(v.snaps); n >= extentmap.SnapshotsMax {
			return nil, fault.Newf(fault.NoSpace, op, v.cfg.Name, "it has %d snapshots, which is the limit; delete one first", n)
		}
		return &snapshotChange{create: &extentmap.Snapshot{ID: v.snapSeq + 1, Name: name, Created: time.Now().UnixNano()}}, nil
	})
}

// DeleteSnapshot gives up a snapshot. Sessions on it end; space that only it kept
// is free when it returns, or after a later compaction. Kinds: NotFound, and
// those of CreateSnapshot.
func (v *Volume) DeleteSnapshot(ctx context.Context, name string) error {
	return v.changeSnapshots(ctx, func() (*snapshotChange, error) {
		s := v.findSnapshot(name)
		if s == nil {
			return nil, v.noSnapshot("snapshot delete", name)
		}
		return &snapshotChange{drop: s.ID}, nil
	})
}

// findSnapshot finds a snapshot by name, under mu.
func (v *Volume) findSnapshot(name string) *snapshot {
	for _, s := range v.snaps {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (v *Volume) noSnapshot(op, name string) error {
	return fault.Newf(fault.NotFound, op, v.cfg.Name, "it has no snapshot %q; gabion volume snapshot list %s shows what there is", name, v.cfg.Name)
}

// snapshotChange is what a checkpoint does to the snapshots beside folding.
type snapshotChange struct {
	create *extentmap.Snapshot // root, size and horizon come with the fold
	drop   uint64              // id; 0 for none
}

// changeSnapshots makes one change with a checkpoint of its own. plan decides
// it under mu, with no other checkpoint under way.
func (v *Volume) changeSnapshots(ctx context.Context, plan func() (*snapshotChange, error)) error {
	if err := v.claimCheckpoint(ctx); err != nil {
		return err
	}
	defer v.unstall()
	defer v.checkpointing.Store(false)
	v.mu.Lock()
	change, err := plan()
	if err == nil {
		err = v.err
	}
	left := v.frozen != nil // by a checkpoint that failed
	v.mu.Unlock()
	if err != nil {
		return err
	}
	if left && change.create != nil { // it is older than what was answered by now
		err := v.checkpoint(ctx)
		if v.judge(err); err != nil {
			return err
		}
	}
	err = v.checkpointWith(ctx, change)
	v.judge(err)
	v.maintain.request() // publishes what there is now
	return err
}

// claimCheckpoint waits until no checkpoint is under way and keeps others away
// until checkpointing is set to false.
func (v *Volume) claimCheckpoint(ctx context.Context) error {
	for !v.checkpointing.CompareAndSwap(false, true) {
		select {
		case <-ctx.Done():
			return fault.New(fault.Timeout, "volume.checkpoint", v.cfg.Name, ctx.Err())
		case <-v.gone:
			return v.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// snapshotsAfter is the list that the fold's state has. horizon is above the
// number of every extent of the map with this root.
func (f *fold) snapshotsAfter(root extentmap.Root, horizon uint64) ([]extentmap.Snapshot, uint64) {
	list, seq := slices.Clone(f.snaps), f.snapSeq
	if f.change == nil {
		return list, seq
	}
	seq++
	if f.change.drop != 0 {
		return slices.DeleteFunc(list, func(s extentmap.Snapshot) bool { return s.ID == f.change.drop }), seq
	}
	s := *f.change.create
	s.Root, s.Size, s.Horizon = root, f.v.Size(), horizon
	if mutant.On("snapshot-without-tail") {
		s.Root = f.root
	}
	if mutant.On("free-snapshot-block") {
		horizon = 1
	}
	f.tx.Cut(s.ID, horizon)
	return append(list, s), seq
}

// stored are the snapshots as a state has them, under mu.
func (v *Volume) stored() []extentmap.Snapshot {
	var out []extentmap.Snapshot
	for _, s := range v.snaps {
		out = append(out, s.Snapshot)
	}
	return out
}

// setSnapshots takes over the snapshots of a chosen state, under mu. Those that
// are no longer there end.
func (v *Volume) setSnapshots(list []extentmap.Snapshot, seq uint64) {
	old := v.snaps
	v.snaps, v.snapSeq = nil, seq
	for _, x := range list {
		i := slices.IndexFunc(old, func(s *snapshot) bool { return s.ID == x.ID })
		if i < 0 {
			v.snaps = append(v.snaps, v.newSnapshot(x))
			continue
		}
		v.snaps = append(v.snaps, old[i])
	}
	for _, s := range old {
		if !slices.Contains(v.snaps, s) {
			s.end()
		}
	}
}

// checkSnapshots compares a state with its table. Corrupt: they disagree.
func checkSnapshots(st *extentmap.State, t *extentmap.Table) error {
	ids, horizons := t.PastIDs()
	same := len(ids) == len(st.Snapshots)
	for i := 0; same && i < len(ids); i++ {
		same = ids[i] == st.Snapshots[i].ID && (horizons[i] == st.Snapshots[i].Horizon || mutant.On("free-snapshot-block"))
	}
	if !same {
		return fault.Newf(fault.Corrupt, "volume.open", "", "the state has %d snapshots and the extent table knows %v", len(st.Snapshots), ids)
	}
	return nil
}

// publishSnapshots has the pool's catalog show the snapshots, if it shows an
// older revision. The volume's own state decides what there is: the catalog
// follows it, after a crash in between as soon as the volume is attached.
func (v *Volume) publishSnapshots(ctx context.Context) error {
	if v.cfg.Publish == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, publishMax)
	defer cancel()
	list, revision := v.SnapshotInfos()
	return v.cfg.Publish(ctx, list, revision)
}

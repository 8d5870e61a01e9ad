package blockdev

import (
	"cmp"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// Status is a volume at its holder.
type Status struct {
	ID            ident.VolumeID
	Name          string
	Replicas      int  // wanted
	Present       int  // complete copies in reach
	Sure          bool // there are no more: bricks were compared since the attach
	Voters        int  // of the map block
	Quorum        bool // a majority of the voters answers
	Lagging       int  // members that are being caught up
	Epoch         uint64
	StoredBytes   int64 // of one copy, in extents
	LiveBlocks    int64 // 4 KiB blocks that the map names, pages included
	TailBytes     int64 // log tail in memory
	PageBytes     int64 // map pages in memory
	CheckpointAge time.Duration
	Repairing     int64 // extents still to be copied
	RepairBytes   int64 // their encoded size
	RepairRate    int64 // bytes per second, lately; 0 if not known
	RepairPaused  bool
	Snapshots     int
	// SnapshotBytes is about what deleting all snapshots would give back: the
	// blocks that only they keep, at the mean stored size of this volume's blocks.
	SnapshotBytes int64
}

// Status describes the volume now.
func (v *Volume) Status() Status {
	s := Status{
		ID: v.cfg.ID, Name: v.cfg.Name, Replicas: v.cfg.Replicas, Epoch: v.epoch,
		PageBytes:     v.pages.bytes(),
		CheckpointAge: time.Since(time.Unix(0, v.lastCheckpoint.Load())),
	}
	s.Present, s.Sure = v.present()
	in := 0
	for _, m := range v.log.Status() {
		if m.Member.Role == quorum.Learner {
			continue
		}
		s.Voters++
		if m.State == "ok" || m.Member.Node == v.cfg.View.Self() {
			in++
		}
		if m.Lagging {
			s.Lagging++
		}
	}
	s.Quorum = in*2 > s.Voters
	_, blocks, live, stored := v.table.Stats()
	held := v.table.Held()
	s.LiveBlocks, s.StoredBytes = live-held, stored
	if blocks > 0 {
		s.SnapshotBytes = int64(float64(stored) / float64(blocks) * float64(held))
	}
	v.mu.RLock()
	s.Snapshots = len(v.snaps)
	s.TailBytes = v.active.Bytes()
	if v.frozen != nil {
		s.TailBytes += v.frozen.Bytes()
	}
	v.mu.RUnlock()
	v.maintain.mu.Lock()
	s.Repairing, s.RepairBytes, s.RepairRate = v.maintain.progress.extents, v.maintain.progress.bytes, int64(v.maintain.progress.rate)
	v.maintain.mu.Unlock()
	s.RepairPaused = s.Repairing > 0 && v.cfg.Pace != nil && v.cfg.Pace.Paused()
	return s
}

// Birth is the checkpoint value that a new volume of size bytes begins with.
func Birth(size int64) []byte {
	s := extentmap.State{Root: extentmap.Root{Level: extentmap.LevelFor(size)}, Size: size, NextExt: 1}
	return s.Encode()
}

// RankNodes orders nodes for a volume: first (if it is among them), then by
// rendezvous weight.
func RankNodes(vol ident.VolumeID, first ident.NodeID, nodes []overlay.Node) []overlay.Node {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(a, b overlay.Node) int {
		if (a.ID == first) != (b.ID == first) {
			if a.ID == first {
				return -1
			}
			return 1
		}
		return cmp.Compare(rank(vol, b.ID), rank(vol, a.ID))
	})
	return out
}

// Stats exposes the counters since the attachment.
func (v *Volume) Stats() *Stats { return &v.stats }

// ID of the volume.
func (v *Volume) ID() ident.VolumeID { return v.cfg.ID }

// Name of the volume.
func (v *Volume) Name() string { return v.cfg.Name }

// Epoch of this attachment.
func (v *Volume) Epoch() uint64 { return v.epoch }

// NextSlot is the slot of the log that the next change will have.
func (v *Volume) NextSlot() uint64 { return v.log.Next() }

package node

import (
	"context"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/internal/control"
)

func snapshotOf(volume string, s blockdev.SnapshotInfo) control.Snapshot {
	return control.Snapshot{Volume: volume, Name: s.Name, SizeBytes: s.Size, CreatedUnixSeconds: s.Created.Unix(), OwnBytes: s.OwnBytes}
}

// Snapshots implements control.Daemon.
func (n *Node) Snapshots(ctx context.Context, volume string) ([]control.Snapshot, error) {
	list, err := n.Manager.Snapshots(ctx, volume)
	if err != nil {
		return nil, err
	}
	var out []control.Snapshot
	for _, s := range list {
		out = append(out, snapshotOf(volume, s))
	}
	return out, nil
}

// CreateSnapshot implements control.Daemon.
func (n *Node) CreateSnapshot(ctx context.Context, volume, name string) (*control.Snapshot, error) {
	s, err := n.Manager.CreateSnapshot(ctx, volume, name)
	if err != nil {
		return nil, err
	}
	out := snapshotOf(volume, s)
	return &out, nil
}

// DeleteSnapshot implements control.Daemon.
func (n *Node) DeleteSnapshot(ctx context.Context, volume, name string) error {
	return n.Manager.DeleteSnapshot(ctx, volume, name)
}

package pool

import (
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// SnapshotsMax is how many snapshots a volume can have.
const SnapshotsMax = 64

// Snapshot is what the catalog shows of a snapshot. The volume's own state
// decides which there are; the catalog lets every node list them.
type Snapshot struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"`    // of the volume at the time, in bytes
	Created int64  `json:"created"` // unix seconds
}

// SnapshotList is the command by which a volume's holder publishes its
// snapshots. It replaces the list in the catalog if that is of a lower revision,
// and changes nothing otherwise.
type SnapshotList struct {
	ID       ident.VolumeID `json:"id"`
	Revision uint64         `json:"revision"`       // creations and deletions there were
	List     []Snapshot     `json:"list,omitempty"` // oldest first
}

// SetSnapshots is the command that publishes a volume's snapshots.
func SetSnapshots(id ident.VolumeID, revision uint64, list []Snapshot) Command {
	return Command{ID: NewCommandID(), SetSnapshots: &SnapshotList{ID: id, Revision: revision, List: list}}
}

// SnapshotNamed returns the snapshot of that name.
func (v *Volume) SnapshotNamed(name string) (Snapshot, bool) {
	i := slices.IndexFunc(v.Snapshots, func(s Snapshot) bool { return s.Name == name })
	if i < 0 {
		return Snapshot{}, false
	}
	return v.Snapshots[i], true
}

func setSnapshots(s *State, l SnapshotList) error {
	const op = "snapshot publish"
	i, err := volumeIndex(s, op, l.ID)
	if err != nil {
		return err
	}
	v := &s.Volumes[i]
	if len(l.List) > SnapshotsMax {
		return fault.Newf(fault.NoSpace, op, v.Name, "a volume has at most %d snapshots", SnapshotsMax)
	}
	for j, x := range l.List {
		if err := CheckName(op, x.Name); err != nil {
			return err
		}
		if err := CheckSize(op, v.Name+"@"+x.Name, x.Size); err != nil {
			return err
		}
		again := slices.ContainsFunc(l.List[:j], func(o Snapshot) bool { return o.Name == x.Name })
		if x.Created < 0 || again {
			return invalid(op, v.Name, "snapshot %s has a time below 0 or is listed twice", x.Name)
		}
	}
	if l.Revision > v.SnapshotRevision {
		v.Snapshots, v.SnapshotRevision = slices.Clone(l.List), l.Revision
	}
	return nil
}

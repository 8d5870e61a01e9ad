package extentmap

import (
	"encoding/binary"
	"fmt"
)

// Limits of snapshots. What they bound stands in the value of a checkpoint.
const (
	// SnapshotsMax is how many snapshots a volume can have.
	SnapshotsMax = 64
	// SnapshotNameMax is the length of a snapshot's name in bytes.
	SnapshotNameMax = 63
)

// Snapshot is a map that is kept beside the present one. Stored, little endian:
// id u64, root Ext u64, Off u32, Len u32, CRC u32, level u32, size u64, horizon
// u64, created u64, length of the name u8, name. A State of version 2 has
// SnapshotSeq u64 and the count of snapshots u32 before them.
type Snapshot struct {
	ID      uint64 // unique in the volume; a later snapshot has a higher one
	Name    string // 1..SnapshotNameMax bytes, unique in the volume
	Root    Root
	Size    int64  // of the volume at the time, in bytes
	Horizon uint64 // above the number of every extent of the map; see Table.Horizon
	Created int64  // unix nanoseconds
}

const (
	snapsHead = 8 + 4
	snapFixed = 8 + 20 + 4 + 3*8 + 1
	snapMax   = snapFixed + SnapshotNameMax
)

func (s *State) version() uint32 {
	if s.SnapshotSeq == 0 {
		return stateVersion
	}
	return stateVersionSnap
}

func (s *State) checkSnapshots() error {
	if len(s.Snapshots) > SnapshotsMax {
		return fmt.Errorf("%d snapshots are more than %d", len(s.Snapshots), SnapshotsMax)
	}
	names := make(map[string]bool, len(s.Snapshots))
	for i := range s.Snapshots {
		x := &s.Snapshots[i]
		switch {
		case x.ID < 1 || x.ID > s.SnapshotSeq || i > 0 && x.ID <= s.Snapshots[i-1].ID:
			return fmt.Errorf("snapshot %d has the id %d of %d", i, x.ID, s.SnapshotSeq)
		case x.Root.Level < 0 || x.Root.Level > LevelMax || !x.Root.Ptr.Valid():
			return fmt.Errorf("the root of snapshot %d is out of range", x.ID)
		case x.Horizon < 1 || x.Horizon > s.NextExt || x.Root.Ptr.Ext >= x.Horizon || i > 0 && x.Horizon < s.Snapshots[i-1].Horizon:
			return fmt.Errorf("the horizon of snapshot %d is %d", x.ID, x.Horizon)
		case x.Size < 0 || x.Size > SizeMax || x.Created < 0:
			return fmt.Errorf("snapshot %d has a field out of range", x.ID)
		case len(x.Name) < 1 || len(x.Name) > SnapshotNameMax || names[x.Name]:
			return fmt.Errorf("snapshot %d has no name of its own", x.ID)
		}
		names[x.Name] = true
	}
	return nil
}

func (s *State) appendSnapshots(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, s.SnapshotSeq)
	b = le.AppendUint32(b, uint32(len(s.Snapshots)))
	for i := range s.Snapshots {
		x := &s.Snapshots[i]
		b = le.AppendUint64(b, x.ID)
		b = le.AppendUint64(b, x.Root.Ptr.Ext)
		b = le.AppendUint32(b, x.Root.Ptr.Off)
		b = le.AppendUint32(b, uint32(x.Root.Ptr.Len))
		b = le.AppendUint32(b, x.Root.Ptr.CRC)
		b = le.AppendUint32(b, uint32(x.Root.Level))
		b = le.AppendUint64(b, uint64(x.Size))
		b = le.AppendUint64(b, x.Horizon)
		b = le.AppendUint64(b, uint64(x.Created))
		b = append(b, byte(len(x.Name)))
		b = append(b, x.Name...)
	}
	return b
}

// decodeSnapshots reads what appendSnapshots gave; check bounds the fields.
func (s *State) decodeSnapshots(b []byte) error {
	le := binary.LittleEndian
	if len(b) < snapsHead {
		return fmt.Errorf("%d bytes are too short for snapshots", len(b))
	}
	s.SnapshotSeq = le.Uint64(b)
	count := le.Uint32(b[8:])
	b = b[snapsHead:]
	if s.SnapshotSeq == 0 || count > SnapshotsMax {
		return fmt.Errorf("%d snapshots after %d changes", count, s.SnapshotSeq)
	}
	for range count {
		if len(b) < snapFixed || len(b) < snapFixed+int(b[snapFixed-1]) {
			return fmt.Errorf("a snapshot is cut off")
		}
		length, level := le.Uint32(b[20:]), le.Uint32(b[28:])
		if length > BlockSize || level > LevelMax {
			return fmt.Errorf("the root of a snapshot is out of range")
		}
		x := Snapshot{
			ID: le.Uint64(b),
			Root: Root{
				Ptr:   Ptr{Ext: le.Uint64(b[8:]), Off: le.Uint32(b[16:]), Len: uint16(length), CRC: le.Uint32(b[24:])},
				Level: int(level),
			},
			Size: int64(le.Uint64(b[32:])), Horizon: le.Uint64(b[40:]), Created: int64(le.Uint64(b[48:])),
		}
		n := int(b[snapFixed-1])
		x.Name, b = string(b[snapFixed:snapFixed+n]), b[snapFixed+n:]
		s.Snapshots = append(s.Snapshots, x)
	}
	if len(b) > 0 {
		return fmt.Errorf("%d bytes follow the snapshots", len(b))
	}
	return nil
}

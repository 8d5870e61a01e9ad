package pool

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay/placement"
)

// Command is one change of the pool's state. Exactly one of its parts is set.
// Everything that may differ between nodes (times, ids, plans) is decided by who
// makes the command and carried in it.
type Command struct {
	// ID makes a retry harmless: a command is applied once. 1 to 64
	// characters; Submit draws one if it is empty.
	ID string `json:"id"`

	PutNode      *NodeRecord     `json:"put_node,omitempty"` // adds or replaces
	SetLanes     *SetLanes       `json:"set_lanes,omitempty"`
	CreateVolume *Volume         `json:"create_volume,omitempty"`
	DeleteVolume *VolumeDeletion `json:"delete_volume,omitempty"`
	ResizeVolume *VolumeGrowth   `json:"resize_volume,omitempty"`
	SetSnapshots *SnapshotList   `json:"set_snapshots,omitempty"`
	Swept        *Swept          `json:"swept,omitempty"`
	PutSetting   *SettingChange  `json:"put_setting,omitempty"`
	// Refresh changes nothing: see Pool.Refresh.
	Refresh     bool         `json:"refresh,omitempty"`
	SetStanding *SetStanding `json:"set_standing,omitempty"`
	RemoveNode  *RemoveNode  `json:"remove_node,omitempty"`
	SetPolicy   *Policy      `json:"set_policy,omitempty"`
	SetVoters   *SetVoters   `json:"set_voters,omitempty"`
	Audit       *Audit       `json:"audit,omitempty"`
}

// SetLanes replaces the lanes table.
type SetLanes struct {
	// Base is the version of the state that the table was planned from; 0
	// takes any. Conflict if the state has another.
	Base  uint64          `json:"base,omitempty"`
	Lanes placement.Table `json:"lanes"`
}

// VolumeDeletion deletes a volume: its name is free again, its id never is.
type VolumeDeletion struct {
	ID   ident.VolumeID `json:"id"`
	When int64          `json:"when"` // unix seconds
}

// VolumeGrowth grows a volume.
type VolumeGrowth struct {
	ID   ident.VolumeID `json:"id"`
	Size int64          `json:"size"` // bytes
}

// Swept reports that a node keeps nothing any more of the volumes whose
// tombstones have a Seq up to UpTo.
type Swept struct {
	Node ident.NodeID `json:"node"`
	UpTo uint64       `json:"up_to"`
}

// NewCommandID draws an id for a command.
func NewCommandID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic("pool: no randomness: " + err.Error())
	}
	return hex.EncodeToString(b[:])
}

// CreateVolume is the command that adds v to the catalog.
func CreateVolume(v Volume) Command { return Command{ID: NewCommandID(), CreateVolume: &v} }

// DeleteVolume is the command that deletes a volume, now.
func DeleteVolume(id ident.VolumeID) Command {
	return Command{ID: NewCommandID(), DeleteVolume: &VolumeDeletion{ID: id, When: time.Now().Unix()}}
}

// ResizeVolume is the command that grows a volume to size bytes.
func ResizeVolume(id ident.VolumeID, size int64) Command {
	return Command{ID: NewCommandID(), ResizeVolume: &VolumeGrowth{ID: id, Size: size}}
}

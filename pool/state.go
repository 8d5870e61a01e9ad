package pool

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/placement"
	"github.com/gabion-storage/gabion/quorum"
)

// Limits of the pool's state. What they bound lives in one mutable block and
// in the memory of every node.
const (
	NodesMax      = 512
	BricksMax     = 64 // of one node
	LabelsMax     = 16 // of one node
	VolumesMax    = 1024
	TombstonesMax = 1024
	GoneMax       = 512 // remembered; the oldest are forgotten
	LanesMax      = 1024
	LaneWidthMax  = 5
	NameMax       = 63  // characters of a name, label key or label value
	AddrMax       = 255 // characters of an address

	SizeMin     = 1 << 20  // bytes of a volume
	SizeMax     = 16 << 40 // bytes of a volume: the span of one map block
	SizeUnit    = 4096     // a volume's size is a multiple of it, in bytes
	ReplicasMin = 1
	ReplicasMax = 5

	// recentMax bounds the remembered ids of applied commands. A retry that
	// comes later than that many other commands is taken for a new command.
	recentMax = 256
)

// State is the state of the pool after Version commands. A published State is
// immutable; everything reachable from it is shared and read only.
type State struct {
	Version    uint64          `json:"version"`
	Pool       ident.PoolID    `json:"pool"`
	Name       string          `json:"name"`
	Nodes      []NodeRecord    `json:"nodes,omitempty"` // sorted by id
	Lanes      placement.Table `json:"lanes"`
	LanesFor   uint64          `json:"lanes_for"`            // fingerprint of the bricks when Lanes was set
	Volumes    []Volume        `json:"volumes,omitempty"`    // sorted by name
	Tombstones []Tombstone     `json:"tombstones,omitempty"` // sorted by Seq
	Deleted    uint64          `json:"deleted"`              // Seq of the newest tombstone there ever was
	Settings   []Setting       `json:"settings,omitempty"`   // sorted by volume and key
	// Gone are nodes that were removed, the newest last. They are not let in again.
	Gone   []ident.NodeID `json:"gone,omitempty"`
	Policy Policy         `json:"policy,omitzero"`
	// Voters of the pool block as of its configuration VotersVersion; none: as it began.
	Voters        []ident.NodeID `json:"voters,omitempty"`
	VotersVersion uint64         `json:"voters_version,omitempty"`
	Audit         []Audit        `json:"audit,omitempty"` // oldest first
	// Recent are the ids of the commands applied last, oldest first, so that a
	// retried command is applied once.
	Recent []string `json:"recent,omitempty"`
}

// NodeRecord is what the pool knows of one node.
type NodeRecord struct {
	ID     ident.NodeID        `json:"id"`
	Name   string              `json:"name"`
	Addr   string              `json:"addr"` // host:port
	Labels map[string]string   `json:"labels,omitempty"`
	Bricks []overlay.BrickInfo `json:"bricks,omitempty"`
	// Swept: the node keeps nothing of the volumes whose tombstones have a Seq
	// up to this. Set by Swept commands only.
	Swept uint64 `json:"swept,omitempty"`
	// Witness: it votes and keeps no data.
	Witness bool `json:"witness,omitempty"`
	// Standing since Since (unix seconds). Set by SetStanding commands only.
	Standing Standing `json:"standing,omitempty"`
	Since    int64    `json:"since,omitempty"`
}

// Volume is an entry of the catalog.
type Volume struct {
	ID         ident.VolumeID  `json:"id"`
	Name       string          `json:"name"`
	Size       int64           `json:"size"`       // bytes
	BlockSize  int             `json:"block_size"` // bytes: 512 or 4096
	Replicas   int             `json:"replicas"`
	WriteCache string          `json:"write_cache"` // "none", "quorum" or "writer"
	Voters     []quorum.Member `json:"voters"`      // of the map block at its birth
	Created    int64           `json:"created"`     // unix seconds
	// Seeds are the nodes of the map block's members as of the configuration
	// VotersVersion; none: as at birth. See SetVoters.
	Seeds         []ident.NodeID `json:"seeds,omitempty"`
	VotersVersion uint64         `json:"voters_version,omitempty"`
	// Snapshots are those that the holder published last, oldest first, and
	// SnapshotRevision is which list that was.
	Snapshots        []Snapshot `json:"snapshots,omitempty"`
	SnapshotRevision uint64     `json:"snapshot_revision,omitempty"`
}

// Tombstone is the decision that a volume is deleted. It stays until every node has
// reported that it swept the volume's data.
type Tombstone struct {
	Seq     uint64         `json:"seq"` // counts up by one
	ID      ident.VolumeID `json:"id"`
	Name    string         `json:"name"`
	Deleted int64          `json:"deleted"` // unix seconds
}

// Clone copies s so that Apply to the copy leaves s alone.
func (s *State) Clone() *State {
	c := *s
	c.Nodes = slices.Clone(s.Nodes)
	c.Volumes = slices.Clone(s.Volumes)
	c.Tombstones = slices.Clone(s.Tombstones)
	c.Gone = slices.Clone(s.Gone)
	c.Recent = slices.Clone(s.Recent)
	c.Settings = slices.Clone(s.Settings)
	return &c // lanes and what records contain are replaced whole, never changed
}

func (s *State) findNode(id ident.NodeID) (int, bool) {
	return slices.BinarySearchFunc(s.Nodes, id, func(n NodeRecord, id ident.NodeID) int { return n.ID.Compare(id) })
}

// Node returns the record of a node.
func (s *State) Node(id ident.NodeID) (NodeRecord, bool) {
	if i, ok := s.findNode(id); ok {
		return s.Nodes[i], true
	}
	return NodeRecord{}, false
}

// SameNode tells whether putting n would change nothing.
func (s *State) SameNode(n NodeRecord) bool {
	old, ok := s.Node(n.ID)
	n.keep(old)
	return ok && sameNode(old, n)
}

func (s *State) findVolume(name string) (int, bool) {
	return slices.BinarySearchFunc(s.Volumes, name, func(v Volume, name string) int { return strings.Compare(v.Name, name) })
}

// VolumeNamed returns the volume of that name.
func (s *State) VolumeNamed(name string) (Volume, bool) {
	if i, ok := s.findVolume(name); ok {
		return s.Volumes[i], true
	}
	return Volume{}, false
}

// Volume returns the volume of that id.
func (s *State) Volume(id ident.VolumeID) (Volume, bool) {
	for _, v := range s.Volumes {
		if v.ID == id {
			return v, true
		}
	}
	return Volume{}, false
}

// IsDeleted tells whether a tombstone for the volume stands.
func (s *State) IsDeleted(id ident.VolumeID) bool {
	return slices.ContainsFunc(s.Tombstones, func(t Tombstone) bool { return t.ID == id })
}

// hasBrick tells whether the node has that brick by its record.
func (s *State) hasBrick(node ident.NodeID, brick ident.BrickID) bool {
	n, ok := s.Node(node)
	return ok && slices.ContainsFunc(n.Bricks, func(b overlay.BrickInfo) bool { return b.ID == brick })
}

// keep takes over from old what a node does not decide itself.
func (n *NodeRecord) keep(old NodeRecord) {
	n.Swept, n.Standing, n.Since = old.Swept, old.Standing, old.Since
}

// Bricks lists all bricks as placement wants them: those that are to get nothing
// have no weight.
func (s *State) Bricks() []placement.Brick {
	var bs []placement.Brick
	spare := s.spare()
	for i := range s.Nodes {
		n := &s.Nodes[i]
		for _, b := range n.Bricks {
			weight := b.Weight
			if b.Leaving || n.Witness || n.Standing == Lost || n.Leaving() && spare {
				weight = 0
			}
			bs = append(bs, placement.Brick{ID: b.ID, Node: n.ID, Weight: weight,
				Zone: n.Labels[overlay.LabelZone], Rack: n.Labels[overlay.LabelRack]})
		}
	}
	return bs
}

// fingerprint tells sets of bricks apart, and what placement knows of them.
func fingerprint(bs []placement.Brick) uint64 {
	h := fnv.New64a()
	for _, b := range bs {
		fmt.Fprintf(h, "%s %s %q %q %d\n", b.Node, b.ID, b.Zone, b.Rack, b.Weight)
	}
	return h.Sum64()
}

// OverlayNodes lists all nodes as the overlay wants them.
func (s *State) OverlayNodes() []overlay.Node {
	ns := make([]overlay.Node, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		ns = append(ns, overlay.Node{ID: n.ID, Name: n.Name, Addr: n.Addr, Labels: n.Labels, Bricks: n.Bricks,
			Leaving: n.Leaving(), Witness: n.Witness})
	}
	return ns
}

// Package overlay answers three questions for everybody above it: which nodes
// are there, which of them live, and which bricks hold a lane. View is the
// answer; kouncil gives it with full knowledge of the pool.
package overlay

import (
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay/placement"
)

// State is what a node believes about the life of another.
type State uint8

const (
	// Alive: heard lately.
	Alive State = iota
	// Suspect: silent for seconds; route around it.
	Suspect
	// Down: silent for about a minute, or never heard; its copies count as
	// missing.
	Down
)

func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	}
	return "down"
}

// BrickRef names a brick and the node that serves it.
type BrickRef = placement.Ref

// BrickInfo describes one brick of a node.
type BrickInfo struct {
	ID       ident.BrickID `json:"id"`
	Capacity int64         `json:"capacity"` // bytes
	Weight   uint64        `json:"weight"`   // share of the pool's data; 0 takes none
	// Leaving: set aside or being emptied. It keeps what it has until that is
	// elsewhere and gets nothing new.
	Leaving bool `json:"leaving,omitempty"`
}

// Node is what is known of one node of the pool. The first group of fields
// comes from the table, the second from listening.
type Node struct {
	ID     ident.NodeID      `json:"id"`
	Name   string            `json:"name"`
	Addr   string            `json:"addr"` // host:port
	Labels map[string]string `json:"labels,omitempty"`
	Bricks []BrickInfo       `json:"bricks,omitempty"`
	// Leaving: drained or evicted. Votes and data move away from it; it gets
	// nothing new.
	Leaving bool `json:"leaving,omitempty"`
	// Witness: it votes and keeps no data.
	Witness bool `json:"witness,omitempty"`

	State     State         `json:"-"`
	LastHeard time.Duration `json:"-"` // age of its last message; Never if none
	RTT       time.Duration `json:"-"` // of the last ponged ping; 0 if none
	Boot      uint64        `json:"-"` // its boot counter; 0 if not heard yet
}

// Labels that placement knows.
const (
	LabelZone = "zone"
	LabelRack = "rack"
	LabelHost = "host"
)

// Never is the age of a message that never came.
const Never = time.Duration(1<<63 - 1)

// View is one node's picture of the pool. All methods may be called
// concurrently and never wait. What they return is shared and read only.
type View interface {
	Self() ident.NodeID
	// TableVersion changes when the lane table does, and only grows. It does
	// not change with the catalog or when a node comes or goes.
	TableVersion() uint64
	// Nodes returns all nodes of the table, Self included, sorted by id.
	Nodes() []Node
	Node(id ident.NodeID) (Node, bool)
	// State of a node; Self is Alive, an unknown node Down.
	State(id ident.NodeID) State
	LaneCount() int
	// Lane returns the bricks of lane i, 0 <= i < LaneCount, in order, all on
	// different nodes. A volume with N replicas uses the first N.
	Lane(i int) []BrickRef
	// OnChange registers f to be told that liveness or the table changed. f
	// must not block and runs without locks held.
	OnChange(f func())
	// Heard is the age of the last message from a node; Never if none. Self is
	// always 0.
	Heard(id ident.NodeID) time.Duration
	// LeaseValid tells whether a majority of nodes (the voters of a mutable
	// block, Self counting as fresh) has answered a ping that was sent less
	// than LeaseDuration ago. It is computed from the clock at each call, so it
	// is right even in the first instruction after the process was stopped for
	// a while. It is false for an empty list.
	LeaseValid(nodes []ident.NodeID) bool
	// LeaseMark is LeaseValid together with a mark that changes whenever the
	// contact with any of nodes had a gap: the send times of two pings that it
	// answered one after the other lie further apart than LeaseDuration, or it
	// came back with another boot counter. While the mark stays the same and
	// the result is true, no majority of nodes can have taken the holder for
	// dead in between. The mark is the sum of one gap counter for each node, so
	// it only grows for a given list.
	LeaseMark(nodes []ident.NodeID) (mark uint64, valid bool)
}

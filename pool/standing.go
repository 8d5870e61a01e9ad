package pool

import (
	"fmt"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
)

// Standing is what the pool has decided about a node, beside whether it lives.
type Standing string

const (
	// Member: nothing; it serves and stores.
	Member Standing = ""
	// Draining, by an operator's word: it serves nobody, and its votes and data
	// move to other nodes as far as those can take them.
	Draining Standing = "draining"
	// Evicted, by the leader: it was down for longer than Policy.EvictAfter, and
	// what it held is made anew elsewhere. It is a member again once it is heard.
	Evicted Standing = "evicted"
	// Lost, by an operator's word: it will never come back. If it does, it is
	// not let in.
	Lost Standing = "lost"
)

const (
	// EvictAfterDefault is how long a node is down before it is evicted.
	EvictAfterDefault = 10 * time.Minute
	// EvictAfterMin keeps a node that merely restarts from being evicted.
	EvictAfterMin = 10 * time.Second
	// evictedShare is the part of the nodes, one at least, that can be evicted at
	// a time: when more are gone it is rather the network or the power, and
	// copying everything to the rest would make it worse.
	evictedShare = 4
)

// Policy is what the operator decides for the whole pool.
type Policy struct {
	// EvictAfterSeconds is when a node that is down is evicted; 0 is
	// EvictAfterDefault, negative never.
	EvictAfterSeconds int64 `json:"evict_after_seconds,omitempty"`
	// RepairPaused: no extents are copied until it is lifted.
	RepairPaused bool `json:"repair_paused,omitempty"`
	// RepairBytesPerSecond bounds what each holder copies; 0 is no bound but that of
	// foreground latency.
	RepairBytesPerSecond int64 `json:"repair_bytes_per_second,omitempty"`
}

// EvictAfter is when a node that is down is evicted; ok is false for never.
func (p Policy) EvictAfter() (after time.Duration, ok bool) {
	switch {
	case p.EvictAfterSeconds < 0:
		return 0, false
	case p.EvictAfterSeconds == 0:
		return EvictAfterDefault, true
	}
	return time.Duration(p.EvictAfterSeconds) * time.Second, true
}

// SetStanding decides about a node.
type SetStanding struct {
	Node     ident.NodeID `json:"node"`
	Standing Standing     `json:"standing"`
	When     int64        `json:"when"` // unix seconds
	// From is the standing that the decision rests on. Conflict if it is another.
	From Standing `json:"from"`
}

// RemoveNode forgets a node that holds nothing any more.
type RemoveNode struct {
	Node ident.NodeID `json:"node"`
}

// SetVoters records who votes on a volume's map block now: where to look for it.
// The zero ID stands for the pool block.
type SetVoters struct {
	ID      ident.VolumeID `json:"id"`
	Voters  []ident.NodeID `json:"voters"`
	Version uint64         `json:"version"` // of the configuration; an older one changes nothing
}

func setStanding(s *State, c SetStanding) error {
	const op = "node standing"
	i, ok := s.findNode(c.Node)
	if !ok {
		return fault.Newf(fault.NotFound, op, c.Node.Short(), "there is no node with the id %s", c.Node)
	}
	n := &s.Nodes[i]
	switch c.Standing {
	case Member, Draining, Evicted, Lost:
	default:
		return invalid(op, n.Name, "standing %q: it is empty, draining, evicted or lost", shown(string(c.Standing)))
	}
	if n.Standing != c.From {
		return fault.Newf(fault.Conflict, op, n.Name, "it is %s meanwhile; look at gabion status and decide again", n.Standing.text())
	}
	if n.Standing == Lost && c.Standing != Lost {
		return fault.Newf(fault.Conflict, op, n.Name, "that is for good: it was declared lost; empty its directory and let it join as a new node")
	}
	n.Standing, n.Since = c.Standing, c.When
	if c.Standing == Lost {
		dropTombstones(s)
	}
	return nil
}

func (s Standing) text() string {
	if s == Member {
		return "a member"
	}
	return string(s)
}

func removeNode(s *State, c RemoveNode) error {
	const op = "node remove"
	i, ok := s.findNode(c.Node)
	if !ok {
		return fault.Newf(fault.NotFound, op, c.Node.Short(), "there is no node with the id %s", c.Node)
	}
	n := s.Nodes[i]
	if n.Standing != Draining && n.Standing != Lost {
		return fault.Newf(fault.Conflict, op, n.Name, "it is %s: drain it first, or declare it lost if it is gone for good", n.Standing.text())
	}
	for _, l := range s.Lanes.Lanes {
		if slices.ContainsFunc(l, func(b overlay.BrickRef) bool { return b.Node == c.Node }) {
			return fault.Newf(fault.Conflict, op, n.Name, "its bricks still hold lanes: too few other nodes can take its copies; add one, or lower the volumes' replicas")
		}
	}
	s.Nodes = slices.Delete(s.Nodes, i, i+1)
	s.Gone = append(s.Gone, c.Node)
	s.Gone = s.Gone[max(0, len(s.Gone)-GoneMax):]
	dropTombstones(s)
	return nil
}

// gone refuses a node that was removed or declared lost.
func gone(op, name string) error {
	return fault.Newf(fault.Conflict, op, name, "it was removed from the pool, or declared lost: empty its directory and let it join as a new node")
}

func setPolicy(s *State, p Policy) error {
	const op = "pool set"
	if p.EvictAfterSeconds > 0 && p.EvictAfterSeconds < int64(EvictAfterMin/time.Second) {
		return invalid(op, "evict-after", "%d s are too few: a node that restarts would be evicted; at least %s", p.EvictAfterSeconds, EvictAfterMin)
	}
	if p.RepairBytesPerSecond < 0 {
		return invalid(op, "repair-rate", "%d bytes per second are negative", p.RepairBytesPerSecond)
	}
	s.Policy = p
	return nil
}

func setVoters(s *State, c SetVoters) error {
	const op = "volume voters"
	if len(c.Voters) == 0 || len(c.Voters) > ReplicasMax+1 {
		return invalid(op, c.ID.Short(), "%d members: a map block has 1 to %d", len(c.Voters), ReplicasMax+1)
	}
	if c.ID.IsZero() {
		if c.Version > s.VotersVersion {
			s.Voters, s.VotersVersion = slices.Clone(c.Voters), c.Version
		}
		return nil
	}
	i, err := volumeIndex(s, op, c.ID)
	if err != nil {
		return err
	}
	if v := &s.Volumes[i]; c.Version > v.VotersVersion {
		v.Seeds, v.VotersVersion = slices.Clone(c.Voters), c.Version
	}
	return nil
}

// dropTombstones lets go of the tombstones that every node has dropped that can
// come back: nobody can bring such a volume's data back then.
func dropTombstones(s *State) {
	least := s.Deleted
	for _, n := range s.Nodes {
		if n.Standing != Lost && (n.ID == s.Nodes[0].ID || !mutant.On("forget-deleted")) {
			least = min(least, n.Swept)
		}
	}
	s.Tombstones = slices.DeleteFunc(s.Tombstones, func(t Tombstone) bool { return t.Seq <= least })
}

// Leaving tells whether votes and data are to leave the node.
func (n *NodeRecord) Leaving() bool { return n.Standing != Member }

// spare reports whether the nodes that stay can hold all copies that volumes want. If
// not, those that are drained or evicted keep their lanes: fewer copies are
// worse than copies in the wrong place.
func (s *State) spare() bool {
	need, stay := 0, 0
	for _, v := range s.Volumes {
		need = max(need, v.Replicas)
	}
	for i := range s.Nodes {
		if n := &s.Nodes[i]; !n.Leaving() && slices.ContainsFunc(n.Bricks, takes) {
			stay++
		}
	}
	return stay >= need && stay > 0
}

// Blocked says why the data of a leaving node stays where it is; "" if nothing
// holds it.
func (s *State) Blocked() string {
	if s.spare() {
		return ""
	}
	need := 0
	for _, v := range s.Volumes {
		need = max(need, v.Replicas)
	}
	return fmt.Sprintf("a volume wants %d copies, and fewer other nodes can take data: add a node", need)
}

// takes tells whether a brick takes data.
func takes(b overlay.BrickInfo) bool { return b.Weight > 0 && !b.Leaving }

// wantedStanding is what the leader should decide next about a node's absence or
// return, nil if nothing. absent tells for how long a node has been down, 0 if it
// is not. next is when to look again; 0 for at the next event.
func wantedStanding(s *State, absent func(ident.NodeID) time.Duration, alive func(ident.NodeID) bool) (c *SetStanding, next time.Duration) {
	after, ever := s.Policy.EvictAfter()
	evicted := 0
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Standing == Evicted {
			if alive(n.ID) {
				return &SetStanding{Node: n.ID, Standing: Member, From: Evicted}, 0
			}
			evicted++
		}
	}
	if !ever {
		return nil, 0
	}
	most := max(1, len(s.Nodes)/evictedShare)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		gone := absent(n.ID)
		if n.Standing != Member || gone == 0 {
			continue
		}
		if left := after - gone; left > 0 {
			if next == 0 || left < next {
				next = left
			}
		} else if evicted < most {
			return &SetStanding{Node: n.ID, Standing: Evicted, From: Member}, 0
		}
	}
	return nil, next
}

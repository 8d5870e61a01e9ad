package node

import (
	"fmt"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// seen is what one node sees of a pool.
type seen struct {
	overlay.View
	self  ident.NodeID
	nodes []overlay.Node
}

func (v seen) Self() ident.NodeID    { return v.self }
func (v seen) Nodes() []overlay.Node { return v.nodes }
func (v seen) Node(id ident.NodeID) (overlay.Node, bool) {
	for _, n := range v.nodes {
		if n.ID == id {
			return n, true
		}
	}
	return overlay.Node{}, false
}

// poolOf makes a pool of a node for each letter: a live one (a), one that leaves (l), a
// dead one (d), one that leaves and is dead (x), a witness (w). The first has id 1.
func poolOf(letters string) (nodes []overlay.Node) {
	for i, c := range letters {
		n := overlay.Node{ID: nodeID(i + 1), State: overlay.Alive,
			Bricks: []overlay.BrickInfo{{ID: ident.BrickID{byte(i + 1)}, Capacity: 1 << 30, Weight: 1024}}}
		if c == 'd' || c == 'x' {
			n.State = overlay.Down
		}
		n.Leaving, n.Witness = c == 'l' || c == 'x', c == 'w'
		nodes = append(nodes, n)
	}
	return nodes
}

func nodeID(i int) ident.NodeID { return ident.NodeID{byte(i)} }

// votersOn are voters on the nodes of these ids.
func votersOn(ids ...int) (ms []quorum.Member) {
	for _, i := range ids {
		ms = append(ms, quorum.Member{Node: nodeID(i), Brick: ident.BrickID{byte(i)}, Role: quorum.Voter})
	}
	return ms
}

// mender demands that of all nodes of a pool exactly those of want would mend.
func mender(t *testing.T, nodes []overlay.Node, want []int, mends func(overlay.View) bool) {
	t.Helper()
	var got []int
	for i := range nodes {
		if mends(seen{self: nodes[i].ID, nodes: nodes}) {
			got = append(got, i+1)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("nodes %v would mend it, not %v", got, want)
	}
}

// A volume all of whose live members leave is mended by exactly one of the others.
func TestStrandedVolumesAreMovedByOne(t *testing.T) {
	for _, c := range []struct {
		nodes  string
		voters []int
		want   []int
	}{
		{"laa", []int{1}, []int{2}},         // its only member is drained
		{"aal", []int{3}, []int{1}},         // in whatever order
		{"llaa", []int{1, 2}, []int{3}},     // all are
		{"lda", []int{1, 2}, []int{3}},      // one is, the other is dead
		{"lxaa", []int{1, 2}, []int{3}},     // or was drained when it died
		{"laaa", []int{1, 2, 3}, nil},       // the others are to see to it
		{"xaa", []int{1}, nil},              // dead: nobody can read it
		{"daa", []int{1}, nil},              // nor here
		{"aaa", []int{1, 2, 3}, nil},        // nothing is to be done
		{"lwa", []int{1}, []int{3}},         // a witness keeps no data
		{"lda", []int{1}, []int{3}},         // who is dead does nothing
		{"llx", []int{1, 2}, nil},           // nobody stays
		{"wla", []int{2}, []int{3}},         // nor does a witness with the lowest id
		{"alla", []int{2, 3}, []int{1}},     // one, not both that stay
		{"ldxaa", []int{1, 2, 3}, []int{4}}, // of several that cannot
	} {
		t.Run(fmt.Sprint(c.nodes, c.voters), func(t *testing.T) {
			d := pool.Volume{ID: ident.VolumeID{1}, Replicas: len(c.voters), Voters: votersOn(c.voters...)}
			mender(t, poolOf(c.nodes), c.want, func(v overlay.View) bool { return stranded(v, d) })
			// The same if the votes have moved there since its birth.
			d.Voters, d.VotersVersion = votersOn(9), 3
			for _, i := range c.voters {
				d.Seeds = append(d.Seeds, nodeID(i))
			}
			mender(t, poolOf(c.nodes), c.want, func(v overlay.View) bool { return stranded(v, d) })
		})
	}
}

// A volume that nobody holds is mended by exactly one member of its map block, if
// anything can be done for it.
func TestVolumesThatLackAreMendedByOne(t *testing.T) {
	for _, c := range []struct {
		what     string
		nodes    string
		replicas int
		voters   []int
		promised int // to which node
		blank    bool
		compared bool
		unsaid   bool // the catalog has other voters
		want     []int
	}{
		{what: "whole", nodes: "aaa", replicas: 3, voters: []int{1, 2, 3}, promised: 2, compared: true},
		{what: "never written", nodes: "aaa", replicas: 3, voters: []int{1, 2, 3}, promised: 2, blank: true},
		{what: "not compared", nodes: "aaa", replicas: 3, voters: []int{1, 2, 3}, promised: 2, want: []int{2}},
		{what: "a node came", nodes: "aaa", replicas: 3, voters: []int{1, 2}, promised: 2, compared: true, want: []int{2}},
		{what: "no node to add", nodes: "aa", replicas: 3, voters: []int{1, 2}, promised: 2, compared: true},
		{what: "its holder is dead", nodes: "ada", replicas: 3, voters: []int{1, 2, 3}, promised: 2, want: []int{1}},
		{what: "its holder leaves", nodes: "aala", replicas: 3, voters: []int{1, 2, 3}, promised: 3, compared: true, want: []int{1}},
		{what: "a member leaves", nodes: "laaa", replicas: 3, voters: []int{1, 2, 3}, promised: 3, compared: true, want: []int{3}},
		{what: "a member leaves and nobody can take its place", nodes: "laa", replicas: 3, voters: []int{1, 2, 3}, promised: 3, compared: true},
		{what: "all members leave", nodes: "lla", replicas: 2, voters: []int{1, 2}, promised: 1, compared: true},
		{what: "voters not recorded", nodes: "aaa", replicas: 3, voters: []int{1, 2, 3}, promised: 1, compared: true, unsaid: true, want: []int{1}},
	} {
		t.Run(c.what, func(t *testing.T) {
			g := quorum.GroupInfo{UpTo: 7, First: 8, Last: 9, Promised: quorum.Ballot{Epoch: 1, Node: nodeID(c.promised)},
				Config: quorum.Config{Version: 4, Members: votersOn(c.voters...)}}
			if c.blank {
				g.UpTo, g.First, g.Last = 0, 1, 1
			}
			d := pool.Volume{ID: ident.VolumeID{1}, Replicas: c.replicas, Voters: votersOn(c.voters...)}
			if c.unsaid {
				d.Voters, d.VotersVersion = votersOn(7, 8, 9), 3
			}
			mender(t, poolOf(c.nodes), c.want, func(v overlay.View) bool {
				for _, m := range c.voters { // only a member has a copy to decide from
					if nodeID(m) == v.Self() {
						return lacking(v, d, g, c.compared)
					}
				}
				return false
			})
		})
	}
}

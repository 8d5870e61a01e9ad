package blockdev

import (
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
)

// Resign makes this node let go of everything it holds and attach nothing more,
// or ends that. Sessions end with kind Unavailable; their clients find the
// volumes at other nodes.
func (m *Manager) Resign(on bool) {
	m.mu.Lock()
	m.resign = on
	var ids []ident.VolumeID
	for id := range m.vols {
		if on {
			ids = append(ids, id)
		}
	}
	m.mu.Unlock()
	for _, id := range ids {
		m.Detach(id, fault.Newf(fault.Unavailable, "volume", id.Short(), "this node is being drained: use another node"))
	}
}

// members passes on that the members of a volume's map block changed.
func (m *Manager) members(v *Volume) {
	v.maintain.request()
	if m.cfg.OnMembers != nil {
		m.cfg.OnMembers()
	}
}

// Voting tells who is a member of the map block of each volume that is attached
// here, and as of which configuration.
func (m *Manager) Voting() map[ident.VolumeID]Voting {
	out := map[ident.VolumeID]Voting{}
	for v := range m.Attached() {
		out[v.cfg.ID] = VotingOf(v.log.Members())
	}
	return out
}

// Voting is the nodes of a map block's members as of a configuration.
type Voting struct {
	Version uint64
	Nodes   []ident.NodeID
}

// VotingOf is the Voting that a configuration says.
func VotingOf(c quorum.Config) Voting {
	x := Voting{Version: c.Version}
	for _, m := range c.Members {
		x.Nodes = append(x.Nodes, m.Node)
	}
	return x
}

package quorum

import "github.com/gabion-storage/gabion/internal/ident"

// Group describes this node's copy of one group; of several, the one with the
// highest promise.
func (a *Acceptors) Group(id ident.GroupID) (GroupInfo, bool) {
	var best GroupInfo
	found := false
	for _, g := range a.all() {
		if g.id != id {
			continue
		}
		if i := g.info(); !found || best.Promised.Less(i.Promised) {
			best, found = i, true
		}
	}
	return best, found
}

// info describes the group now.
func (g *group) info() GroupInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.core
	return GroupInfo{Group: g.id, Brick: g.brick.id, Promised: c.Promised(),
		UpTo: c.Checkpoint().UpTo, First: c.Checkpoint().UpTo + 1, Last: c.Last(),
		LogBytes: c.LogBytes(), Config: c.Config(), Witness: c.Witness(),
		Member: c.Config().Find(g.a.cfg.Transport.Self(), g.brick.id) >= 0}
}

package pool

import (
	"context"
	"slices"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// VotersMax is the number of voters that the pool block grows to.
const VotersMax = 5

// wantedVoters is how many voters the pool block should have with that many
// nodes that have bricks.
func wantedVoters(nodes int) int {
	switch {
	case nodes >= 5:
		return VotersMax
	case nodes >= 3:
		return 3
	}
	return nodes
}

// voterMove is one change of the pool block's members: in joins, out leaves, or in
// takes the place of out.
type voterMove struct {
	out, in quorum.Member // zero: nobody
	why     string
}

// voterPlan is what nextVoter decides from.
type voterPlan struct {
	nodes []overlay.Node
	cfg   quorum.Config
	alive func(ident.NodeID) bool
}

// stays is the brick of a node that may have a vote: one that does not leave.
func stays(n overlay.Node) (ident.BrickID, bool) {
	i := slices.IndexFunc(n.Bricks, func(b overlay.BrickInfo) bool { return !b.Leaving })
	if n.Leaving || i < 0 {
		return ident.BrickID{}, false
	}
	return n.Bricks[i].ID, true
}

func (p *voterPlan) node(id ident.NodeID) (overlay.Node, bool) {
	i := slices.IndexFunc(p.nodes, func(n overlay.Node) bool { return n.ID == id })
	if i < 0 {
		return overlay.Node{}, false
	}
	return p.nodes[i], true
}

// misplaced tells whether a member must leave: its node or brick is leaving or gone, or
// the node is of another kind.
func (p *voterPlan) misplaced(m quorum.Member) bool {
	n, ok := p.node(m.Node)
	b := slices.IndexFunc(n.Bricks, func(b overlay.BrickInfo) bool { return b.ID == m.Brick })
	return !ok || b < 0 || n.Leaving || n.Bricks[b].Leaving || n.Witness != (m.Role == quorum.Witness)
}

// candidate picks a live node for a new member in the place of out: one whose zone
// and rack have the fewest, then the lowest id.
func (p *voterPlan) candidate(role quorum.Role, out quorum.Member) (m quorum.Member, ok bool) {
	place := func(n overlay.Node) (zone string, rack [2]string) {
		zone = n.Labels[overlay.LabelZone]
		return zone, [2]string{zone, n.Labels[overlay.LabelRack]}
	}
	inZone, inRack := map[string]int{}, map[[2]string]int{}
	for _, m := range p.cfg.Members {
		if n, ok := p.node(m.Node); ok && !m.Same(out) {
			zone, rack := place(n)
			inZone[zone]++
			inRack[rack]++
		}
	}
	var bestCost [2]int
	for _, n := range p.nodes {
		brick, staying := stays(n)
		taken := slices.ContainsFunc(p.cfg.Members, func(m quorum.Member) bool {
			return m.Node == n.ID && (!m.Same(out) || m.Brick == brick)
		})
		if !staying || taken || n.Witness != (role == quorum.Witness) || !p.alive(n.ID) {
			continue
		}
		zone, rack := place(n)
		cost := [2]int{inZone[zone], inRack[rack]}
		if !ok || cost[0] < bestCost[0] || cost[0] == bestCost[0] && cost[1] < bestCost[1] {
			m, bestCost, ok = quorum.Member{Node: n.ID, Brick: brick, Role: role}, cost, true
		}
	}
	return m, ok
}

// nextVoter decides the next change of the pool block's members, if one is to be made
// and can be: as many voters as wanted, on nodes that stay; with two nodes that keep
// data and a witness, that one votes too. A member leaves only if another takes its
// place or enough remain.
func nextVoter(s *State, cfg quorum.Config, alive func(ident.NodeID) bool) (voterMove, bool) {
	p := &voterPlan{nodes: s.OverlayNodes(), cfg: cfg, alive: alive}
	data, helpers := 0, 0
	for _, n := range p.nodes {
		if _, ok := stays(n); ok && n.Witness {
			helpers++
		} else if ok {
			data++
		}
	}
	want, helped := wantedVoters(data), data == 2 && helpers > 0
	var witness quorum.Member
	var away []quorum.Member
	placed := 0
	for _, m := range cfg.Members {
		switch {
		case p.misplaced(m):
			away = append(away, m)
		case m.Role == quorum.Witness:
			witness = m
		case m.Role == quorum.Voter:
			placed++
		}
	}
	if len(p.nodes) == 0 || want == 0 {
		return voterMove{}, false
	}
	has := !witness.Node.IsZero()
	for _, m := range away {
		role := quorum.Voter
		if m.Role == quorum.Witness || placed >= want {
			role = quorum.Witness
		}
		if role == quorum.Voter || helped && !has {
			if in, ok := p.candidate(role, m); ok {
				return voterMove{out: m, in: in, why: "it is leaving"}, true
			}
		}
		if role == quorum.Witness && (!helped || has) && placed >= want {
			return voterMove{out: m, why: "it is leaving"}, true
		}
	}
	switch {
	case placed < want && placed+len(away) < want:
		if in, ok := p.candidate(quorum.Voter, witness); ok {
			if has && !helped {
				return voterMove{out: witness, in: in, why: "there is a node with data"}, true
			}
			return voterMove{in: in, why: "more voters are wanted"}, true
		}
	case len(away) > 0:
	case has && !helped:
		return voterMove{out: witness, why: "no witness is wanted"}, true
	case helped && !has && placed == want:
		if in, ok := p.candidate(quorum.Witness, quorum.Member{}); ok {
			return voterMove{in: in, why: "two voters with data"}, true
		}
	case placed > want:
		return voterMove{out: p.surplus(), why: "fewer voters are wanted"}, true
	}
	return voterMove{}, false
}

// surplus is the voter to do without: one that is not alive, then the highest id.
func (p *voterPlan) surplus() (m quorum.Member) {
	for _, x := range p.cfg.Members {
		dead, was := !p.alive(x.Node), !m.Node.IsZero() && !p.alive(m.Node)
		if x.Role == quorum.Voter && (m.Node.IsZero() || dead && !was || dead == was && x.Node.Compare(m.Node) > 0) {
			m = x
		}
	}
	return m
}

// keepVoters makes one change of the pool block's members after the other.
func (p *Pool) keepVoters(ctx context.Context, l *leadership) error {
	for {
		m, ok := nextVoter(p.State(), l.prop.Members(), p.alive)
		if !ok {
			return nil
		}
		if err := l.over(); err != nil {
			return err
		}
		if err := l.move(ctx, m); err != nil {
			return err
		}
		p.learnVoters(l.prop.Members())
		p.log.Info("the pool block's members changed", "why", m.why, "configuration", l.prop.Members().String())
	}
}

// recordVoters tells everybody who votes on the pool block now.
func (p *Pool) recordVoters(ctx context.Context, l *leadership) error {
	s, c := p.State(), l.prop.Members()
	if c.Version <= s.VotersVersion {
		return nil
	}
	w := &SetVoters{Version: c.Version}
	for _, m := range c.Members {
		w.Voters = append(w.Voters, m.Node)
	}
	if slices.Equal(w.Voters, s.Voters) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, openMax)
	defer cancel()
	_, err := l.apply(ctx, Command{ID: NewCommandID(), SetVoters: w})
	return err
}

func (l *leadership) move(ctx context.Context, m voterMove) error {
	ctx, cancel := context.WithTimeout(ctx, joinMax)
	defer cancel()
	switch {
	case m.out.Node.IsZero():
		return l.prop.Join(ctx, m.in)
	case m.in.Node.IsZero():
		return l.prop.Remove(ctx, m.out, 1)
	}
	return l.prop.Replace(ctx, m.out, m.in)
}

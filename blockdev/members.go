package blockdev

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// The map block's members follow the pool: voters leave nodes and bricks that are
// leaving or gone for those that rank best, a new member fed before it takes the
// place of the old one. There are never fewer voters than before, unless there
// were more than wanted. Where two nodes keep data and a third is only
// a witness, that one votes too.

// changeMax bounds one change of members.
const changeMax = time.Minute

// Move is a change of members that is still to be made.
type Move struct {
	From quorum.Member // who leaves; zero: nobody
	To   quorum.Member // who joins; zero: nobody, or there is nobody yet
	Why  string
	// Stuck: it cannot be made now, for lack of a node to move to.
	Stuck bool
}

func (m Move) String() string {
	node := func(m quorum.Member) string { return fmt.Sprintf("%v %s", m.Role, m.Node.Short()) }
	switch {
	case m.Stuck:
		return fmt.Sprintf("%s stays: %s", node(m.From), m.Why)
	case m.From.Node.IsZero():
		return fmt.Sprintf("%s joins: %s", node(m.To), m.Why)
	case m.To.Node.IsZero():
		return fmt.Sprintf("%s leaves: %s", node(m.From), m.Why)
	}
	return fmt.Sprintf("%s replaces %s: %s", node(m.To), node(m.From), m.Why)
}

// misplaced tells why a member of cfg is not where it should be; "" if it is.
func misplaced(nodes []overlay.Node, m quorum.Member) string {
	i := slices.IndexFunc(nodes, func(n overlay.Node) bool { return n.ID == m.Node })
	if i < 0 {
		return "its node is not in the pool"
	}
	n := nodes[i]
	b := slices.IndexFunc(n.Bricks, func(b overlay.BrickInfo) bool { return b.ID == m.Brick })
	switch {
	case n.Leaving:
		return "its node is leaving"
	case b < 0:
		return "its brick is not in the pool"
	case n.Bricks[b].Leaving:
		return "its brick is leaving"
	case n.Witness != (m.Role == quorum.Witness):
		return "its node is of another kind"
	}
	return ""
}

// VoterBrick is the brick of a node that a new member is put on: one that stays,
// that takes the most data, then the largest. False: none stays.
func VoterBrick(n overlay.Node) (ident.BrickID, bool) {
	var best *overlay.BrickInfo
	for i := range n.Bricks {
		b := &n.Bricks[i]
		if b.Leaving {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(b.Weight, best.Weight), cmp.Compare(b.Capacity, best.Capacity)) > 0 {
			best = b
		}
	}
	if best == nil {
		return ident.BrickID{}, false
	}
	return best.ID, true
}

// memberPlan is what nextMove decides from.
type memberPlan struct {
	vol      ident.VolumeID
	replicas int
	self     ident.NodeID
	nodes    []overlay.Node // all of the pool
	cfg      quorum.Config
	avoid    func(ident.NodeID) bool // it failed to join lately; nil: none
}

// wanted counts the nodes that may keep data, and says how many voters with data
// there should be and whether a witness should vote with them.
func (p *memberPlan) wanted() (voters int, witness bool) {
	data, witnesses := 0, 0
	for _, n := range p.nodes {
		if _, ok := VoterBrick(n); !ok || n.Leaving {
			continue
		}
		if n.Witness {
			witnesses++
		} else {
			data++
		}
	}
	voters = min(p.replicas, data)
	return voters, voters == 2 && data == 2 && witnesses > 0
}

// candidate is the node of a kind that ranks best for a new member, which may come
// in the place of old.
func (p *memberPlan) candidate(role quorum.Role, old quorum.Member) (quorum.Member, bool) {
	for _, n := range RankNodes(p.vol, p.self, p.nodes) {
		brick, ok := VoterBrick(n)
		if !ok || n.Leaving || n.State != overlay.Alive || n.Witness != (role == quorum.Witness) ||
			p.avoid != nil && p.avoid(n.ID) {
			continue
		}
		taken := slices.ContainsFunc(p.cfg.Members, func(m quorum.Member) bool {
			return m.Node == n.ID && m.Role != quorum.Learner && !m.Same(old) || m.Node == n.ID && m.Brick == brick
		})
		if !taken {
			return quorum.Member{Node: n.ID, Brick: brick, Role: role}, true
		}
	}
	return quorum.Member{}, false
}

func (p *memberPlan) substitute(r quorum.Role, old quorum.Member) (m quorum.Member, stuck bool) {
	m, ok := p.candidate(r, old)
	return m, !ok
}

// moves lists the changes still to be made, as far as is known now, the next one
// first; stuck ones come last.
func (p *memberPlan) moves() (out []Move) {
	if len(p.nodes) == 0 {
		return nil // the table is not known yet
	}
	want, witness := p.wanted()
	var away, stuck []Move // who is misplaced
	placed, witnesses := 0, 0
	for _, m := range p.cfg.Members {
		switch why := misplaced(p.nodes, m); {
		case why != "":
			away = append(away, Move{From: m, Why: why})
		case m.Role == quorum.Voter:
			placed++
		case m.Role == quorum.Witness:
			witnesses++
		}
	}
	for _, a := range away {
		switch {
		case placed >= max(p.replicas, 1), a.From.Role == quorum.Voter && witness && witnesses > 0 && placed == want:
			out = append(out, a) // the others are as many as there should be
			continue
		case a.From.Role == quorum.Witness || witness && witnesses == 0 && placed == want:
			a.To, a.Stuck = p.substitute(quorum.Witness, a.From)
		default:
			a.To, a.Stuck = p.substitute(quorum.Voter, a.From)
		}
		if !a.Stuck {
			out = append(out, a)
			continue
		}
		a.Why += ", and no other node can take its place now"
		stuck = append(stuck, a)
	}
	out = append(out, p.settle(placed+len(away), placed, witnesses, want, witness)...)
	return append(out, stuck...)
}

// settle lists what is to do when nobody is misplaced who could move. voters counts
// those who are misplaced too.
func (p *memberPlan) settle(members, placed, witnesses, want int, witness bool) (out []Move) {
	spare := p.find(quorum.Witness)
	switch {
	case members-witnesses < want && placed < want && members == placed:
		m, ok := p.candidate(quorum.Voter, spare)
		if ok && witnesses > 0 && !witness {
			return []Move{{From: spare, To: m, Why: "there is a node with data in its place"}}
		}
		if ok {
			return []Move{{To: m, Why: fmt.Sprintf("%d of %d voters", placed, want)}}
		}
	case members == placed && placed > max(p.replicas, 1):
		return []Move{{From: p.worst(), Why: fmt.Sprintf("%d voters, %d are wanted", placed, p.replicas)}}
	case witnesses > 0 && !witness:
		return []Move{{From: spare, Why: "no witness is wanted"}}
	case witnesses == 0 && witness && placed == want && members == placed:
		if m, ok := p.candidate(quorum.Witness, quorum.Member{}); ok {
			return []Move{{To: m, Why: "two voters with data"}}
		}
	}
	return nil
}

func (p *memberPlan) find(r quorum.Role) quorum.Member {
	for _, m := range p.cfg.Members {
		if m.Role == r {
			return m
		}
	}
	return quorum.Member{}
}

// worst is the voter that ranks last.
func (p *memberPlan) worst() (w quorum.Member) {
	for _, n := range RankNodes(p.vol, p.self, p.nodes) {
		for _, m := range p.cfg.Members {
			if m.Node == n.ID && m.Role == quorum.Voter {
				w = m
			}
		}
	}
	return w
}

// MovesFor lists what is to change about the members of a volume's map block: in
// cfg, by what the view knows of the pool now. Those that are stuck come last.
func MovesFor(vol ident.VolumeID, replicas int, view overlay.View, cfg quorum.Config) []Move {
	p := memberPlan{vol: vol, replicas: replicas, self: view.Self(), nodes: view.Nodes(), cfg: cfg}
	return p.moves()
}

func (v *Volume) moves() []Move {
	v.maintain.mu.Lock()
	defer v.maintain.mu.Unlock()
	p := memberPlan{vol: v.cfg.ID, replicas: v.cfg.Replicas, self: v.cfg.View.Self(), nodes: v.cfg.View.Nodes(),
		cfg:   v.log.Members(),
		avoid: func(n ident.NodeID) bool { return time.Now().Before(v.maintain.avoid[n]) }}
	return p.moves()
}

// Members is the membership of a volume's map block at its holder.
type Members struct {
	Config quorum.Config
	Status []quorum.MemberStatus
	Moves  []Move // still to be made; those that are stuck wait for other nodes
}

// On tells whether a node has a vote.
func (m Members) On(node ident.NodeID) bool {
	return slices.ContainsFunc(m.Config.Members, func(x quorum.Member) bool { return x.Node == node })
}

// Members describes who votes on the volume's map block, and what is to change.
func (v *Volume) Members() Members {
	return Members{Config: v.log.Members(), Status: v.log.Status(), Moves: v.moves()}
}

// keepMembers makes the changes that can be made now, one after the other.
func (v *Volume) keepMembers(ctx context.Context) error {
	for {
		moves := v.moves()
		if len(moves) == 0 {
			return nil
		}
		m := moves[0]
		if m.Stuck {
			v.sayStuck(moves)
			return v.avoiding()
		}
		before := v.log.Members().Version
		err := v.move(ctx, m)
		if err == nil && v.log.Members().Version == before {
			err = fault.Newf(fault.Busy, "volume.members", v.cfg.Name, "the members did not change: %v", m)
		}
		if err != nil {
			if node := m.To.Node; !node.IsZero() && !fault.Is(err, fault.Busy) {
				v.maintain.mu.Lock()
				v.maintain.avoid[node] = time.Now().Add(joinPause)
				v.maintain.mu.Unlock()
			}
			return err
		}
		v.cfg.Log.Info("the members of a volume changed", "volume", v.cfg.Name, "change", m.String(),
			"configuration", v.log.Members().String())
	}
}

// sayStuck logs, once each, what cannot be moved.
func (v *Volume) sayStuck(moves []Move) {
	text := fmt.Sprint(moves)
	v.maintain.mu.Lock()
	news := v.maintain.stuck != text
	v.maintain.stuck = text
	v.maintain.mu.Unlock()
	if news {
		v.cfg.Log.Warn("members of a volume cannot move", "volume", v.cfg.Name, "moves", text)
	}
}

// avoiding is an error while a node is passed over that may do later.
func (v *Volume) avoiding() error {
	v.maintain.mu.Lock()
	defer v.maintain.mu.Unlock()
	for _, until := range v.maintain.avoid {
		if time.Now().Before(until) {
			return fault.Newf(fault.Busy, "volume.members", v.cfg.Name, "a node that failed to join is passed over for now")
		}
	}
	return nil
}

// membersLoop runs beside the maintenance of extents, which can take long.
func (v *Volume) membersLoop() {
	v.until(v.maintain.wakeMembers, func() bool {
		err := v.keepMembers(v.ctx)
		if err != nil && v.ctx.Err() == nil {
			v.cfg.Log.Info("the members will be looked at again", "volume", v.cfg.Name, "error", err)
		}
		v.maintain.mu.Lock()
		v.maintain.settled = err == nil && len(v.maintain.wakeMembers) == 0
		v.maintain.mu.Unlock()
		return err == nil
	})
}

func (v *Volume) move(ctx context.Context, m Move) error {
	ctx, cancel := context.WithTimeout(ctx, changeMax)
	defer cancel()
	switch {
	case m.From.Node.IsZero():
		return v.log.Join(ctx, m.To)
	case m.To.Node.IsZero():
		return v.log.Remove(ctx, m.From, 1)
	}
	return v.log.Replace(ctx, m.From, m.To)
}

// everybody is asked for a map block that the seeds do not lead to: its members may
// all have been replaced since.
func (m *Manager) everybody() (out []ident.NodeID) {
	for _, n := range m.cfg.View.Nodes() {
		out = append(out, n.ID)
	}
	return out
}

// rank is the rendezvous weight of a node for a volume (FNV-1a over both ids).
func rank(vol ident.VolumeID, node ident.NodeID) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range vol {
		h = (h ^ uint64(b)) * 1099511628211
	}
	for _, b := range node {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h ^ h>>29
}

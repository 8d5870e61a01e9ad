package quorum

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// ForcedVersion is the version of the forced configuration that one of the given
// version goes back to, 0 if none was ever forced: see ProposerConfig.AtLeast.
// What is asked for may have been proposed only.
func ForcedVersion(version uint64) uint64 { return paxos.ForcedVersion(version) }

// Survivor is one copy of a group, as it is found when its quorum is gone.
type Survivor struct {
	Member   Member // the role is that in Config; Learner if it is not named there
	Witness  bool   // the copy has no data
	Promised Ballot // its epoch is the highest attachment that the copy has met
	Opened   Ballot
	UpTo     uint64 // of the checkpoint
	Commit   uint64 // slots up to here are known to be chosen
	Durable  uint64 // last slot of the opened ballot that is durable
	Last     uint64 // last slot at all
	Config   Config // newest known
}

// best puts the survivor to recover from first. That is the one that met the newest ballot
// and has most of it, unless a checkpoint brought another one beyond all of that: what
// a checkpoint covers is chosen, whatever ballot the copy has met.
func best(all []Survivor) {
	slices.SortFunc(all, Survivor.better)
	if len(all) == 0 || mutant.On("older-survivor") {
		return
	}
	first := 0
	for i, s := range all {
		if !s.Witness && s.UpTo > max(all[0].Last, all[first].UpTo) {
			first = i
		}
	}
	s := all[first]
	copy(all[1:first+1], all[:first])
	all[0] = s
}

// better orders survivors by their logs.
func (s Survivor) better(o Survivor) int {
	if s.Witness != o.Witness {
		if o.Witness {
			return -1
		}
		return 1
	}
	return cmp.Or(o.Opened.Compare(s.Opened), cmp.Compare(o.Last, s.Last), cmp.Compare(o.UpTo, s.UpTo),
		s.Member.Node.Compare(o.Member.Node))
}

// Survivors asks the nodes, and whoever their answers name, what copies of a group
// they have; the one to recover from first. Nodes that do not answer until ctx ends
// are left out. NotFound: nobody has it.
func Survivors(ctx context.Context, t link.Transport, nodes []ident.NodeID, group ident.GroupID) ([]Survivor, error) {
	var mu sync.Mutex
	var all []Survivor
	var last error
	asked := make(map[ident.NodeID]bool)
	for len(nodes) > 0 {
		var wg sync.WaitGroup
		for _, node := range nodes {
			if asked[node] {
				continue
			}
			asked[node] = true
			wg.Go(func() {
				found, err := inspect(ctx, t, node, group)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					last = err
				}
				all = append(all, found...)
			})
		}
		wg.Wait()
		nodes = nil
		for _, s := range all {
			for _, m := range s.Config.Members {
				if !asked[m.Node] {
					nodes = append(nodes, m.Node)
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, fault.Newf(fault.NotFound, "quorum.survivors", group.String(), "no node that answers has a copy: %w",
			errors.Join(last, errors.New("nothing to recover from")))
	}
	best(all)
	return all, nil
}

// inspect asks one node what copies of a group it has.
func inspect(ctx context.Context, t link.Transport, node ident.NodeID, group ident.GroupID) ([]Survivor, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := t.Call(ctx, node, typeInspect, group[:])
	if err != nil {
		return nil, err
	}
	found, err := decodeInspectReply(reply)
	for i := range found {
		s := &found[i]
		s.Member.Node, s.Member.Role = node, Learner
		if at := s.Config.Find(node, s.Member.Brick); at >= 0 {
			s.Member.Role = s.Config.Members[at].Role
		}
	}
	return found, err
}

// Recovery is what a forced recovery has done.
type Recovery struct {
	Config Config // in force now; note its version as ProposerConfig.AtLeast
	Ballot Ballot
	// Kept is the last slot that the chosen survivor has. Chosen slots beyond it may be
	// lost: up to Seen some other copy is known to have had them, of which
	// nothing is kept; members that did not answer may have had more.
	Kept, Seen uint64
}

// Recover gives a group whose quorum is gone for good a new configuration: the voters,
// of which from, the survivor whose log is to be continued, must be one. All must be
// survivors with data. It is for a person to decide, never for a program: what only the lost
// members had is lost, even if it was acknowledged. Members that are given up and
// come back are fenced, and drop their copies when they meet a member; until
// then only ProposerConfig.AtLeast keeps a majority of them from opening the group
// among themselves. boot is this process's boot counter.
//
// Conflict: a majority of the present voters answers, so that nothing is to be forced. Invalid,
// Fenced (somebody opened it meanwhile), Unavailable.
func Recover(ctx context.Context, t link.Transport, nodes []ident.NodeID, group ident.GroupID,
	from Member, voters []Member, boot uint64) (Recovery, error) {
	const op = "quorum.recover"
	ss, err := Survivors(ctx, t, nodes, group)
	if err != nil {
		return Recovery{}, err
	}
	r, err := planRecovery(ss, from, voters)
	if err != nil {
		return Recovery{}, fault.New(fault.Invalid, op, group.String(), err)
	}
	if Quorate(ss) {
		return Recovery{}, fault.New(fault.Conflict, op, group.String(), errors.New("a majority of the voters answers: nothing is to be forced"))
	}
	r.Ballot.Node, r.Ballot.Boot = t.Self(), boot
	call := configCall{group: group, brick: from.Brick, ballot: r.Ballot, config: r.Config}
	reply, err := t.Call(ctx, from.Node, typeForce, appendConfigCall(nil, &call))
	if err != nil {
		return Recovery{}, err
	}
	switch status, promised, err := decodeInstallReply(reply); {
	case err != nil:
		return Recovery{}, err
	case status == paxos.Fenced:
		return Recovery{}, fault.Newf(fault.Fenced, op, group.String(), "ballot %v was promised meanwhile", promised)
	case status != paxos.OK:
		return Recovery{}, fault.Newf(fault.Unavailable, op, group.String(), "node %s: %v", from.Node.Short(), status)
	}
	for _, s := range ss {
		if r.Config.Find(s.Member.Node, s.Member.Brick) < 0 {
			call := configCall{group: group, brick: s.Member.Brick, ballot: r.Ballot, config: r.Config}
			_, _ = t.Call(ctx, s.Member.Node, typeRetire, appendConfigCall(nil, &call)) // it asks by itself otherwise
		}
	}
	return r, nil
}

// planRecovery checks what was asked for.
func planRecovery(ss []Survivor, from Member, voters []Member) (Recovery, error) {
	var r Recovery
	find := func(m Member) *Survivor {
		for i := range ss {
			if ss[i].Member.Same(m) && !ss[i].Witness {
				return &ss[i]
			}
		}
		return nil
	}
	for _, m := range voters {
		if find(m) == nil {
			return r, errors.New("node " + m.Node.Short() + " does not answer with a copy that has data")
		}
		m.Role = Voter
		if r.Config.Find(m.Node, m.Brick) < 0 {
			r.Config.Members = append(r.Config.Members, m)
		}
	}
	if r.Config.Find(from.Node, from.Brick) < 0 || len(r.Config.Members) > MembersMax {
		return r, errors.New("the survivor to go on from must be one of the new voters")
	}
	r.Kept = find(from).Last
	for _, s := range ss {
		r.Config.Version = max(r.Config.Version, s.Config.Version)
		r.Ballot.Epoch = max(r.Ballot.Epoch, s.Promised.Epoch)
		r.Seen = max(r.Seen, s.Last)
	}
	next := max(ForcedVersion(r.Config.Version), ForcedVersion(r.Ballot.Epoch)) + paxos.ForcedVersions
	r.Ballot.Epoch = next + r.Ballot.Epoch%paxos.ForcedVersions
	if mutant.On("timid-force") {
		r.Config.Version++
		return r, nil
	}
	r.Config.Version = next + r.Config.Version%paxos.ForcedVersions
	return r, nil
}

// Quorate tells whether a majority of the newest configuration is among the copies
// that answered, with its data: such a group needs no forced recovery.
func Quorate(ss []Survivor) bool {
	var newest Config
	for _, s := range ss {
		if s.Config.Version > newest.Version {
			newest = s.Config
		}
	}
	n, data := 0, 0
	for _, s := range ss {
		if i := newest.Find(s.Member.Node, s.Member.Brick); i >= 0 && newest.Members[i].Role != Learner {
			n++
			if !s.Witness {
				data++
			}
		}
	}
	// With a witness, the member that is missing may have had what no other has.
	return n > newest.Voters()/2 && (newest.Witnesses() == 0 || data+newest.Witnesses() >= newest.Voters())
}

func (a *Acceptors) onInspect(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	if len(body) != 16 {
		return nil, invalid("quorum.inspect", errShort)
	}
	var ss []Survivor
	for _, g := range a.all() {
		if g.id != ident.GroupID(body) || len(ss) == inspectMax {
			continue
		}
		g.mu.Lock()
		c := g.core
		ss = append(ss, Survivor{Member: Member{Brick: g.brick.id}, Witness: c.Witness(), Promised: c.Promised(),
			Opened: c.Opened(), UpTo: c.Checkpoint().UpTo, Commit: c.Commit(), Durable: c.Durable(), Last: c.Last(), Config: c.Config()})
		g.mu.Unlock()
	}
	return appendInspectReply(nil, ss), nil
}

func (a *Acceptors) onForce(_ context.Context, from ident.NodeID, body []byte) ([]byte, error) {
	m, err := decodeForce(body)
	if err != nil || m.ballot.Node != from {
		return nil, invalid("quorum.force", errors.Join(err, errors.New("a ballot belongs to its sender")))
	}
	status, promised, err := a.force(&m)
	if err != nil {
		return nil, err
	}
	return appendInstallReply(nil, status, promised), nil
}

// force puts a configuration in force here: everything received is made durable, then
// the configuration.
func (a *Acceptors) force(m *configCall) (paxos.Status, Ballot, error) {
	g := a.group(m.group, m.brick)
	if g == nil {
		return a.absent(m.group, m.brick), Ballot{}, nil
	}
	if err := syncNow(g.brick.j); err != nil {
		return paxos.Broken, Ballot{}, err
	}
	g.stableMu.Lock()
	defer g.stableMu.Unlock()
	g.mu.Lock()
	hard, status := g.core.Force(Member{Node: a.cfg.Transport.Self(), Brick: m.brick}, m.ballot, m.config)
	promised, gone := g.core.Promised(), g.dropped
	g.mu.Unlock()
	if gone || status != paxos.OK {
		return status, promised, nil
	}
	a.log.Warn("a configuration is forced", "group", g.id.Short(), "brick", g.brick.id.Short(), "configuration", m.config.String())
	if err := g.brick.s.Set(groupKeyOf(g.id), appendStableGroup(nil, &stableGroup{hard: hard, birth: g.birth, after: g.after})); err != nil {
		return paxos.Broken, promised, err
	}
	g.mu.Lock()
	g.core.Forced(hard)
	g.mu.Unlock()
	return paxos.OK, promised, nil
}

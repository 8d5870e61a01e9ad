package quorum

import (
	"context"
	"errors"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

func (a *Acceptors) onRetire(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	m, err := decodeRetire(body)
	if err != nil {
		return nil, invalid("quorum.retire", err)
	}
	g := a.group(m.group, m.brick)
	if g == nil {
		return []byte{byte(a.absent(m.group, m.brick))}, nil
	}
	status := a.leave(g, m.ballot, m.config)
	if status == paxos.Gap { // what it was told is old; it asks
		g.mu.Lock()
		g.doubted = true
		g.mu.Unlock()
		a.doubting()
	}
	return []byte{byte(status)}, nil
}

// leave forgets a group by a settled configuration without this brick: what
// remains is durable before anything is let go. by is the holder who says so; or
// zero, if the answers of the members do: then only if no holder has been heard of
// since the last look.
func (a *Acceptors) leave(g *group, by Ballot, c Config) paxos.Status {
	b := g.brick
	b.stableMu.Lock()
	defer b.stableMu.Unlock()
	g.stableMu.Lock() // a later persist of the group would undo it
	defer g.stableMu.Unlock()
	g.mu.Lock()
	if g.dropped {
		g.mu.Unlock()
		return paxos.OK
	}
	unfed := by.IsZero()
	if unfed {
		by = g.core.Promised()
	}
	tomb, ok := g.core.Retire(Member{Node: a.cfg.Transport.Self(), Brick: b.id}, by, c)
	if !ok || unfed && g.fed {
		g.mu.Unlock()
		return paxos.Gap
	}
	g.dropped, g.left = true, true // from here on nothing is taken
	g.mu.Unlock()
	err := b.s.Set(groupKeyOf(g.id), appendStableGroup(nil, &stableGroup{tomb: &tomb}))
	if err != nil {
		g.mu.Lock()
		g.dropped, g.left = false, false
		g.failed(err)
		g.mu.Unlock()
		return paxos.Broken
	}
	a.mu.Lock()
	delete(a.groups, groupKey{g.id, b.id})
	a.mu.Unlock()
	if err := b.enlist(g.id, false); err != nil {
		a.log.Warn("the list of groups names one that was left", "group", g.id.Short(), "brick", b.id.Short(), "error", err)
	}
	a.log.Info("the brick left a group", "group", g.id.Short(), "brick", b.id.Short(), "configuration", c.String())
	a.appended(b, 0) // its part of the journal can go
	return paxos.OK
}

// tomb is what is left of a group that a brick has left; nil if it has not.
func (a *Acceptors) tomb(id ident.GroupID, brickID ident.BrickID) *paxos.Tomb {
	a.mu.RLock()
	b := a.bricks[brickID]
	a.mu.RUnlock()
	if b == nil {
		return nil
	}
	s, err := b.load(id)
	if err != nil || s == nil {
		return nil
	}
	return s.tomb
}

// revive begins a new life of a group that the brick has left. The journal records of
// the earlier one are told apart by their position, which must not be used
// again after a power cut: so the journal is made durable first.
func (a *Acceptors) revive(b *brick, m *installCall) (paxos.Status, Ballot, error) {
	b.stableMu.Lock()
	defer b.stableMu.Unlock()
	old, err := b.load(m.group)
	if err != nil {
		return paxos.Broken, Ballot{}, err
	}
	if old == nil || old.tomb == nil {
		return paxos.Gap, Ballot{}, nil // another install was faster
	}
	hard, status := old.tomb.Revive(m.ballot, m.checkpoint, m.witness)
	if status != paxos.OK {
		return status, old.tomb.Promised, nil
	}
	if a.group(m.group, b.id) != nil {
		return paxos.Gap, Ballot{}, nil
	}
	_, after, _ := b.j.Live()
	if err := syncNow(b.j); err != nil {
		return paxos.Broken, Ballot{}, err
	}
	if _, err := a.begin(b, m.group, stableGroup{hard: hard, after: after}); err != nil {
		if fault.Is(err, fault.NoSpace) {
			return paxos.Full, Ballot{}, nil
		}
		return paxos.Broken, Ballot{}, err
	}
	return paxos.OK, m.ballot, nil
}

// expel sees to it that m has no copy that a forced recovery gave up: what its checkpoint
// covers is not what the group has in those slots. Nothing is asked of groups that were never
// recovered so.
func (p *Proposer) expel(ctx context.Context, m Member) error {
	p.mu.Lock()
	call := configCall{group: p.cfg.Group, brick: m.Brick, ballot: p.core.Ballot(), config: p.core.Config()}
	p.mu.Unlock()
	if ForcedVersion(call.config.Version) == 0 || mutant.On("feed-given-up") {
		return nil
	}
	for {
		err := p.expelOnce(ctx, m, &call)
		if err == nil {
			return nil
		}
		p.mu.Lock()
		over := p.over()
		p.mu.Unlock()
		if over != nil {
			return over
		}
		if ended := pause(ctx, AskInterval); ended != nil {
			return errors.Join(ended, err)
		}
	}
}

// expelOnce looks, and tells a copy that is too old to leave.
func (p *Proposer) expelOnce(ctx context.Context, m Member, call *configCall) error {
	found, err := inspect(ctx, p.cfg.Transport, m.Node, p.cfg.Group)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(found, func(s Survivor) bool {
		return s.Member.Brick == m.Brick && ForcedVersion(s.Config.Version) < ForcedVersion(call.config.Version)
	}) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, retireTimeout)
	defer cancel()
	reply, err := p.cfg.Transport.Call(ctx, m.Node, typeRetire, appendConfigCall(nil, call))
	if err == nil && (len(reply) != 1 || reply[0] != byte(paxos.OK)) {
		err = errors.New("it does not leave yet")
	}
	return err
}

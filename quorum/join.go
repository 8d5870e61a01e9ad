package quorum

import (
	"context"
	"errors"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// Join makes m a voter: feeds it as a learner until it has caught up, then has
// the new configuration chosen. A member already in is success. Kinds: Busy (one
// at a time), Invalid (role, or MembersMax reached), Fenced, Timeout (ctx ended
// while it was catching up: it is no longer fed), Indeterminate (ctx ended after the
// configuration was proposed: it will be chosen as soon as majorities allow).
func (p *Proposer) Join(ctx context.Context, m Member) error {
	const op = "quorum.join"
	if m.Role != Voter {
		return fault.Newf(fault.Invalid, op, m.Node.String(), "a %v cannot join; only a voter can", m.Role)
	}
	p.mu.Lock()
	old := p.core.Config()
	err := p.over()
	switch {
	case err != nil:
	case old.Find(m.Node, m.Brick) >= 0:
		p.mu.Unlock()
		return nil
	case p.joining || p.core.Changing():
		err = fault.New(fault.Busy, op, m.Node.String(), errors.New("another change of members is under way"))
	case len(old.Members) >= MembersMax:
		err = fault.Newf(fault.Invalid, op, m.Node.String(), "the group has %d members, the most it can have", MembersMax)
	}
	if err != nil {
		p.mu.Unlock()
		return err
	}
	p.joining = true
	p.core.AddLearner(m)
	p.reconnect()
	p.observe()
	p.mu.Unlock()
	p.notify()
	p.pump()
	err = p.join(ctx, m)
	p.mu.Lock()
	p.joining = false
	p.core.RemoveLearner(m) // no effect once a configuration names it
	p.observe()
	p.mu.Unlock()
	p.notify()
	return err
}

func (p *Proposer) join(ctx context.Context, m Member) error {
	err := p.until(ctx, func() bool {
		i := p.core.Index(m)
		return i >= 0 && p.core.CaughtUp(i)
	})
	if err != nil {
		return p.joinFailed(fault.Timeout, m, err)
	}
	p.mu.Lock()
	c := p.core.Config()
	next := Config{Version: c.Version + 1, Members: append(append([]Member(nil), c.Members...), m)}
	slot, err := p.propose(EntryConfig, paxos.AppendConfig(nil, next))
	if err == nil {
		p.core.Sync(slot)
		p.reconnect()
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	p.log.Info("a member joins", "group", p.cfg.Group.Short(), "node", m.Node.Short(),
		"brick", m.Brick.Short(), "version", next.Version)
	p.pump()
	err = p.until(ctx, func() bool { return p.core.Config().Version >= next.Version })
	return p.joinFailed(fault.Indeterminate, m, err)
}

func (p *Proposer) joinFailed(k fault.Kind, m Member, err error) error {
	if err == nil || fault.Is(err, fault.Fenced) {
		return err
	}
	text := "it did not catch up in time: %w"
	if k == fault.Indeterminate {
		text = "the new configuration is not chosen yet: %w"
	}
	return fault.Newf(k, "quorum.join", m.Node.String(), text, err)
}

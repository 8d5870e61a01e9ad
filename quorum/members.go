package quorum

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// retireTimeout bounds the word to a member that left. If it is not heard, the
// member asks by itself when it comes back.
const retireTimeout = 5 * time.Second

// Changes of members. Each is one configuration: one member more, one less, or one
// in the place of another. A new member is fed first, without being counted, until little is
// missing; the configuration is chosen by majorities of the old members and of
// the new ones; one further entry makes any majority of the new members know
// so; and only then the one that left is told to forget the group. Nothing but the
// configuration outlives the holder: the next one looks at the members and goes on.
//
// Kinds of failure: Busy (another change is under way), Invalid (no such
// configuration may be), Fenced, Timeout (ctx ended while the members were not
// ready: nothing has changed), Indeterminate (ctx ended after the configuration
// was proposed: it will be chosen as soon as majorities allow).

// Join makes m a member of the role that it names, Voter or Witness. A member
// that is one already is success.
func (p *Proposer) Join(ctx context.Context, m Member) error {
	return p.change(ctx, "quorum.join", nil, &m)
}

// Replace puts m in the place of old, in one step: there are never fewer voters
// than before. Success if that has been done before.
func (p *Proposer) Replace(ctx context.Context, old, m Member) error {
	if mutant.On("shrink-first") {
		if err := p.change(ctx, "quorum.replace", &old, nil); err != nil {
			return err
		}
		return p.change(ctx, "quorum.replace", nil, &m)
	}
	return p.change(ctx, "quorum.replace", &old, &m)
}

// Remove leaves old out. Invalid if fewer than keep voters would remain, the
// witnesses among them included. Absent is success.
func (p *Proposer) Remove(ctx context.Context, old Member, keep int) error {
	p.mu.Lock()
	c := p.core.Config()
	p.mu.Unlock()
	if i := c.Find(old.Node, old.Brick); i >= 0 && c.Voters()-1 < keep && !mutant.On("below-target") {
		return fault.Newf(fault.Invalid, "quorum.remove", old.Node.String(),
			"%d voters would remain, fewer than %d: replace it", c.Voters()-1, keep)
	}
	return p.change(ctx, "quorum.remove", &old, nil)
}

// successor is the configuration after a change; same: there is nothing to do.
func successor(c Config, old, m *Member) (next Config, same bool) {
	next = Config{Version: c.Version + 1}
	for _, x := range c.Members {
		if old == nil || !x.Same(*old) {
			next.Members = append(next.Members, x)
		}
	}
	if m != nil && next.Find(m.Node, m.Brick) < 0 {
		next.Members = append(next.Members, *m)
	}
	same = len(next.Members) == len(c.Members) &&
		!slices.ContainsFunc(next.Members, func(x Member) bool { return c.Find(x.Node, x.Brick) < 0 })
	return next, same
}

func (p *Proposer) change(ctx context.Context, op string, old, m *Member) error {
	subject := old
	if m != nil {
		subject = m
	}
	invalid := func(err error) error { return fault.New(fault.Invalid, op, subject.Node.String(), err) }
	if m != nil && m.Role != Voter && m.Role != Witness {
		return invalid(errors.New("a member joins as a voter or as a witness"))
	}
	p.mu.Lock()
	c := p.core.Config()
	next, same := successor(c, old, m)
	err := p.over()
	switch {
	case err != nil:
	case same:
		p.mu.Unlock()
		return nil
	case (p.changing || p.core.Changing()) && !mutant.On("change-meanwhile"):
		err = fault.New(fault.Busy, op, subject.Node.String(), errors.New("another change of members is under way"))
	case len(next.Members) > MembersMax:
		err = fault.Newf(fault.Invalid, op, subject.Node.String(), "the group has %d members, the most it can have", MembersMax)
	case next.Sound() != nil:
		err = invalid(next.Sound())
	}
	if err != nil {
		p.mu.Unlock()
		return err
	}
	p.changing = true
	p.mu.Unlock()
	if m != nil {
		err = p.feed(ctx, op, *m)
	}
	if err == nil {
		err = p.swap(ctx, op, *subject, old, m)
	}
	p.changed(old, m, err)
	return err
}

// feed makes m a learner, once it is not being told any more to forget the group.
func (p *Proposer) feed(ctx context.Context, op string, m Member) error {
	err := p.until(ctx, func() bool { return p.retiring[identity(m)] == 0 })
	if err != nil {
		return fault.Newf(fault.Timeout, op, m.Node.String(), "it is still leaving the group: %w", err)
	}
	if err := p.expel(ctx, m); err != nil {
		return fault.Newf(fault.Timeout, op, m.Node.String(), "its copy is from before the group was recovered by force, and stays: %w", err)
	}
	p.mu.Lock()
	p.core.AddLearner(m)
	p.reconnect()
	p.observe()
	p.mu.Unlock()
	p.notify()
	p.pump()
	return nil
}

// changed ends a change, and tells whoever is not a member to forget the group.
func (p *Proposer) changed(old, m *Member, err error) {
	p.mu.Lock()
	p.changing = false
	if m != nil {
		p.core.RemoveLearner(*m) // no effect once a configuration names it
	}
	settled := err == nil || !p.core.Changing()
	c := p.core.Config()
	p.observe()
	p.mu.Unlock()
	p.notify()
	for _, x := range []*Member{old, m} {
		// After a failure the present configuration is that from before, which was
		// settled; only a learner may be left over.
		if x != nil && settled && (err == nil || x == m) && c.Find(x.Node, x.Brick) < 0 {
			p.retire(*x, c)
		}
	}
}

// swap waits until all is ready, proposes the configuration and sees it settled.
func (p *Proposer) swap(ctx context.Context, op string, subject Member, old, m *Member) error {
	failed := func(k fault.Kind, text string, err error) error {
		if err == nil || fault.Is(err, fault.Fenced) {
			return err
		}
		return fault.Newf(k, op, subject.Node.String(), "%s: %w", text, err)
	}
	ready := func() bool {
		if mutant.On("swap-early") {
			return true
		}
		if m != nil {
			if i := p.core.Index(*m); i < 0 || !p.core.CaughtUp(i) {
				return false
			}
		}
		next, _ := successor(p.core.Config(), old, m)
		return p.core.Ready(next)
	}
	if err := p.until(ctx, ready); err != nil {
		return failed(fault.Timeout, "the members did not catch up in time", err)
	}
	p.mu.Lock()
	next, _ := successor(p.core.Config(), old, m)
	slot, err := p.propose(EntryConfig, paxos.AppendConfig(nil, next))
	if err == nil {
		p.core.Sync(slot)
		p.reconnect()
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	p.log.Info("the members change", "group", p.cfg.Group.Short(), "configuration", next.String())
	p.pump()
	if err = p.until(ctx, func() bool { return p.core.Config().Version >= next.Version }); err == nil {
		err = p.settle(ctx)
	}
	return failed(fault.Indeterminate, "the new configuration is not chosen yet", err)
}

// settle has one more entry chosen. With it in its log, a member knows that the
// configuration before it was chosen, and the old ones are needed no more.
func (p *Proposer) settle(ctx context.Context) error {
	p.mu.Lock()
	slot, err := p.propose(EntryOpen, nil)
	if err == nil {
		p.core.Sync(slot)
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	p.pump()
	return p.until(ctx, func() bool { return p.core.Commit() >= slot })
}

// retire tells one that is not a member, in the background.
func (p *Proposer) retire(m Member, c Config) {
	p.mu.Lock()
	p.retiring[identity(m)]++
	p.mu.Unlock()
	p.background(func() {
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.retiring[identity(m)]--
			p.woken()
		}()
		ctx, cancel := context.WithTimeout(p.ctx, retireTimeout)
		defer cancel()
		call := configCall{group: p.cfg.Group, brick: m.Brick, ballot: p.core.Ballot(), config: c}
		if _, err := p.cfg.Transport.Call(ctx, m.Node, typeRetire, appendConfigCall(nil, &call)); err != nil {
			p.log.Info("a former member was not told; it will ask", "group", p.cfg.Group.Short(), "node", m.Node.Short(), "error", err)
		}
	})
}

package quorum

import (
	"context"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// A copy may be left over: its brick left the group while the node was away, or was
// fed by a holder that died. Such a copy does no harm, but it takes space and
// looks like a vote. So a node asks the members of each of its groups once after it has
// started, and again when one of them comes back, and of a group of which no settled configuration
// names its brick until it is clear. Groups that a holder is feeding need no asking.

const (
	// BelongDelay is how long a copy must not have heard of a holder before it asks
	// whether it still belongs.
	BelongDelay = 2 * time.Minute
	// belongTimeout bounds one question.
	belongTimeout = 2 * time.Second
)

// doubt has the groups looked at that name node as a member.
func (a *Acceptors) doubt(node ident.NodeID) {
	any := false
	for _, g := range a.all() {
		g.mu.Lock()
		for _, m := range g.core.Config().Members {
			if m.Node == node && node != a.cfg.Transport.Self() {
				g.doubted, g.fed, any = true, false, true
			}
		}
		g.mu.Unlock()
	}
	if any {
		a.doubting()
	}
}

func (a *Acceptors) doubting() {
	select {
	case a.doubts <- struct{}{}:
	default:
	}
}

// belongLoop looks at doubted copies until ctx ends, some time after a doubt: what is
// being fed will have been heard of by then.
func (a *Acceptors) belongLoop(ctx context.Context) {
	rounds(ctx, a.doubts, a.belongDelay, func(late bool) (left bool) {
		return !late || a.belongAll(ctx)
	})
}

// belongAll asks for every doubted copy that no holder feeds. It reports whether
// one is left to be looked at again.
func (a *Acceptors) belongAll(ctx context.Context) (left bool) {
	if mutant.On("stay-forever") {
		return false
	}
	for _, g := range a.all() {
		g.mu.Lock()
		look, fed := g.doubted && !g.dropped, g.fed
		g.doubted, g.fed = look && fed, false // in doubt anew meanwhile, it is looked at again
		// A later configuration that names it may never be chosen.
		stray := g.core.Settled().Find(a.cfg.Transport.Self(), g.brick.id) < 0
		g.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return false
		case !look:
		case fed:
			left = true
		default:
			clear := a.belong(ctx, g)
			g.mu.Lock()
			g.doubted = g.doubted || stray && !clear
			left = left || g.doubted
			g.mu.Unlock()
		}
	}
	return left
}

// belong asks whether the brick of g is still a member, and has it leave if a
// settled configuration does not name it: a majority of its voters must have answered,
// and the holder, none of whom may know of a later configuration that does,
// chosen or not. That one may be waiting for just this copy; and the holder may be
// feeding it. It reports whether the answers made it clear.
func (a *Acceptors) belong(ctx context.Context, g *group) (clear bool) {
	self := Member{Node: a.cfg.Transport.Self(), Brick: g.brick.id}
	g.mu.Lock()
	known := g.core.Config()
	g.mu.Unlock()
	answers := make(map[ident.NodeID]queryReply)
	var settled, named Config // the newest, and the newest that names this brick
	var highest Ballot
	var newest uint64 // version met, chosen or not
	for range 2 {     // those whom the first answers name come second
		ask := []ident.NodeID{highest.Node}
		for _, m := range append(append([]Member(nil), known.Members...), settled.Members...) {
			ask = append(ask, m.Node)
		}
		for _, node := range ask {
			if _, ok := answers[node]; ok || node == self.Node || node.IsZero() {
				continue
			}
			qctx, cancel := context.WithTimeout(ctx, belongTimeout)
			q, err := queryFor(qctx, a.cfg.Transport, node, g.id, g.brick.id)
			cancel()
			if err != nil {
				continue
			}
			answers[node] = q
			newest = max(newest, q.config.Version)
			if q.feeds {
				return true
			}
			if q.config.Find(self.Node, self.Brick) >= 0 && q.config.Version > named.Version {
				named = q.config
			}
			if q.settled && q.config.Version > settled.Version {
				settled = q.config
			}
			if highest.Less(q.promised) {
				highest = q.promised
			}
		}
	}
	switch {
	case named.Version >= settled.Version:
		return named.Members != nil
	case newest > settled.Version:
		return false // who decides is just changing
	}
	voters := 0
	for _, m := range settled.Members {
		if q, ok := answers[m.Node]; ok && q.found && q.brick == m.Brick && m.Role != Learner {
			voters++
		}
	}
	_, holder := answers[highest.Node]
	if voters <= settled.Voters()/2 || !holder && highest.Node != self.Node {
		return false
	}
	return a.leave(g, Ballot{}, settled) == paxos.OK
}

// feeds tells whether a proposer of this node feeds m.
func (a *Acceptors) feeds(holding bool, group ident.GroupID, m Member) bool {
	if !holding || m.Brick.IsZero() {
		return false
	}
	a.mu.RLock()
	var ps []*Proposer
	for k, p := range a.proposers {
		if k.group == group {
			ps = append(ps, p)
		}
	}
	a.mu.RUnlock()
	for _, p := range ps {
		p.mu.Lock()
		i := p.core.Index(m)
		p.mu.Unlock()
		if i >= 0 {
			return true
		}
	}
	return false
}

package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
)

// Submit has a command applied, through whichever node leads, and returns when it
// is chosen (durable on a majority of the pool block) and this node's State has
// it. It tries again, at most until ctx or SubmitMax ends; the command's ID
// makes that harmless, also across calls. Kinds: Apply's refusals, which are
// final; Unavailable (no leader was found in time; nothing was done);
// Indeterminate (it may still be applied: submit the same command again).
func (p *Pool) Submit(ctx context.Context, c Command) error {
	ctx, cancel := context.WithTimeout(ctx, SubmitMax)
	defer cancel()
	version, err := p.submit(ctx, c)
	if err != nil {
		return err
	}
	if err := p.await(ctx, version); err != nil {
		p.log.Debug("applied, but not seen here yet", "version", version, "err", err)
	}
	return nil
}

// submit is Submit without the wait for State to have the command's effect, which
// is in the state of the version that it returns and those after it.
func (p *Pool) submit(ctx context.Context, c Command) (version uint64, err error) {
	if c.ID == "" {
		c.ID = NewCommandID()
	}
	kind, last := fault.Unavailable, error(fault.Newf(fault.Unavailable, "pool.submit", "", "this node has not met the pool yet"))
	pause := retryMin
	var next ident.NodeID // where the last answer pointed
	for {
		target, err := next, error(nil)
		next = ident.NodeID{}
		if target.IsZero() {
			target, err = p.findLeader(ctx)
		}
		if err == nil {
			var a submitAnswer
			a, err = p.submitAt(ctx, target, c)
			switch {
			case err != nil:
				p.forget(target)
				if !fault.Is(err, fault.Unavailable) {
					kind = fault.Indeterminate // it was sent
				}
			case a.Refusal != nil:
				return 0, &fault.Error{Kind: a.Refusal.Kind, Op: a.Refusal.Op, Subject: a.Refusal.Subject, Err: errors.New(a.Refusal.Text)}
			case a.Version > 0:
				p.remember(target)
				if target != p.self && p.State().Version < a.Version {
					_ = p.pull(ctx, target) // the news or a ping brings it otherwise
				}
				return a.Version, nil
			default:
				p.forget(target)
				if a.Leader != target {
					next = a.Leader
				}
				if a.Pending {
					kind = fault.Indeterminate
				}
				err = errors.New(a.Why)
			}
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return 0, fault.Newf(kind, "pool.submit", "", "no answer from a leader in time: %w", last)
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, retryMax)
	}
}

// submitAt asks one node.
func (p *Pool) submitAt(ctx context.Context, target ident.NodeID, c Command) (submitAnswer, error) {
	if target == p.self {
		return p.submitHere(ctx, c), nil
	}
	ctx, cancel := context.WithTimeout(ctx, openMax)
	defer cancel()
	var a submitAnswer
	b, err := p.cfg.Transport.Call(ctx, target, typeSubmit, encodeCommand(c))
	if err == nil {
		err = unpack("pool.submit", b, &a)
	}
	return a, err
}

func (p *Pool) remember(leader ident.NodeID) {
	p.mu.Lock()
	p.hint = leader
	p.mu.Unlock()
}

// forget drops the hint that led to a node in vain.
func (p *Pool) forget(leader ident.NodeID) {
	p.mu.Lock()
	if p.hint == leader {
		p.hint = ident.NodeID{}
	}
	p.mu.Unlock()
}

// findLeader is the present leader, or the one who should be: the holder of the
// pool block if it is alive, else the live voter with the lowest id.
// Unavailable: nobody knows, or no voter is alive.
func (p *Pool) findLeader(ctx context.Context) (ident.NodeID, error) {
	p.mu.Lock()
	lead, hint := p.lead, p.hint
	p.mu.Unlock()
	if lead != nil {
		return p.self, nil
	}
	if !hint.IsZero() && p.alive(hint) && !p.leaving(hint) {
		return hint, nil
	}
	right, _, err := p.rightLeader(ctx)
	return right, err
}

// rightLeader is findLeader by asking the members.
func (p *Pool) rightLeader(ctx context.Context) (id ident.NodeID, over quorum.Ballot, err error) {
	if p.State().Version == 0 && !p.votes() {
		p.askAround()
		return id, over, fault.Newf(fault.Unavailable, "pool.lead", "", "this node has not met the pool yet")
	}
	ctx, cancel := context.WithTimeout(ctx, holderMax)
	defer cancel()
	ballot, cfg, err := quorum.Holder(ctx, p.cfg.Transport, p.seeds(), p.group, p.everybody()...)
	if err != nil {
		return id, over, err
	}
	p.learnVoters(cfg)
	heir := p.heir(cfg)
	if !ballot.IsZero() && p.alive(ballot.Node) && (heir.IsZero() || !p.leaving(ballot.Node)) {
		return ballot.Node, over, nil
	}
	if !heir.IsZero() {
		// One that is leaving has no say any more; nothing is read under its lease.
		return heir, ballot, nil
	}
	for _, m := range cfg.Members {
		if m.Role == quorum.Voter && p.alive(m.Node) && (id.IsZero() || m.Node.Compare(id) < 0) {
			id = m.Node
		}
	}
	if id.IsZero() {
		return id, over, fault.Newf(fault.Unavailable, "pool.lead", "", "no voter of the pool block is alive")
	}
	return id, over, nil
}

// heir is the live voter that stays, with the lowest id; zero if there is none.
func (p *Pool) heir(cfg quorum.Config) (best ident.NodeID) {
	for _, m := range cfg.Members {
		if m.Role == quorum.Voter && p.alive(m.Node) && !p.leaving(m.Node) && (best.IsZero() || m.Node.Compare(best) < 0) {
			best = m.Node
		}
	}
	return best
}

// leaving tells whether a node is on its way out of the pool, or out of it.
func (p *Pool) leaving(id ident.NodeID) bool {
	s := p.State()
	r, ok := s.Node(id)
	return s.Version > 0 && (!ok || r.Leaving())
}

// seeds are the nodes to ask for the pool block: this one, its voters, and
// while none are known some nodes, live ones first.
func (p *Pool) seeds() []ident.NodeID {
	ids := []ident.NodeID{p.self}
	add := func(id ident.NodeID) {
		if len(ids) < SeedsMax && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if g, ok := p.cfg.Acceptors.Group(p.group); ok {
		for _, m := range g.Config.Members {
			add(m.Node)
		}
	}
	voters := p.Voters()
	for _, id := range voters {
		add(id)
	}
	if len(voters) > 0 {
		return ids
	}
	for _, alive := range []bool{true, false} {
		for _, n := range p.State().Nodes {
			if p.alive(n.ID) == alive {
				add(n.ID)
			}
		}
	}
	return ids
}

// everybody is asked for the pool block when the seeds do not lead to it: its voters
// may all have been replaced.
func (p *Pool) everybody() (ids []ident.NodeID) {
	for _, n := range p.State().Nodes {
		ids = append(ids, n.ID)
	}
	return ids
}

// votes tells whether this node keeps a copy of the pool block.
func (p *Pool) votes() bool {
	_, ok := p.cfg.Acceptors.Group(p.group)
	return ok
}

// submitHere runs a command as the leader, becoming it if that is right.
func (p *Pool) submitHere(ctx context.Context, c Command) submitAnswer {
	l, other, err := p.leadOr(ctx)
	if err != nil {
		return submitAnswer{Why: err.Error()}
	}
	if l == nil {
		return submitAnswer{Leader: other, Why: "node " + p.self.Short() + " does not lead"}
	}
	version, err := l.apply(ctx, c)
	switch {
	case err == nil:
		return submitAnswer{Version: version}
	case final(err):
		e := &fault.Error{Kind: fault.KindOf(err)}
		errors.As(err, &e)
		text := e.Kind.String()
		if e.Err != nil {
			text = e.Err.Error()
		}
		return submitAnswer{Refusal: &refusal{Kind: e.Kind, Op: e.Op, Subject: e.Subject, Text: text}}
	}
	return submitAnswer{Why: err.Error(), Pending: fault.Is(err, fault.Indeterminate)}
}

// final tells whether an error is Apply's refusal, which no retry changes.
func final(err error) bool {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.Exists, fault.NotFound, fault.Conflict, fault.NoSpace:
		return true
	}
	return false
}

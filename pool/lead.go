package pool

import (
	"context"
	"slices"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
)

// leadership is this node's time as holder of the pool block, from opening it
// until a higher ballot or the end of the process. Commands are applied to next
// when they are proposed, and published when they are chosen.
type leadership struct {
	pool *Pool
	prop *quorum.Proposer

	mu      sync.Mutex
	next    *State     // with everything proposed
	pending []proposed // not yet chosen, by slot
	chosen  *State     // after slot upTo
	upTo    uint64
	since   int   // commands since the last checkpoint
	err     error // why it is over
}

type proposed struct {
	slot  uint64
	state *State // after this command
	done  chan struct{}
}

// leadOr returns this node's leadership, opening the pool block if this node is
// the right one to lead; otherwise other is. Unavailable, Busy: not now.
func (p *Pool) leadOr(ctx context.Context) (l *leadership, other ident.NodeID, err error) {
	select {
	case p.opening <- struct{}{}:
		defer func() { <-p.opening }()
	case <-ctx.Done():
		return nil, other, ctx.Err()
	}
	p.mu.Lock()
	l, ended := p.lead, p.ended
	p.mu.Unlock()
	if l != nil {
		return l, other, nil
	}
	if ended {
		return nil, other, fault.Newf(fault.Unavailable, "pool.lead", "", "this node is shutting down")
	}
	right, over, err := p.rightLeader(ctx)
	if err != nil || right != p.self {
		return nil, right, err
	}
	if !p.leaving(over.Node) {
		over = quorum.Ballot{}
	}
	l, err = p.open(ctx, over)
	return l, other, err
}

// open takes the pool block over, from the holder of ballot from even if it may be
// alive. The token of opening is held.
func (p *Pool) open(ctx context.Context, from quorum.Ballot) (*leadership, error) {
	ctx, cancel := context.WithTimeout(ctx, openMax)
	defer cancel()
	defer context.AfterFunc(p.quit, cancel)()
	l := &leadership{pool: p}
	prop, rec, err := quorum.Open(ctx, quorum.ProposerConfig{Group: p.group, Transport: p.cfg.Transport,
		Local: p.cfg.Acceptors, Self: p.self, Boot: p.cfg.Boot, Seeds: p.seeds(), Fallback: p.everybody(), AtLeast: p.atLeast.Load(), Over: from,
		OnProgress: l.progress, OnFenced: l.fenced, OnMembers: func() { wake(p.duties) }, Log: p.log})
	if err != nil {
		return nil, err
	}
	s, n, last, err := replay(rec)
	if err != nil {
		prop.Close()
		return nil, err
	}
	l.mu.Lock()
	l.prop, l.next, l.chosen, l.upTo, l.since = prop, s, s, last, n
	over := l.err // fenced before there was anything to close
	l.mu.Unlock()
	if over != nil {
		prop.Close()
		return nil, over
	}
	p.mu.Lock()
	p.lead, p.hint = l, p.self
	ended := p.ended
	p.mu.Unlock()
	if ended {
		l.end(fault.Newf(fault.Unavailable, "pool.lead", "", "this node is shutting down"))
	}
	if err := l.over(); err != nil { // fenced, maybe before it was p.lead
		p.mu.Lock()
		if p.lead == l {
			p.lead = nil
		}
		p.mu.Unlock()
		return nil, err
	}
	p.learnVoters(rec.Config)
	p.log.Info("leading the pool", "version", s.Version, "ballot", prop.Ballot().String())
	p.publish(s)
	wake(p.duties)
	return l, nil
}

// replay applies what the pool block holds: the state after slot last, n
// commands after the checkpoint.
func replay(rec *quorum.Recovered) (s *State, n int, last uint64, err error) {
	if s, err = DecodeState(rec.Checkpoint.Value); err != nil {
		return nil, 0, 0, err
	}
	last = rec.Checkpoint.UpTo
	for _, e := range rec.Entries {
		last = e.Slot
		if e.Kind != quorum.EntryData {
			continue
		}
		c, err := decodeCommand(e.Body)
		if err != nil {
			return nil, 0, 0, err
		}
		// Only accepted commands are proposed, on top of exactly this state.
		if err := Apply(s, c); err != nil {
			return nil, 0, 0, fault.Newf(fault.Corrupt, "pool.recover", "", "slot %d does not apply: %w", e.Slot, err)
		}
		n++
	}
	return s, n, last, nil
}

// over says why the leadership has ended; nil while it lasts.
func (l *leadership) over() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// apply has one command chosen and returns the version that has its effect.
// Kinds: Apply's refusals; Indeterminate (proposed, outcome unknown);
// Unavailable, Fenced (not proposed).
func (l *leadership) apply(ctx context.Context, c Command) (version uint64, err error) {
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return 0, l.err
	}
	version, refusal, err := l.propose(c)
	var last proposed
	if n := len(l.pending); n > 0 {
		// A refusal and a repeated command too rest on what was proposed before:
		// they are told when that is chosen.
		last = l.pending[n-1]
	}
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	l.prop.Kick()
	if last.done != nil {
		select {
		case <-last.done:
		case <-ctx.Done():
			return 0, fault.Newf(fault.Indeterminate, "pool.submit", "", "not chosen yet: %w", ctx.Err())
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.upTo < last.slot { // not by the version: a Refresh has none of its own
		return 0, fault.Newf(fault.Indeterminate, "pool.submit", "", "the leader was replaced before the command was chosen: %w", l.err)
	}
	return version, refusal
}

// propose applies c to next and proposes it. version is what must be chosen
// before the outcome may be told. l.mu is held.
func (l *leadership) propose(c Command) (version uint64, refusal, err error) {
	if len(l.pending) >= PendingMax {
		return 0, nil, fault.Newf(fault.Unavailable, "pool.submit", "", "%d commands wait for their majority", PendingMax)
	}
	s := l.next.Clone()
	if refusal := Apply(s, c); refusal != nil || s.Version == l.next.Version && !c.Refresh {
		return l.next.Version, refusal, nil
	}
	if n, was := len(EncodeState(s)), len(EncodeState(l.next)); n > stateBytesMax && n > was {
		refusal := fault.Newf(fault.NoSpace, "pool.submit", "", "the pool's state would have %d bytes of at most %d: delete volumes first", n, stateBytesMax)
		return l.next.Version, refusal, nil
	}
	slot, err := l.prop.Propose(quorum.EntryData, encodeCommand(c))
	if err != nil {
		return 0, nil, err
	}
	l.prop.Sync(slot)
	l.next = s
	l.pending = append(l.pending, proposed{slot: slot, state: s, done: make(chan struct{})})
	return s.Version, nil, nil
}

// progress is quorum's OnProgress: everything up to slot durable is chosen.
func (l *leadership) progress(_, durable uint64) {
	l.mu.Lock()
	var s *State
	n := 0
	for n < len(l.pending) && l.pending[n].slot <= durable {
		s, l.chosen, l.upTo = l.pending[n].state, l.pending[n].state, l.pending[n].slot
		close(l.pending[n].done)
		n++
	}
	l.pending = slices.Delete(l.pending, 0, n)
	l.since += n
	full := l.since >= CheckpointEvery
	l.mu.Unlock()
	if s != nil {
		l.pool.publish(s)
	}
	if full {
		wake(l.pool.duties)
	}
}

// checkpoint lets the log go when enough has come together.
func (l *leadership) checkpoint() {
	l.mu.Lock()
	s, upTo, due := l.chosen, l.upTo, l.since >= CheckpointEvery && l.err == nil
	if due {
		l.since = 0
	}
	l.mu.Unlock()
	if !due {
		return
	}
	if _, err := l.prop.Checkpoint(upTo, EncodeState(s)); err != nil {
		l.pool.log.Warn("pool block not checkpointed; the next commands try again", "err", err)
	}
}

func (l *leadership) fenced(by quorum.Ballot) {
	l.end(fault.Newf(fault.Fenced, "pool.lead", "", "node %s leads now", by.Node.Short()))
}

// end is the end of this leadership. Commands under way get an outcome of
// Indeterminate: another leader may still choose them.
func (l *leadership) end(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	if l.prop != nil {
		// Not here: this may be the proposer's own callback.
		l.pool.closing.Go(l.prop.Close)
	}
	for _, c := range l.pending {
		close(c.done)
	}
	l.pending = nil
	l.mu.Unlock()
	p := l.pool
	p.mu.Lock()
	if p.lead == l {
		p.lead = nil
	}
	if p.hint == p.self {
		p.hint = ident.NodeID{}
	}
	p.mu.Unlock()
	p.log.Info("not leading the pool any more", "err", err)
	wake(p.duties)
}

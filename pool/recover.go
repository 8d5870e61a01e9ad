package pool

import (
	"context"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/quorum"
)

// bound raises the version of the oldest configuration that may lead.
func (p *Pool) bound(version uint64) {
	for {
		old := p.atLeast.Load()
		if version <= old || p.atLeast.CompareAndSwap(old, version) {
			return
		}
	}
}

// Survivors lists the copies of the pool block that answer, the one to go on from
// first. Kinds as for quorum.Survivors.
func (p *Pool) Survivors(ctx context.Context) ([]quorum.Survivor, error) {
	return quorum.Survivors(ctx, p.cfg.Transport, p.everybody(), p.group)
}

// Recover gives the pool block, whose quorum is gone for good, a new configuration of
// survivors; see quorum.Recover. Afterwards this node or another of the voters
// leads, and a record of it is in the state.
func (p *Pool) Recover(ctx context.Context, from quorum.Member, voters []quorum.Member, a Audit) (quorum.Recovery, error) {
	r, err := quorum.Recover(ctx, p.cfg.Transport, p.everybody(), p.group, from, voters, p.cfg.Boot)
	if err != nil {
		return r, err
	}
	p.bound(r.Config.Version)
	p.learnVoters(r.Config)
	p.forget(p.Leader())
	a.Above = p.State().Version
	if err := p.Submit(ctx, Command{Audit: &a}); err != nil {
		return r, fault.Newf(fault.Indeterminate, "pool recover", p.State().Name, "the pool block is recovered, but nobody leads it yet: %w", err)
	}
	return r, nil
}

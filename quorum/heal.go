package quorum

import (
	"context"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// Heal writes what lives in a brick's journal before the position end once more,
// behind it, and trims the journal to there: a record before end was found damaged
// on the disk. This node's memory knows everything but the bodies of entries, so
// nothing is forgotten; a body whose record cannot be read is fetched from
// another member that took the same slot at the same ballot, which by the rules
// of Paxos is the same body. An error means that some entry exists nowhere in
// reach, or that the journal cannot be written: then the brick must not vote
// any more. Kinds: NotFound (no such brick), Corrupt, NoSpace, Unavailable.
func (a *Acceptors) Heal(ctx context.Context, id ident.BrickID, end int64) error {
	const op = "quorum.heal"
	a.mu.RLock()
	b := a.bricks[id]
	a.mu.RUnlock()
	if b == nil {
		return fault.Newf(fault.NotFound, op, id.String(), "the brick has no groups here")
	}
	if err := b.j.Write(); err != nil {
		return err
	}
	var groups []*group
	for _, g := range a.all() {
		if g.brick == b {
			groups = append(groups, g)
		}
	}
	for _, g := range groups {
		if err := g.healBelow(ctx, end); err != nil {
			return err
		}
	}
	if err := syncNow(b.j); err != nil {
		return err
	}
	_, next, _ := b.j.Live()
	floor := floorOf(groups, next)
	if floor < end {
		return fault.Newf(fault.Conflict, op, id.String(), "an entry at position %d did not move", floor)
	}
	return trim(b, groups, floor)
}

// healBelow moves the entries whose records lie before end.
func (g *group) healBelow(ctx context.Context, end int64) error {
	for {
		g.mu.Lock()
		entries := g.core.Below(end, fetchEntriesMax)
		over := g.dropped || len(entries) == 0
		g.mu.Unlock()
		if over {
			return nil
		}
		for _, w := range entries {
			err := g.move(w)
			if fault.Is(err, fault.Corrupt) || fault.Is(err, fault.Internal) {
				err = g.moveFrom(ctx, w)
			}
			if err != nil {
				return err
			}
		}
	}
}

// moveFrom is move with the body of another member.
func (g *group) moveFrom(ctx context.Context, w paxos.Where) error {
	body, err := g.bodyOf(ctx, w)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return nil
	}
	return g.core.Move(w, body, g)
}

// bodyOf fetches the body of an entry from any other member.
func (g *group) bodyOf(ctx context.Context, w paxos.Where) ([]byte, error) {
	g.mu.Lock()
	members := g.core.Config().Members
	g.mu.Unlock()
	for _, m := range members {
		if m.Brick == g.brick.id {
			continue
		}
		call := fetchCall{group: g.id, brick: m.Brick, from: w.Slot, to: w.Slot}
		var fs []fetched
		var err error
		if m.Node == g.a.cfg.Transport.Self() {
			_, fs, err = g.a.fetch(&call)
		} else {
			var reply []byte
			cctx, cancel := context.WithTimeout(ctx, askTimeout)
			if reply, err = g.a.cfg.Transport.Call(cctx, m.Node, typeFetch, appendFetch(nil, &call)); err == nil {
				_, fs, err = decodeFetchReply(reply)
			}
			cancel()
		}
		if err != nil || len(fs) == 0 {
			continue
		}
		f := &fs[0]
		if f.entry.Slot == w.Slot && f.ballot == w.Ballot && f.entry.Kind == w.Kind && len(f.entry.Body) == w.Body {
			return f.entry.Body, nil
		}
	}
	return nil, fault.Newf(fault.Corrupt, "quorum.heal", g.id.String(),
		"the record of slot %d is damaged, and no other member in reach has the entry", w.Slot)
}

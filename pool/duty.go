package pool

import (
	"context"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/placement"
)

// wantedLanes plans the lanes anew if the bricks have changed since the last
// plan; nil if they have not.
func wantedLanes(s *State, lanes int) *SetLanes {
	bricks := s.Bricks()
	if len(s.Lanes.Lanes) > 0 {
		lanes = len(s.Lanes.Lanes)
		if s.LanesFor == fingerprint(bricks) {
			return nil
		}
	}
	t := placement.Plan(s.Lanes, bricks, lanes, LaneWidthMax)
	if len(t.Lanes) == 0 || len(t.Lanes[0]) == 0 {
		return nil // no brick takes data
	}
	return &SetLanes{Base: s.Version, Lanes: t}
}

// dutyLoop does what the leader owes the pool whenever something changed. On
// failure it tries again later, as long as there is something to do.
func (p *Pool) dutyLoop(ctx context.Context) {
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	pause := dutyRetryMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.duties:
		case <-retry.C:
		}
		next, err := p.duty(ctx)
		if err == nil {
			pause = dutyRetryMin
			retry.Stop()
			if next > 0 {
				retry.Reset(next)
			}
			continue
		}
		p.log.Debug("the pool is not as it should be yet", "err", err)
		retry.Reset(pause)
		pause = min(2*pause, dutyRetryMax)
	}
}

// duty looks whether something is to do and does it if this node is the one to
// lead. Only voters look, and whoever leads: one of them will be the leader. next
// is when to look again without an event; 0 for not.
func (p *Pool) duty(ctx context.Context) (next time.Duration, err error) {
	g, ok := p.cfg.Acceptors.Group(p.group)
	p.mu.Lock()
	l := p.lead
	p.mu.Unlock()
	cfg := g.Config
	switch {
	case l != nil:
		l.checkpoint()
		cfg = l.prop.Members()
	case !ok:
		return 0, nil
	}
	s := p.State()
	standing, next := wantedStanding(s, p.absent, p.heardOf)
	if s.Version > 0 && standing == nil && wantedLanes(s, p.cfg.Lanes) == nil {
		if _, ok := nextVoter(s, cfg, p.alive); !ok {
			if l != nil {
				if err = p.recordVoters(ctx, l); err == nil {
					p.makeWay(l)
				}
			}
			return next, err
		}
	}
	l, _, err = p.leadOr(ctx)
	if err != nil || l == nil {
		return next, err // another node leads and sees the same
	}
	if err := p.keepStandings(ctx, l); err != nil {
		return next, err
	}
	if err := p.keepLanes(ctx, l); err != nil {
		return next, err
	}
	if err := p.keepVoters(ctx, l); err != nil {
		return next, err
	}
	if err := p.recordVoters(ctx, l); err != nil {
		return next, err
	}
	p.makeWay(l)
	return next, nil
}

// makeWay ends the leadership of a node that is leaving, once others can lead: it
// will be cut off, and must not be the only one to know the newest state then.
func (p *Pool) makeWay(l *leadership) {
	if p.leaving(p.self) && !p.heir(l.prop.Members()).IsZero() {
		l.end(fault.Newf(fault.Unavailable, "pool.lead", "", "this node is leaving the pool"))
	}
}

// absent tells for how long a node has been down, as far as this node has been
// there to see it.
func (p *Pool) absent(id ident.NodeID) time.Duration {
	if id == p.self || p.cfg.View.State(id) != overlay.Down {
		return 0
	}
	return min(p.cfg.View.Heard(id), time.Since(p.born))
}

// heardOf tells whether a node lives: unlike alive, whether it was heard.
func (p *Pool) heardOf(id ident.NodeID) bool {
	return id == p.self || p.cfg.View.State(id) == overlay.Alive
}

// keepStandings evicts who has been gone for too long and takes back who is
// heard again.
func (p *Pool) keepStandings(ctx context.Context, l *leadership) error {
	for {
		c, _ := wantedStanding(p.State(), p.absent, p.heardOf)
		if c == nil {
			return nil
		}
		c.When = time.Now().Unix()
		actx, cancel := context.WithTimeout(ctx, openMax)
		_, err := l.apply(actx, Command{ID: NewCommandID(), SetStanding: c})
		cancel()
		if err != nil {
			return err
		}
		p.log.Warn("a node's standing changed", "node", c.Node.Short(), "standing", c.Standing.text())
	}
}

func (p *Pool) keepLanes(ctx context.Context, l *leadership) error {
	want := wantedLanes(p.State(), p.cfg.Lanes)
	if want == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, openMax)
	defer cancel()
	_, err := l.apply(ctx, Command{ID: NewCommandID(), SetLanes: want})
	if err == nil {
		p.log.Info("lanes planned anew", "lanes", len(want.Lanes.Lanes), "width", len(want.Lanes.Lanes[0]))
	}
	return err
}

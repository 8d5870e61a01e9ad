package pool

import (
	"context"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Refresh returns when this node's State has every change whose Submit, on
// whatever node, had returned before Refresh was called. It costs a command that
// changes nothing. Kinds as for Submit; Unavailable also when the state did not arrive in time.
func (p *Pool) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, SubmitMax)
	defer cancel()
	c := Command{ID: NewCommandID(), Refresh: true}
	if err := p.Submit(ctx, c); err != nil {
		return err
	}
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if slices.Contains(p.State().Recent, c.ID) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.Newf(fault.Unavailable, "pool.refresh", "", "the newest state did not arrive here in time")
		}
	}
}

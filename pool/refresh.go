package pool

import (
	"context"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Refresh returns when this node's State has every change whose Submit, on
// whatever node, had returned before Refresh was called. The leader has an entry
// chosen for it that changes nothing; State stays the same where it was the newest,
// and no other node hears of it. Kinds: Unavailable (no leader was found in time, or
// the newest state did not arrive), Indeterminate (the leader's answer did not);
// either way State may be old, and calling it again is harmless.
func (p *Pool) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, SubmitMax)
	defer cancel()
	version, err := p.submit(ctx, Command{ID: NewCommandID(), Refresh: true})
	if err != nil {
		return err
	}
	if err := p.await(ctx, version); err != nil {
		return fault.Newf(fault.Unavailable, "pool.refresh", "", "the newest state did not arrive here in time: %w", err)
	}
	return nil
}

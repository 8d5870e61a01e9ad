package node

import (
	"context"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// Birth makes the volume d, whose voters it chooses: the birth of the map block
// at them, then the record that makes it a volume. A birth whose record fails
// leaves empty groups behind that nothing names, of some 200 bytes each.
func (c *Core) Birth(ctx context.Context, d pool.Volume) error {
	d.Voters = c.firstVoters(d)
	if len(d.Voters) == 0 {
		return fault.Newf(fault.Unavailable, "volume create", d.Name, "no node with a brick is in reach")
	}
	if err := c.Pool.Check(pool.CreateVolume(d)); err != nil {
		return err
	}
	cfg := quorum.Config{Version: 1, Members: d.Voters}
	value := blockdev.Birth(d.Size)
	for _, m := range d.Voters {
		if err := quorum.CreateOn(ctx, c.cfg.Transport, m.Node, ident.MapBlock(d.ID), cfg, value); err != nil {
			return err
		}
	}
	return c.Pool.Submit(ctx, pool.CreateVolume(d))
}

// firstVoters chooses the members of a new map block: this node if it has a
// brick, then the live nodes that rank highest for the volume.
func (c *Core) firstVoters(d pool.Volume) []quorum.Member {
	var live []overlay.Node
	for _, x := range c.View.Nodes() {
		if _, ok := blockdev.VoterBrick(x); ok && x.State == overlay.Alive && !x.Leaving && !x.Witness {
			live = append(live, x)
		}
	}
	var out []quorum.Member
	for _, x := range blockdev.RankNodes(d.ID, c.Self, live) {
		if len(out) == d.Replicas {
			break
		}
		brick, _ := blockdev.VoterBrick(x)
		out = append(out, quorum.Member{Node: x.ID, Brick: brick, Role: quorum.Voter})
	}
	return out
}

// Remove deletes the volume d. This node must get it first: only its holder
// knows for sure that nobody uses it. A volume that cannot be opened because it is
// damaged has no holder, and can be deleted too.
func (c *Core) Remove(ctx context.Context, d pool.Volume) error {
	_, err := c.Manager.Attach(ctx, d.Name, false)
	if blockdev.IsDamaged(err) {
		c.cfg.Log.Warn("a volume that cannot be opened any more is deleted", "volume", d.Name, "error", err)
		return c.Pool.Submit(ctx, pool.DeleteVolume(d.ID))
	}
	if err != nil {
		return err
	}
	if !c.Manager.Idle(d.ID) {
		return fault.Newf(fault.Busy, "volume delete", d.Name, "in use by %d client(s) on this node; disconnect them first", len(c.Manager.Clients(d.ID)))
	}
	return c.Pool.Submit(ctx, pool.DeleteVolume(d.ID))
}

package node

import (
	"context"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

const (
	// mendMax is how long one volume may hold up the mending of the others.
	mendMax = 15 * time.Second
	// mendPause is the time after which a failed mending is tried again.
	mendPause = 5 * time.Second
)

// mendUnheld attaches volumes that nobody holds and that have fewer voters than
// they want while there are nodes to add, or whose extents were not compared
// with the present lane table since this node started, or whose voters the catalog
// does not know. Attached, they mend themselves.
func (c *Core) mendUnheld() {
	if c.resigned.Load() {
		return
	}
	for _, d := range c.Pool.State().Volumes {
		version := c.View.TableVersion()
		if c.ctx.Err() != nil || !c.lacking(d, version) && !stranded(c.View, d) {
			continue
		}
		ctx, cancel := context.WithTimeout(c.ctx, mendMax)
		v, err := c.Manager.Attach(ctx, d.Name, false)
		if err == nil {
			err = v.WaitMaintained(ctx)
		}
		cancel()
		if err != nil {
			c.cfg.Log.Debug("a volume without a holder is not mended yet", "volume", d.Name, "error", err)
			time.AfterFunc(mendPause, c.wake)
			continue
		}
		c.mended[d.ID] = version
	}
}

// lacking tells whether a volume is to be mended by this node, a member of its map
// block. version is that of the lane table.
func (c *Core) lacking(d pool.Volume, version uint64) bool {
	g, ok := c.Acceptors.Group(ident.MapBlock(d.ID))
	return ok && lacking(c.View, d, g, c.mended[d.ID] == version)
}

// lacking tells whether the volume d, of whose map block this node has the copy g, is to
// be mended by it. compared: its extents were found where the lane table wants them.
func lacking(view overlay.View, d pool.Volume, g quorum.GroupInfo, compared bool) bool {
	written := g.UpTo > 0 || g.Last > 1
	whole := g.Config.Voters() >= min(d.Replicas, len(staying(view))) && (!written || compared)
	for _, m := range blockdev.MovesFor(d.ID, d.Replicas, view, g.Config) {
		whole = whole && m.Stuck
	}
	// Who moved the votes may not have lived to record them.
	whole = whole && !unrecorded(d, blockdev.VotingOf(g.Config))
	return !whole && responsible(view, g)
}

// staying are the live nodes that keep data and are not to leave, sorted by id.
func staying(view overlay.View) []ident.NodeID {
	var out []ident.NodeID
	for _, n := range view.Nodes() {
		if n.State == overlay.Alive && !n.Leaving && !n.Witness && len(n.Bricks) > 0 {
			out = append(out, n.ID)
		}
	}
	return out
}

// stranded tells whether all members of a volume's map block that live are leaving the
// pool, so that none of them may mend it, and this node is to: the first of those that
// stay.
func stranded(view overlay.View, d pool.Volume) bool {
	alive := false
	for _, id := range known(d) {
		if n, ok := view.Node(id); ok && n.State == overlay.Alive {
			if !n.Leaving {
				return false
			}
			alive = true
		}
	}
	stay := staying(view)
	return alive && len(stay) > 0 && stay[0] == view.Self()
}

// responsible picks one member to mend a volume: the one with the highest
// ballot if it lives, else the live one with the lowest id.
func responsible(view overlay.View, g quorum.GroupInfo) bool {
	var alive []ident.NodeID
	for _, m := range g.Config.Members {
		if n, ok := view.Node(m.Node); ok && n.State == overlay.Alive && !n.Leaving {
			alive = append(alive, m.Node)
		}
	}
	if slices.Contains(alive, g.Promised.Node) {
		return g.Promised.Node == view.Self()
	}
	return len(alive) > 0 && slices.MinFunc(alive, ident.NodeID.Compare) == view.Self()
}

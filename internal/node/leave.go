package node

import (
	"context"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
)

// follow takes over what the pool has decided about this node: one that is
// drained lets go of what it serves.
func (c *Core) follow(st *pool.State) {
	me, ok := st.Node(c.Self)
	if !ok {
		return
	}
	resign := me.Standing == pool.Draining || me.Standing == pool.Lost
	if c.resigned.Swap(resign) == resign {
		return
	}
	c.cfg.Log.Info("standing in the pool changed", "standing", string(me.Standing))
	c.spawn(func() { // one after the other, and each by the newest word
		c.resigning.Lock()
		defer c.resigning.Unlock()
		c.Manager.Resign(c.resigned.Load())
	})
}

// recordVoters tells the catalog who votes on the volumes that are held here, where
// that changed.
func (c *Core) recordVoters() {
	st := c.Pool.State()
	for id, now := range c.Manager.Voting() {
		d, ok := st.Volume(id)
		if !ok || !unrecorded(d, now) {
			continue
		}
		ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
		err := c.Pool.Submit(ctx, pool.Command{SetVoters: &pool.SetVoters{ID: id, Voters: now.Nodes, Version: now.Version}})
		cancel()
		if err != nil {
			c.cfg.Log.Debug("voters not recorded yet", "volume", d.Name, "error", err)
			time.AfterFunc(mendPause, c.wake)
		}
	}
}

// unrecorded tells whether the catalog names other voters than a newer configuration.
func unrecorded(d pool.Volume, now blockdev.Voting) bool {
	return d.VotersVersion < now.Version && !sameNodes(known(d), now.Nodes)
}

// known is who votes on a volume's map block as far as the catalog knows.
func known(d pool.Volume) []ident.NodeID {
	if len(d.Seeds) > 0 {
		return d.Seeds
	}
	var out []ident.NodeID
	for _, m := range d.Voters {
		out = append(out, m.Node)
	}
	return out
}

func sameNodes(a, b []ident.NodeID) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(n ident.NodeID) bool { return !slices.Contains(b, n) })
}

// alive tells whether a node of the pool is heard.
func (c *Core) alive(id ident.NodeID) bool { return c.View.State(id) == overlay.Alive }

package node

import (
	"slices"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
)

// allBricks are the bricks in use here, broken ones included.
func (c *Core) allBricks() []*brick.Brick {
	c.bricksMu.Lock()
	defer c.bricksMu.Unlock()
	return slices.Clone(c.bricks)
}

// takeBrick begins to use a brick. One whose journal is no base for votes is set
// aside, and keeps serving its extents.
func (c *Core) takeBrick(b *brick.Brick) error {
	err := c.Acceptors.AddBrick(b.ID(), quorum.JournalOf(b.Journal()), b.Stable())
	if fault.Is(err, fault.Corrupt) {
		b.SetAside(err) // what it has of extents is still good
	} else if err != nil {
		return err
	}
	if err := c.Extents.AddBrick(b); err != nil {
		return err
	}
	c.bricksMu.Lock()
	c.bricks = append(c.bricks, b)
	c.bricksMu.Unlock()
	return nil
}

// AddBrick begins to use a brick while the node runs. Its copies of groups may be left
// over, and so may extents of volumes that were deleted meanwhile: both are looked after
// as at a start. On error nothing of it is used.
func (c *Core) AddBrick(b *brick.Brick) error {
	if err := c.takeBrick(b); err != nil {
		c.RemoveBrick(b.ID())
		return err
	}
	c.Acceptors.Doubt(b.ID())
	c.startScrub(b)
	c.resweep.Store(true)
	c.wake()
	c.Reannounce()
	return nil
}

// RemoveBrick ends the use of a brick that is broken, so that it can be closed.
func (c *Core) RemoveBrick(id ident.BrickID) {
	c.Extents.SetBrickDown(id)
	c.Acceptors.RemoveBrick(id)
	c.bricksMu.Lock()
	c.bricks = slices.DeleteFunc(c.bricks, func(b *brick.Brick) bool { return b.ID() == id })
	c.bricksMu.Unlock()
	c.stopScrub(id)
}

package sim

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/pool"
)

// catalog stands for the pool block: one state for all nodes, changed by
// commands, or a refusal.
type catalog struct {
	mu     sync.Mutex
	state  atomic.Pointer[pool.State] // nil while it is the Cluster's State
	refuse error
}

// present is the pool's state as every node sees it that has no old copy.
func (c *Cluster) present() *pool.State {
	if s := c.catalog.state.Load(); s != nil {
		return s
	}
	return c.State
}

// Recall gives the node an old copy of the catalog, as one has that was away, until
// its manager asks for the newest; that is in vain while the pool is out of reach.
func (n *Node) Recall(s *pool.State, outOfReach bool) {
	n.old.Store(s)
	n.apart.Store(outOfReach)
}

func (n *Node) catalog() *pool.State {
	if s := n.old.Load(); s != nil {
		return s
	}
	return n.c.present()
}

func (n *Node) refresh(context.Context) error {
	if n.apart.Load() {
		return fault.Newf(fault.Unavailable, "sim.refresh", "", "the pool is out of reach")
	}
	n.old.Store(nil)
	return nil
}

// Refuse has the catalog answer every command with err, until it is nil again.
func (c *Cluster) Refuse(err error) {
	c.catalog.mu.Lock()
	defer c.catalog.mu.Unlock()
	c.catalog.refuse = err
}

func (c *Cluster) publish(_ context.Context, cmd pool.Command) error {
	c.catalog.mu.Lock()
	defer c.catalog.mu.Unlock()
	if c.catalog.refuse != nil {
		return c.catalog.refuse
	}
	s := c.present().Clone()
	if err := pool.Apply(s, cmd); err != nil {
		return err
	}
	c.catalog.state.Store(s)
	return nil
}

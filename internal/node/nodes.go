package node

import (
	"context"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
)

func (n *Node) nodeNamed(op, name string) (pool.NodeRecord, error) {
	for _, r := range n.Pool.State().Nodes {
		if r.Name == name || r.ID.String() == name {
			return r, nil
		}
	}
	return pool.NodeRecord{}, fault.Newf(fault.NotFound, op, name, "no such node; gabion status shows what there is")
}

// decide sets a node's standing.
func (n *Node) decide(ctx context.Context, r pool.NodeRecord, to pool.Standing) (*control.Node, error) {
	if r.Standing != to {
		c := &pool.SetStanding{Node: r.ID, From: r.Standing, Standing: to, When: time.Now().Unix()}
		if err := n.Pool.Submit(ctx, pool.Command{SetStanding: c}); err != nil {
			return nil, err
		}
	}
	return n.nodeNow(ctx, r.Name)
}

func (n *Node) nodeNow(ctx context.Context, name string) (*control.Node, error) {
	st, err := n.Status(ctx)
	if err != nil {
		return nil, err
	}
	for i := range st.Nodes {
		if st.Nodes[i].Name == name {
			return &st.Nodes[i], nil
		}
	}
	return nil, fault.Newf(fault.NotFound, "node", name, "it was removed meanwhile")
}

// DrainNode implements control.Daemon.
func (n *Node) DrainNode(ctx context.Context, name string) (*control.Node, error) {
	r, err := n.nodeNamed("node drain", name)
	if err != nil {
		return nil, err
	}
	if r.Standing == pool.Lost {
		return nil, fault.Newf(fault.Conflict, "node drain", name, "it was declared lost; remove it with: gabion node remove %s", name)
	}
	return n.decide(ctx, r, pool.Draining)
}

// UndrainNode implements control.Daemon.
func (n *Node) UndrainNode(ctx context.Context, name string) (*control.Node, error) {
	r, err := n.nodeNamed("node undrain", name)
	if err != nil {
		return nil, err
	}
	return n.decide(ctx, r, pool.Member)
}

// LoseNode implements control.Daemon.
func (n *Node) LoseNode(ctx context.Context, name string) (*control.Node, error) {
	r, err := n.nodeNamed("node lost", name)
	if err != nil {
		return nil, err
	}
	if n.alive(r.ID) {
		return nil, fault.Newf(fault.Conflict, "node lost", name, "it is alive; take it out with: gabion node drain %s", name)
	}
	return n.decide(ctx, r, pool.Lost)
}

// RemoveNode implements control.Daemon.
func (n *Node) RemoveNode(ctx context.Context, name string) error {
	r, err := n.nodeNamed("node remove", name)
	if err != nil {
		return err
	}
	now, err := n.nodeNow(ctx, r.Name)
	if err != nil {
		return err
	}
	switch {
	case r.Standing == pool.Member || r.Standing == pool.Evicted:
		return fault.Newf(fault.Conflict, "node remove", name,
			"it is a member of the pool: empty it first with: gabion node drain %s; or if it is gone for good: gabion node lost %s", name, name)
	case !now.SafeToRemove:
		why := now.Blocked
		if why == "" {
			why = "votes and data are still moving away; gabion node drain " + name + " waits for that"
		}
		return fault.Newf(fault.Conflict, "node remove", name, "%d votes, %d lanes and %d bytes are still on it: %s", now.Votes, now.Lanes, now.DataBytes, why)
	}
	return n.Pool.Submit(ctx, pool.Command{RemoveNode: &pool.RemoveNode{Node: r.ID}})
}

// leaving tells what a node still holds. stored is what it says of its bricks;
// it counts only while it answers.
func (n *Node) leaving(st *pool.State, r pool.NodeRecord, stored int64) control.Leaving {
	l := control.Leaving{Standing: string(r.Standing), SinceUnixSeconds: r.Since, DataBytes: stored}
	for _, d := range st.Volumes {
		if slices.Contains(known(d), r.ID) {
			l.Votes++
		}
	}
	voters := st.Voters
	if len(voters) == 0 {
		voters = n.Pool.Voters()
	}
	if slices.Contains(voters, r.ID) {
		l.Votes++
	}
	for _, lane := range st.Lanes.Lanes {
		if slices.ContainsFunc(lane, func(b overlay.BrickRef) bool { return b.Node == r.ID }) {
			l.Lanes++
		}
	}
	if r.Leaving() {
		l.SafeToRemove = r.Standing != pool.Evicted && l.Votes == 0 && l.Lanes == 0 && l.DataBytes == 0
		if !l.SafeToRemove {
			l.Blocked = st.Blocked()
		}
	}
	return l
}

// Policy implements control.Daemon.
func (n *Node) Policy(context.Context) (*control.Policy, error) {
	p := n.Pool.State().Policy
	out := &control.Policy{EvictAfterSeconds: -1, RepairPaused: p.RepairPaused, RepairBytesPerSecond: p.RepairBytesPerSecond}
	if after, ever := p.EvictAfter(); ever {
		out.EvictAfterSeconds = int64(after / time.Second)
	}
	return out, nil
}

// SetPolicy implements control.Daemon.
func (n *Node) SetPolicy(ctx context.Context, c control.PolicyChange) (*control.Policy, error) {
	p := n.Pool.State().Policy
	if c.EvictAfterSeconds != nil {
		p.EvictAfterSeconds = *c.EvictAfterSeconds
	}
	if c.RepairPaused != nil {
		p.RepairPaused = *c.RepairPaused
	}
	if c.RepairBytesPerSecond != nil {
		p.RepairBytesPerSecond = *c.RepairBytesPerSecond
	}
	if err := n.Pool.Submit(ctx, pool.Command{SetPolicy: &p}); err != nil {
		return nil, err
	}
	return n.Policy(ctx)
}

// storedBy sums what a node's bricks store, by its own word.
func storedBy(s *control.NodeStatus) (sum int64) {
	for _, b := range s.Bricks {
		sum += b.UsedBytes
	}
	return sum
}

package sim

import (
	"context"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// TestThoseGivenUpOpenNothing takes two of three voters away for good, goes on with
// the third by force, and lets the two come back without it: they are a majority of
// the only configuration that they know, and what they have is old. They serve it to
// nobody, whether the pool tells them so or they cannot ask it, and with the third in
// reach what it has.
func TestThoseGivenUpOpenNothing(t *testing.T) {
	t.Parallel()
	t.Run("told by the pool", func(t *testing.T) { givenUp(t, false) })
	t.Run("alone", func(t *testing.T) { givenUp(t, true) })
}

func givenUp(t *testing.T, alone bool) {
	t.Parallel()
	ctx, c := start(t, 1)
	a, b, survivor := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	s, _ := open(t, ctx, a)
	mustPut(t, s, 0, 1, true)
	before := c.present()
	group := ident.MapBlock(before.Volumes[0].ID)
	// Two of three are enough for an answer; the one that is to go on must have it too.
	last := func(n *Node) uint64 { g, _ := n.Acc.Group(group); return g.Last }
	for end := time.Now().Add(patience); last(survivor) < last(a); pause(ctx, time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the third has %d slots of %d", last(survivor), last(a))
		}
	}
	a.Kill(true)
	b.Kill(true)

	third := quorum.Member{Node: survivor.ID, Brick: survivor.Brick(), Role: quorum.Voter}
	rctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := quorum.Recover(rctx, survivor.link, []ident.NodeID{survivor.ID}, group, third, []quorum.Member{third}, survivor.boot)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.publish(ctx, pool.Command{ID: pool.NewCommandID(), SetVoters: &pool.SetVoters{
		ID: before.Volumes[0].ID, Voters: []ident.NodeID{survivor.ID}, Version: r.Config.Version}}); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, ctx, survivor)
	mustHave(t, ctx, s, 0, 1)
	mustPut(t, s, 0, 2, true)
	s.Close()

	c.Net.Isolate(survivor.ID)
	for _, n := range []*Node{a, b} {
		n.Recall(before, alone)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	octx, cancel := context.WithTimeout(ctx, 10*leaseDuration)
	defer cancel()
	if _, _, err := a.Manager.Open(octx, "v", "test"); !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Timeout) {
		t.Fatalf("two that were given up serve the volume: %v", err)
	}
	c.Net.Rejoin(survivor.ID)
	a.Recall(before, false)
	s, _ = open(t, ctx, a)
	mustHave(t, ctx, s, 0, 2)
}

// TestHolderEndsWhenItsVotersAreGivenUp goes on by force with a volume that has a
// holder, which waits for its voters. They may come back and would say yes to all that
// it does, so it ends when it hears of the recovery, whoever else it hears.
func TestHolderEndsWhenItsVotersAreGivenUp(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, 1)
	a, b, survivor := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	s, gone := open(t, ctx, a)
	mustPut(t, s, 0, 1, true)
	d := c.present().Volumes[0]
	c.Net.Isolate(a.ID)
	b.Kill(true)
	third := quorum.Member{Node: survivor.ID, Brick: survivor.Brick(), Role: quorum.Voter}
	rctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := quorum.Recover(rctx, survivor.link, []ident.NodeID{survivor.ID}, ident.MapBlock(d.ID), third, []quorum.Member{third}, survivor.boot)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.publish(ctx, pool.Command{ID: pool.NewCommandID(), SetVoters: &pool.SetVoters{
		ID: d.ID, Voters: []ident.NodeID{survivor.ID}, Version: r.Config.Version}}); err != nil {
		t.Fatal(err)
	}
	a.Manager.Sync(c.present())
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the holder goes on")
	}
}

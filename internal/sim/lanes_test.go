package sim

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// complete is a pool of four nodes, the first of which holds a volume with all its copies.
func complete(t *testing.T, ctx context.Context, replicas int) (*Cluster, *blockdev.Volume) {
	t.Helper()
	c, err := New(1, 4, slog.New(slog.DiscardHandler), func(cfg *blockdev.Config) {
		cfg.CheckpointBytes, cfg.TailBytes, cfg.CheckpointIdle = 1<<20, 4<<20, time.Hour
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if _, err := c.CreateVolume(ctx, "v", 1<<20, replicas); err != nil {
		t.Fatal(err)
	}
	s, _ := open(t, ctx, c.Nodes[0])
	t.Cleanup(s.Close)
	write(t, s)
	if _, err := c.Nodes[0].Manager.CreateSnapshot(ctx, "v", "s"); err != nil { // which folds the log
		t.Fatal(err)
	}
	v, err := c.Nodes[0].Manager.Attach(ctx, "v", false)
	if err != nil {
		t.Fatal(err)
	}
	soon(t, ctx, "all copies are there", func() bool { return v.WaitMaintained(ctx) == nil && v.Status().Present == replicas })
	return c, v
}

// TestSurplusOfABrickThatWasAway: a node that holds nothing any more, by a new lane table, is out
// of reach when the others drop what is left over. It drops its own when it is back, or a drain of it would never end.
func TestSurplusOfABrickThatWasAway(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	c, v := complete(t, ctx, 2)
	away := c.Nodes[3]
	if len(away.brick.ListVolume(v.ID())) == 0 {
		t.Fatal("the node has nothing to lose")
	}

	st := c.State.Clone()
	st.Version++
	st.Lanes.Lanes = slices.Clone(st.Lanes.Lanes)
	for i, lane := range st.Lanes.Lanes {
		st.Lanes.Lanes[i] = slices.DeleteFunc(slices.Clone(lane), func(b overlay.BrickRef) bool { return b.Node == away.ID })
	}
	c.State = st
	c.Net.Isolate(away.ID)
	soon(t, ctx, "it is missed", func() bool { return c.Nodes[0].View.State(away.ID) != overlay.Alive })
	for _, n := range c.Nodes {
		n.View.SetTable(st.Version, st.OverlayNodes(), st.Lanes.Lanes)
	}
	soon(t, ctx, "the others have all copies", func() bool { return v.WaitMaintained(ctx) == nil && v.Status().Present == 2 })
	c.Net.Rejoin(away.ID)
	soon(t, ctx, "nothing is left on it", func() bool { return len(away.brick.ListVolume(v.ID())) == 0 })
}

// TestPitfallSurplusWhileLanesMove: a new lane table moves a part of every lane to another brick.
// No copy is missing at any time, and the holder never says so; at the end the copies are
// where they should be, and nowhere else. A node that dies meanwhile is a copy less.
func TestPitfallSurplusWhileLanesMove(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	c, v := complete(t, ctx, 3)

	st := c.State.Clone()
	st.Version++
	st.Lanes.Lanes = slices.Clone(st.Lanes.Lanes)
	for i, lane := range st.Lanes.Lanes {
		lane = slices.Clone(lane)
		for _, n := range c.Nodes {
			in := func(b overlay.BrickRef) bool { return b.Node == n.ID }
			if !slices.ContainsFunc(lane, in) {
				lane[i%3] = overlay.BrickRef{Node: n.ID, Brick: n.Brick()}
				break
			}
		}
		st.Lanes.Lanes[i] = lane
	}
	c.State = st
	repaired := v.Stats().Repaired.Load()
	for _, n := range c.Nodes {
		n.View.SetTable(st.Version, st.OverlayNodes(), st.Lanes.Lanes)
	}
	// A busy machine may take a node for dead for a moment.
	healthy := func() bool {
		for _, n := range c.Nodes {
			if c.Nodes[0].View.State(n.ID) != overlay.Alive {
				return false
			}
		}
		return !slices.ContainsFunc(v.Members().Status, func(m quorum.MemberStatus) bool {
			return m.State != "ok" && m.Member.Node != c.Nodes[0].ID
		})
	}
	looks := 0
	done := make(chan error, 1)
	go func() { done <- v.WaitMaintained(ctx) }()
	for moving := true; moving; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			moving = false
		default:
		}
		before := healthy()
		x := v.Status()
		if before && healthy() && (x.Present != 3 || !x.Sure) {
			t.Fatalf("%d of 3 copies (sure: %v) while lanes move and nothing is missing", x.Present, x.Sure)
		}
		looks++
		pause(ctx, time.Millisecond)
	}
	if looks == 0 {
		t.Fatal("it was over before it was looked at")
	}
	if v.Stats().Repaired.Load() == repaired {
		t.Fatal("nothing was moved")
	}
	soon(t, ctx, "no brick keeps what others are to hold", func() bool {
		for _, n := range c.Nodes {
			for _, r := range n.brick.ListVolume(v.ID()) {
				if !slices.Contains(n.Store.Holders(r.Addr, 3), overlay.BrickRef{Node: n.ID, Brick: n.Brick()}) {
					return false
				}
			}
		}
		return true
	})
	c.Nodes[3].Kill(true)
	soon(t, ctx, "a dead node's copies are missed", func() bool { return v.Status().Present == 2 })
}

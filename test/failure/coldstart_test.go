package failure

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/ledger"
)

// A pool of which every node was killed comes back in any order of starts,
// with what was durable, and with no human step.
func TestColdStart(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M")
	plan := ledger.Plan{Blocks: 2048, Seed: 5}
	state := &ledger.State{Seen: make([]ledger.Seq, plan.Blocks)}
	orders := [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {2, 0, 1}}
	for i, order := range orders {
		round := uint32(i + 1)
		holder := c.Nodes[i%3]
		client := holder.Dial(t, "v")
		l := ledger.Load{Plan: plan, Disk: client, Round: round, Depth: 8, FlushEvery: 32, Max: 1500}
		r, err := l.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		client.Close()
		for _, n := range c.Nodes {
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		nodes := []*cluster.Node{c.Nodes[order[0]], c.Nodes[order[1]], c.Nodes[order[2]]}
		if i == 1 {
			oneAloneWaits(t, nodes[0])
		}
		startAll(t, nodes)
		next := c.Nodes[(i+1)%3]
		client = next.Dial(t, "v") // an ordinary attach: nobody lives who could hold it
		if err := plan.Verify(client, state, round, r.Durable); err != nil {
			t.Fatalf("order %v: %v", order, err)
		}
		client.Close()
		if _, err := next.Await(redundancyTimeout, cluster.Redundant("v")); err != nil {
			t.Fatal(err)
		}
		t.Logf("started in order %v: %d writes verified", order, r.Durable)
	}
}

// oneAloneWaits starts one node of three: it must live, say that it is alone,
// and wait for the others for as long as it takes.
func oneAloneWaits(t *testing.T, n *cluster.Node) {
	t.Helper()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	_, err := n.Await(20*time.Second, func(s *control.Status) error {
		for _, x := range s.Nodes {
			if x.Name != n.Name && x.State == "alive" {
				return errors.New(x.Name + " counts as alive")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
}

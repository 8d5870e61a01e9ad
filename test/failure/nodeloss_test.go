// Package failure has the rigs that kill, freeze and restart nodes under load.
package failure

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/postgres"
)

// pauseMax is how long the loss of a node that does not hold the volume may
// hold up a commit.
const pauseMax = 3 * time.Second

// redundancyTimeout bounds the wait for all copies after a node came back.
const redundancyTimeout = 60 * time.Second

// notAlive is a condition: the pool has noticed that the node is gone.
func notAlive(name string) func(*control.Status) error {
	return func(s *control.Status) error {
		for _, n := range s.Nodes {
			if n.Name == name && n.State == "alive" {
				return errors.New(name + " still counts as alive")
			}
		}
		return nil
	}
}

// PostgreSQL works on a volume with three copies while each node that does not
// hold it is killed and brought back, then the holder itself is killed and
// another node goes on: no error, no long pause, no acknowledged commit lost.
func TestNodeLoss(t *testing.T) {
	cluster.Need(t, true, postgres.Commands()...)
	c := cluster.New(t, 3)
	holder := c.Nodes[0]
	c.CreateVolume(t, holder, "pg", "2G", "--replicas", "3")

	first := filepath.Join(c.Dir, "a")
	m := postgres.Attach(t, holder.Info.NBD, "pg", first, true)
	db := postgres.NewServer(t, m, first)
	if err := db.Init(); err != nil {
		t.Fatal(err)
	}
	if err := db.Start(); err != nil {
		t.Fatal(err)
	}
	bench, err := db.StartBench(2, 2)
	if err != nil {
		t.Fatal(err)
	}
	commits, err := db.StartCommits()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Holder(t, holder, "pg"); got != holder {
		t.Fatalf("the volume is held by %s, not by the node that exports it", got.Name)
	}
	for _, n := range c.Others(holder) {
		loseAndReturn(t, c, holder, n, commits)
	}
	if err := bench.Stop(); err != nil {
		t.Error(err)
	}
	_, pause, err := commits.Acked()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("longest commit while other nodes died and returned: %v", pause.Round(time.Millisecond))
	if pause > pauseMax {
		t.Errorf("a commit took %v, more than %v", pause, pauseMax)
	}

	if err := holder.Kill(); err != nil {
		t.Fatal(err)
	}
	// The database dies with its disk; what counts is what it had answered.
	for commits.More(1) == nil {
	}
	acked, _, err := commits.Acked()
	t.Logf("%d commits acknowledged, then: %v", acked, err)
	db.Kill()
	m.Drop()

	next := c.Nodes[1]
	next.Takeover(t, "pg")
	second := filepath.Join(c.Dir, "b")
	m = postgres.Attach(t, next.Info.NBD, "pg", second, false)
	db = postgres.NewServer(t, m, second)
	if err := db.Start(); err != nil {
		t.Fatal(err)
	}
	if err := db.Missing(acked); err != nil {
		t.Error(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Await(redundancyTimeout, cluster.Redundant("pg")); err != nil {
		t.Error(err)
	}
	if err := db.Check(); err != nil {
		t.Error(err)
	}
	if err := m.Fsck(); err != nil {
		t.Error(err)
	}
}

// loseAndReturn kills n under load, lets the pool notice and work on without
// it, and brings it back until the volume has all its copies again.
func loseAndReturn(t *testing.T, c *cluster.Cluster, holder, n *cluster.Node, commits *postgres.Commits) {
	t.Helper()
	if err := commits.More(100); err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := commits.More(100); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Await(20*time.Second, notAlive(n.Name)); err != nil {
		t.Fatal(err)
	}
	if s, err := holder.Status(); err != nil {
		t.Fatal(err)
	} else if err := cluster.Redundant("pg")(s); err == nil {
		t.Errorf("%s is gone and the volume still claims all its copies", n.Name)
	}
	if err := commits.More(100); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Await(redundancyTimeout, cluster.Redundant("pg")); err != nil {
		t.Fatal(err)
	}
	if err := commits.More(100); err != nil {
		t.Fatal(err)
	}
	_, pause, _ := commits.Acked()
	t.Logf("%s died and returned; longest commit so far %v", n.Name, pause.Round(time.Millisecond))
}

package failure

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
)

// A brick was set aside because of something that was not its disk's fault. An
// operator readmits it, and the node, which serves a client all the time, uses it
// again: its copies are completed and it votes.
func TestBrickIsReadmittedLive(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M", "--replicas", "3")
	b := newBook("v")
	b.write(t, c.Nodes[0], 1000)
	b.verify(t, c.Nodes[0])
	n := c.Nodes[2]
	evenly(t, n, "v")
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	stable := filepath.Join(n.Dir, "brick", "stable.db")
	good, err := os.ReadFile(stable)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(stable, 4096), n.Start()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Await(20*time.Second, brickIs(n.Name, "aside")); err != nil {
		t.Fatal(err)
	}
	if r := n.CLI("brick", "readmit", filepath.Dir(stable)); r.Code == 0 {
		t.Fatal("a brick that is still damaged was readmitted")
	}
	b.write(t, c.Nodes[0], 1000) // it misses these
	if err := os.WriteFile(stable, good, 0o600); err != nil {
		t.Fatal(err)
	}
	pid := n.PID()
	if out, err := n.Do("brick", "readmit", filepath.Dir(stable)); err != nil {
		t.Fatal(err, out)
	}
	for _, via := range c.Nodes {
		if _, err := via.Await(redundancyTimeout, both(brickIs(n.Name, "ok"), cluster.Redundant("v"))); err != nil {
			t.Fatal(err)
		}
	}
	if n.PID() != pid || !n.Alive() {
		t.Fatal("the node did not go on")
	}
	// What it holds counts: with one of the others gone, it makes the majority.
	evenly(t, n, "v")
	if err := c.Nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	b.verify(t, n) // the second round, and what of the first is left
	b.write(t, n, 500)
	b.verify(t, n)
}

// brickIs is a condition: the one brick of a node is in a state.
func brickIs(node, state string) func(*control.Status) error {
	return func(s *control.Status) error {
		for _, b := range s.Bricks {
			if b.Node == node && b.State != state {
				return fmt.Errorf("brick %s of %s is %s: %s", b.ID.Short(), node, b.State, b.Reason)
			}
			if b.Node == node {
				return nil
			}
		}
		return errors.New(node + " has no brick")
	}
}

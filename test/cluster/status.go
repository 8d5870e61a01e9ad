package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
)

// Volume finds a volume in a status.
func Volume(s *control.Status, name string) (control.Volume, error) {
	for _, v := range s.Volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return control.Volume{}, fmt.Errorf("no volume %s in the status", name)
}

// Used is what all bricks together store, in bytes.
func Used(s *control.Status) (sum int64) {
	for _, b := range s.Bricks {
		sum += b.UsedBytes
	}
	return sum
}

// Control talks to the node as the command line does, without its process.
func (n *Node) Control() *control.Client { return control.NewClient(n.Dir) }

// Status asks the node.
func (n *Node) Status() (*control.Status, error) {
	c := n.Control()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	return c.Status(ctx)
}

// Await polls the node's status until ok returns nil, and returns it. There
// is nothing to wait on but the status itself: it is what an operator watches.
func (n *Node) Await(timeout time.Duration, ok func(*control.Status) error) (*control.Status, error) {
	for end := time.Now().Add(timeout); ; {
		s, err := n.Status()
		if err == nil {
			if err = ok(s); err == nil {
				return s, nil
			}
		}
		if time.Now().After(end) {
			b, _ := json.Marshal(s)
			return nil, fmt.Errorf("after %v: %w; status %s", timeout, err, b)
		}
		time.Sleep(5 * pollInterval)
	}
}

// Redundant is a condition for Await: the volumes have every copy they want.
func Redundant(volumes ...string) func(*control.Status) error {
	return func(s *control.Status) error {
		for _, name := range volumes {
			v, err := Volume(s, name)
			if err != nil {
				return err
			}
			if v.ReplicasPresent < v.ReplicasWanted || v.Health != control.HealthOK {
				return fmt.Errorf("volume %s has %d of %d copies, health %s",
					name, v.ReplicasPresent, v.ReplicasWanted, v.HealthText())
			}
		}
		return nil
	}
}

// Members is a condition for Await: n nodes, all of them alive.
func Members(n int) func(*control.Status) error {
	return func(s *control.Status) error {
		alive := 0
		for _, x := range s.Nodes {
			if x.State == "alive" {
				alive++
			}
		}
		if len(s.Nodes) != n || alive != n || len(s.Unreachable) > 0 {
			return fmt.Errorf("%d nodes, %d alive, want %d", len(s.Nodes), alive, n)
		}
		return nil
	}
}

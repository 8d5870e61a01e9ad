package cluster

import (
	"encoding/json"
	"fmt"
	"time"
)

// Status is what gabion status --json prints, as far as the rigs look at it.
type Status struct {
	Nodes       []NodeStatus   `json:"nodes"`
	Bricks      []BrickStatus  `json:"bricks"`
	Volumes     []VolumeStatus `json:"volumes"`
	Unreachable []string       `json:"unreachable"`
}

type NodeStatus struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Addr  string `json:"addr"`
	State string `json:"state"`
}

// BrickStatus counts in bytes.
type BrickStatus struct {
	Node  string `json:"node"`
	Brick string `json:"brick"`
	Used  int64  `json:"used"`
	Free  int64  `json:"free"`
	Total int64  `json:"total"`
	State string `json:"state"`
}

// VolumeStatus counts in bytes.
type VolumeStatus struct {
	Name            string `json:"name"`
	Size            int64  `json:"size"`
	Used            int64  `json:"used"`
	ReplicasWanted  int    `json:"replicas_wanted"`
	ReplicasPresent int    `json:"replicas_present"`
	Holder          string `json:"holder"`
	Epoch           uint64 `json:"epoch"`
	Health          string `json:"health"`
}

// Volume finds a volume by name.
func (s *Status) Volume(name string) (VolumeStatus, bool) {
	for _, v := range s.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return VolumeStatus{}, false
}

// Used is the sum over all bricks, in bytes.
func (s *Status) Used() (sum int64) {
	for _, b := range s.Bricks {
		sum += b.Used
	}
	return sum
}

// Status asks the node.
func (n *Node) Status() (*Status, error) {
	out, err := n.Do("status", "--json")
	if err != nil {
		return nil, err
	}
	var s Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, fmt.Errorf("status of %s: %w: %s", n.Name, err, out)
	}
	return &s, nil
}

// Await polls the node's status until ok returns nil, and returns it. There
// is nothing to wait on but the status itself: it is what an operator watches.
func (n *Node) Await(timeout time.Duration, ok func(*Status) error) (*Status, error) {
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

// Redundant is a condition for Await: all named volumes have every copy they want.
func Redundant(volumes ...string) func(*Status) error {
	return func(s *Status) error {
		for _, name := range volumes {
			v, ok := s.Volume(name)
			if !ok {
				return fmt.Errorf("no volume %s", name)
			}
			if v.ReplicasPresent < v.ReplicasWanted || v.Health != "ok" {
				return fmt.Errorf("volume %s has %d of %d copies, health %q",
					name, v.ReplicasPresent, v.ReplicasWanted, v.Health)
			}
		}
		return nil
	}
}

// Members is a condition for Await: n nodes, all of them alive.
func Members(n int) func(*Status) error {
	return func(s *Status) error {
		alive := 0
		for _, x := range s.Nodes {
			if x.State == "alive" {
				alive++
			}
		}
		if len(s.Nodes) != n || alive != n {
			return fmt.Errorf("%d nodes, %d alive, want %d", len(s.Nodes), alive, n)
		}
		return nil
	}
}

package partition

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// Two of five nodes die at once. A volume that keeps two of its three voters goes
// on by itself; one that keeps a single voter waits for one of the dead and then
// goes on. No write that was answered is lost either way.
func TestTwoOfFiveNodesDie(t *testing.T) {
	c := pool(t, 5)
	names := []string{"a", "b", "c"}
	for _, name := range names {
		c.CreateVolume(t, c.Nodes[0], name, "64M", "--replicas", "3")
	}
	voters := map[string]map[*cluster.Node]bool{}
	for _, name := range names {
		voters[name] = votersOf(t, c, name)
	}
	// A holder that is a voter of the first volume, and a node that is none of it:
	// that one must be taken over.
	var dead []*cluster.Node
	for _, is := range []bool{true, false} {
		for _, n := range c.Nodes[1:] {
			if voters["a"][n] == is {
				dead = append(dead, n)
				break
			}
		}
	}
	if len(dead) != 2 {
		t.Fatalf("volume a has the voters %v", voters["a"])
	}
	first := []*cluster.Node{dead[0], c.Nodes[0], dead[1]}
	var all []*attached
	for i, name := range names {
		nodes := append([]*cluster.Node{first[i]}, c.Others(first[i])...)
		all = append(all, attach(t, c, name, byte(10+i), nodes...))
	}
	for _, a := range all {
		a.reset()
	}
	for _, n := range dead {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	var table []string
	row := func(i int, left int, note string) {
		pause := all[i].more(t, 50)
		if pause > movesMax {
			t.Errorf("volume %s: a write took %v", names[i], pause)
		}
		table = append(table, fmt.Sprintf("| %d of 3 | %s | %v | %s |", left, first[i].Name, pause.Round(10*time.Millisecond), note))
	}
	var wait []int
	for i, name := range names {
		left := 3
		for _, n := range dead {
			if voters[name][n] {
				left--
			}
		}
		if left < 2 {
			wait = append(wait, i)
			continue
		}
		row(i, left, "goes on without them")
	}
	for _, n := range dead {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range wait {
		row(i, 1, "goes on when they are back")
	}
	if _, err := c.Nodes[0].Await(patience, cluster.Redundant(names...)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s and %s of five killed at once\n| voters left | first served by | a write waited | |\n|---|---|---:|---|\n%s",
		dead[0].Name, dead[1].Name, strings.Join(table, "\n"))
	for _, a := range all {
		a.finish(t)
	}
}

// votersOf asks which nodes vote on a volume.
func votersOf(t *testing.T, c *cluster.Cluster, volume string) map[*cluster.Node]bool {
	t.Helper()
	ctl := c.Nodes[0].Control()
	defer ctl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := ctl.ExplainVolume(ctx, volume)
	if err != nil {
		t.Fatal(err)
	}
	voters := map[*cluster.Node]bool{}
	for _, m := range e.Members {
		if n := c.Node(m.Node); n != nil && m.Role == "voter" {
			voters[n] = true
		}
	}
	if len(voters) != 3 {
		t.Fatalf("volume %s has the members %+v", volume, e.Members)
	}
	return voters
}

package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/nbdclient"
)

// TakeoverMax is what gabion promises for taking a volume from a dead or
// cut-off writer.
const TakeoverMax = 5 * time.Second

// Attach makes n the holder of the volume and returns how long that took.
func (n *Node) Attach(volume string, takeover bool) (time.Duration, error) {
	args := []string{"volume", "attach", volume}
	if takeover {
		args = append(args, "--takeover")
	}
	began := time.Now()
	_, err := n.Do(args...)
	return time.Since(began), err
}

// Takeover is Attach by force that fails the test when it fails or is slow.
func (n *Node) Takeover(t testing.TB, volume string) {
	t.Helper()
	took, err := n.Attach(volume, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s took %s over in %v", n.Name, volume, took.Round(time.Millisecond))
	if took > TakeoverMax {
		t.Errorf("takeover of %s took %v, more than %v", volume, took, TakeoverMax)
	}
}

// Dial opens the volume as an NBD client of n; it is closed with the test.
func (n *Node) Dial(t testing.TB, volume string) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.Dial(n.Info.NBD, volume)
	if err != nil {
		t.Fatalf("export %s on %s: %v", volume, n.Name, err)
	}
	t.Cleanup(c.Abort)
	return c
}

// Holder is the node that the pool says holds the volume.
func (c *Cluster) Holder(t testing.TB, via *Node, volume string) *Node {
	t.Helper()
	s, err := via.Status()
	if err != nil {
		t.Fatal(err)
	}
	v, err := Volume(s, volume)
	if err != nil {
		t.Fatal(err)
	}
	n := c.Node(v.Holder)
	if n == nil {
		t.Fatal(fmt.Errorf("volume %s is held by %q, not a node of this pool", volume, v.Holder))
	}
	return n
}

// Others are the nodes beside n.
func (c *Cluster) Others(n *Node) []*Node {
	var all []*Node
	for _, x := range c.Nodes {
		if x != n {
			all = append(all, x)
		}
	}
	return all
}

package sim

import (
	"testing"

	"github.com/gabion-storage/gabion/pool"
)

// A node that hears of a volume's growth only while it attaches the volume serves
// all of it: a client that was sent away to be told the new size must find it.
func TestGrowthIsNotMissedWhileAttaching(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, 1)
	a := c.Nodes[0]
	before := c.present()
	v := before.Volumes[0]
	if err := c.publish(ctx, pool.Command{ID: pool.NewCommandID(), ResizeVolume: &pool.VolumeGrowth{ID: v.ID, Size: 2 * v.Size}}); err != nil {
		t.Fatal(err)
	}
	a.Recall(before, false)
	s, _ := open(t, ctx, a)
	if s.Size() != 2*v.Size {
		t.Errorf("it is served with %d bytes, and has %d", s.Size(), 2*v.Size)
	}
}

package node

import (
	"bytes"
	"errors"
	"math/rand"
	"testing"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/pool"
)

// A volume of one copy whose extents are damaged or gone, its extent table too, cannot be
// attached. It can be deleted, and its space comes back.
func TestDamagedVolumeIsDeleted(t *testing.T) {
	for name, ruin := range map[string]func(t *testing.T, disk *vfs.Mem, b *brick.Brick, r brick.Ref){
		"damaged": rot,
		"gone": func(t *testing.T, _ *vfs.Mem, b *brick.Brick, r brick.Ref) {
			if err := b.DeleteExtents([]ident.Addr{r.Addr}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := vfs.NewMem()
			c, b := aloneOn(t, disk, brick.NewMemStable())
			d := pool.Volume{ID: ident.NewVolume(), Name: "v", Size: 1 << 20, BlockSize: 4096, Replicas: 1, WriteCache: "quorum", Created: 1}
			if err := c.Birth(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			s, _, err := c.Manager.Open(t.Context(), "v", "test")
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 64<<10)
			rand.New(rand.NewSource(1)).Read(p)
			written := make(chan error, 1)
			s.Write(p, 0, true, func(err error) { written <- err })
			s.Kick()
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			if _, err := c.Manager.CreateSnapshot(t.Context(), "v", "s"); err != nil { // which folds the log
				t.Fatal(err)
			}
			s.Close()
			c.Manager.Detach(d.ID, errors.New("the test is done with it"))
			refs := b.ListVolume(d.ID)
			if len(refs) == 0 {
				t.Fatal("nothing is in extents")
			}
			for _, r := range refs {
				ruin(t, disk, b, r)
			}
			// The node itself attaches what nobody holds, and may have done so before.
			until(t, "it cannot be attached", func() bool {
				c.Manager.Detach(d.ID, errors.New("the test is done with it"))
				_, err := c.Manager.Attach(t.Context(), "v", false)
				return blockdev.IsDamaged(err)
			})
			if err := c.Remove(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			until(t, "its space is given back", func() bool {
				_, votes := c.Acceptors.Group(ident.MapBlock(d.ID))
				return !votes && len(b.ListVolume(d.ID)) == 0 && b.Usage().ExtentLive == 0 && len(c.Pool.State().Tombstones) == 0
			})
			if _, err := c.Manager.Attach(t.Context(), "v", false); !fault.Is(err, fault.NotFound) {
				t.Errorf("after it was deleted: %v", err)
			}
		})
	}
}

// rot flips a bit of an extent on its disk.
func rot(t *testing.T, disk *vfs.Mem, b *brick.Brick, r brick.Ref) {
	t.Helper()
	raw := make([]byte, r.Size)
	if err := b.ReadExtent(r.Addr, raw, 0); err != nil {
		t.Fatal(err)
	}
	names, err := disk.List("extents")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		all, err := vfs.ReadFile(disk, "extents/"+name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(all, raw); i >= 0 {
			if err := disk.FlipBit("extents/"+name, int64(i)+int64(r.Size)/2); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("extent %s is in no file", r.Addr.Short())
}

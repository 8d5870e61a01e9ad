package blockdev

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// TestDamagedBlocksAreNotServed flips a bit of what is stored: on every path a
// read says so rather than to answer with it.
func TestDamagedBlocksAreNotServed(t *testing.T) {
	r := newRig(t, 1<<20, func(c *Config) { c.BlockSize = 4096 })
	raw, packed := noise(5, 4096), bytes.Repeat(noise(6, 512), 8)
	mustWrite(t, r.v, raw, 0)
	mustWrite(t, r.v, packed, 4096)
	mustWrite(t, r.v, raw, 8192)
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3*4096)
	if !r.v.TryReadAt(got, 0) && r.v.ReadAt(t.Context(), got, 0) != nil {
		t.Fatal("sound blocks cannot be read")
	}
	for block, kind := range []string{"raw", "compressed"} {
		flip := r.flip(uint64(block))
		for _, c := range []struct {
			what   string
			off, n int64
		}{{"alone", int64(block) * 4096, 4096}, {"among others", 0, 3 * 4096}} {
			if r.v.TryReadAt(got[:c.n], c.off) {
				t.Errorf("a damaged %s block, %s, was served at once", kind, c.what)
			}
			if err := r.v.ReadAt(t.Context(), got[:c.n], c.off); !fault.Is(err, fault.Corrupt) {
				t.Errorf("a damaged %s block, %s: %v", kind, c.what, err)
			}
		}
		if err := r.v.ReadAt(t.Context(), got[:4096], 8192); err != nil || !bytes.Equal(got[:4096], raw) {
			t.Errorf("a sound block beside it: %v", err)
		}
		flip()
	}
}

// flip turns one bit of a stored block over; the result turns it back.
func (r *rig) flip(block uint64) func() {
	r.t.Helper()
	var at [1]extentmap.Ptr
	if err := r.v.root.Lookup(block, at[:], waiting{r.v, r.t.Context()}); err != nil || at[0].IsHole() {
		r.t.Fatalf("block %d: %v %v", block, at, err)
	}
	addr, _ := r.v.addrOf(at[0].Ext)
	turn := func() {
		r.ext.mu.Lock()
		r.ext.data[addr][at[0].Off+uint32(at[0].Len)/2] ^= 0x10
		r.ext.mu.Unlock()
	}
	turn()
	return turn
}

// gatedExtents answers no read at once and calls a gate around the first that
// comes once it is armed.
type gatedExtents struct {
	*memExtents
	mu     sync.Mutex
	before func()
	after  func()
}

func (g *gatedExtents) TryReadAt(ident.Addr, int64, []byte) bool { return false }

func (g *gatedExtents) ReadAt(ctx context.Context, replicas int, addr ident.Addr, off int64, p []byte, verify func([]byte) bool) error {
	g.mu.Lock()
	before, after := g.before, g.after
	g.before, g.after = nil, nil
	g.mu.Unlock()
	if before != nil {
		before()
	}
	err := g.memExtents.ReadAt(ctx, replicas, addr, off, p, verify)
	if after != nil {
		after()
	}
	return err
}

func gatedRig(t *testing.T) (*rig, *gatedExtents) {
	g := &gatedExtents{}
	r := newRig(t, 1<<20, func(c *Config) {
		g.memExtents = c.Extents.(*memExtents)
		c.Extents = g
	})
	return r, g
}

// TestReadLooksAgainWhenItsExtentIsFreed replaces a block and frees its extent
// between a reader's look into the map and its look at the extent.
func TestReadLooksAgainWhenItsExtentIsFreed(t *testing.T) {
	r, g := gatedRig(t)
	mustWrite(t, r.v, noise(1, 4096), 0)
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := noise(2, 4096)
	g.before = func() {
		mustWrite(t, r.v, want, 0)
		if err := r.v.Checkpoint(t.Context()); err != nil {
			t.Error(err)
		}
	}
	got := make([]byte, 4096)
	if err := r.v.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read across a checkpoint: %v", err)
	}
	if g.before != nil {
		t.Fatal("the read did not pass the gate")
	}
}

// TestPartialWriteKeepsWhatCameMeanwhile replaces a block, and folds that into
// the map, while a partial write reads the old one to merge with.
func TestPartialWriteKeepsWhatCameMeanwhile(t *testing.T) {
	for _, fold := range []bool{false, true} {
		r, g := gatedRig(t)
		mustWrite(t, r.v, noise(1, 4096), 0)
		if err := r.v.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := noise(2, 4096)
		g.after = func() {
			mustWrite(t, r.v, want, 0)
			if fold {
				if err := r.v.Checkpoint(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
		part := noise(3, 512)
		mustWrite(t, r.v, part, 1024)
		copy(want[1024:], part)
		check(t, r.v, want, 0, 4096, 0)
		if g.after != nil {
			t.Fatal("the write did not pass the gate")
		}
	}
}

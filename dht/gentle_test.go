package dht

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/ident"
)

// watchedBrick counts how its extents are read.
type watchedBrick struct {
	Brick
	quickly, gently atomic.Int64
}

func (b *watchedBrick) ReadExtent(addr ident.Addr, p []byte, off int64) error {
	b.quickly.Add(1)
	return b.Brick.ReadExtent(addr, p, off)
}

func (b *watchedBrick) ReadExtentGently(addr ident.Addr, p []byte) error {
	b.gently.Add(1)
	return b.Brick.ReadExtentGently(addr, p)
}

// What is read to be copied stands in nobody's way on the disk, whichever node it is read from.
func TestCopiesAreReadGently(t *testing.T) {
	r := newRig(t, 2)
	a := r.nodes[0]
	x := r.large(1)
	r.put(a, 1, 2, []Extent{x})
	var bricks []*watchedBrick
	for _, nd := range r.nodes {
		l := (*nd.store.local.Load())[0]
		b := &watchedBrick{Brick: l.Brick}
		l.Brick = b
		bricks = append(bricks, b)
	}
	for i, b := range bricks {
		got, sum, err := a.store.GetGently(r.ctx(), x.Addr)
		if err != nil || !bytes.Equal(got, x.Data) || sum != extent.Checksum(got) {
			t.Fatalf("from brick %d: %v", i, err)
		}
		if _, err := a.store.Get(r.ctx(), x.Addr); err != nil {
			t.Fatal(err)
		}
		if b.gently.Load() != 1 || b.quickly.Load() != 1 {
			t.Errorf("brick %d was read gently %d times and %d times else, not once each", i, b.gently.Load(), b.quickly.Load())
		}
		if err := b.DeleteExtents([]ident.Addr{x.Addr}); err != nil {
			t.Fatal(err)
		}
	}
}

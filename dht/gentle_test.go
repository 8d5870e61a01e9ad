package dht

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// watchedBrick counts how its extents are read.
type watchedBrick struct {
	Brick
	quickly, gently atomic.Int64
	wait            time.Duration // of a gentle read
}

func (b *watchedBrick) ReadExtent(addr ident.Addr, p []byte, off int64) error {
	b.quickly.Add(1)
	return b.Brick.ReadExtent(addr, p, off)
}

func (b *watchedBrick) ReadExtentGently(addr ident.Addr, p []byte) error {
	b.gently.Add(1)
	<-time.After(b.wait)
	return b.Brick.ReadExtentGently(addr, p)
}

// watch has the first brick of each node watched.
func (r *rig) watch() (bricks []*watchedBrick) {
	for _, nd := range r.nodes {
		l := (*nd.store.local.Load())[0]
		b := &watchedBrick{Brick: l.Brick}
		l.Brick = b
		bricks = append(bricks, b)
	}
	return bricks
}

// What is read to be copied stands in nobody's way on the disk, whichever node it is read from.
func TestCopiesAreReadGently(t *testing.T) {
	r := newRig(t, 2)
	a := r.nodes[0]
	x := r.large(1)
	r.put(a, 1, 2, []Extent{x})
	bricks := r.watch()
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

// A brick from which others copy takes its time for that; so it is not slow, and a read that somebody waits
// for is not hedged later.
func TestCopiesMakeNoBrickSlow(t *testing.T) {
	r := newRig(t, 2)
	a, b := r.nodes[0], r.nodes[1]
	x := r.large(1)
	r.put(a, 1, 2, []Extent{x})
	bricks := r.watch()
	r.readAll(a, []Extent{x}, pulseKnown)
	if err := bricks[0].DeleteExtents([]ident.Addr{x.Addr}); err != nil {
		t.Fatal(err)
	}
	r.readAll(a, []Extent{x}, pulseKnown)
	h := &a.store.health
	before := h.patience(b.ref(), readPulse, time.Minute)
	bricks[1].wait = 3 * slowMin
	for range pulseKnown {
		if _, _, err := a.store.GetGently(r.ctx(), x.Addr); err != nil {
			t.Fatal(err)
		}
	}
	if slow := h.slow([]overlay.BrickRef{a.ref(), b.ref()}); len(slow) > 0 {
		t.Errorf("%v are slow, because of copies", slow)
	}
	if now := h.patience(b.ref(), readPulse, time.Minute); now != before {
		t.Errorf("the next holder is asked after %v, because of copies; it was %v", now, before)
	}
	if d := h.patience(b.ref(), gentlePulse, time.Minute); d < bricks[1].wait {
		t.Errorf("a copy is hedged after %v, though one takes %v", d, bricks[1].wait)
	}
}

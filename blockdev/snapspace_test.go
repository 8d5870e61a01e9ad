package blockdev

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/targettest"
)

// TestSnapshotIsDeletedOnFullBricks fills the bricks with what a snapshot keeps.
// It can be deleted, although the log's tail has no room either.
func TestSnapshotIsDeletedOnFullBricks(t *testing.T) {
	const size = 8 << 20
	r := newRig(t, size, func(c *Config) {
		c.BlockSize, c.CheckpointBytes, c.TailBytes, c.LargeWrite = 4096, 512<<10, 1536<<10, 1<<30
		c.IOTimeout = 5 * time.Second
	})
	r.ext.mu.Lock()
	r.ext.room = 12 << 20
	r.ext.mu.Unlock()
	noise := rand.NewChaCha8([32]byte{3})
	want := make([]byte, size)
	fill := func() (err error) {
		for off := int64(0); off < size && err == nil; off += 64 << 10 {
			b := make([]byte, 64<<10)
			_, _ = noise.Read(b)
			if err = wait(r.v, func(d func(error)) { r.v.Write(b, off, false, d) }); err == nil {
				copy(want[off:], b)
			}
		}
		return err
	}
	if err := fill(); err != nil {
		t.Fatal(err)
	}
	if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	err := fill()
	if err == nil { // the tail took what the bricks could not
		err = fill()
	}
	if !fault.Is(err, fault.NoSpace) {
		t.Fatalf("bricks that hold less than one and a half copies took two: %v", err)
	}
	// Another one may fit by a hair, for the tail is shorter than a write.
	err = r.v.CreateSnapshot(t.Context(), "b")
	if err != nil && !fault.Is(err, fault.NoSpace) {
		t.Fatalf("a snapshot on full bricks: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	infos, _ := r.v.SnapshotInfos()
	for _, x := range infos {
		if err := r.v.DeleteSnapshot(ctx, x.Name); err != nil {
			t.Fatalf("deletion of %s on full bricks: %v", x.Name, err)
		}
	}
	if held := r.v.table.Held(); held != 0 {
		t.Errorf("%d blocks are still held", held)
	}
	check(t, r.v, want, 0, size, 0)
	nothingLeft(t, r)
}

// TestSnapshotsOutliveGrowth: a volume that grows, so that its tree does, keeps
// its snapshots as they were, and tells what changed since them.
func TestSnapshotsOutliveGrowth(t *testing.T) {
	r := newRig(t, 1<<20, func(c *Config) { c.BlockSize = 4096 })
	put(t, r.v, 1, 0, 1<<20)
	if err := r.v.CreateSnapshot(t.Context(), "small"); err != nil {
		t.Fatal(err)
	}
	r.v.Grow(1 << 40)
	r.cfg.Size = 1 << 40
	put(t, r.v, 2, 4096, 4096)
	put(t, r.v, 3, 1<<39, 8192)
	for range 2 {
		d := snapshotOf(t, r.v, "small")
		got := make([]byte, 1<<20)
		if err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{1}, 1<<20)) || d.Size() != 1<<20 {
			t.Fatalf("the snapshot of %d bytes is not what was there: %v", d.Size(), err)
		}
		want := []target.Stretch{{Length: 4096}, {Length: 4096, Flags: target.Dirty}, {Length: 1<<39 - 8192},
			{Length: 8192, Flags: target.Dirty}, {Length: 1<<39 - 8192}}
		if got := targettest.Map(t, r.v, 0, 1<<40, "small", 10); len(got) != 5 || got[1] != want[1] || got[2] != want[2] || got[3] != want[3] || got[4] != want[4] {
			t.Fatalf("changed since: %v", got)
		}
		if err := r.v.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.crash(false)
	}
	if err := r.v.DeleteSnapshot(t.Context(), "small"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, r)
}

// TestSnapshotsStayWhileTheRestIsCompacted overwrites at random under a
// snapshot for long: compaction goes on in what is newer, never touches what the
// snapshot names, and so the dirty map never shows a block that nobody wrote.
func TestSnapshotsStayWhileTheRestIsCompacted(t *testing.T) {
	const size, half = 8 << 20, 4 << 20
	r := newRig(t, size, func(c *Config) { c.BlockSize, c.CheckpointBytes, c.TailBytes = 4096, 512<<10, 2<<20 })
	noise := rand.NewChaCha8([32]byte{5})
	rng := rand.New(rand.NewPCG(5, 5))
	put(t, r.v, 9, 0, size)
	b := make([]byte, 4096)
	overwrite := func(n int) {
		for range n {
			_, _ = noise.Read(b)
			if err := wait(r.v, func(d func(error)) { r.v.Write(b, rng.Int64N(half/4096)*4096, false, d) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.v.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	overwrite(2000)
	before := make([]byte, size)
	if err := r.v.ReadAt(t.Context(), before, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	base, moved := r.ext.bytes(), r.v.stats.MovedBlocks.Load()
	overwrite(8 * half / 4096)
	if r.v.stats.MovedBlocks.Load() == moved {
		t.Error("nothing was compacted")
	}
	if grown := r.ext.bytes() - base; grown > half*2 {
		t.Errorf("%d bytes more are stored after %d bytes were overwritten again and again", grown, half)
	}
	got := make([]byte, size)
	if err := snapshotOf(t, r.v, "a").ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, before) {
		t.Fatalf("the snapshot is not what was there: %v", err)
	}
	for _, s := range targettest.Map(t, r.v, half, half, "a", 10) {
		if s.Flags != 0 {
			t.Errorf("%d bytes that nobody wrote are dirty", s.Length)
		}
	}
}

package blockdev

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// TestTrimMakesRoomOnFullBricks fills the bricks, with a tail that no longer
// fits, and demands that trimming alone makes the volume writable again, with
// everything that was answered still there, also across crashes.
func TestTrimMakesRoomOnFullBricks(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { fillAndTrim(t, seed) })
	}
}

func fillAndTrim(t *testing.T, seed uint64) {
	const size = 64 << 20
	rng := rand.New(rand.NewPCG(seed, 4))
	r := newRig(t, size, func(c *Config) {
		c.CheckpointBytes, c.TailBytes, c.Pages, c.LargeWrite = 4<<20, 12<<20, 16, 1<<30
		c.IOTimeout = 5 * time.Second
	})
	r.ext.mu.Lock()
	r.ext.room = 32 << 20
	r.ext.mu.Unlock()
	want := make([]byte, size)
	write := func(off, n int64) error {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		err := wait(r.v, func(d func(error)) { r.v.Write(b, off, rng.IntN(4) == 0, d) })
		if err == nil {
			copy(want[off:], b)
		} else if !fault.Is(err, fault.NoSpace) {
			t.Fatalf("write to full bricks: %v", err)
		}
		return err
	}
	span := func(most int64) (off, n int64) {
		n = (rng.Int64N(most/4096) + 1) * 4096
		return rng.Int64N((size-n)/4096+1) * 4096, n
	}
	for round := range 3 {
		for i := 0; i < 3000 && write(span(256<<10)) == nil; i++ {
			if rng.IntN(20) == 0 {
				_ = r.v.Checkpoint(t.Context())
			}
		}
		if rng.IntN(2) == 0 {
			if err := wait(r.v, r.v.Flush); err != nil {
				t.Fatal(err)
			}
			r.crash(rng.IntN(2) == 0)
		}
		check(t, r.v, want, 0, size, round)
		from := rng.Int64N(size/2/4096) * 4096
		if err := wait(r.v, func(d func(error)) { r.v.Trim(from, size/2, true, d) }); err != nil {
			t.Fatalf("trim while full: %v", err)
		}
		clear(want[from : from+size/2])
		if rng.IntN(3) == 0 {
			r.crash(false)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := r.v.Checkpoint(ctx); err != nil {
			t.Fatalf("round %d: no room after half was trimmed: %v", round, err)
		}
		cancel()
		if err := write(0, 4096); err != nil {
			t.Fatalf("round %d: write after half was trimmed: %v", round, err)
		}
		check(t, r.v, want, 0, size, round)
	}
}

// TestSmallCheckpointsLeaveTheReserve fills the bricks in small steps, with a
// checkpoint after each, so that no extent is large. What bricks keep for giving
// space back is still there then: a snapshot can be deleted, and a trim makes room.
func TestSmallCheckpointsLeaveTheReserve(t *testing.T) {
	const size, step = 4 << 20, 64 << 10
	for _, snapshot := range []bool{false, true} {
		r := newRig(t, 4*size, func(c *Config) {
			c.BlockSize, c.CheckpointBytes, c.TailBytes, c.LargeWrite = 4096, 512<<10, 1536<<10, 1<<30
		})
		r.ext.mu.Lock()
		r.ext.room = size * 3 / 2
		r.ext.mu.Unlock()
		noise := rand.NewChaCha8([32]byte{3})
		b := make([]byte, step)
		var full error
		for i := int64(0); full == nil; i++ {
			_, _ = noise.Read(b)
			if full = wait(r.v, func(d func(error)) { r.v.Write(b, i*step%(4*size), false, d) }); full == nil {
				full = r.v.Checkpoint(t.Context())
			}
			if snapshot && i == size/step {
				put(t, r.v, 1, 0, step)
				if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !fault.Is(full, fault.NoSpace) {
			t.Fatal(full)
		}
		if snapshot {
			if err := r.v.DeleteSnapshot(t.Context(), "a"); err != nil {
				t.Errorf("deletion of a snapshot on full bricks: %v", err)
			}
		}
		if err := wait(r.v, func(d func(error)) { r.v.Trim(0, size/2, true, d) }); err != nil {
			t.Errorf("trim on full bricks: %v", err)
		}
		if err := r.v.Checkpoint(t.Context()); err != nil {
			t.Errorf("no room after a trim (snapshot: %v): %v", snapshot, err)
		}
		if err := wait(r.v, func(d func(error)) { r.v.Write(b, 0, false, d) }); err != nil {
			t.Errorf("write after a trim: %v", err)
		}
	}
}

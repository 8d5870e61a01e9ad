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

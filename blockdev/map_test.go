package blockdev

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/targettest"
)

func TestMapKeepsTheContract(t *testing.T) {
	for name, tune := range map[string]func(*Config){
		"tail":        func(c *Config) { c.CheckpointBytes = 64 << 20 },
		"checkpoints": func(c *Config) { c.CheckpointBytes, c.TailBytes = 64<<10, 1<<20 },
		"extents":     func(c *Config) { c.LargeWrite, c.EagerLarge = 4096, true },
	} {
		t.Run(name, func(t *testing.T) {
			targettest.RunMapper(t, func(t *testing.T) target.Device { return newRig(t, 4<<20, tune).v })
		})
	}
}

// TestMapIsExact compares the map with a model of which blocks were put and
// not zeroed since, whatever lies in the tails and whatever in the map.
func TestMapIsExact(t *testing.T) {
	const blocks = 20000 // more than a window, so that tails are scanned too
	r := newRig(t, blocks*4096, func(c *Config) { c.BlockSize, c.Pages = 4096, 8 })
	rng := rand.New(rand.NewPCG(3, 1))
	stored := make([]bool, blocks)
	for step := range 400 {
		b := rng.Int64N(blocks)
		switch k := rng.IntN(20); {
		case k < 12:
			n := min(1+rng.Int64N(40), blocks-b)
			p := bytes.Repeat([]byte{byte(step) | 1}, int(n*4096))
			if err := wait(r.v, func(d func(error)) { r.v.Write(p, b*4096, false, d) }); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				stored[b+i] = true
			}
		case k < 17:
			n := min(1+rng.Int64N(3000), blocks-b)
			if err := wait(r.v, func(d func(error)) { r.v.Zero(b*4096, n*4096, false, d) }); err != nil {
				t.Fatal(err)
			}
			clear(stored[b : b+n])
		case k < 18:
			if err := r.v.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		case k < 19:
			r.v.freeze(false)
		default:
			r.crash(true)
		}
		from := rng.Int64N(blocks)
		n := 1 + rng.Int64N(blocks-from)
		for _, s := range targettest.Map(t, r.v, from*4096, n*4096, "", 1+rng.IntN(500)) {
			for end := from + s.Length/4096; from < end; from++ {
				if stored[from] != (s.Flags == 0) {
					t.Fatalf("step %d: block %d has flags %b, stored %v", step, from, s.Flags, stored[from])
				}
			}
		}
	}
}

// TestMapOfSixteenTebibytesIsQuick holds the cost of a hole apart from its length.
func TestMapOfSixteenTebibytesIsQuick(t *testing.T) {
	const size = 16 << 40
	r := newRig(t, size, func(c *Config) { c.BlockSize = 4096 })
	put := func(off int64) {
		t.Helper()
		if err := wait(r.v, func(d func(error)) { r.v.Write(bytes.Repeat([]byte{1}, 4096), off, false, d) }); err != nil {
			t.Fatal(err)
		}
	}
	put(8 << 40)
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(12 << 40)
	began := time.Now()
	hole := target.Hole | target.Zero
	want := []target.Stretch{{Length: 8 << 40, Flags: hole}, {Length: 4096}, {Length: 4<<40 - 4096, Flags: hole}, {Length: 4096}, {Length: 4<<40 - 4096, Flags: hole}}
	got := targettest.Map(t, r.v, 0, size, "", 100)
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("stretch %d is %v, not %v", i, got[i], want[i])
		}
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("it took %v", d)
	}
	t.Logf("described in %v", time.Since(began))
}

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

// TestVolumeMatchesFlatArray compares random operations of all kinds and
// alignments, with checkpoints, failing puts and crashes in between, with an
// array of bytes.
func TestVolumeMatchesFlatArray(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { flatArray(t, seed) })
	}
}

func flatArray(t *testing.T, seed uint64) {
	const size = 8 << 20
	rng := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, size, func(c *Config) {
		c.CheckpointBytes, c.Pages = 3<<20, 16
		if seed%2 == 1 {
			c.LargeWrite, c.EagerLarge = 64<<10, true
		}
	})
	want := make([]byte, size)
	span := func(max int) (off, n int64) {
		n = int64(rng.IntN(max)+1) * 512
		off = rng.Int64N((size-n)/512+1) * 512
		if rng.IntN(3) > 0 {
			off, n = off&^4095, (n+4095)&^4095
			n = min(n, size-off)
		}
		return off, n
	}
	for i := range 1500 {
		switch k := rng.IntN(100); {
		case k < 45:
			off, n := span(64)
			if rng.IntN(20) == 0 {
				off, n = span(1024)
			}
			b := make([]byte, n)
			for j := range b {
				b[j] = byte(rng.IntN(3)) * byte(i)
			}
			if err := wait(r.v, func(d func(error)) { r.v.Write(b, off, k < 10, d) }); err != nil {
				t.Fatalf("step %d write: %v", i, err)
			}
			copy(want[off:], b)
		case k < 55:
			off, n := span(2048)
			if err := wait(r.v, func(d func(error)) { r.v.Zero(off, n, false, d) }); err != nil {
				t.Fatalf("step %d zero: %v", i, err)
			}
			clear(want[off : off+n])
		case k < 90:
			off, n := span(256)
			check(t, r.v, want, off, n, i)
		case k < 95:
			if err := wait(r.v, r.v.Flush); err != nil {
				t.Fatalf("step %d flush: %v", i, err)
			}
		case k < 98:
			if rng.IntN(4) == 0 {
				left := rng.IntN(4)
				r.ext.mu.Lock()
				r.ext.fail = func(string) error {
					if left--; left < 0 {
						return fault.New(fault.Unavailable, "test", "", nil)
					}
					return nil
				}
				r.ext.mu.Unlock()
				_ = r.v.Checkpoint(context.Background())
				r.ext.mu.Lock()
				r.ext.fail = nil
				r.ext.mu.Unlock()
			}
			if err := r.v.Checkpoint(context.Background()); err != nil {
				t.Fatalf("step %d checkpoint: %v", i, err)
			}
		default:
			power := rng.IntN(2) == 0
			if !power {
				if err := wait(r.v, r.v.Flush); err != nil {
					t.Fatal(err)
				}
			}
			r.crash(power)
		}
	}
	check(t, r.v, want, 0, size, -1)
	settle(t, r)
	check(t, r.v, want, 0, size, -2)
}

func check(t *testing.T, v *Volume, want []byte, off, n int64, step int) {
	t.Helper()
	got := make([]byte, n)
	if !v.TryReadAt(got, off) {
		if err := v.ReadAt(context.Background(), got, off); err != nil {
			t.Fatalf("step %d read: %v", step, err)
		}
	}
	if !bytes.Equal(got, want[off:off+n]) {
		for i := range got {
			if got[i] != want[off+int64(i)] {
				t.Fatalf("step %d: byte %d (block %d) is %d, want %d", step, off+int64(i), (off+int64(i))/4096, got[i], want[off+int64(i)])
			}
		}
	}
}

// settle folds everything and checks that exactly what is named is stored.
func settle(t *testing.T, r *rig) {
	t.Helper()
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.v.maintain.request()
	if err := r.v.WaitMaintained(t.Context()); err != nil {
		t.Fatal(err)
	}
	// a listing that ran before the last deletion is repeated
	if err := r.reconcile(); err != nil {
		t.Fatal(err)
	}
	w := r.v.wanted()
	r.ext.mu.Lock()
	defer r.ext.mu.Unlock()
	for a, ref := range r.ext.at {
		if _, ok := w.keep[a]; !ok {
			t.Errorf("extent %d (%s) is stored and named by nothing", ref.Number, a.Short())
		}
	}
	for a, n := range w.keep {
		if _, ok := r.ext.at[a]; !ok {
			t.Errorf("extent %d (%s) is named and not stored", n, a.Short())
		}
	}
}

// TestOverwritingStaysWithinItsSpace writes ten times the volume's size at
// random and demands that what is stored stays near what is live.
func TestOverwritingStaysWithinItsSpace(t *testing.T) {
	const size = 32 << 20
	r := newRig(t, size, func(c *Config) { c.BlockSize, c.CheckpointBytes, c.TailBytes = 4096, 2<<20, 6<<20 })
	rng := rand.New(rand.NewPCG(7, 7))
	b := make([]byte, 4096)
	var most int64
	for i := range 10 * size / 4096 {
		for j := 0; j < len(b); j += 8 {
			b[j] = byte(rng.Uint32())
			b[j+3] = byte(rng.Uint32())
			b[j+5] = byte(rng.Uint32())
		}
		if err := wait(r.v, func(d func(error)) { r.v.Write(b, rng.Int64N(size/4096)*4096, false, d) }); err != nil {
			t.Fatal(err)
		}
		if i%512 == 0 && i > size/4096 {
			most = max(most, r.ext.bytes())
		}
	}
	if most > size*2 {
		t.Errorf("stored %.2f times the live data at most", float64(most)/size)
	}
	t.Logf("stored at most %.2f times the volume's size, moved %d blocks, folded %d", float64(most)/size,
		r.v.stats.MovedBlocks.Load(), r.v.stats.FoldedBlocks.Load())
	if err := wait(r.v, func(d func(error)) { r.v.Trim(0, size, true, d) }); err != nil {
		t.Fatal(err)
	}
	settle(t, r)
	if left := r.ext.bytes(); left > size/100 {
		t.Errorf("%d bytes are left after everything was trimmed", left)
	}
}

// TestTrimOfTwoTebibytesIsOneRecord holds the cost of a discard apart from its length.
func TestTrimOfTwoTebibytesIsOneRecord(t *testing.T) {
	r := newRig(t, 4<<40, func(c *Config) { c.BlockSize = 4096 })
	before := r.log.Next()
	if err := wait(r.v, func(d func(error)) { r.v.Trim(1<<40, 2<<40, true, d) }); err != nil {
		t.Fatal(err)
	}
	if n := r.log.Next() - before; n != 1 {
		t.Errorf("a trim took %d records", n)
	}
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestOperationsEndWhenTheAttachmentEnds demands an answer for everything
// pending and everything later.
func TestOperationsEndWhenTheAttachmentEnds(t *testing.T) {
	r := newRig(t, 1<<20, nil)
	got := make(chan error, 1)
	r.v.Write(make([]byte, 4096), 0, true, func(err error) { got <- err }) // not kicked: never received
	r.v.fail(fault.New(fault.Fenced, "test", "", errors.New("another node")))
	if err := <-got; !fault.Is(err, fault.Fenced) {
		t.Errorf("pending write ended with %v", err)
	}
	for name, f := range map[string]func(func(error)){
		"write": func(d func(error)) { r.v.Write(make([]byte, 512), 0, false, d) },
		"flush": r.v.Flush,
		"zero":  func(d func(error)) { r.v.Zero(0, 4096, false, d) },
	} {
		if err := wait(r.v, f); !fault.Is(err, fault.Fenced) {
			t.Errorf("%s after the end: %v", name, err)
		}
	}
	if err := r.v.ReadAt(t.Context(), make([]byte, 512), 0); !fault.Is(err, fault.Fenced) {
		t.Errorf("read after the end: %v", err)
	}
}

// TestFullBricksFailWritesOnly fills the bricks and empties them again.
func TestFullBricksFailWritesOnly(t *testing.T) {
	r := newRig(t, 32<<20, func(c *Config) { c.BlockSize, c.CheckpointBytes, c.TailBytes = 4096, 1<<20, 3<<20 })
	var full atomic.Bool
	r.ext.mu.Lock()
	r.ext.fail = func(op string) error {
		if op == "put" && full.Load() {
			return fault.New(fault.NoSpace, "test", "", nil)
		}
		return nil
	}
	r.ext.mu.Unlock()
	write := func(block int64) error {
		return wait(r.v, func(d func(error)) { r.v.Write(bytes.Repeat([]byte{7}, 4096), block*4096, false, d) })
	}
	if err := write(0); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	var err error
	for b := int64(1); err == nil && b < 8000; b++ {
		err = write(b)
	}
	if !fault.Is(err, fault.NoSpace) {
		t.Fatalf("writes to full bricks ended with %v", err)
	}
	if err := r.v.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Errorf("read while full: %v", err)
	}
	if err := wait(r.v, func(d func(error)) { r.v.Trim(0, 4096, true, d) }); err != nil {
		t.Errorf("trim while full: %v", err)
	}
	full.Store(false)
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := write(1); err != nil {
		t.Errorf("write after there was space again: %v", err)
	}
}

func TestRangesAreChecked(t *testing.T) {
	r := newRig(t, 1<<20, nil)
	for _, c := range []struct{ off, n int64 }{{1 << 20, 512}, {-512, 512}, {511, 512}, {0, 100}, {1<<20 - 512, 1024}, {1 << 62, 512}} {
		if err := wait(r.v, func(d func(error)) { r.v.Write(make([]byte, c.n), c.off, false, d) }); !fault.Is(err, fault.Invalid) {
			t.Errorf("write [%d,+%d): %v", c.off, c.n, err)
		}
		if err := r.v.ReadAt(t.Context(), make([]byte, c.n), c.off); !fault.Is(err, fault.Invalid) {
			t.Errorf("read [%d,+%d): %v", c.off, c.n, err)
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	b := make([]byte, entryHead+4096)
	putEntryHead(b, opWrite, 7, 1)
	f.Add(b)
	z := make([]byte, entryHead)
	putEntryHead(z, opZero, 1, 1<<40)
	f.Add(z)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(b)
		if err != nil {
			if !fault.Is(err, fault.Corrupt) {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		if e.op == opExtent {
			out := make([]byte, extentEntrySize(len(e.ptrs)))
			encodeExtentEntry(out, e.block, e.extent, e.ptrs)
			if d, err := decodeEntry(out); err != nil || d.extent.addr != e.extent.addr || d.extent.number != e.extent.number || d.extent.bytes != e.extent.bytes {
				t.Fatalf("decoded again: %v", err)
			}
		}
	})
}

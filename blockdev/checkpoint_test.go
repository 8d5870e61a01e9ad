package blockdev

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
)

var errCrash = fault.New(fault.Unavailable, "crash", "", errors.New("the process died"))

// noise is n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 3))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func mustWrite(t *testing.T, v *Volume, p []byte, off int64) {
	t.Helper()
	if err := wait(v, func(d func(error)) { v.Write(p, off, true, d) }); err != nil {
		t.Fatal(err)
	}
}

// TestTailIsBoundedBeforeItIsFrozen: a checkpoint that has yet to freeze the tail, or still gives
// back what the one before replaced, does not let writes fill the memory meanwhile.
func TestTailIsBoundedBeforeItIsFrozen(t *testing.T) {
	const size, bound = 16 << 20, 2 << 20
	r := newRig(t, size, func(c *Config) { c.CheckpointBytes, c.TailBytes, c.LargeWrite = bound/2, bound, 1<<30 })
	if err := r.v.claimCheckpoint(t.Context()); err != nil { // one under way
		t.Fatal(err)
	}
	const n = 64 << 10
	want := noise(1, size)
	errs := make(chan error, size/n)
	for off := int64(0); off < size; off += n {
		r.v.Write(want[off:off+n], off, false, func(err error) { errs <- err })
	}
	r.v.mu.RLock()
	held, waiting := r.v.active.Bytes(), len(r.v.stalled)
	r.v.mu.RUnlock()
	if held > bound+tail.ChunkSize || waiting == 0 {
		t.Fatalf("%d bytes of %d in the tail, %d writes wait", held, bound, waiting)
	}
	r.v.checkpointing.Store(false)
	r.v.unstall() // as the end of each checkpoint does
	for range size / n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	check(t, r.v, want, 0, size, 0)
}

// TestNothingIsFreedBeforeTheCheckpointIsChosen lets the holder die after it
// has proposed a checkpoint that nobody else got: the next one goes on from the
// old state, all of which must be there.
func TestNothingIsFreedBeforeTheCheckpointIsChosen(t *testing.T) {
	const size = 1 << 20
	r := newRig(t, size, nil)
	want := noise(1, size)
	mustWrite(t, r.v, want, 0)
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := r.hold()
	half := noise(2, size/2)
	mustWrite(t, r.v, half, size/4)
	copy(want[size/4:], half)
	check(t, r.v, want, 0, size, 0) // takes the lease, which it cannot later
	r.ext.mu.Lock()
	var before []ident.Addr
	for a := range r.ext.data {
		before = append(before, a)
	}
	r.ext.mu.Unlock()
	l.want = l.Next() - 1
	l.memLog.Kick()
	if err := r.v.pend.waitDurable(t.Context(), l.want); err != nil {
		t.Fatal(err)
	}
	l.held.Store(true)
	ended := make(chan error, 1)
	go func() { ended <- r.v.Checkpoint(context.WithoutCancel(t.Context())) }()
	<-l.proposed
	check(t, r.v, want, 0, size, 1)
	for _, a := range before {
		if _, err := r.ext.Get(t.Context(), a); err != nil {
			t.Errorf("an extent that the present state names is gone: %v", err)
		}
	}
	r.v.fail(errCrash)
	if err := <-ended; err == nil {
		t.Fatal("a checkpoint that nobody has succeeded")
	}
	r.log.Close()
	var rec *quorum.Recovered
	r.log, rec = r.log.reopened(true)
	r.attach(rec)
	check(t, r.v, want, 0, size, 2)
	settle(t, r)
	check(t, r.v, want, 0, size, 3)
}

// TestPitfallCollectionForgetsTheLog: a long write is in an extent of its
// own that only the log names until the next checkpoint. Whoever attaches next
// must neither drop it nor give its number away.
func TestPitfallCollectionForgetsTheLog(t *testing.T) {
	const size = 2 << 20
	r := newRig(t, size, nil)
	want := make([]byte, size)
	for round := range 4 {
		p := noise(uint64(10+round), 256<<10)
		off := int64(round) * 300 << 10 &^ 4095
		if err := wait(r.v, func(d func(error)) { r.v.writeLarge(p, off, true, d) }); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
		r.crash(true)
		if err := r.reconcile(); err != nil {
			t.Fatal(err)
		}
		check(t, r.v, want, 0, size, round)
		q := noise(uint64(20+round), 64<<10) // into extents with fresh numbers
		mustWrite(t, r.v, q, size-128<<10)
		copy(want[size-128<<10:], q)
		if round%2 == 1 {
			if err := r.v.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			check(t, r.v, want, 0, size, 10+round)
		}
	}
	settle(t, r)
	check(t, r.v, want, 0, size, 20)
}

// TestZeroingSurvivesTheHolder is the shortest history that a replay can get
// wrong: written, folded, zeroed, died.
func TestZeroingSurvivesTheHolder(t *testing.T) {
	const size = 1 << 20
	r := newRig(t, size, nil)
	want := noise(4, size)
	mustWrite(t, r.v, want, 0)
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := wait(r.v, func(d func(error)) { r.v.Zero(size/4, size/2, true, d) }); err != nil {
		t.Fatal(err)
	}
	clear(want[size/4 : size/4+size/2])
	for step := range 2 {
		r.crash(step == 0)
		check(t, r.v, want, 0, size, step)
	}
	settle(t, r)
	check(t, r.v, want, 0, size, 2)
	if bytes.Equal(want, make([]byte, size)) {
		t.Fatal("the test wrote nothing")
	}
}

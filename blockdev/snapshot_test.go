package blockdev

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/targettest"
)

// past is what the model knows of a snapshot.
type past struct {
	name    string
	data    []byte
	touched []bool // blocks written or zeroed since
}

// story is a volume beside an array and the arrays that its snapshots had.
type story struct {
	t     *testing.T
	rng   *rand.Rand
	r     *rig
	data  []byte
	snaps []*past // oldest first
	count int
}

func (s *story) touch(off, n int64) {
	for _, p := range s.snaps {
		for b := off / BlockSize; b*BlockSize < off+n; b++ {
			p.touched[b] = true
		}
	}
}

func (s *story) span(most int64) (off, n int64) {
	size := int64(len(s.data))
	n = (s.rng.Int64N(most) + 1) * 512
	off = s.rng.Int64N((size-n)/512+1) * 512
	if s.rng.IntN(4) > 0 {
		off, n = off&^4095, (n+4095)&^4095
		n = min(n, size-off)
	}
	return off, n
}

func (s *story) write() {
	off, n := s.span(256)
	b := make([]byte, n)
	for i := 0; i < len(b); i += 512 {
		copy(b[i:], bytes.Repeat([]byte{byte(s.rng.IntN(3)) * byte(s.count)}, 512))
	}
	s.touch(off, n)
	copy(s.data[off:], b)
	if err := wait(s.r.v, func(d func(error)) { s.r.v.Write(b, off, false, d) }); err != nil {
		s.t.Fatalf("step %d write: %v", s.count, err)
	}
}

func (s *story) zero() {
	off, n := s.span(1024)
	s.touch(off, n)
	clear(s.data[off : off+n])
	if err := wait(s.r.v, func(d func(error)) { s.r.v.Zero(off, n, false, d) }); err != nil {
		s.t.Fatalf("step %d zero: %v", s.count, err)
	}
}

// failing has the store fail after some operations, and with crash ends the
// attachment at that point.
func (s *story) failing(crash bool) {
	left := s.rng.IntN(6)
	r, v := s.r, s.r.v
	r.ext.mu.Lock()
	defer r.ext.mu.Unlock()
	r.ext.fail = func(string) error {
		if left--; left >= 0 {
			return nil
		}
		err := fault.Newf(fault.Unavailable, "test", "", "the store fails on purpose")
		if crash {
			v.fail(err)
		}
		return err
	}
}

func (s *story) healed() {
	s.r.ext.mu.Lock()
	s.r.ext.fail = nil
	s.r.ext.mu.Unlock()
}

// change makes or deletes a snapshot, at times with failures or a crash on the
// way, after which the volume itself tells whether it happened.
func (s *story) change(f func(ctx context.Context) error) (happened bool) {
	trouble := s.rng.IntN(4)
	if trouble < 2 {
		s.failing(trouble == 0)
	}
	_, before := s.r.v.SnapshotInfos()
	err := f(s.t.Context())
	s.healed()
	if trouble == 0 && s.r.v.Err() != nil {
		s.r.crash(s.rng.IntN(2) == 0 || err != nil)
	}
	_, after := s.r.v.SnapshotInfos()
	if err == nil && after != before+1 || after > before+1 {
		s.t.Fatalf("step %d: %v, and the revision went from %d to %d", s.count, err, before, after)
	}
	if err != nil && trouble > 1 {
		s.t.Fatalf("step %d: %v", s.count, err)
	}
	return after > before
}

func (s *story) create() {
	p := &past{name: fmt.Sprintf("s%d", s.count), data: bytes.Clone(s.data), touched: make([]bool, len(s.data)/BlockSize)}
	// Nothing that was answered may be lost by the crash in between.
	if err := wait(s.r.v, s.r.v.Flush); err != nil {
		s.t.Fatal(err)
	}
	if s.change(func(ctx context.Context) error { return s.r.v.CreateSnapshot(ctx, p.name) }) {
		s.snaps = append(s.snaps, p)
	}
}

func (s *story) remove() {
	if err := wait(s.r.v, s.r.v.Flush); err != nil {
		s.t.Fatal(err)
	}
	i := s.rng.IntN(len(s.snaps))
	if s.change(func(ctx context.Context) error { return s.r.v.DeleteSnapshot(ctx, s.snaps[i].name) }) {
		s.snaps = slices.Delete(s.snaps, i, i+1)
	}
}

func (s *story) device(name string) target.Device {
	x, err := s.r.v.openSnapshot(s.t.Context(), name)
	if err != nil {
		s.t.Fatalf("step %d: %v", s.count, err)
	}
	return &snapshotSession{v: s.r.v, s: x, close: func() {}}
}

// check reads the volume and its snapshots, and asks what changed.
func (s *story) check() {
	check(s.t, s.r.v, s.data, 0, int64(len(s.data)), s.count)
	infos, _ := s.r.v.SnapshotInfos()
	if len(infos) != len(s.snaps) {
		s.t.Fatalf("step %d: %d snapshots, not %d", s.count, len(infos), len(s.snaps))
	}
	for i, p := range s.snaps {
		d := s.device(p.name)
		got := make([]byte, len(p.data))
		if err := d.ReadAt(s.t.Context(), got, 0); err != nil || !bytes.Equal(got, p.data) {
			s.t.Fatalf("step %d: snapshot %s is not what the volume was: %v", s.count, p.name, err)
		}
		s.dirty(s.r.v, p, s.data)
		for _, later := range s.snaps[i+1:] {
			s.dirty(s.device(later.name), p, later.data)
		}
	}
}

// dirty asks device d, which holds data, what may have changed since p.
func (s *story) dirty(d target.Device, p *past, data []byte) {
	off, n := s.span(int64(len(s.data)) / 512)
	for _, x := range targettest.Map(s.t, d, off, n, p.name, 1<<20) {
		changed := !bytes.Equal(data[off:off+x.Length], p.data[off:off+x.Length])
		if changed && x.Flags != target.Dirty {
			s.t.Fatalf("step %d: [%d,+%d) changed since %s and is clean", s.count, off, x.Length, p.name)
		}
		for b := off / BlockSize; b*BlockSize < off+x.Length; b++ {
			if x.Flags == target.Dirty && !p.touched[b] {
				s.t.Fatalf("step %d: block %d was not touched since %s and is dirty", s.count, b, p.name)
			}
		}
		off += x.Length
	}
}

func (s *story) step() {
	s.count++
	switch k := s.rng.IntN(100); {
	case k < 55:
		s.write()
	case k < 65:
		s.zero()
	case k < 75 && len(s.snaps) < 7:
		s.create()
	case k < 82 && len(s.snaps) > 0:
		s.remove()
	case k < 90:
		if err := s.r.v.Checkpoint(s.t.Context()); err != nil {
			s.t.Fatalf("step %d checkpoint: %v", s.count, err)
		}
	case k < 93:
		if err := wait(s.r.v, s.r.v.Flush); err != nil {
			s.t.Fatal(err)
		}
		s.r.crash(false)
	case k < 95:
		s.r.crash(true)
	default:
		s.check()
	}
}

// TestSnapshotsMatchArrays runs writes, zeros, snapshots, deletions,
// checkpoints, failures, crashes and takeovers beside arrays. When all
// snapshots are deleted and everything is trimmed nothing is left.
func TestSnapshotsMatchArrays(t *testing.T) {
	const size = 2 << 20
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRig(t, size, func(c *Config) {
				c.CheckpointBytes, c.TailBytes, c.Pages = 1<<20, 8<<20, 16
				if seed%2 == 1 {
					c.LargeWrite, c.EagerLarge = 32<<10, true
				}
			})
			s := &story{t: t, rng: rand.New(rand.NewPCG(seed, 5)), r: r, data: make([]byte, size)}
			for range 220 {
				s.step()
			}
			s.check()
			settle(t, r)
			s.check()
			for len(s.snaps) > 0 {
				s.remove()
			}
			nothingLeft(t, r)
		})
	}
}

// nothingLeft trims a volume without snapshots and demands that no extent but
// those of the table itself is stored.
func nothingLeft(t *testing.T, r *rig) {
	t.Helper()
	if err := wait(r.v, func(d func(error)) { r.v.Trim(0, r.v.Size(), true, d) }); err != nil {
		t.Fatal(err)
	}
	settle(t, r)
	if n, _, live, _ := r.v.table.Stats(); n != 0 || live != 0 || r.v.table.Held() != 0 {
		t.Errorf("%d extents with %d blocks are left, %d held", n, live, r.v.table.Held())
	}
	r.ext.mu.Lock()
	defer r.ext.mu.Unlock()
	if len(r.ext.at) != len(r.v.tableRefs) {
		t.Errorf("%d extents are stored, %d of them are the table's", len(r.ext.at), len(r.v.tableRefs))
	}
}

func snapshotOf(t *testing.T, v *Volume, name string) *snapshotSession {
	t.Helper()
	s, err := v.openSnapshot(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return &snapshotSession{v: v, s: s, close: func() {}}
}

func put(t *testing.T, v *Volume, b byte, off, n int64) {
	t.Helper()
	if err := wait(v, func(d func(error)) { v.Write(bytes.Repeat([]byte{b}, int(n)), off, false, d) }); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotOfATailOnly holds what no checkpoint had folded before.
func TestSnapshotOfATailOnly(t *testing.T) {
	r := newRig(t, 1<<20, nil)
	put(t, r.v, 7, 512, 1024)
	if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	put(t, r.v, 8, 0, 1<<20)
	want := make([]byte, 1<<20)
	copy(want[512:], bytes.Repeat([]byte{7}, 1024))
	for range 2 {
		d := snapshotOf(t, r.v, "a")
		got := make([]byte, 1<<20)
		if err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("it is not what was there: %v", err)
		}
		got = make([]byte, 512)
		if err := d.ReadAt(t.Context(), got, 1024); err != nil || got[0] != 7 {
			t.Fatalf("a sector: %v", err)
		}
		r.crash(true)
	}
}

// TestSnapshotOfAnEmptyVolume needs an entry to hang on, again and again.
func TestSnapshotOfAnEmptyVolume(t *testing.T) {
	r := newRig(t, 1<<20, nil)
	for i := range 5 {
		if err := r.v.CreateSnapshot(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		r.crash(false)
	}
	list, revision := r.v.SnapshotInfos()
	if len(list) != 5 || revision != 5 {
		t.Fatalf("%d snapshots of revision %d", len(list), revision)
	}
	for i := range 5 {
		if err := r.v.DeleteSnapshot(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	nothingLeft(t, r)
}

func TestSnapshotSessionKeepsTheContract(t *testing.T) {
	r := newRig(t, 2<<20, nil)
	put(t, r.v, 1, 0, 1<<20)
	if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	r.v.Grow(4 << 20)
	d := snapshotOf(t, r.v, "a")
	if d.Size() != 2<<20 || !d.ReadOnly() || d.BlockSize() != 512 {
		t.Errorf("size %d, read only %v", d.Size(), d.ReadOnly())
	}
	for op, f := range map[string]func(func(error)){
		"write": func(done func(error)) { d.Write(make([]byte, 512), 0, true, done) },
		"zero":  func(done func(error)) { d.Zero(0, 512, false, done) },
		"trim":  func(done func(error)) { d.Trim(0, 512, false, done) },
	} {
		if err := targettest.Wait(d, f); !fault.Is(err, fault.ReadOnly) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if err := targettest.Wait(d, d.Flush); err != nil {
		t.Error(err)
	}
	for _, x := range [][2]int64{{2 << 20, 512}, {-512, 512}, {1, 512}, {0, 100}, {1 << 62, 512}} {
		if err := d.ReadAt(t.Context(), make([]byte, x[1]), x[0]); !fault.Is(err, fault.Invalid) {
			t.Errorf("[%d,+%d): %v", x[0], x[1], err)
		}
	}
	got := targettest.Map(t, d, 0, d.Size(), "", 9)
	if len(got) != 2 || got[0] != (target.Stretch{Length: 1 << 20}) || got[1].Flags != target.Hole|target.Zero {
		t.Errorf("it stores %v", got)
	}
	put(t, r.v, 2, 4096, 4096)
	if err := r.v.CreateSnapshot(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if got := snapshotOf(t, r.v, "b").Snapshots(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("b can be compared with %v", got)
	}
	if got := r.v.Snapshots(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the volume can be compared with %v", got)
	}
	for _, name := range []string{"a", "b", "c"} {
		if _, err := d.Map(t.Context(), 0, 512, name, 1, nil); !fault.Is(err, fault.NotFound) {
			t.Errorf("a since %s: %v", name, err)
		}
	}
}

// TestDirtyMapSeesTheTail asks what changed before any checkpoint folded it.
func TestDirtyMapSeesTheTail(t *testing.T) {
	r := newRig(t, 8<<20, func(c *Config) { c.BlockSize = 4096 })
	put(t, r.v, 1, 0, 4<<20)
	if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	put(t, r.v, 2, 1<<20, 8192)
	want := []target.Stretch{{Length: 1 << 20}, {Length: 8192, Flags: target.Dirty}, {Length: 7<<20 - 8192}}
	for _, when := range []string{"in the tail", "folded"} {
		if got := targettest.Map(t, r.v, 0, 8<<20, "a", 10); !slices.Equal(got, want) {
			t.Fatalf("%s: %v", when, got)
		}
		if err := r.v.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeletedSnapshotEndsItsSessions at the moment it is gone, and keeps what
// another one has.
func TestDeletedSnapshotEndsItsSessions(t *testing.T) {
	r := newRig(t, 1<<20, nil)
	put(t, r.v, 1, 0, 1<<20)
	for _, name := range []string{"a", "b"} {
		if err := r.v.CreateSnapshot(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	put(t, r.v, 2, 0, 1<<20)
	a, b := snapshotOf(t, r.v, "a"), snapshotOf(t, r.v, "b")
	if err := r.v.DeleteSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-a.s.gone:
	default:
		t.Error("the session was not told")
	}
	p := make([]byte, 4096)
	if a.TryReadAt(p, 0) {
		t.Error("a deleted snapshot was read")
	}
	if err := a.ReadAt(t.Context(), p, 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("a deleted snapshot: %v", err)
	}
	if err := b.ReadAt(t.Context(), p, 0); err != nil || p[0] != 1 {
		t.Errorf("the other one: %v", err)
	}
	r.v.fail(fault.New(fault.Fenced, "test", "", nil))
	<-b.s.gone
	if err := b.ReadAt(t.Context(), p, 0); !fault.Is(err, fault.Fenced) {
		t.Errorf("after the attachment: %v", err)
	}
}

func TestSnapshotLimits(t *testing.T) {
	r := newRig(t, 1<<20, nil)
	if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := r.v.CreateSnapshot(t.Context(), "a"); !fault.Is(err, fault.Exists) {
		t.Errorf("the same name again: %v", err)
	}
	if err := r.v.DeleteSnapshot(t.Context(), "b"); !fault.Is(err, fault.NotFound) {
		t.Errorf("deletion of none: %v", err)
	}
	if err := r.v.CreateSnapshot(t.Context(), string(make([]byte, 64))); !fault.Is(err, fault.Invalid) {
		t.Errorf("a long name: %v", err)
	}
	for i := 1; i < 64; i++ {
		if err := r.v.CreateSnapshot(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.v.CreateSnapshot(t.Context(), "one more"); !fault.Is(err, fault.NoSpace) {
		t.Errorf("one too many: %v", err)
	}
}

// TestSnapshotSpaceComesBack overwrites a volume under a snapshot, twice, and
// deletes it: one copy is kept meanwhile, none after.
func TestSnapshotSpaceComesBack(t *testing.T) {
	const size = 8 << 20
	r := newRig(t, size, func(c *Config) { c.BlockSize, c.CheckpointBytes, c.TailBytes = 4096, 1<<20, 4<<20 })
	rng := rand.New(rand.NewPCG(1, 9))
	noise := rand.NewChaCha8([32]byte{1})
	fill := func() {
		t.Helper()
		b := make([]byte, 4096)
		for i := range int64(2 * size / 4096) {
			_, _ = noise.Read(b)
			off := i % (size / 4096) * 4096
			if i >= size/4096 {
				off = rng.Int64N(size/4096) * 4096
			}
			if err := wait(r.v, func(d func(error)) { r.v.Write(b, off, false, d) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.v.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	before := r.ext.bytes()
	if err := r.v.CreateSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	fill()
	fill()
	kept := r.ext.bytes()
	infos, _ := r.v.SnapshotInfos()
	if own := infos[0].OwnBytes; own < size*9/10 || own > size*11/10 {
		t.Errorf("it has %d bytes of its own, about %d are right", own, size)
	}
	if err := r.v.DeleteSnapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	after := r.ext.bytes()
	t.Logf("volume of %d bytes: stored %d, with the snapshot %d, after its deletion %d", size, before, kept, after)
	if kept > before*5/2 || after > before*5/4 {
		t.Errorf("stored %d bytes before, %d with the snapshot, %d after it was deleted", before, kept, after)
	}
}

package brick

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

var (
	testPool = ident.PoolID{1}
	testNode = ident.NodeID{2}
)

// small is a brick with segments so small that tests cross their borders.
func small(fs vfs.FS, st Stable) Config {
	return Config{FS: fs, Pool: testPool, Node: testNode, Stable: st, JournalSegmentSize: 64 << 10,
		JournalMax: 1 << 20, ExtentSegmentSize: 128 << 10, Reserve: -1}
}

func mustOpen(t testing.TB, cfg Config) *Brick {
	t.Helper()
	b, err := Open(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = b.Close() }) // the test that cares closes by itself
	return b
}

func wantKind(t testing.TB, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Fatalf("got error %v, want kind %v", err, k)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// osConfig is a brick in a directory of the machine.
func osConfig(t testing.TB) Config {
	t.Helper()
	dir := t.TempDir()
	fs, err := vfs.NewOS(dir)
	must(t, err)
	t.Cleanup(func() { fs.Close() })
	cfg := small(fs, nil)
	cfg.OSDir = dir
	return cfg
}

// testExtent makes extent number n of volume v with size reproducible bytes.
func testExtent(v ident.VolumeID, n uint64, size int) Extent {
	data := make([]byte, size)
	rand.New(rand.NewSource(int64(n) + 1)).Read(data)
	if size >= 24 {
		copy(data, v[:])
		binary.LittleEndian.PutUint64(data[16:], n)
	}
	return Extent{Addr: sha256.Sum256(data), Volume: v, Number: n, Epoch: 1, Data: data}
}

func syncNow(j *Journal) error {
	done := make(chan error, 1)
	j.Sync(func(err error) { done <- err })
	return <-done
}

func replayAll(t testing.TB, j *Journal) (pos []Pos, bodies [][]byte) {
	t.Helper()
	must(t, j.Replay(func(p Pos, body []byte) error {
		pos = append(pos, p)
		bodies = append(bodies, append([]byte(nil), body...))
		return nil
	}))
	return pos, bodies
}

func checkExtent(t testing.TB, b *Brick, x Extent) {
	t.Helper()
	got := make([]byte, len(x.Data))
	if err := b.ReadExtent(x.Addr, got, 0); err != nil {
		t.Fatalf("extent %d: %v", x.Number, err)
	}
	if sha256.Sum256(got) != x.Addr {
		t.Fatalf("extent %d has other bytes", x.Number)
	}
}

// onBoth runs a test on a brick in memory and on one of the machine.
func onBoth(t *testing.T, f func(t *testing.T, cfg Config)) {
	t.Run("mem", func(t *testing.T) { f(t, small(vfs.NewMem(), NewMemStable())) })
	t.Run("os", func(t *testing.T) { f(t, osConfig(t)) })
}

func TestReopenKeepsEverything(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		id := b.ID()
		var want []Pos
		for i := range 100 {
			p, err := b.Journal().Append([]byte{byte(i)}, make([]byte, i*37))
			must(t, err)
			want = append(want, p)
		}
		must(t, syncNow(b.Journal()))
		must(t, b.Stable().Set("promise", []byte("seven")))
		v := ident.NewVolume()
		x, y := testExtent(v, 1, 5000), testExtent(v, 2, 50000)
		must(t, b.PutExtents([]Extent{x, y}))
		must(t, b.Close())

		b = mustOpen(t, cfg)
		if b.ID() != id {
			t.Fatalf("identity %s became %s", id, b.ID())
		}
		got, bodies := replayAll(t, b.Journal())
		if len(got) != len(want) {
			t.Fatalf("%d records replayed, %d appended", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] || len(bodies[i]) != 1+i*37 || bodies[i][0] != byte(i) {
				t.Fatalf("record %d is %d bytes at %d, want %d", i, len(bodies[i]), got[i], want[i])
			}
		}
		if v, err := b.Stable().Get("promise"); err != nil || string(v) != "seven" {
			t.Fatalf("stable: %q %v", v, err)
		}
		if v, err := b.Stable().Get("none"); v != nil || err != nil {
			t.Fatalf("absent key: %q %v", v, err)
		}
		checkExtent(t, b, x)
		checkExtent(t, b, y)
		refs := b.ListVolume(v)
		if len(refs) != 2 || refs[0] != (Ref{x.Addr, 1, 1, 5000}) || refs[1] != (Ref{y.Addr, 2, 1, 50000}) {
			t.Fatalf("listed %v", refs)
		}
		must(t, b.DeleteExtents([]ident.Addr{x.Addr}))
		must(t, b.Close())

		b = mustOpen(t, cfg)
		wantKind(t, b.ReadExtent(x.Addr, make([]byte, 10), 0), fault.NotFound)
		checkExtent(t, b, y)
		if use := b.Volumes(); len(use) != 1 || use[v] != 50000 {
			t.Fatalf("volumes %v", use)
		}
	})
}

var testVolume = ident.VolumeID{7}

func rngOf(seed int64) *rand.Rand { return rand.New(rand.NewSource(seed)) }

func addrs(xs ...Extent) []ident.Addr {
	as := make([]ident.Addr, len(xs))
	for i := range xs {
		as[i] = xs[i].Addr
	}
	return as
}

// numbered makes the extent number n in place of data.
func numbered(data []byte, n uint64) Extent {
	binary.LittleEndian.PutUint64(data, n)
	return Extent{Addr: sha256.Sum256(data), Volume: testVolume, Number: n, Epoch: 1, Data: data}
}

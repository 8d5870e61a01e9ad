package brick

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

func TestExtentReads(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		x := testExtent(testVolume, 1, 20000)
		must(t, b.PutExtents([]Extent{x, x}))
		must(t, b.PutExtents([]Extent{x}))
		if st := b.Stats(); st.ExtentPuts != 1 {
			t.Fatalf("stored %d times", st.ExtentPuts)
		}
		p := make([]byte, 4096)
		must(t, b.ReadExtent(x.Addr, p, 5000))
		if string(p) != string(x.Data[5000:9096]) {
			t.Fatal("other bytes")
		}
		clear(p)
		if !b.TryReadExtent(x.Addr, p, 5000) || string(p) != string(x.Data[5000:9096]) {
			t.Fatal("bytes just written are not in memory")
		}
		if n := testing.AllocsPerRun(100, func() { b.TryReadExtent(x.Addr, p, 5000) }); n > 0 {
			t.Fatalf("%v allocations in TryReadExtent", n)
		}
		for _, off := range []int64{-1, 20000 - 4095, 1 << 40} {
			wantKind(t, b.ReadExtent(x.Addr, p, off), fault.Invalid)
			if b.TryReadExtent(x.Addr, p, off) {
				t.Fatalf("read %d over the end", off)
			}
		}
		wantKind(t, b.ReadExtent(ident.Addr{1}, p, 0), fault.NotFound)
		if b.TryReadExtent(ident.Addr{1}, p, 0) {
			t.Fatal("an absent extent was read")
		}
		if n, ok := b.StatExtent(x.Addr); n != 20000 || !ok {
			t.Fatalf("size %d %v", n, ok)
		}
	})
}

func TestPutRefuses(t *testing.T) {
	b := mustOpen(t, small(vfs.NewMem(), NewMemStable()))
	x := testExtent(testVolume, 1, 100)
	x.Data[0]++
	wantKind(t, b.PutExtents([]Extent{x}), fault.Corrupt)
	wantKind(t, b.PutExtents([]Extent{{Addr: sha256.Sum256(nil)}}), fault.Invalid)
	big := testExtent(testVolume, 2, 128<<10)
	wantKind(t, b.PutExtents([]Extent{big}), fault.Invalid)
	must(t, b.PutExtents([]Extent{testExtent(testVolume, 2, 128<<10-extentHeader)}))
	must(t, b.PutExtents(nil))
	must(t, b.DeleteExtents(nil))
	must(t, b.DeleteExtents([]ident.Addr{{9}}))
}

// TestConcurrentPuts has many callers, also of the same extents.
func TestConcurrentPuts(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				for i := range 20 {
					x := testExtent(testVolume, uint64(i), 3000+i)     // everybody's
					y := testExtent(testVolume, uint64(1000*g+i), 100) // one's own
					if err := b.PutExtents([]Extent{x, y}); err != nil {
						t.Error(err)
						return
					}
					checkExtent(t, b, x)
					checkExtent(t, b, y)
				}
			})
		}
		wg.Wait()
		if st := b.Stats(); st.ExtentPuts != uint64(b.Usage().Extents) {
			t.Fatalf("%+v", st)
		}
	})
}

// TestPutsShareSyncs holds one fdatasync up until many puts wait for the next.
func TestPutsShareSyncs(t *testing.T) {
	m := vfs.NewMem()
	cfg := small(m, NewMemStable())
	cfg.ExtentSegmentSize = 1 << 20
	b := mustOpen(t, cfg)
	<-b.extents.reclaimed
	must(t, b.PutExtents([]Extent{testExtent(testVolume, 0, 100)}))
	entered, release := make(chan struct{}), make(chan struct{})
	written := make(chan struct{}, 30)
	var once sync.Once
	m.SetHook(func(op, name string) error {
		switch {
		case op == "sync":
			once.Do(func() { close(entered); <-release })
		case op == "write" && strings.HasPrefix(name, "extents/"):
			written <- struct{}{}
		}
		return nil
	})
	before := b.Stats()
	var wg sync.WaitGroup
	put := func(n uint64) {
		wg.Go(func() {
			if err := b.PutExtents([]Extent{testExtent(testVolume, n, 100)}); err != nil {
				t.Error(err)
			}
		})
	}
	put(1)
	<-entered
	for n := range uint64(20) {
		put(n + 2)
	}
	for range 21 {
		<-written
	}
	close(release)
	wg.Wait()
	// The last of them may have missed the second batch, not a fourth.
	if n := b.Stats().IndexCommits - before.IndexCommits; n > 4 {
		t.Fatalf("%d commits for 21 puts", n)
	}
}

func TestDeleteGivesRoomBack(t *testing.T) {
	m := vfs.NewMem()
	b := mustOpen(t, small(m, NewMemStable()))
	var xs []Extent
	for i := range 40 {
		xs = append(xs, testExtent(testVolume, uint64(i), 10000))
	}
	must(t, b.PutExtents(xs))
	full := m.Allocated("extents/")
	must(t, b.DeleteExtents(addrs(xs[:5]...))) // holes in a segment that lives
	if got, want := m.Allocated("extents/"), full-5*recordSpan(10000); got != want {
		t.Fatalf("%d bytes left, want %d", got, want)
	}
	must(t, b.DeleteExtents(addrs(xs[5:]...)))
	names, err := m.List("extents")
	must(t, err)
	if len(names) != 1 || m.Allocated("extents/") != 0 {
		t.Fatalf("left: %v, %d bytes", names, m.Allocated("extents/"))
	}
	if u := b.Usage(); u.ExtentStored != 0 || u.ExtentLive != 0 || u.Extents != 0 || len(b.Volumes()) != 0 {
		t.Fatalf("%+v", u)
	}
}

func TestHolesOnRealDisk(t *testing.T) {
	cfg := osConfig(t)
	b := mustOpen(t, cfg)
	x, y := testExtent(testVolume, 1, 60000), testExtent(testVolume, 2, 10000)
	must(t, b.PutExtents([]Extent{x, y}))
	before := allocated(t, cfg.OSDir+"/extents/00000001")
	must(t, b.DeleteExtents(addrs(x)))
	if after := allocated(t, cfg.OSDir+"/extents/00000001"); before-after != recordSpan(60000) {
		t.Fatalf("%d bytes before, %d after", before, after)
	}
	checkExtent(t, b, y)
}

// TestFullDisk: puts fail in time, what frees room goes on, and it recovers.
func TestFullDisk(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(2 << 20)
	cfg := small(m, NewMemStable())
	cfg.Reserve = 256 << 10
	b := mustOpen(t, cfg)
	var xs []Extent
	n := uint64(0)
	fill := func(relief bool, least int64) {
		t.Helper()
		for err := error(nil); err == nil; n++ {
			x := testExtent(testVolume, n, 9000)
			x.Relief = relief
			if err = b.PutExtents([]Extent{x}); err == nil {
				xs = append(xs, x)
			} else {
				wantKind(t, err, fault.NoSpace)
			}
		}
		if free, _, _ := m.Free(); free < least || free > least+20000 {
			t.Fatalf("%d bytes free with a reserve of %d", free, cfg.Reserve)
		}
	}
	fill(false, cfg.Reserve) // however small
	fill(true, cfg.Reserve/4)
	two := []Extent{testExtent(testVolume, 1<<20, 9000), testExtent(testVolume, 1<<20+1, 9000)}
	two[0].Relief, two[1].Relief = true, true
	wantKind(t, b.PutExtents(two), fault.NoSpace)
	for i := range 20 {
		_, err := b.Journal().Append(record(i, 1000))
		must(t, err)
	}
	must(t, syncNow(b.Journal()))
	// Somebody else takes the last byte.
	hog, err := m.Create("hog")
	must(t, err)
	if _, err := hog.WriteAt(make([]byte, 4<<20), 0); !fault.Is(err, fault.NoSpace) {
		t.Fatal(err)
	}
	if s := b.Usage().State; s != StateFull {
		t.Fatalf("state %q", s)
	}
	var full error
	for i := 0; full == nil; i++ {
		_, full = b.Journal().Append(record(i, 20000))
	}
	wantKind(t, full, fault.NoSpace)
	must(t, syncNow(b.Journal()))
	for _, x := range xs {
		checkExtent(t, b, x)
	}
	must(t, b.DeleteExtents(addrs(xs[:40]...)))
	must(t, hog.Truncate(0))
	must(t, b.PutExtents([]Extent{testExtent(testVolume, 1, 9000)}))
	for i := 0; ; i++ { // the keeper tries again when it is asked
		if _, err := b.Journal().Append(record(i, 20000)); err == nil {
			break
		} else if !fault.Is(err, fault.NoSpace) || i > 1000 {
			t.Fatal(err)
		}
	}
	must(t, b.Close())
	b = mustOpen(t, cfg)
	for _, x := range xs[40:] {
		checkExtent(t, b, x)
	}
}

// TestNoSpaceInTheMiddle: a put that meets a full disk, below or above the
// reserve, leaves nothing behind, and the brick goes on.
func TestNoSpaceInTheMiddle(t *testing.T) {
	for _, where := range []string{"extents/", "index-"} {
		m := vfs.NewMem()
		b := mustOpen(t, small(m, NewMemStable()))
		x, y := testExtent(testVolume, 1, 30000), testExtent(testVolume, 2, 30000)
		must(t, b.PutExtents([]Extent{x}))
		b.extents.index.ahead = 1 << 30 // every append wants to grow the file
		m.SetHook(func(op, name string) error {
			if op == "write" && strings.HasPrefix(name, where) {
				return fault.Newf(fault.NoSpace, "vfs.write", name, "no space left on the disk")
			}
			return nil
		})
		if where == "index-" {
			b.extents.index.allocated = int64(b.extents.index.next)
		}
		wantKind(t, b.PutExtents([]Extent{y}), fault.NoSpace)
		m.SetHook(nil)
		b.extents.index.ahead = indexAhead
		if _, ok := b.StatExtent(y.Addr); ok || m.Allocated("extents/") != recordSpan(30000) {
			t.Fatalf("%s: the failed put left %d bytes", where, m.Allocated("extents/"))
		}
		must(t, b.PutExtents([]Extent{y}))
		must(t, b.Close())
		b = mustOpen(t, small(m, NewMemStable()))
		checkExtent(t, b, x)
		checkExtent(t, b, y)
	}
}

func TestIndexIsRewritten(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		b.extents.index.slack = 16 << 10
		keep := testExtent(testVolume, 0, 5000)
		must(t, b.PutExtents([]Extent{keep}))
		for i := range 300 {
			x := testExtent(testVolume, uint64(i+1), 100)
			must(t, b.PutExtents([]Extent{x}))
			must(t, b.DeleteExtents(addrs(x)))
		}
		if n := b.Stats().IndexRewrites; n == 0 {
			t.Fatal("never rewritten")
		}
		must(t, b.Close())
		b = mustOpen(t, cfg)
		checkExtent(t, b, keep)
		if u := b.Usage(); u.Extents != 1 {
			t.Fatalf("%d extents", u.Extents)
		}
		names, err := cfg.FS.List(".")
		must(t, err)
		n := 0
		for _, name := range names {
			if strings.HasPrefix(name, "index-") {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("%d index files: %v", n, names)
		}
	})
}

// TestDamagedIndexRefused flips every 7th byte of the index of a closed brick:
// either it is refused, or nothing is missing.
func TestDamagedIndexRefused(t *testing.T) {
	lay := func() (*vfs.Mem, *MemStable, []Extent, int64) {
		m, st := vfs.NewMem(), NewMemStable()
		b := mustOpen(t, small(m, st))
		var xs []Extent
		for i := range 10 {
			xs = append(xs, testExtent(testVolume, uint64(i), 100))
			must(t, b.PutExtents(xs[i:]))
		}
		must(t, b.Close())
		return m, st, xs, int64(b.extents.index.next)
	}
	_, _, _, end := lay()
	last := end - frameSize(opSegmentSize) // the commit of Close, which nobody vouches for
	refused := 0
	for off := int64(indexDataOff); off < end; off += 7 {
		m, st, xs, _ := lay()
		must(t, m.FlipBit("index-00000001", off))
		b, err := Open(small(m, st))
		if err != nil {
			wantKind(t, err, fault.Corrupt)
			refused++
			continue
		}
		for _, x := range xs {
			checkExtent(t, b, x)
		}
		if off < last && frameSize(opPutSize)-frameHeader-opPutSize == 0 {
			t.Fatalf("byte %d flipped and nobody noticed", off)
		}
		must(t, b.Close())
	}
	if refused < int(end-indexDataOff)/7*3/4 {
		t.Fatalf("refused %d times only", refused)
	}
}

func TestDamagedRecordHeader(t *testing.T) {
	m := vfs.NewMem()
	b := mustOpen(t, small(m, NewMemStable()))
	x := testExtent(testVolume, 1, 9000)
	must(t, b.PutExtents([]Extent{x}))
	must(t, m.FlipBit("extents/00000001", 20))
	wantKind(t, b.ReadExtent(x.Addr, make([]byte, 9000), 0), fault.Corrupt)
	wantKind(t, b.ReadExtentGently(x.Addr, make([]byte, 9000)), fault.Corrupt)
	must(t, b.ReadExtent(x.Addr, make([]byte, 100), 4000)) // the caller's CRC decides
}

// TestFewFilesOpen reads many segments through few descriptors.
func TestFewFilesOpen(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		b.extents.segments.openMax = 3
		var xs []Extent
		for i := range 40 {
			x := testExtent(testVolume, uint64(i), 60000)
			must(t, b.PutExtents([]Extent{x}))
			xs = append(xs, x)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i := range xs {
					checkExtent(t, b, xs[i])
					b.TryReadExtent(xs[(i*7)%40].Addr, make([]byte, 100), 0)
				}
			})
		}
		wg.Wait()
		b.extents.segments.mu.Lock()
		defer b.extents.segments.mu.Unlock()
		if n := len(b.extents.segments.files); n > 3+4 {
			t.Fatalf("%d files open", n)
		}
	})
}

// TestReadDuringDelete: a reader gets the extent or an error, never a panic or a
// hang.
func TestReadDuringDelete(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		for round := range 20 {
			var xs []Extent
			for i := range 8 {
				xs = append(xs, testExtent(testVolume, uint64(round*8+i), 30000))
			}
			must(t, b.PutExtents(xs))
			var wg sync.WaitGroup
			wg.Go(func() {
				p := make([]byte, 30000)
				for _, x := range xs {
					err := b.ReadExtent(x.Addr, p, 0)
					if err != nil && !fault.Is(err, fault.NotFound) {
						t.Errorf("%v", err)
					}
					b.TryReadExtent(x.Addr, p, 0)
				}
			})
			must(t, b.DeleteExtents(addrs(xs...)))
			wg.Wait()
		}
	})
}

func TestWrongOwnerRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		_, err := Open(cfg)
		wantKind(t, err, fault.Busy)
		must(t, b.Close())
		for _, c := range []Config{{Pool: ident.PoolID{9}, Node: testNode}, {Pool: testPool, Node: ident.NodeID{9}}} {
			other := cfg
			other.Pool, other.Node = c.Pool, c.Node
			_, err := Open(other)
			wantKind(t, err, fault.Denied)
			for _, id := range []fmt.Stringer{cfg.Pool, c.Pool} {
				if c.Pool != cfg.Pool && !strings.Contains(err.Error(), id.String()) {
					t.Fatalf("%v does not name %s", err, id)
				}
			}
		}
		must(t, mustOpen(t, cfg).Close())
	})
}

func TestConfigRefused(t *testing.T) {
	good := small(vfs.NewMem(), NewMemStable())
	for name, change := range map[string]func(*Config){
		"no disk":         func(c *Config) { c.FS = nil },
		"no stable":       func(c *Config) { c.Stable = nil },
		"odd segment":     func(c *Config) { c.JournalSegmentSize = 65537 },
		"tiny segment":    func(c *Config) { c.ExtentSegmentSize = 4096 },
		"one segment max": func(c *Config) { c.JournalMax = c.JournalSegmentSize },
	} {
		cfg := good
		change(&cfg)
		if _, err := Open(cfg); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLostStableRefused: without its promises a brick must not vote.
func TestLostStableRefused(t *testing.T) {
	cfg := osConfig(t)
	b := mustOpen(t, cfg)
	must(t, b.Stable().Set("k", []byte("v")))
	must(t, b.Close())
	must(t, os.Remove(filepath.Join(cfg.OSDir, stableFile)))
	_, err := Open(cfg)
	wantKind(t, err, fault.Corrupt)
}

func TestStableErrors(t *testing.T) {
	st := &failingStable{MemStable: NewMemStable(), err: fault.Newf(fault.NoSpace, "set", "", "full")}
	b := mustOpen(t, small(vfs.NewMem(), st))
	wantKind(t, b.Stable().Set("k", nil), fault.NoSpace)
	_, err := b.Journal().Append([]byte("goes on"))
	must(t, err)
	st.err = errors.New("input/output error")
	wantKind(t, b.Stable().Set("k", nil), fault.Unavailable)
	_, err = b.Journal().Append([]byte("is over"))
	wantKind(t, err, fault.Unavailable)
}

type failingStable struct {
	*MemStable
	err error
}

func (s *failingStable) Set(string, []byte) error { return s.err }

package brick

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// record makes a record of n bytes that says which one it is.
func record(i, n int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%08d", i)), n/8+1)[:n]
}

func TestReadAtServesEveryState(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		j := mustOpen(t, cfg).Journal()
		var pos []Pos
		add := func(n int) {
			for range n {
				p, err := j.Append(record(len(pos), 3000))
				must(t, err)
				pos = append(pos, p)
			}
		}
		check := func() {
			t.Helper()
			for i, p := range pos {
				b, err := j.ReadAt(p, 3000)
				if err != nil || !bytes.Equal(b, record(i, 3000)) {
					t.Fatalf("record %d of %d at %d: %v", i, len(pos), p, err)
				}
			}
		}
		add(30) // over a segment border
		check() // in the batch
		must(t, j.Write())
		add(30)
		check() // some in the page cache
		must(t, syncNow(j))
		add(1)
		check()
		_, err := j.ReadAt(pos[0], 2999)
		wantKind(t, err, fault.Corrupt)
		_, err = j.ReadAt(pos[0]+8, 3000)
		wantKind(t, err, fault.Corrupt)
		_, next, _ := j.Live()
		_, err = j.ReadAt(next, 3000)
		wantKind(t, err, fault.NotFound)
		j.Trim(pos[50])
		_, err = j.ReadAt(pos[0], 3000)
		wantKind(t, err, fault.NotFound)
	})
}

func TestJournalRecyclesSegments(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		cfg.JournalMax = 4 * cfg.JournalSegmentSize
		b := mustOpen(t, cfg)
		j := b.Journal()
		for i := range 2000 {
			p, err := j.Append(record(i, 1000))
			must(t, err)
			if i%10 == 9 {
				must(t, syncNow(j))
				j.Trim(p)
			}
		}
		st, u := b.Stats(), b.Usage()
		if st.JournalSegments < 20 || st.JournalSegmentsNew > 4 || u.JournalReserved > cfg.JournalMax {
			t.Fatalf("%+v, %d bytes reserved", st, u.JournalReserved)
		}
		must(t, b.Close())
		_, bodies := replayAll(t, mustOpen(t, cfg).Journal())
		if n := len(bodies); n == 0 || !bytes.Equal(bodies[n-1], record(1999, 1000)) {
			t.Fatalf("%d records replayed, not up to the last", n)
		}
	})
}

func TestJournalLimit(t *testing.T) {
	cfg := small(vfs.NewMem(), NewMemStable())
	cfg.JournalMax = 3 * cfg.JournalSegmentSize
	j := mustOpen(t, cfg).Journal()
	var last Pos
	var err error
	n := 0
	for ; ; n++ {
		var p Pos
		if p, err = j.Append(record(n, 5000)); err != nil {
			break
		}
		last = p
	}
	wantKind(t, err, fault.NoSpace)
	oldest, next, max := j.Live()
	if int64(next-oldest) < max || max < cfg.JournalSegmentSize {
		t.Fatalf("full with [%d,%d), but %d bytes should fit", oldest, next, max)
	}
	must(t, syncNow(j))
	j.Trim(last)
	for i := range 10 { // waits for recycling, not for luck
		_, err := j.Append(record(i, 5000))
		must(t, err)
	}
}

func TestJournalRecordSizes(t *testing.T) {
	j := mustOpen(t, small(vfs.NewMem(), NewMemStable())).Journal()
	for _, n := range []int{0, 64 << 10} {
		_, err := j.Append(make([]byte, n))
		wantKind(t, err, fault.Invalid)
	}
	_, err := j.Append(make([]byte, j.bodyMax))
	must(t, err)
	cfg := Config{FS: vfs.NewMem(), Pool: testPool, Node: testNode, Stable: NewMemStable()}
	j = mustOpen(t, cfg).Journal()
	for i := range 20 {
		_, err := j.Append(record(i, 2100<<10))
		must(t, err)
	}
	must(t, syncNow(j))
	if _, err := j.Append(make([]byte, RecordMax+1)); !fault.Is(err, fault.Invalid) {
		t.Fatalf("over RecordMax: %v", err)
	}
}

// TestGroupCommit holds one fdatasync up: all that come meanwhile share the
// next one.
func TestGroupCommit(t *testing.T) {
	m := vfs.NewMem()
	b := mustOpen(t, small(m, NewMemStable()))
	j := b.Journal()
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.SetHook(func(op, _ string) error {
		if op == "sync" {
			once.Do(func() { close(entered); <-release })
		}
		return nil
	})
	results := make(chan error, 101)
	before := b.Stats().Syncs
	_, err := j.Append([]byte("first"))
	must(t, err)
	j.Sync(func(err error) { results <- err })
	<-entered
	for i := range 100 {
		_, err := j.Append(record(i, 50))
		must(t, err)
		j.Sync(func(err error) { results <- err })
	}
	close(release)
	for range 101 {
		must(t, <-results)
	}
	if n := b.Stats().Syncs - before; n != 2 {
		t.Fatalf("%d syncs for 101 requests, want 2", n)
	}
}

func TestFailedSyncStopsTheBrick(t *testing.T) {
	m := vfs.NewMem()
	cfg := small(m, NewMemStable())
	broken := make(chan error, 10)
	cfg.OnBroken = func(err error) { broken <- err }
	b := mustOpen(t, cfg)
	j := b.Journal()
	x, y := testExtent(testVolume, 1, 9000), testExtent(testVolume, 2, 9000)
	must(t, b.PutExtents([]Extent{x}))
	_, err := j.Append([]byte("one"))
	must(t, err)
	m.SetHook(func(op, _ string) error {
		if op == "sync" {
			return errors.New("input/output error")
		}
		return nil
	})
	wantKind(t, syncNow(j), fault.Unavailable)
	m.SetHook(nil)
	wantKind(t, syncNow(j), fault.Unavailable)
	_, err = j.Append([]byte("two"))
	wantKind(t, err, fault.Unavailable)
	wantKind(t, j.Write(), fault.Unavailable)
	_, err = j.ReadAt(4096, 3)
	wantKind(t, err, fault.Unavailable)
	wantKind(t, b.PutExtents([]Extent{y}), fault.Unavailable)
	wantKind(t, b.DeleteExtents(addrs(x)), fault.Unavailable)
	wantKind(t, b.Stable().Set("k", nil), fault.Unavailable)
	checkExtent(t, b, x)
	if s := b.Usage().State; s != StateBroken {
		t.Fatalf("state %q", s)
	}
	wantKind(t, b.Close(), fault.Unavailable)
	if len(broken) != 1 {
		t.Fatalf("OnBroken called %d times", len(broken))
	}
	if e := <-broken; !strings.Contains(e.Error(), "input/output error") {
		t.Fatalf("OnBroken was told %v", e)
	}
}

// TestRestartAfterFailedSync: the kernel believes the lost bytes are on disk.
// What the reopened brick replays must be there after a power cut all the same.
func TestRestartAfterFailedSync(t *testing.T) {
	for seed := range int64(20) {
		m := vfs.NewMemSeed(seed)
		st := NewMemStable()
		b := mustOpen(t, small(m, st))
		for i := range 100 {
			_, err := b.Journal().Append(record(i, 2000))
			must(t, err)
			if i == 10 {
				must(t, syncNow(b.Journal()))
			}
		}
		must(t, b.Journal().Write())
		m.SetHook(func(op, _ string) error {
			if op == "sync" {
				return errors.New("input/output error")
			}
			return nil
		})
		wantKind(t, syncNow(b.Journal()), fault.Unavailable)
		m = m.Kill()
		b = mustOpen(t, small(m, st))
		before, _ := replayAll(t, b.Journal())
		m = m.Crash(rngOf(seed))
		after, _ := replayAll(t, mustOpen(t, small(m, st)).Journal())
		if len(before) != 100 || len(after) != 100 {
			t.Fatalf("%d records replayed, then %d; want 100", len(before), len(after))
		}
	}
}

func TestConcurrentAppends(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		b := mustOpen(t, cfg)
		j := b.Journal()
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 50 {
					p, err := j.Append([]byte{byte(g), byte(i)}, record(i, 500))
					if err == nil {
						err = j.Write()
					}
					if err == nil && i%5 == 0 {
						err = syncNow(j)
					}
					if err == nil {
						_, err = j.ReadAt(p, 502)
					}
					if err != nil {
						t.Errorf("goroutine %d, record %d: %v", g, i, err)
						return
					}
				}
			})
		}
		wg.Wait()
		must(t, b.Close())
		_, bodies := replayAll(t, mustOpen(t, cfg).Journal())
		var seen [8]byte
		for _, r := range bodies {
			if r[1] != seen[r[0]] {
				t.Fatalf("record %d of goroutine %d where %d should be", r[1], r[0], seen[r[0]])
			}
			seen[r[0]]++
		}
		if len(bodies) != 400 {
			t.Fatalf("%d records", len(bodies))
		}
	})
}

// TestJournalAfterClose: nothing hangs, nothing is reported to OnBroken.
func TestAfterClose(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg Config) {
		cfg.OnBroken = func(err error) { t.Errorf("OnBroken: %v", err) }
		b := mustOpen(t, cfg)
		x := testExtent(testVolume, 1, 100)
		must(t, b.PutExtents([]Extent{x}))
		must(t, b.Close())
		must(t, b.Close())
		_, err := b.Journal().Append([]byte("x"))
		wantKind(t, err, fault.Unavailable)
		wantKind(t, syncNow(b.Journal()), fault.Unavailable)
		wantKind(t, b.PutExtents([]Extent{testExtent(testVolume, 2, 100)}), fault.Unavailable)
		wantKind(t, b.DeleteExtents(addrs(x)), fault.Unavailable)
		wantKind(t, b.ReadExtent(x.Addr, make([]byte, 1), 0), fault.Unavailable)
		wantKind(t, b.Stable().Set("k", nil), fault.Unavailable)
		if b.TryReadExtent(x.Addr, make([]byte, 1), 0) {
			t.Fatal("a closed brick was read")
		}
	})
}

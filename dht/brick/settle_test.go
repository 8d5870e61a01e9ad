package brick

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

var errIO = errors.New("input/output error")

// TestIndexAfterFailedSync: the index of a restarted brick shows what the kernel
// holds and the disk never got; whoever saw it must find it after a power cut.
func TestIndexAfterFailedSync(t *testing.T) {
	for seed := range int64(20) {
		m, st := vfs.NewMemSeed(seed), NewMemStable()
		b := mustOpen(t, small(m, st))
		x := testExtent(testVolume, 1, 9000)
		m.SetHook(func(op, name string) error {
			if op == "sync" && strings.HasPrefix(name, "index-") {
				return errIO
			}
			return nil
		})
		wantKind(t, b.PutExtents([]Extent{x}), fault.Unavailable)
		m = m.Kill()
		b = mustOpen(t, small(m, st))
		if _, ok := b.StatExtent(x.Addr); !ok {
			t.Fatal("the record is in the page cache and was not found")
		}
		b = mustOpen(t, small(m.Crash(rngOf(seed)), st))
		checkExtent(t, b, x)
	}
}

// TestIndexStaleFramesStayDead: of a long unsynced commit the first frame is torn
// and the second whole. A new frame of the same length must not lead to it.
func TestIndexStaleFramesStayDead(t *testing.T) {
	m, st := vfs.NewMem(), NewMemStable()
	b := mustOpen(t, small(m, st))
	x := testExtent(testVolume, 1, 9000)
	must(t, b.PutExtents([]Extent{x}))
	must(t, b.Close())
	log := func() *indexLog {
		l := &indexLog{core: &core{fs: m, id: b.ID()}, view: new(atomic.Pointer[indexView]), ahead: indexAhead}
		must(t, l.open(func(*indexOp) {}))
		return l
	}
	one := make([]indexOp, (indexBodyMax-opPutSize)/opDeleteSize+1) // fills a frame
	for i := range one {
		one[i] = indexOp{code: opDelete}
	}
	l := log()
	start := l.next
	must(t, l.append(append(one, indexOp{code: opDelete, addr: x.Addr})))
	must(t, m.FlipBit(l.name, int64(start)+1000))
	b = mustOpen(t, small(m, st))
	checkExtent(t, b, x)
	must(t, b.Close())
	l = log()
	l.next, l.synced = start, start // over what the open and the close in between wrote
	must(t, l.append(one))
	b = mustOpen(t, small(m, st))
	checkExtent(t, b, x)
}

// TestFailureIsSticky: what failed under a lock fails for the next one to take
// it, before anybody was told.
func TestFailureIsSticky(t *testing.T) {
	for _, bad := range []string{"write", "sync"} {
		m := vfs.NewMem()
		b := mustOpen(t, small(m, NewMemStable()))
		j := b.Journal()
		<-b.extents.reclaimed
		_, err := j.Append([]byte("x"))
		must(t, err)
		failed := false
		m.SetHook(func(op, _ string) error {
			if op == bad && !failed {
				failed = true
				return errIO
			}
			return nil
		})
		_, next, _ := j.Live()
		first := func() error {
			if err := j.writeTo(next); err != nil {
				return err
			}
			return j.syncDirty()
		}
		if err := first(); !errors.Is(err, errIO) {
			t.Fatalf("%s: %v", bad, err)
		}
		if first() == nil && j.syncDirty() == nil {
			t.Fatalf("%s failed, and the next one had nothing to do and succeeded", bad)
		}
	}
}

// TestRetiringKeepsThePlace: the trimmed segment is the only one whose header is
// durable, until retiring it makes another one durable first.
func TestRetiringKeepsThePlace(t *testing.T) {
	for seed := range int64(30) {
		m, st := vfs.NewMemSeed(seed), NewMemStable()
		b := mustOpen(t, small(m, st))
		j := b.Journal()
		var last Pos
		for i := range 100 {
			p, err := j.Append(record(i, 1000))
			must(t, err)
			last = p
		}
		must(t, j.Write())
		j.Trim(last)
		j.mu.Lock()
		for len(j.retiring) > 0 {
			j.ready.Wait() // shelve broadcasts
		}
		j.mu.Unlock()
		b2, err := Open(small(m.Crash(rngOf(seed)), st))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if oldest, _, _ := b2.Journal().Live(); oldest == journalStart {
			t.Fatalf("seed %d: the journal began anew", seed)
		}
		must(t, b2.Close())
	}
}

// TestTidyWaitsForHoles: a segment is not called clean while a deleter is about
// to punch it.
func TestTidyWaitsForHoles(t *testing.T) {
	m, st := vfs.NewMem(), NewMemStable()
	b := mustOpen(t, small(m, st))
	<-b.extents.reclaimed
	x, y := testExtent(testVolume, 1, 60000), testExtent(testVolume, 2, 30000)
	must(t, b.PutExtents([]Extent{x, y, testExtent(testVolume, 3, 60000)})) // the third seals the first segment
	var found *vfs.Mem
	m.SetHook(func(op, _ string) error {
		if op == "punch" && found == nil {
			found = m // once
			must(t, b.extents.tidy())
			found = m.Kill()
		}
		return nil
	})
	must(t, b.DeleteExtents(addrs(x)))
	b = mustOpen(t, small(found, st))
	must(t, checkRoom(found, b))
	checkExtent(t, b, y)
}

// TestEachLifeHasItsOwnSeed: frames of an earlier life of a segment never
// verify, not even at the same position.
func TestEachLifeHasItsOwnSeed(t *testing.T) {
	s := &jseg{h: segmentHeader{brick: goldenBrick, size: 65536}}
	s.begin(1, 4096, 0)
	f := appendFrame(nil, s.seed, 4096, 0, []byte("x"))
	s.begin(1, 4096, 0)
	if decodes(f, s.seed, 4096, 10) {
		t.Fatal("a frame of the earlier life verified")
	}
}

package vfs

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// synced makes a file whose content is durable.
func synced(t testing.TB, m *Mem, name, s string) File {
	t.Helper()
	f := create(t, m, name)
	put(t, f, 0, s)
	must(t, f.Sync())
	must(t, m.SyncDir("."))
	return f
}

func sectors(s string) string {
	var b strings.Builder
	for _, c := range s {
		b.WriteString(strings.Repeat(string(c), sectorSize))
	}
	return b.String()
}

func squeeze(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i += sectorSize {
		b.WriteByte(s[i])
	}
	return b.String()
}

// TestLostWriteShowsWhenTheCacheIsGone: an acknowledged write, even a synced one,
// that the disk never did.
func TestLostWriteShowsWhenTheCacheIsGone(t *testing.T) {
	for _, uncover := range []string{"evict", "crash", "kill and evict"} {
		m := NewMem()
		f := synced(t, m, "a", sectors("abc"))
		m.Inject(Fault{Op: "write", Name: "a", Times: 1, Lost: true})
		put(t, f, sectorSize, sectors("X"))
		must(t, f.Sync())
		put(t, f, 2*sectorSize, sectors("Y")) // the fault is over
		must(t, f.Sync())
		if s := squeeze(content(t, m, "a")); s != "aXY" {
			t.Fatalf("programs see %s", s)
		}
		disk := make([]byte, 3*sectorSize)
		if _, err := ReadDirect(f, disk, 0); err != nil || squeeze(string(disk)) != "abY" {
			t.Fatalf("a direct read found %s: %v", squeeze(string(disk)), err)
		}
		switch uncover {
		case "crash":
			m = m.Crash(rand.New(rand.NewSource(1)))
		case "kill and evict":
			m = m.Kill()
			m.Evict()
		default:
			m.Evict()
		}
		if s := squeeze(content(t, m, "a")); s != "abY" {
			t.Fatalf("%s: the disk has %s, want abY", uncover, s)
		}
	}
}

func TestMisdirectedWriteDestroysAnotherPlace(t *testing.T) {
	m := NewMem()
	f := synced(t, m, "a", sectors("abcd"))
	synced(t, m, "b", sectors("efgh"))
	remove := m.Inject(Fault{Op: "write", From: 0, To: sectorSize, Misdirect: &Place{Delta: 2 * sectorSize}})
	m.Inject(Fault{Op: "write", From: sectorSize, To: 2 * sectorSize, Misdirect: &Place{Name: "b"}})
	put(t, f, 0, sectors("X"))
	put(t, f, sectorSize, sectors("Y"))
	must(t, f.Sync())
	if a, b := squeeze(content(t, m, "a")), squeeze(content(t, m, "b")); a != "XYcd" || b != "efgh" {
		t.Fatalf("programs see %s and %s", a, b)
	}
	m.Evict()
	if a, b := squeeze(content(t, m, "a")), squeeze(content(t, m, "b")); a != "abXd" || b != "eYgh" {
		t.Fatalf("the disk has %s and %s", a, b)
	}
	remove()
	m.Inject(Fault{Op: "write", Misdirect: &Place{Delta: 100 * sectorSize}})
	put(t, f, 0, sectors("Z"))
	m.Evict()
	if a := squeeze(content(t, m, "a")); a != "abXd" {
		t.Fatalf("a write that landed outside left %s", a)
	}
}

// TestFaultsHitWhatTheyName: EIO for one range of one file, as of a bad sector,
// with the machine's error inside.
func TestFaultsHitWhatTheyName(t *testing.T) {
	m := NewMem()
	f := synced(t, m, "a", sectors("abcd"))
	g := synced(t, m, "b", sectors("abcd"))
	remove := m.Inject(Fault{Op: "read", Name: "a", From: sectorSize, To: 2 * sectorSize, Err: EIO})
	read := func(f File, off int64, n int) error {
		_, err := f.ReadAt(make([]byte, n), off)
		return err
	}
	must(t, read(f, 0, sectorSize))
	must(t, read(f, 2*sectorSize, sectorSize))
	must(t, read(g, 0, 4*sectorSize))
	if err := read(f, 0, sectorSize+1); !errors.Is(err, EIO) || !fault.Is(err, fault.Internal) {
		t.Fatalf("a read of the bad sector: %v", err)
	}
	put(t, f, sectorSize, "x") // only reads fail
	remove()
	must(t, read(f, 0, 4*sectorSize))

	m.Inject(Fault{Op: "write", Err: EIO, Applied: true, Times: 1})
	if _, err := f.WriteAt([]byte("Z"), 0); !errors.Is(err, EIO) || get(t, f, 0, 1) != "Z" {
		t.Fatalf("applied and failed: %v", err)
	}
	put(t, f, 0, "z")
	m.Inject(Fault{Op: "sync", Err: EIO, Times: 1})
	if err := f.Sync(); !errors.Is(err, EIO) {
		t.Fatal(err)
	}
	must(t, f.Sync())
	m.Evict()
	if c := get(t, f, 0, 1); c != "a" {
		t.Fatalf("a failed sync kept %q", c)
	}
	m.Inject(Fault{Err: fault.New(fault.NoSpace, "test", "", nil)})
	_, err := m.Create("c")
	wantKind(t, err, fault.NoSpace)
}

func TestFaultsByChance(t *testing.T) {
	m := NewMem()
	f := synced(t, m, "a", "x")
	m.Inject(Fault{Op: "read", Chance: 0.5, Err: EIO})
	failed := 0
	for range 1000 {
		if _, err := f.ReadAt(make([]byte, 1), 0); err != nil && err != io.EOF {
			failed++
		}
	}
	if failed < 350 || failed > 650 {
		t.Fatalf("%d of 1000 reads failed at one in two", failed)
	}
}

func TestHungDiskBlocksUntilReleasedOrDead(t *testing.T) {
	m := NewMem()
	f := synced(t, m, "a", "x")
	synced(t, m, "b", "x")
	ended := make(chan error, 1)
	sync := func() {
		go func() { ended <- f.Sync() }()
	}
	stuck := func() {
		t.Helper()
		select {
		case err := <-ended:
			t.Fatalf("a hung operation ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	release := m.Hang(Fault{Op: "sync", Name: "a"})
	sync()
	stuck()
	if s := content(t, m, "b"); s != "x" {
		t.Fatal("another file hangs too")
	}
	release()
	release()
	must(t, <-ended)
	m.Hang(Fault{Op: "sync"})
	sync()
	stuck()
	m.Kill()
	wantKind(t, <-ended, fault.Unavailable)
}

func TestRotHitsAllocatedBytes(t *testing.T) {
	m := NewMem()
	synced(t, m, "a", "")
	must(t, m.MkdirAll("d"))
	g := create(t, m, "d/x")
	put(t, g, 10*pageSize, strings.Repeat("x", pageSize+100))
	want := []byte(content(t, m, "d/x"))
	rng := rand.New(rand.NewSource(1))
	for range 100 {
		name, off, err := m.Rot(rng, "d/")
		must(t, err)
		if name != "d/x" || off < 10*pageSize || off >= 11*pageSize+100 {
			t.Fatalf("bit rot at byte %d of %s", off, name)
		}
		want[off] ^= 1 << (off % 8)
	}
	if !bytes.Equal(want, []byte(content(t, m, "d/x"))) {
		t.Fatal("other bytes rotted than was said")
	}
	_, _, err := m.Rot(rng, "nothing")
	wantKind(t, err, fault.NotFound)
}

func TestCrashTearsSectorsWhenAsked(t *testing.T) {
	tears := 0
	for seed := range int64(100) {
		m := NewMem()
		m.SetTorn(true)
		f := synced(t, m, "a", sectors("a"))
		put(t, f, 0, sectors("b"))
		got := content(t, m.Crash(rand.New(rand.NewSource(seed))), "a")
		n := strings.Count(got, "b")
		if n > 0 && n < sectorSize {
			tears++
		}
		if got != strings.Repeat("b", n)+strings.Repeat("a", sectorSize-n) {
			t.Fatalf("seed %d: not a beginning that is new", seed)
		}
	}
	if tears < 10 {
		t.Fatalf("%d of 100 sectors torn", tears)
	}
}

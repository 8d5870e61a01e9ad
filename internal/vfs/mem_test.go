package vfs

import (
	"errors"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func content(t testing.TB, fs FS, name string) string {
	t.Helper()
	b, err := ReadFile(fs, name, 1<<20)
	must(t, err)
	return string(b)
}

func TestCrashKeepsSynced(t *testing.T) {
	outcomes := map[string]bool{}
	for seed := range int64(200) {
		m := NewMem()
		f := create(t, m, "a")
		put(t, f, 0, strings.Repeat("s", 2048))
		must(t, f.Sync())
		must(t, m.SyncDir("."))
		put(t, f, 512, strings.Repeat("u", 1024))
		got := content(t, m.Crash(rand.New(rand.NewSource(seed))), "a")
		if len(got) != 2048 || got[:512] != strings.Repeat("s", 512) || got[1536:] != strings.Repeat("s", 512) {
			t.Fatalf("seed %d: synced bytes changed", seed)
		}
		for i := 512; i < 1536; i += 512 {
			if s := got[i : i+512]; s != strings.Repeat(s[:1], 512) {
				t.Fatalf("seed %d: a sector is torn", seed)
			}
		}
		outcomes[got[512:513]+got[1024:1025]] = true
		_, err := f.ReadAt(make([]byte, 1), 0)
		wantKind(t, err, fault.Unavailable)
	}
	if len(outcomes) != 4 {
		t.Fatalf("outcomes %v: not every combination of sectors", outcomes)
	}
}

func TestCrashUncoversEarlierUnsyncedStates(t *testing.T) {
	seen := map[byte]bool{}
	for seed := range int64(300) {
		m := NewMemSeed(seed)
		f := create(t, m, "a")
		put(t, f, 0, "0")
		must(t, f.Sync())
		must(t, m.SyncDir("."))
		put(t, f, 0, "1")
		put(t, f, 0, "2")
		put(t, f, 0, "3")
		seen[content(t, m.Crash(rand.New(rand.NewSource(seed))), "a")[0]] = true
	}
	for _, c := range []byte("023") {
		if !seen[c] {
			t.Fatalf("state %c never found, only %v", c, seen)
		}
	}
	if !seen['1'] && !seen['2'] {
		t.Fatal("only the first and the last state were found")
	}
}

func TestCrashSizes(t *testing.T) {
	seen := map[int]bool{}
	for seed := range int64(100) {
		m := NewMem()
		f := create(t, m, "a")
		put(t, f, 0, "ab")
		must(t, f.Sync())
		must(t, m.SyncDir("."))
		put(t, f, 0, "abcdef")
		n := len(content(t, m.Crash(rand.New(rand.NewSource(seed))), "a"))
		if n < 2 || n > 6 {
			t.Fatalf("size %d", n)
		}
		seen[n] = true
	}
	if !seen[2] || !seen[6] || len(seen) < 3 {
		t.Fatalf("sizes %v", seen)
	}
}

func TestCrashDirectories(t *testing.T) {
	seen := map[string]bool{}
	for seed := range int64(100) {
		m := NewMem()
		must(t, m.MkdirAll("d"))
		must(t, m.SyncDir("."))
		put(t, create(t, m, "d/old"), 0, "x")
		must(t, m.SyncDir("d"))
		create(t, m, "d/new")
		must(t, m.Rename("d/new", "d/newer"))
		must(t, m.Remove("d/old"))
		names, err := m.Crash(rand.New(rand.NewSource(seed))).List("d")
		must(t, err)
		seen[strings.Join(names, " ")] = true
	}
	want := []string{"new old", "newer", "newer old", "old"}
	if got := sortedKeys(seen); !slices.Equal(got, want) {
		t.Fatalf("found %q, want %q", got, want)
	}
}

// TestWriteFileAtomicSurvivesCrash cuts the power before every operation, and
// makes every operation fail, done or not.
func TestWriteFileAtomicSurvivesCrash(t *testing.T) {
	boom := errors.New("boom")
	for _, applied := range []bool{false, true} {
		for at := 0; ; at++ {
			m := NewMem()
			must(t, WriteFileAtomic(m, "f", []byte("old")))
			n := 0
			m.SetHook(func(op, name string) error {
				n++
				switch {
				case n-1 < at:
					return nil
				case n-1 == at && applied:
					return Applied{boom}
				}
				return boom
			})
			err := WriteFileAtomic(m, "f", []byte("brand new"))
			ended := n <= at
			for seed := range int64(20) {
				k := m.Kill()
				got := content(t, k.Crash(rand.New(rand.NewSource(seed))), "f")
				if got != "brand new" && (err == nil || got != "old") {
					t.Fatalf("operation %d, applied %v: %q after error %v", at, applied, got, err)
				}
				m = k
				m.off = false // the same state again, for another seed
			}
			if ended {
				must(t, err)
				break
			}
		}
	}
}

func TestKillLosesNothing(t *testing.T) {
	m := NewMem()
	f := create(t, m, "a")
	put(t, f, 0, "unsynced")
	_, err := m.Lock("LOCK")
	must(t, err)
	k := m.Kill()
	if s := content(t, k, "a"); s != "unsynced" {
		t.Fatalf("%q after the death of the process", s)
	}
	_, err = k.Lock("LOCK")
	must(t, err)
	lost := false
	for seed := range int64(20) {
		c := k.Crash(rand.New(rand.NewSource(seed)))
		k.off = false
		ok, err := Exists(c, "a")
		must(t, err)
		lost = lost || !ok || content(t, c, "a") != "unsynced"
	}
	if !lost {
		t.Fatal("the death of the process made bytes durable")
	}
}

func TestFailedSyncLosesBytesSilently(t *testing.T) {
	m := NewMem()
	f := create(t, m, "a")
	put(t, f, 0, "old")
	must(t, f.Sync())
	must(t, m.SyncDir("."))
	put(t, f, 0, "new")
	m.SetHook(func(op, _ string) error {
		if op == "sync" {
			return errors.New("EIO")
		}
		return nil
	})
	if f.Sync() == nil {
		t.Fatal("the hook was not asked")
	}
	m.SetHook(nil)
	must(t, f.Sync()) // succeeds, as on Linux, and helps nothing
	m = m.Kill()
	if s := content(t, m, "a"); s != "new" {
		t.Fatalf("page cache has %q", s)
	}
	if s := content(t, m.Crash(rand.New(rand.NewSource(1))), "a"); s != "old" {
		t.Fatalf("disk has %q", s)
	}
	m.off = false
	f, err := m.Open("a")
	must(t, err)
	put(t, f, 0, "new") // only writing again helps
	must(t, f.Sync())
	if s := content(t, m.Crash(rand.New(rand.NewSource(1))), "a"); s != "new" {
		t.Fatalf("disk has %q after writing again", s)
	}
}

func TestCapacity(t *testing.T) {
	m := NewMem()
	m.SetCapacity(4 * 4096)
	f := create(t, m, "a")
	n, err := f.WriteAt(make([]byte, 5*4096), 0)
	wantKind(t, err, fault.NoSpace)
	if n != 4*4096 {
		t.Fatalf("%d bytes written", n)
	}
	put(t, f, 100, "overwriting needs no space")
	must(t, f.PunchHole(4096, 4096))
	if free, total, _ := m.Free(); free != 4096 || total != 4*4096 {
		t.Fatalf("free %d of %d", free, total)
	}
	g := create(t, m, "b")
	put(t, g, 0, "x")
	must(t, m.Remove("a"))
	if m.Used() != 4*4096 {
		t.Fatalf("%d bytes used while the removed file is open", m.Used())
	}
	must(t, f.Close())
	if m.Used() != 4096 {
		t.Fatalf("%d bytes used", m.Used())
	}
	must(t, g.Truncate(0))
	if m.Used() != 0 {
		t.Fatalf("%d bytes used", m.Used())
	}
}

func TestFlipBitAndCold(t *testing.T) {
	m := NewMem()
	f := create(t, m, "a")
	put(t, f, 0, "aaa")
	must(t, m.FlipBit("a", 1))
	if s := get(t, f, 0, 3); s != "aca" {
		t.Fatalf("%q after bit 1 of byte 1 flipped", s)
	}
	wantKind(t, m.FlipBit("a", 3), fault.NotFound)
	m.SetCold(true)
	if f.(TryReader).TryReadAt(make([]byte, 1), 0) {
		t.Fatal("a cold disk has bytes in memory")
	}
}

package brick

import (
	"bytes"
	"context"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// scrubbed is a brick with something of everything, and what it should hold.
type scrubbed struct {
	t       testing.TB
	m       *vfs.Mem
	st      *MemStable
	b       *Brick
	extents []Extent
	records [][]byte
	found   ScrubCount
}

func newScrubbed(t testing.TB, seed int64) *scrubbed {
	s := &scrubbed{t: t, m: vfs.NewMemSeed(seed), st: NewMemStable()}
	s.b = mustOpen(t, small(s.m, s.st))
	for i := range uint64(40) {
		x := testExtent(testVolume, i, 3000+int(i)*400)
		must(t, s.b.PutExtents([]Extent{x}))
		s.extents = append(s.extents, x)
	}
	must(t, s.b.DeleteExtents(addrs(s.extents[3], s.extents[20])))
	s.extents = append(append(s.extents[:3:3], s.extents[4:20]...), s.extents[21:]...)
	for i := range 30 {
		s.records = append(s.records, record(i, 5000))
		_, err := s.b.Journal().Append(s.records[i])
		must(t, err)
	}
	must(t, syncNow(s.b.Journal()))
	for _, k := range []string{"a", "b", "c"} {
		must(t, s.b.Stable().Set(k, []byte("value of "+k)))
	}
	return s
}

// heal puts the extent again, as a node does with a copy of another.
func (s *scrubbed) heal(addr ident.Addr, _ error) bool {
	for _, x := range s.extents {
		if x.Addr == addr {
			must(s.t, s.b.ReplaceExtent(x))
			return true
		}
	}
	return false
}

// healJournal writes all records again.
func (s *scrubbed) healJournal(end Pos, _ error) bool {
	for _, r := range s.records {
		_, err := s.b.Journal().Append(r)
		must(s.t, err)
	}
	must(s.t, syncNow(s.b.Journal()))
	s.b.Journal().Trim(end)
	return true
}

// scrub runs a pass and returns what it found.
func (s *scrubbed) scrub() (ScrubCount, error) {
	s.found = ScrubCount{}
	err := s.b.Scrub(context.Background(), ScrubConfig{Extent: s.heal, Journal: s.healJournal,
		Progress: func(_ ScrubPos, d ScrubCount) { s.found.Add(d) }})
	return s.found, err
}

// clean demands a pass that finds nothing, and that everything is there, also
// for the next process.
func (s *scrubbed) clean(what string) {
	s.t.Helper()
	if c, err := s.scrub(); err != nil || c.Damaged != 0 || c.Stray != 0 || c.Extents != int64(len(s.extents)) {
		s.t.Fatalf("%s: a pass found %+v, %v", what, c, err)
	}
	s.m = s.m.Kill()
	b, err := Open(small(s.m, s.st))
	if err != nil {
		s.t.Fatalf("%s: does not open again: %v", what, err)
	}
	defer b.Close()
	for _, x := range s.extents {
		checkExtent(s.t, b, x)
	}
	_, bodies := replayAll(s.t, b.Journal())
	tail := bodies[max(0, len(bodies)-len(s.records)):]
	for i, r := range s.records {
		if i >= len(tail) || !bytes.Equal(tail[i], r) {
			s.t.Fatalf("%s: record %d of the journal is gone", what, i)
		}
	}
	for _, k := range []string{"a", "b", "c"} {
		if v, err := b.Stable().Get(k); err != nil || string(v) != "value of "+k {
			s.t.Fatalf("%s: stable value %s is %q, %v", what, k, v, err)
		}
	}
}

func TestScrubOfAHealthyBrickFindsNothing(t *testing.T) {
	s := newScrubbed(t, 1)
	s.clean("fresh")
}

// TestScrubFindsRotAnywhere lets bits rot all over the disk: after one pass
// the next finds nothing, and nothing is lost.
func TestScrubFindsRotAnywhere(t *testing.T) {
	for _, prefix := range []string{"extents/", "journal/", "index-", identityFile, ""} {
		t.Run(prefix, func(t *testing.T) {
			found := 0
			for seed := range int64(12) {
				s := newScrubbed(t, seed)
				for range 3 {
					if _, _, err := s.m.Rot(rand.New(rand.NewSource(seed)), prefix); err != nil {
						t.Fatal(err)
					}
				}
				c, err := s.scrub()
				if err != nil || c.Damaged != c.Repaired {
					t.Fatalf("seed %d: %+v, %v", seed, c, err)
				}
				found += int(c.Damaged)
				s.clean("after healing")
			}
			if found == 0 && prefix != "" {
				t.Fatal("no damage was found")
			}
		})
	}
}

// TestScrubTellsOfRepairsThatAreDone: a process that dies right after a repair of the
// journal leaves a brick that opens, however slow its disk gives damaged segments back.
func TestScrubTellsOfRepairsThatAreDone(t *testing.T) {
	s := newScrubbed(t, 1)
	must(t, s.m.FlipBit("journal/00000001", segmentDataOff+100))
	defer s.m.Inject(vfs.Fault{Op: "sync", Name: "journal/00000001",
		Wait: func(string, string) { <-time.After(50 * time.Millisecond) }})()
	if c, err := s.scrub(); err != nil || c.Damaged != 1 || c.Repaired != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	b, err := Open(small(s.m.Kill(), s.st))
	if err != nil {
		t.Fatal("it does not open again: ", err)
	}
	must(t, b.Close())
}

// TestScrubSeesTheDiskNotTheCache: writes that the disk acknowledged and never
// did, or did elsewhere, are found while the page cache still has good bytes.
func TestScrubSeesTheDiskNotTheCache(t *testing.T) {
	for _, lie := range []vfs.Fault{
		{Op: "write", Name: "extents/", Lost: true, Times: 1},
		{Op: "write", Name: "extents/", Misdirect: &vfs.Place{Delta: 8192}, Times: 1},
		{Op: "write", Name: "journal/", Lost: true},
		{Op: "write", Name: "index-", Lost: true, Times: 1},
	} {
		s := newScrubbed(t, 1)
		honest := s.m.Inject(lie)
		x := testExtent(testVolume, 99, 10000)
		must(t, s.b.PutExtents([]Extent{x}))
		s.extents = append(s.extents, x)
		s.records = append(s.records, record(99, 5000))
		_, err := s.b.Journal().Append(record(99, 5000))
		must(t, err)
		must(t, syncNow(s.b.Journal()))
		honest()
		if c, err := s.scrub(); err != nil || c.Damaged == 0 || c.Repaired != c.Damaged {
			t.Fatalf("%+v: %+v, %v", lie, c, err)
		}
		s.m.Evict()
		s.clean(lie.Name)
	}
}

// TestScrubBreaksABrickThatForgot: what nobody can heal must not vote.
func TestScrubBreaksABrickThatForgot(t *testing.T) {
	t.Run("journal", func(t *testing.T) {
		s := newScrubbed(t, 1)
		must(t, s.m.FlipBit("journal/00000001", 9000))
		err := s.b.Scrub(context.Background(), ScrubConfig{})
		if !fault.Is(err, fault.Unavailable) || s.b.Broken() == nil {
			t.Fatalf("%v; broken: %v", err, s.b.Broken())
		}
		_, err = s.b.Journal().Append([]byte("x"))
		wantKind(t, err, fault.Unavailable)
		checkExtent(t, s.b, s.extents[0]) // which still can be copied away
	})
	t.Run("stable", func(t *testing.T) {
		s := newScrubbed(t, 1)
		must(t, s.st.FlipBit("b", 7))
		if _, err := s.scrub(); !fault.Is(err, fault.Unavailable) || s.b.Broken() == nil {
			t.Fatalf("%v", err)
		}
		_, err := Open(small(s.m.Kill(), s.st))
		wantKind(t, err, fault.Corrupt)
	})
	t.Run("stable value read", func(t *testing.T) {
		s := newScrubbed(t, 1)
		must(t, s.st.FlipBit("b", 7))
		v, err := s.b.Stable().Get("b")
		wantKind(t, err, fault.Unavailable)
		if v != nil || s.b.Broken() == nil {
			t.Fatalf("a damaged value was handed out: %q", v)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		s := newScrubbed(t, 1)
		s.m.Inject(vfs.Fault{Op: "read", Name: "journal/", From: 8192, To: 12288, Err: vfs.EIO})
		if err := s.b.Scrub(context.Background(), ScrubConfig{}); err == nil || s.b.Broken() == nil {
			t.Fatal("a journal that cannot be read was taken for good")
		}
	})
}

// TestScrubHealsAnUnreadableExtent: a bad sector is damage like any other.
func TestScrubHealsAnUnreadableExtent(t *testing.T) {
	s := newScrubbed(t, 1)
	s.m.Inject(vfs.Fault{Op: "read", Name: "extents/00000001", From: 40000, To: 40512, Err: vfs.EIO})
	c, err := s.scrub()
	if err != nil || c.Damaged != 1 || c.Repaired != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	s.clean("bad sector")
}

func TestScrubNamesWhatIsLost(t *testing.T) {
	s := newScrubbed(t, 1)
	must(t, s.m.FlipBit("extents/00000001", 5000))
	var found ScrubCount
	must(t, s.b.Scrub(context.Background(), ScrubConfig{Progress: func(_ ScrubPos, d ScrubCount) { found.Add(d) }}))
	if found.Damaged != 1 || found.Repaired != 0 || len(found.Lost) != 1 ||
		found.Lost[0] != "extent "+s.extents[1].Addr.String() {
		t.Fatalf("%+v", found)
	}
}

// TestScrubGoesOnWhereItWas ends a pass in its middle; the next one reads the
// rest of the extents, and only that.
func TestScrubGoesOnWhereItWas(t *testing.T) {
	s := newScrubbed(t, 1)
	for _, x := range s.extents[5:8] {
		s.damage(x)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var at ScrubPos
	first := 0
	err := s.b.Scrub(ctx, ScrubConfig{
		Extent:   func(addr ident.Addr, err error) bool { first++; cancel(); return s.heal(addr, err) },
		Progress: func(p ScrubPos, _ ScrubCount) { at = p },
	})
	if err != context.Canceled || first != 1 || at == (ScrubPos{}) {
		t.Fatalf("%v after %d, at %+v", err, first, at)
	}
	rest := 0
	var read int64
	must(t, s.b.Scrub(context.Background(), ScrubConfig{From: at,
		Extent:   func(addr ident.Addr, err error) bool { rest++; return s.heal(addr, err) },
		Progress: func(p ScrubPos, d ScrubCount) { at = p; read += d.Extents },
	}))
	if rest != 2 || at != (ScrubPos{}) || read >= int64(len(s.extents)) || read < 10 {
		t.Fatalf("%d more were found, %d extents read, at %+v", rest, read, at)
	}
	s.clean("two halves")
}

// damage inverts a bit of an extent where the brick has it.
func (s *scrubbed) damage(x Extent) {
	s.t.Helper()
	e, ok := s.b.extents.table.get(x.Addr)
	if !ok {
		s.t.Fatal("no such extent")
	}
	must(s.t, s.m.FlipBit(extentSegmentName(e.segment), int64(e.offset)*extentAlign+extentHeader+100))
}

func TestScrubKeepsItsRate(t *testing.T) {
	s := newScrubbed(t, 1)
	began := time.Now()
	var read int64
	must(t, s.b.Scrub(context.Background(), ScrubConfig{Rate: func() int64 { return 4 << 20 },
		Progress: func(_ ScrubPos, d ScrubCount) { read += d.Bytes }}))
	least := time.Duration(float64(read-64<<10) / (4 << 20) * float64(time.Second)) // the last read is not waited for
	if took := time.Since(began); took < least || read < 400<<10 {
		t.Fatalf("%d bytes at 4 MiB/s took %v, less than %v", read, took, least)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.b.Scrub(ctx, ScrubConfig{Rate: func() int64 { return 1 }}); err != context.DeadlineExceeded {
		t.Fatalf("a slow pass did not end when it was told to: %v", err)
	}
}

// TestScrubGivesStrayBytesBack: bytes that no extent uses, in a segment whose
// gaps were all said to be holes, and a file that is no segment.
func TestScrubGivesStrayBytesBack(t *testing.T) {
	s := newScrubbed(t, 1)
	must(t, s.b.Close())
	cfg := small(s.m, s.st)
	s.b = mustOpen(t, cfg)
	<-s.b.extents.reclaimed
	f, err := s.m.Create("extents/00000777")
	must(t, err)
	_, err = f.WriteAt([]byte("stray"), 0)
	must(t, err)
	must(t, f.Close())
	f, err = s.m.Open("extents/00000001")
	must(t, err)
	size, _ := f.Size()
	_, err = f.WriteAt(bytes.Repeat([]byte("stray"), 1000), size)
	must(t, err)
	must(t, f.Close())
	s.b.extents.segments.get(1).end = size + 5000
	c, err := s.scrub()
	if err != nil || c.Stray != 5000 || c.Damaged != 1 || c.Repaired != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	s.clean("stray bytes")
}

func TestTooMuchDamageBreaksTheBrick(t *testing.T) {
	m, st := vfs.NewMem(), NewMemStable()
	cfg := small(m, st)
	cfg.DamageMax = 2
	b := mustOpen(t, cfg)
	for i := range uint64(3) {
		if b.Broken() != nil {
			t.Fatalf("broken after %d", i)
		}
		for range 3 { // the same one counts once
			b.NoteDamage(ident.Addr{byte(i)}, errIO)
		}
	}
	if b.Broken() == nil {
		t.Fatal("three damaged extents of two that may be did not break the brick")
	}
}

// TestBoltDamageIsFound flips bits of stable.db on a real disk, under a brick
// whose memory still has the good page, and before an opening.
func TestBoltDamageIsFound(t *testing.T) {
	cfg := osConfig(t)
	b := mustOpen(t, cfg)
	secret := "a promise that is long enough to be found in the file"
	must(t, b.Stable().Set("promise", []byte(secret)))
	found := ScrubCount{}
	scrub := func() error {
		found = ScrubCount{}
		return b.Scrub(context.Background(), ScrubConfig{Progress: func(_ ScrubPos, d ScrubCount) { found.Add(d) }})
	}
	must(t, scrub())
	if found.Damaged != 0 || found.Bytes < int64(len(secret)) {
		t.Fatalf("a whole store: %+v", found)
	}
	must(t, b.Close())
	path := filepath.Join(cfg.OSDir, stableFile)
	raw, err := os.ReadFile(path)
	must(t, err)
	at := strings.LastIndex(string(raw), secret)
	for _, i := range []int{at + 5, at - len("promise"), at - stableSum} {
		bad := bytes.Clone(raw)
		for j := range bad { // every copy of the page, also those that are free
			if j >= 5 && strings.HasPrefix(string(bad[j:]), secret) {
				bad[j+i-at] ^= 4
			}
		}
		must(t, os.WriteFile(path, bad, 0o600))
		_, err := Open(cfg)
		wantKind(t, err, fault.Corrupt)
	}
	bad := bytes.Clone(raw)
	bad[3*4096+8] ^= 0xff // flags of a page header
	must(t, os.WriteFile(path, bad, 0o600))
	if b, err := Open(cfg); err == nil {
		// The page may be a free one.
		must(t, b.Close())
	} else {
		wantKind(t, err, fault.Corrupt)
	}
	must(t, os.WriteFile(path, raw, 0o600))
	b = mustOpen(t, cfg)
	if v, err := b.Stable().Get("promise"); err != nil || string(v) != secret {
		t.Fatalf("%q, %v", v, err)
	}
}

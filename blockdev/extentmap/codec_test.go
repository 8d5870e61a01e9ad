package extentmap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// golden compares encoded bytes with testdata/name.hex, a dump of 32 bytes on
// a line; trailing zeros of a page are left out of the file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	var dump strings.Builder
	for rest := got; len(rest) > 0; {
		n := min(32, len(rest))
		dump.WriteString(hex.EncodeToString(rest[:n]) + "\n")
		rest = rest[n:]
		if allZero(rest) && len(got) == BlockSize {
			break
		}
	}
	path := filepath.Join("testdata", name+".hex")
	if *rewrite {
		if err := os.WriteFile(path, []byte(dump.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if dump.String() != string(want) {
		t.Errorf("%s:\n%swant\n%s", name, dump.String(), want)
	}
}

// goldenPage has the extreme values of every field.
func goldenPage() *Page {
	pg := new(Page)
	pg[0] = Ptr{Ext: 1, Off: 0, Len: 1, CRC: 0}
	pg[7] = Ptr{Ext: extLimit - 1, Off: offLimit - 1, Len: BlockSize, CRC: 0xffffffff}
	pg[64] = Ptr{Ext: 0x0123456789ab, Off: 0x12345, Len: 0x678, CRC: 0x9abcdef0}
	pg[255] = Ptr{Ext: 2, Off: 4096, Len: 4096, CRC: 1}
	return pg
}

func goldenTx() *Tx {
	tab := NewTable()
	tx := tab.Begin()
	tx.Add(newExtent(1, 256, 256))
	tx.Add(newExtent(3, 1, 1))
	tx.Add(newExtent(1<<40, 65535, 1))
	tx.Commit()
	tx = tab.Begin()
	tx.Free(Ptr{Ext: 1, Len: 1})
	tx.Free(Ptr{Ext: 3, Len: 1}) // leaves the table
	tx.Add(newExtent(2, 200, 199))
	tx.Add(newExtent(4, 5, 0)) // never enters it
	tx.Add(newExtent(extLimit-1, 1, 1))
	return tx
}

// goldenPast is a table with two snapshots, and a change of it that drops one,
// makes one and frees blocks of both.
func goldenPast() *Tx {
	tab := NewTable()
	tx := tab.Begin()
	tx.Add(newExtent(1, 256, 256))
	tx.Add(newExtent(1000, 7, 7))
	tx.Cut(1, 2000)
	tx.Commit()
	tx = tab.Begin()
	tx.Free(Ptr{Ext: 1, Len: 1})
	tx.Free(Ptr{Ext: 1, Len: 1})
	tx.Add(newExtent(3000, 3, 3))
	tx.Cut(5, 4000)
	tx.Commit()
	tx = tab.Begin()
	tx.Free(Ptr{Ext: 3000, Len: 1})
	tx.Free(Ptr{Ext: 1000, Len: 1})
	tx.Commit()
	tx = tab.Begin()
	tx.Drop(1)
	tx.Free(Ptr{Ext: 1000, Len: 1})
	tx.Add(newExtent(5000, 1, 1))
	tx.Cut(300, 70000)
	return tx
}

// goldenSnapshots is a state with snapshots.
func goldenSnapshots() *State {
	s := goldenState()
	s.SnapshotSeq = 9
	s.Snapshots = []Snapshot{
		{ID: 2, Name: "a", Root: Root{Level: 1}, Size: 1 << 20, Horizon: 1},
		{ID: 9, Name: strings.Repeat("z", SnapshotNameMax), Root: Root{Ptr: Ptr{Ext: 76, Off: 4096, Len: 77, CRC: 5}, Level: 2},
			Size: 10 << 30, Horizon: 1000, Created: 1 << 60},
	}
	return s
}

func goldenState() *State {
	return &State{
		Root: Root{Ptr: Ptr{Ext: 77, Off: 8192, Len: 4096, CRC: 0xdeadbeef}, Level: 2},
		Size: 10 << 30, NextExt: 1000, Epoch: 12, LiveBlocks: 123456, StoredBytes: 1 << 33,
		Table: []TableRef{
			{Number: 900, Addr: addrOf(900), Blocks: 256, Bytes: 1050000, Kind: TableSnapshot, Length: 1 << 20},
			{Number: 901, Addr: addrOf(901), Blocks: 1, Bytes: 4200, Kind: TableMore, Length: 77},
			{Number: 950, Addr: addrOf(950), Blocks: 2, Bytes: 8300, Kind: TableDelta, Length: 4097},
		},
	}
}

func TestGoldenBytes(t *testing.T) {
	page := make([]byte, BlockSize)
	for i := range page {
		page[i] = 0xee // Encode leaves nothing of what was there
	}
	goldenPage().Encode(page)
	golden(t, "page", page)
	tx := goldenTx()
	golden(t, "snapshot", tx.Snapshot())
	golden(t, "delta", tx.Delta())
	golden(t, "state", goldenState().Encode())
	tx = goldenPast()
	golden(t, "snapshot2", tx.Snapshot())
	golden(t, "delta2", tx.Delta())
	golden(t, "state2", goldenSnapshots().Encode())
}

func randomPage(rng *rand.Rand, fill int) *Page {
	pg := new(Page)
	for i := range pg {
		if rng.IntN(100) < fill {
			pg[i] = Ptr{
				Ext: 1 + rng.Uint64N(extLimit-1), Off: uint32(rng.IntN(offLimit)),
				Len: uint16(1 + rng.IntN(BlockSize)), CRC: rng.Uint32(),
			}
		}
	}
	return pg
}

func TestPageSurvivesEncoding(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, BlockSize)
	for i := range 400 {
		pg := randomPage(rng, i%101)
		pg.Encode(b)
		got := randomPage(rng, 50) // Decode leaves nothing of it
		if err := got.Decode(b); err != nil {
			t.Fatal(err)
		}
		if *got != *pg {
			t.Fatal("the page came back different")
		}
	}
}

func TestPageEncodePanicsOnDefects(t *testing.T) {
	b := make([]byte, BlockSize)
	for _, p := range []Ptr{
		{Ext: extLimit, Len: 1}, {Ext: 1, Len: 0}, {Ext: 1, Len: BlockSize + 1},
		{Ext: 1, Len: 1, Off: offLimit}, {CRC: 1}, {Off: 1}, {Len: 1},
	} {
		if !panics(func() { (&Page{9: p}).Encode(b) }) {
			t.Errorf("%v was encoded", p)
		}
	}
	if !panics(func() { new(Page).Encode(b[1:]) }) {
		t.Error("a short page was encoded")
	}
}

// Any damage of one byte in an encoding with a checksum is found; in a page,
// whose checksum is in the pointer, it is found or gives a page that encodes
// to the damaged bytes.
func TestDamageIsFound(t *testing.T) {
	tx := goldenTx()
	for name, c := range map[string]struct {
		b      []byte
		decode func([]byte) error
	}{
		"snapshot": {tx.Snapshot(), func(b []byte) error { _, err := LoadTable(b); return err }},
		"delta":    {tx.Delta(), func(b []byte) error { _, err := LoadTable(tx.t.Snapshot(), b); return err }},
		"state":    {goldenState().Encode(), func(b []byte) error { _, err := DecodeState(b); return err }},
		"delta2":   {goldenPast().Delta(), func(b []byte) error { _, err := LoadTable(goldenPast().t.Snapshot(), b); return err }},
		"state2":   {goldenSnapshots().Encode(), func(b []byte) error { _, err := DecodeState(b); return err }},
	} {
		if err := c.decode(c.b); err != nil {
			t.Fatal(name, err)
		}
		for i := range c.b {
			bad := bytes.Clone(c.b)
			bad[i] ^= 0x41
			if err := c.decode(bad); !fault.Is(err, fault.Corrupt) {
				t.Errorf("%s with byte %d damaged: %v", name, i, err)
			}
			if i == 0 && name == "snapshot" {
				continue // nothing stored is an empty table
			}
			if err := c.decode(c.b[:i]); !fault.Is(err, fault.Corrupt) {
				t.Errorf("%s cut at %d: %v", name, i, err)
			}
		}
		if err := c.decode(append(bytes.Clone(c.b), 0)); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%s with a byte too many: %v", name, err)
		}
	}
	page := make([]byte, BlockSize)
	goldenPage().Encode(page)
	for i := range page {
		page[i] ^= 0x41
		checkPage(t, page)
		page[i] ^= 0x41
	}
}

// checkPage demands that what decodes encodes to the same bytes.
func checkPage(t *testing.T, b []byte) {
	t.Helper()
	var pg Page
	if err := pg.Decode(b); err != nil {
		if !fault.Is(err, fault.Corrupt) {
			t.Fatal(err)
		}
		return
	}
	again := make([]byte, BlockSize)
	pg.Encode(again)
	if !bytes.Equal(again, b) {
		t.Fatal("a page decoded that is not canonical")
	}
}

func TestStateSurvivesEncoding(t *testing.T) {
	full := goldenState()
	full.NextExt = extLimit
	for len(full.Table) < TableRefsMax {
		full.Table = append(full.Table, TableRef{Number: uint64(len(full.Table)), Blocks: 1, Kind: TableDelta, Length: 1})
	}
	full.SnapshotSeq = 1 << 40
	for i := range SnapshotsMax {
		full.Snapshots = append(full.Snapshots, Snapshot{ID: uint64(i + 1), Name: strings.Repeat("n", SnapshotNameMax-1) + string(rune('0'+i)), Horizon: 5})
	}
	for _, s := range []*State{{NextExt: 1}, {NextExt: 1, SnapshotSeq: 2}, goldenState(), goldenSnapshots(), full} {
		b := s.Encode()
		got, err := DecodeState(b)
		if err != nil || !reflect.DeepEqual(got, s) || len(b) > StateMax {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
	}
	full.Table = append(full.Table, full.Table[10])
	if !panics(func() { full.Encode() }) {
		t.Error("a state with too many table extents was encoded")
	}
}

// Every rule of a state is held when it is written and when it is read.
func TestStateRefusesWhatCannotBe(t *testing.T) {
	for name, change := range map[string]func(s *State){
		"level":             func(s *State) { s.Root.Level = LevelMax + 1 },
		"level below 0":     func(s *State) { s.Root.Level = -1 },
		"root pointer":      func(s *State) { s.Root.Ptr.Len = 0 },
		"root offset":       func(s *State) { s.Root.Ptr.Off = offLimit },
		"root not used":     func(s *State) { s.Root.Ptr.Ext = s.NextExt },
		"size":              func(s *State) { s.Size = SizeMax + 1 },
		"size below 0":      func(s *State) { s.Size = -1 },
		"next extent":       func(s *State) { s.NextExt = 0 },
		"counter":           func(s *State) { s.LiveBlocks = -1 },
		"stored":            func(s *State) { s.StoredBytes = -1 },
		"begins with more":  func(s *State) { s.Table = s.Table[1:] },
		"snapshot later":    func(s *State) { s.Table[2].Kind = TableSnapshot },
		"unknown kind":      func(s *State) { s.Table[2].Kind = 4 },
		"kind 0":            func(s *State) { s.Table[0].Kind = 0 },
		"number 0":          func(s *State) { s.Table[0].Number = 0 },
		"number not used":   func(s *State) { s.Table[0].Number = s.NextExt },
		"empty piece":       func(s *State) { s.Table[0].Length = 0 },
		"piece too long":    func(s *State) { s.Table[0].Length++ },
		"piece of 0 blocks": func(s *State) { s.Table[0].Blocks = 0 },
		"snapshot id 0":     func(s *State) { s.Snapshots[0].ID = 0 },
		"snapshot id":       func(s *State) { s.Snapshots[1].ID = 10 },
		"snapshot order":    func(s *State) { s.Snapshots[0].ID = 9 },
		"snapshot level":    func(s *State) { s.Snapshots[0].Root.Level = LevelMax + 1 },
		"snapshot root":     func(s *State) { s.Snapshots[1].Root.Ptr.Off = offLimit },
		"snapshot horizon":  func(s *State) { s.Snapshots[1].Horizon = 76 },
		"horizon to come":   func(s *State) { s.Snapshots[1].Horizon = 1001 },
		"horizon 0":         func(s *State) { s.Snapshots[0].Horizon = 0 },
		"horizon back":      func(s *State) { s.Snapshots[0].Horizon = 1000; s.Snapshots[1].Horizon = 999 },
		"snapshot size":     func(s *State) { s.Snapshots[0].Size = SizeMax + 1 },
		"snapshot created":  func(s *State) { s.Snapshots[0].Created = -1 },
		"snapshot name":     func(s *State) { s.Snapshots[0].Name = "" },
		"snapshot twice":    func(s *State) { s.Snapshots[0].Name = s.Snapshots[1].Name },
	} {
		s := goldenSnapshots()
		change(s)
		if !panics(func() { s.Encode() }) {
			t.Errorf("%s: it was encoded", name)
		}
		if _, err := DecodeState(s.encode()); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%s: it was decoded: %v", name, err)
		}
	}
}

func FuzzPage(f *testing.F) {
	b := make([]byte, BlockSize)
	goldenPage().Encode(b)
	f.Add(bytes.TrimRight(b, "\x00"))
	f.Add(b[:pointersAt])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < BlockSize {
			b = append(bytes.Clone(b), make([]byte, BlockSize-len(b))...)
		}
		checkPage(t, b)
	})
}

// refoot makes the length and checksum right, so that fuzzing reaches what is
// behind them.
func refoot(b []byte) []byte {
	if len(b) < tableHead {
		return b
	}
	b = bytes.Clone(b)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(b)+tableFoot))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func unfoot(b []byte) []byte { return b[:len(b)-4] }

func FuzzSnapshot(f *testing.F) {
	f.Add(unfoot(goldenTx().Snapshot()))
	f.Add(unfoot(NewTable().Snapshot()))
	f.Add(unfoot(goldenPast().Snapshot()))
	padded := slices.Insert(bytes.Clone(unfoot(goldenTx().t.Snapshot())), tableHead+1, 0)
	padded[tableHead] |= 0x80 // the first number with a byte more than it needs
	f.Add(padded)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = refoot(b)
		tab, err := LoadTable(b)
		if err != nil {
			if !fault.Is(err, fault.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		if len(b) > 0 && binary.LittleEndian.Uint32(b) == snapshotMagic && !bytes.Equal(tab.Snapshot(), b) {
			t.Fatal("a snapshot loaded that is not canonical")
		}
	})
}

func FuzzDelta(f *testing.F) {
	tx := goldenTx()
	f.Add(unfoot(tx.Delta()))
	f.Add(unfoot(tx.t.Begin().Delta()))
	base := tx.t.Snapshot()
	f.Fuzz(func(t *testing.T, b []byte) {
		b = refoot(b)
		tab, err := LoadTable(base, b)
		if err != nil {
			if !fault.Is(err, fault.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		if again, err := LoadTable(tab.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), tab.Snapshot()) {
			t.Fatalf("the table it led to does not load: %v", err)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add(unfoot(goldenState().Encode()))
	f.Add(unfoot((&State{NextExt: 1}).Encode()))
	f.Add(unfoot(goldenSnapshots().Encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = binary.LittleEndian.AppendUint32(bytes.Clone(b), crc32.Checksum(b, castagnoli))
		s, err := DecodeState(b)
		if err != nil {
			if !fault.Is(err, fault.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(s.Encode(), b) {
			t.Fatal("a state decoded that is not canonical")
		}
	})
}

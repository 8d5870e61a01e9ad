package brick

import (
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// laid is a journal of n records of 1,000 bytes, the first synced of them
// durable, and the process dead.
func laid(t *testing.T, n, synced int) (*vfs.Mem, *MemStable, []Pos) {
	t.Helper()
	m, st := vfs.NewMem(), NewMemStable()
	b := mustOpen(t, small(m, st))
	var pos []Pos
	for i := range n {
		p, err := b.Journal().Append(record(i, 1000))
		must(t, err)
		pos = append(pos, p)
		if i == synced-1 {
			must(t, syncNow(b.Journal()))
		}
	}
	must(t, b.Journal().Write())
	return m.Kill(), st, pos
}

// where finds the file and offset of a position.
func where(t *testing.T, j *Journal, p Pos) (string, int64) {
	t.Helper()
	s, _, err := j.locate(p)
	must(t, err)
	return s.name, s.offset(p)
}

// layout opens a copy of the disk and reports where the records are.
func layout(t *testing.T, m *vfs.Mem, st Stable, pos []Pos) (files []string, offs []int64, same *vfs.Mem) {
	t.Helper()
	b := mustOpen(t, small(m, st))
	for _, p := range pos {
		f, o := where(t, b.Journal(), p)
		files, offs = append(files, f), append(offs, o)
	}
	return files, offs, m
}

// TestTornMiddleRefused: a record that a later one vouches for is damaged.
func TestTornMiddleRefused(t *testing.T) {
	for _, bad := range []int{0, 1, 17, 62, 63, 64, 99} { // 62..64: around a segment border
		m, st, pos := laid(t, 150, 100)
		files, offs, _ := layout(t, m, st, pos)
		m, st, _ = laid(t, 150, 100)
		must(t, m.FlipBit(files[bad], offs[bad]+500))
		_, err := Open(small(m, st))
		wantKind(t, err, fault.Corrupt)
		if !strings.Contains(err.Error(), files[bad]) {
			t.Fatalf("record %d: %v does not name %s", bad, err, files[bad])
		}
	}
}

// TestTornTailCut: nobody vouches for what is damaged, so it was never durable.
// What followed it must not come back when new records reach up to it.
func TestTornTailCut(t *testing.T) {
	for _, bad := range []int{100, 101, 126, 149} {
		m, st, pos := laid(t, 150, 100)
		files, offs, _ := layout(t, m, st, pos)
		m, st, _ = laid(t, 150, 100)
		must(t, m.FlipBit(files[bad], offs[bad]+500))
		for round := range 3 {
			b := mustOpen(t, small(m, st))
			got, _ := replayAll(t, b.Journal())
			if want := bad + round; len(got) != want {
				t.Fatalf("record %d damaged: %d records replayed in round %d, want %d", bad, len(got), round, want)
			}
			if _, next, _ := b.Journal().Live(); next != pos[bad]+Pos(round)*Pos(frameSize(1000)) {
				t.Fatalf("next is %d", next)
			}
			_, err := b.Journal().Append(record(1000+round, 1000)) // exactly as long as the lost one
			must(t, err)
			must(t, b.Journal().Write())
			m = m.Kill()
		}
	}
}

// TestCleanEndVouchesForAll: after Close even the last record is covered.
func TestCleanEndVouchesForAll(t *testing.T) {
	lay := func() (*vfs.Mem, *MemStable, []Pos) {
		m, st := vfs.NewMem(), NewMemStable()
		b := mustOpen(t, small(m, st))
		var pos []Pos
		for i := range 10 {
			p, err := b.Journal().Append(record(i, 1000))
			must(t, err)
			pos = append(pos, p)
		}
		must(t, b.Close())
		return m, st, pos
	}
	m, st, pos := lay()
	files, offs, _ := layout(t, m, st, pos)
	for i := range pos {
		for _, in := range []int64{0, 4, 8, 16, 24, 1023} {
			m, st, _ := lay()
			must(t, m.FlipBit(files[i], offs[i]+in))
			_, err := Open(small(m, st))
			wantKind(t, err, fault.Corrupt)
		}
	}
	m, st, _ = lay()
	must(t, m.FlipBit(files[9], offs[9]+frameSize(1000))) // the marker itself
	got, _ := replayAll(t, mustOpen(t, small(m, st)).Journal())
	if len(got) != 10 {
		t.Fatalf("%d records", len(got))
	}
}

func TestIdleReopensWriteNothing(t *testing.T) {
	m, st := vfs.NewMem(), NewMemStable()
	b := mustOpen(t, small(m, st))
	_, err := b.Journal().Append([]byte("x"))
	must(t, err)
	must(t, b.Close())
	_, next, _ := b.Journal().Live()
	for range 5 {
		b = mustOpen(t, small(m, st))
		must(t, b.Close())
	}
	if _, n, _ := b.Journal().Live(); n != next {
		t.Fatalf("position moved from %d to %d", next, n)
	}
}

func TestMissingPiecesRefused(t *testing.T) {
	for _, c := range []struct{ name, remove, flip string }{
		{name: "journal segment", remove: "journal/00000002"}, // the middle one of three
		{name: "segment header", flip: "journal/00000001"},
		{name: "extent segment", remove: "extents/00000001"},
		{name: "index", remove: "index-00000001"},
		{name: "index header", flip: "index-00000001"},
		{name: "identity", remove: "brick.json"},
		{name: "identity digit", flip: "brick.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, st := vfs.NewMem(), NewMemStable()
			b := mustOpen(t, small(m, st))
			for i := range 150 {
				_, err := b.Journal().Append(record(i, 1000))
				must(t, err)
			}
			must(t, b.PutExtents([]Extent{testExtent(testVolume, 1, 9000)}))
			must(t, b.Close())
			name := c.remove
			if c.remove != "" {
				must(t, m.Remove(c.remove))
			} else {
				name = c.flip
				must(t, m.FlipBit(c.flip, 18))
			}
			_, err := Open(small(m, st))
			wantKind(t, err, fault.Corrupt)
			if c.name == "journal segment" {
				name = "journal/00000001" // where the run of records ends
			}
			if !strings.Contains(err.Error(), name) {
				t.Fatalf("%v does not name %s", err, name)
			}
		})
	}
}

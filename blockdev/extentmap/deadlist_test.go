package extentmap

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

// block is one stored block of the oracle: place i of extent n.
type block struct {
	n uint64
	i uint16
}

// history is the slow oracle of deadlists: which blocks the map has, and which
// each snapshot had.
type history struct {
	rng    *rand.Rand
	tab    *Table
	live   map[block]bool
	snaps  []map[block]bool
	ids    []uint64
	exts   map[uint64]uint16 // blocks of each extent there ever was
	next   uint64
	seq    uint64
	late   []uint64 // numbers drawn and not used yet
	useful bool     // numbers are used late, too: counts are then upper bounds

	snapshot []byte
	deltas   [][]byte
}

// step makes one change of table and oracle.
func (h *history) step(t *testing.T) {
	tx := h.tab.Begin()
	if len(h.ids) > 0 && h.rng.IntN(4) == 0 {
		i := h.rng.IntN(len(h.ids))
		tx.Drop(h.ids[i])
		h.ids, h.snaps = slices.Delete(h.ids, i, i+1), slices.Delete(h.snaps, i, i+1)
	}
	add := func(n uint64) {
		blocks := uint16(1 + h.rng.IntN(20))
		h.exts[n] = blocks
		tx.Add(newExtent(n, blocks, blocks))
		for i := range blocks {
			h.live[block{n, i}] = true
		}
	}
	for range h.rng.IntN(6) {
		if h.useful && h.rng.IntN(4) == 0 {
			h.late = append(h.late, h.next)
		} else {
			add(h.next)
		}
		h.next++
	}
	if len(h.late) > 0 && h.rng.IntN(2) == 0 {
		add(h.late[0])
		h.late = h.late[1:]
	}
	share := h.rng.IntN(4)
	for _, b := range slices.SortedFunc(maps.Keys(h.live), func(a, b block) int { return int(a.n)<<16 + int(a.i) - int(b.n)<<16 - int(b.i) }) {
		if h.rng.IntN(8) < share {
			tx.Free(Ptr{Ext: b.n, Off: uint32(b.i), Len: 1})
			delete(h.live, b)
		}
	}
	if len(h.ids) < 6 && h.rng.IntN(3) == 0 {
		h.seq++
		tx.Cut(h.seq, h.next)
		h.ids, h.snaps = append(h.ids, h.seq), append(h.snaps, maps.Clone(h.live))
	}
	h.commit(t, tx)
}

func (h *history) commit(t *testing.T, tx *Tx) {
	t.Helper()
	if tx.Err() != nil {
		t.Fatal(tx.Err())
	}
	delta, after := tx.Delta(), tx.Snapshot()
	tx.Commit()
	if !bytes.Equal(after, h.tab.Snapshot()) {
		t.Fatal("the snapshot before the commit is not the one after")
	}
	if h.deltas = append(h.deltas, delta); h.rng.IntN(6) == 0 {
		h.snapshot, h.deltas = after, nil
	}
	again, err := LoadTable(h.snapshot, h.deltas...)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Snapshot(), after) || again.Held() != h.tab.Held() || again.Horizon() != h.tab.Horizon() {
		t.Fatal("the table that was loaded is another")
	}
	if h.rng.IntN(3) == 0 {
		h.tab = again // as after a takeover
	}
}

// used are the blocks that the map or a snapshot has, but for one snapshot.
func (h *history) used(without int) map[block]bool {
	all := maps.Clone(h.live)
	for i, s := range h.snaps {
		if i != without {
			maps.Copy(all, s)
		}
	}
	return all
}

func (h *history) check(t *testing.T) {
	t.Helper()
	used := h.used(-1)
	count := map[uint64]int{}
	for b := range used {
		count[b.n]++
	}
	for n := range h.exts {
		e, _ := h.tab.Get(n)
		if int(e.Live) < count[n] || !h.useful && int(e.Live) != count[n] {
			t.Fatalf("extent %d has %d live blocks, %d are used", n, e.Live, count[n])
		}
	}
	held := h.tab.Held()
	if want := int64(len(used) - len(h.live)); held < want || !h.useful && held != want {
		t.Fatalf("%d blocks are held, %d are the snapshots' alone", held, want)
	}
	for i, id := range h.ids {
		own, size, ok := h.tab.Own(id)
		want := int64(len(used) - len(h.used(i)))
		// What was born late may be taken for its predecessor's, too.
		if !ok || !h.useful && own != want || (own == 0) != (size == 0) {
			t.Fatalf("snapshot %d has %d blocks (%d bytes) of its own, not %d", id, own, size, want)
		}
	}
	if ids, _ := h.tab.PastIDs(); !slices.Equal(ids, h.ids) {
		t.Fatalf("snapshots %v, not %v", ids, h.ids)
	}
}

// TestDeadlistsKeepWhatSnapshotsHave compares counts with sets of blocks: an
// extent has exactly as many live blocks as the map and all snapshots use, and
// nothing is left when all are gone.
func TestDeadlistsKeepWhatSnapshotsHave(t *testing.T) {
	for seed := range uint64(40) {
		h := &history{rng: rand.New(rand.NewPCG(seed, 17)), tab: NewTable(), live: map[block]bool{}, exts: map[uint64]uint16{}, next: 1, useful: seed%2 == 1}
		for range 60 {
			h.step(t)
			h.check(t)
		}
		for len(h.ids) > 0 {
			i := h.rng.IntN(len(h.ids))
			tx := h.tab.Begin()
			tx.Drop(h.ids[i])
			h.ids, h.snaps = slices.Delete(h.ids, i, i+1), slices.Delete(h.snaps, i, i+1)
			h.commit(t, tx)
			h.check(t)
		}
		tx := h.tab.Begin()
		for b := range h.live {
			tx.Free(Ptr{Ext: b.n, Len: 1})
			delete(h.live, b)
		}
		h.commit(t, tx)
		if n, _, live, _ := h.tab.Stats(); n != 0 || live != 0 || h.tab.Held() != 0 {
			t.Fatalf("seed %d: %d extents with %d blocks are left, %d held", seed, n, live, h.tab.Held())
		}
	}
}

func TestDeadlistRules(t *testing.T) {
	tab := NewTable()
	tx := tab.Begin()
	tx.Add(newExtent(1, 4, 4))
	tx.Cut(1, 2)
	tx.Commit()
	for name, c := range map[string]struct {
		kind fault.Kind
		do   func(tx *Tx)
	}{
		"drop of none":      {fault.NotFound, func(tx *Tx) { tx.Drop(9) }},
		"drop after a free": {fault.Invalid, func(tx *Tx) { tx.Free(Ptr{Ext: 1, Len: 1}); tx.Drop(1) }},
		"two cuts":          {fault.Invalid, func(tx *Tx) { tx.Cut(2, 2); tx.Cut(3, 2) }},
		"id again":          {fault.Invalid, func(tx *Tx) { tx.Cut(1, 2) }},
		"horizon goes back": {fault.Invalid, func(tx *Tx) { tx.Cut(2, 1) }},
		"more than there is": {fault.Corrupt, func(tx *Tx) {
			tx.Free(Ptr{Ext: 1})
			tx.Free(Ptr{Ext: 1})
			tx.Free(Ptr{Ext: 1})
			tx.Free(Ptr{Ext: 1})
			tx.Free(Ptr{Ext: 1})
		}},
		"unknown extent": {fault.Corrupt, func(tx *Tx) { tx.Free(Ptr{Ext: 0x10}); tx.Free(Ptr{Ext: 1}); tx.hold(7) }},
	} {
		tx := tab.Begin()
		if c.do(tx); !fault.Is(tx.Err(), c.kind) {
			t.Errorf("%s: %v", name, tx.Err())
		}
	}
	for id := range uint64(SnapshotsMax - 1) {
		one := tab.Begin()
		one.Cut(id+2, 2)
		one.Commit()
	}
	tx = tab.Begin()
	if tx.Cut(1000, 2); !fault.Is(tx.Err(), fault.NoSpace) {
		t.Errorf("one snapshot too many: %v", tx.Err())
	}
}

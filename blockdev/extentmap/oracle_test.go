package extentmap

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

// store is a place for pages: a Loader and a write function, which keep the
// encoded form and give out pointers like an extent writer does.
type store struct {
	t     testing.TB
	pages map[Ptr][]byte
	owner map[Ptr]Owner
	next  uint64
	loads int
	fail  int // when > 0, the fail-th load or write from now returns errStore
}

var errStore = errors.New("the store fails on purpose")

func newStore(t testing.TB) *store {
	return &store{t: t, pages: map[Ptr][]byte{}, owner: map[Ptr]Owner{}, next: 1 << 40}
}

func (s *store) failing() bool {
	if s.fail > 0 {
		if s.fail--; s.fail == 0 {
			return true
		}
	}
	return false
}

func (s *store) LoadPage(p Ptr, level int) (*Page, error) {
	s.loads++
	if s.failing() {
		return nil, errStore
	}
	b, ok := s.pages[p]
	if !ok {
		s.t.Fatalf("load of %v, which is not there", p)
	}
	if s.owner[p].Level() != level {
		s.t.Fatalf("load of %v as level %d", s.owner[p], level)
	}
	pg := new(Page)
	if err := pg.Decode(b); err != nil {
		s.t.Fatal(err)
	}
	return pg, nil
}

func (s *store) write(o Owner, pg *Page) (Ptr, error) {
	if s.failing() {
		return Ptr{}, errStore
	}
	s.next++
	p := Ptr{Ext: s.next, Off: uint32(s.next % offLimit), Len: BlockSize, CRC: uint32(s.next * 2654435761)}
	b := make([]byte, BlockSize)
	pg.Encode(b)
	s.pages[p], s.owner[p] = b, o
	return p, nil
}

// model is a map beside its slow oracle: a flat map of the blocks that are not
// holes.
type model struct {
	t      *testing.T
	s      *store
	root   Root
	blocks map[uint64]Ptr
	serial uint64
}

func newModel(t *testing.T) *model {
	return &model{t: t, s: newStore(t), blocks: map[uint64]Ptr{}}
}

func (m *model) ptr() Ptr {
	m.serial++
	return Ptr{Ext: m.serial, Off: uint32(m.serial % offLimit), Len: uint16(1 + m.serial%BlockSize), CRC: uint32(m.serial)}
}

// reach collects every page (by owner) and data block under a root.
func (m *model) reach(r Root) (pages map[Ptr]Owner, data map[uint64]Ptr) {
	pages, data = map[Ptr]Owner{}, map[uint64]Ptr{}
	var walk func(p Ptr, level int, index uint64)
	walk = func(p Ptr, level int, index uint64) {
		if p.IsHole() {
			return
		}
		if level < 0 {
			data[index] = p
			return
		}
		if o := PageOwner(level, index); m.s.owner[p] != o {
			m.t.Fatalf("the page at %v was written as %v", o, m.s.owner[p])
		}
		pages[p] = PageOwner(level, index)
		pg, err := m.s.LoadPage(p, level)
		if err != nil {
			m.t.Fatal(err)
		}
		if pg.empty() {
			m.t.Fatalf("page %d of level %d is empty", index, level)
		}
		for i := range pg {
			walk(pg[i], level-1, index*Fanout+uint64(i))
		}
	}
	walk(r.Ptr, r.Level, 0)
	return pages, data
}

// update applies one Update to tree and oracle and checks everything about it.
func (m *model) update(newLevel int, zeros []Range, changes []Change, moved []Owner) {
	m.t.Helper()
	oldPages, oldData := m.reach(m.root)
	freed := map[Ptr]int{}
	root, err := Update(m.root, newLevel, zeros, changes, moved, m.s, m.s.write, func(p Ptr) { freed[p]++ })
	if err != nil {
		m.t.Fatal(err)
	}
	for _, z := range zeros {
		maps.DeleteFunc(m.blocks, func(b uint64, _ Ptr) bool { return b >= z.From && b < z.To })
	}
	for _, c := range changes {
		if c.Ptr.IsHole() {
			delete(m.blocks, c.Block)
		} else {
			m.blocks[c.Block] = c.Ptr
		}
	}
	newPages, newData := m.reach(root)
	if !maps.Equal(newData, m.blocks) {
		m.t.Fatalf("the tree holds %d blocks that are not the oracle's %d", len(newData), len(m.blocks))
	}
	if root.Level != newLevel {
		m.t.Fatalf("level %d instead of %d", root.Level, newLevel)
	}
	// What was used and is not any more is freed once; nothing else is.
	want := map[Ptr]int{}
	for p := range oldPages {
		if _, still := newPages[p]; !still {
			want[p] = 1
		}
	}
	for b, p := range oldData {
		if newData[b] != p {
			want[p] = 1
		}
	}
	if !maps.Equal(freed, want) {
		m.t.Fatalf("%d pointers were freed, not the %d that died", len(freed), len(want))
	}
	// A page is rewritten only if it changed or was moved.
	for p, o := range oldPages {
		if _, still := newPages[p]; still && slices.Contains(moved, o) {
			m.t.Fatalf("%v was not moved", o)
		}
	}
	for p, o := range newPages {
		if _, shared := oldPages[p]; shared || slices.Contains(moved, o) {
			continue
		}
		for q, oo := range oldPages {
			if oo == o && string(m.s.pages[q]) == string(m.s.pages[p]) {
				m.t.Fatalf("%v was rewritten unchanged", o)
			}
		}
	}
	m.root = root
}

func (m *model) checkLookup(rng *rand.Rand, limit uint64) {
	m.t.Helper()
	first := rng.Uint64N(limit)
	out := make([]Ptr, rng.IntN(2000))
	for i := range out {
		out[i] = Ptr{Ext: 99}
	}
	if err := m.root.Lookup(first, out, m.s); err != nil {
		m.t.Fatal(err)
	}
	for i, p := range out {
		if p != m.blocks[first+uint64(i)] {
			m.t.Fatalf("block %d is %v, not %v", first+uint64(i), p, m.blocks[first+uint64(i)])
		}
	}
}

func (m *model) checkPageAt() {
	m.t.Helper()
	pages, _ := m.reach(m.root)
	for p, o := range pages {
		got, err := m.root.PageAt(o.Level(), o.Index(), m.s)
		if err != nil || got != p {
			m.t.Fatalf("%v is at %v (%v), not %v", o, got, err, p)
		}
	}
}

// script draws what one update does, clustered so that pages fill and empty.
func (m *model) script(rng *rand.Rand, limit uint64) (zeros []Range, changes []Change, moved []Owner) {
	at := uint64(0)
	for range rng.IntN(5) {
		from := at + rng.Uint64N(1+limit/4)
		to := from + 1 + rng.Uint64N(1+rng.Uint64N(limit/2))
		if to > limit {
			break
		}
		zeros = append(zeros, Range{from, to})
		at = to
	}
	byBlock := map[uint64]Ptr{}
	for range rng.IntN(6) {
		b := rng.Uint64N(limit)
		for range 1 + rng.IntN(300) {
			switch rng.IntN(12) {
			case 0:
				byBlock[b] = Ptr{}
			case 1:
				byBlock[b] = m.blocks[b] // what it has
			default:
				byBlock[b] = m.ptr()
			}
			if b += 1 + rng.Uint64N(3); b >= limit {
				break
			}
		}
	}
	for _, b := range slices.Sorted(maps.Keys(byBlock)) {
		changes = append(changes, Change{b, byBlock[b]})
	}
	pages, _ := m.reach(m.root)
	for _, p := range slices.SortedFunc(maps.Keys(pages), func(a, b Ptr) int { return int(a.Ext) - int(b.Ext) }) {
		if rng.IntN(8) == 0 {
			moved = append(moved, pages[p], pages[p])
		}
	}
	rng.Shuffle(len(moved), func(i, j int) { moved[i], moved[j] = moved[j], moved[i] })
	return zeros, changes, moved
}

func TestUpdateAgreesWithFlatArray(t *testing.T) {
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 7))
		m := newModel(t)
		level := 0
		for step := range 24 {
			if rng.IntN(5) == 0 && level < LevelMax {
				level++
			}
			limit := span(level)
			zeros, changes, moved := m.script(rng, limit)
			// What moves and is zeroed or changed is gone; the rest must move.
			pages, _ := m.reach(m.root)
			live := map[Owner]bool{}
			for _, o := range pages {
				live[o] = true
			}
			moved = slices.DeleteFunc(moved, func(o Owner) bool { return !live[o] })
			m.update(level, zeros, changes, moved)
			m.checkLookup(rng, span(LevelMax))
			m.checkLookup(rng, limit)
			if step%8 == 0 {
				m.checkPageAt()
			}
		}
	}
}

// The borders of pages, at which a subtree is dropped or only cut, and moves of
// a page whose first child is not there.
func TestUpdateAtTheEdges(t *testing.T) {
	fill := func(m *model, level int) {
		var changes []Change
		for b := uint64(0); b < 3*Fanout; b++ {
			changes = append(changes, Change{b, m.ptr()})
		}
		last := span(level) - 1
		m.update(level, nil, append(changes, Change{last - 1, m.ptr()}, Change{last, m.ptr()}), nil)
	}
	end := span(1)
	for _, zeros := range [][]Range{
		{{0, Fanout}}, {{0, Fanout - 1}}, {{1, Fanout}}, {{1, Fanout - 1}},
		{{0, Fanout + 1}}, {{Fanout - 1, 2*Fanout + 1}}, {{0, 1}, {1, Fanout}}, {{0, 1}, {1, 2*Fanout - 1}},
		{{0, end}}, {{0, end - 1}}, {{1, end}}, {{3 * Fanout, end}}, {{end - 1, end}}, {{0, 3 * Fanout}},
	} {
		m := newModel(t)
		fill(m, 1)
		m.update(1, zeros, nil, nil)
		m = newModel(t)
		fill(m, 1)
		m.update(2, zeros, []Change{{0, m.ptr()}, {Fanout, m.blocks[Fanout]}, {end - 1, Ptr{}}, {end, m.ptr()}}, nil)
	}
	m := newModel(t)
	m.update(2, nil, []Change{{5 * Fanout, m.ptr()}, {end, m.ptr()}}, nil)
	m.update(2, nil, nil, []Owner{PageOwner(0, 0), PageOwner(1, 0)})
	m.update(2, nil, nil, []Owner{PageOwner(0, 0), PageOwner(2, 0), PageOwner(0, Fanout)})
	m.update(3, nil, nil, []Owner{PageOwner(0, 0), PageOwner(3, 0), PageOwner(2, 0)})
	m.update(3, []Range{{0, span(3)}}, nil, []Owner{PageOwner(2, 0)})
	if !m.root.Ptr.IsHole() {
		t.Error("an empty map has a page")
	}
}

// A failed Update leaves the old map whole, whichever call fails.
func TestFailedUpdateLeavesTheMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	m := newModel(t)
	for range 6 {
		zeros, changes, moved := m.script(rng, span(1))
		m.update(1, zeros, changes, moved)
	}
	zeros, changes, moved := m.script(rng, span(2))
	moved = append(moved, PageOwner(1, 0))
	for n := 1; ; n++ {
		m.s.fail = n
		_, err := Update(m.root, 2, zeros, changes, moved, m.s, m.s.write, func(Ptr) {})
		if err == nil {
			m.s.fail = 0
			break
		}
		if !errors.Is(err, errStore) {
			t.Fatal(err)
		}
		if _, data := m.reach(m.root); !maps.Equal(data, m.blocks) {
			t.Fatal("the old map changed")
		}
	}
	m.update(2, zeros, changes, nil)
}

func TestUpdateRefusesWhatBreaksItsRules(t *testing.T) {
	p := Ptr{Ext: 1, Len: 1}
	for name, c := range map[string]struct {
		r       Root
		level   int
		zeros   []Range
		changes []Change
	}{
		"shrinking":         {r: Root{Level: 1}, level: 0},
		"level too high":    {level: LevelMax + 1},
		"empty zero":        {zeros: []Range{{4, 4}}},
		"zeros overlap":     {zeros: []Range{{0, 4}, {3, 5}}},
		"zero beyond":       {zeros: []Range{{0, 257}}},
		"block twice":       {changes: []Change{{1, p}, {1, p}}},
		"blocks descend":    {changes: []Change{{2, p}, {1, p}}},
		"change beyond":     {changes: []Change{{256, p}}},
		"pointer too long":  {changes: []Change{{1, Ptr{Ext: 1, Len: BlockSize + 1}}}},
		"pointer empty":     {changes: []Change{{1, Ptr{Ext: 1}}}},
		"offset too large":  {changes: []Change{{1, Ptr{Ext: 1, Len: 1, Off: offLimit}}}},
		"hole with a field": {changes: []Change{{1, Ptr{CRC: 1}}}},
	} {
		_, err := Update(c.r, c.level, c.zeros, c.changes, nil, nil, nil, nil)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

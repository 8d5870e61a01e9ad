package extentmap

import (
	"errors"
	"testing"
)

func TestLevels(t *testing.T) {
	for _, c := range []struct {
		size  int64
		level int
	}{
		{0, 0}, {1, 0}, {1 << 20, 0}, {1<<20 + 1, 1}, {256 << 20, 1}, {256<<20 + 1, 2},
		{64 << 30, 2}, {64<<30 + 1, 3}, {SizeMax, 3},
	} {
		if got := LevelFor(c.size); got != c.level {
			t.Errorf("%d bytes need level %d, not %d", c.size, c.level, got)
		}
		if r := (Root{Level: c.level}); int64(r.Blocks())*BlockSize < c.size {
			t.Errorf("level %d does not cover %d bytes", c.level, c.size)
		}
	}
	if SizeMax != 16<<40 || !panics(func() { LevelFor(SizeMax + 1) }) || !panics(func() { LevelFor(-1) }) {
		t.Error("a size out of range has a level")
	}
}

func TestOwners(t *testing.T) {
	if o := DataOwner(1<<56 - 1); o.IsPage() || o.Level() != -1 || o.Block() != 1<<56-1 {
		t.Errorf("%v", o)
	}
	if o := DataOwner(0); o != 0 || o.IsPage() {
		t.Errorf("%v", o)
	}
	if o := PageOwner(3, 0); o != 4<<56 || !o.IsPage() || o.Level() != 3 || o.Index() != 0 {
		t.Errorf("%v", o)
	}
	if o := PageOwner(0, 12345); o != 1<<56|12345 || o.Level() != 0 || o.Index() != 12345 {
		t.Errorf("%v", o)
	}
	for i, f := range []func(){
		func() { DataOwner(1 << 56) }, func() { PageOwner(4, 0) },
		func() { PageOwner(-1, 0) }, func() { PageOwner(0, 1<<56) },
	} {
		if !panics(f) {
			t.Errorf("owner %d was made", i)
		}
	}
	// Owners come from stored extents: any number must be harmless.
	m := newModel(t)
	m.update(1, nil, []Change{{300, m.ptr()}}, nil)
	for _, o := range []Owner{PageOwner(3, 5), PageOwner(0, 1<<56-1), PageOwner(1, 1), Owner(1<<64 - 1), DataOwner(9)} {
		if p, err := m.root.PageAt(o.Level(), o.Index(), m.s); err != nil || !p.IsHole() {
			t.Errorf("%v is at %v, %v", o, p, err)
		}
	}
	before := m.root
	m.update(1, nil, nil, []Owner{PageOwner(3, 5), PageOwner(0, 1<<56-1), Owner(1<<64 - 1), DataOwner(9), PageOwner(0, 7)})
	if m.root != before {
		t.Error("pages that are not there were moved")
	}
}

// The cost of an update is what it touches.
func TestUpdateTouchesOnlyItsPath(t *testing.T) {
	m := newModel(t)
	var changes []Change
	for b := uint64(0); b < span(2); b += 64 << 8 {
		changes = append(changes, Change{b, m.ptr()}, Change{b + 1, m.ptr()})
	}
	m.update(2, nil, changes, nil)
	pages, _ := m.reach(m.root)
	writes := 0
	counted := func(o Owner, pg *Page) (Ptr, error) { writes++; return m.s.write(o, pg) }
	for name, c := range map[string]struct {
		zeros         []Range
		changes       []Change
		moved         []Owner
		loads, writes int
	}{
		"nothing":              {},
		"one block":            {changes: []Change{{0, m.ptr()}}, loads: 3, writes: 3},
		"a block as it is":     {changes: changes[:1], loads: 3},
		"two of a leaf":        {changes: []Change{{0, m.ptr()}, {1, m.ptr()}}, loads: 3, writes: 3},
		"a new leaf":           {changes: []Change{{300, m.ptr()}}, loads: 2, writes: 3},
		"zero where holes are": {zeros: []Range{{2, 64 << 8}}, loads: 3},
		"a leaf moves":         {moved: []Owner{PageOwner(0, 0)}, loads: 3, writes: 3},
		"the root moves":       {moved: []Owner{PageOwner(2, 0)}, loads: 1, writes: 1},
		"all is zeroed":        {zeros: []Range{{0, span(2)}}, loads: len(pages)},
	} {
		m.s.loads, writes = 0, 0
		if _, err := Update(m.root, 2, c.zeros, c.changes, c.moved, m.s, counted, func(Ptr) {}); err != nil {
			t.Fatal(err)
		}
		if m.s.loads != c.loads || writes != c.writes {
			t.Errorf("%s: %d loads and %d writes, not %d and %d", name, m.s.loads, writes, c.loads, c.writes)
		}
	}
}

func TestLookupLoadsEachPageOnce(t *testing.T) {
	m := newModel(t)
	var changes []Change
	for b := uint64(0); b < 4*Fanout; b++ {
		changes = append(changes, Change{b, m.ptr()})
	}
	m.update(1, nil, changes, nil)
	m.s.loads = 0
	out := make([]Ptr, 3*Fanout)
	if err := m.root.Lookup(100, out, m.s); err != nil || m.s.loads != 5 {
		t.Fatalf("%d loads, %v", m.s.loads, err)
	}
	for i, p := range out {
		if p != changes[100+i].Ptr {
			t.Fatalf("block %d is %v", 100+i, p)
		}
	}
	for n := 1; n <= 5; n++ {
		m.s.fail = n
		if err := m.root.Lookup(100, out, m.s); !errors.Is(err, errStore) {
			t.Fatal(err)
		}
	}
	m.s.fail = 1
	if _, err := m.root.PageAt(0, 1, m.s); !errors.Is(err, errStore) {
		t.Fatal(err)
	}
}

package extentmap

import (
	"cmp"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Range is the blocks From <= b < To.
type Range struct{ From, To uint64 }

// Change gives a block a new pointer; the zero Ptr makes it a hole.
type Change struct {
	Block uint64
	Ptr   Ptr
}

// Update makes the map that follows r: the blocks in zeros become holes, then
// changes are applied, so that a change wins over a zero. zeros are disjoint
// and ascending, changes strictly ascending by block, all inside a tree of
// newLevel, which is at least r.Level. A pointer stands for one block only: a
// change gives a block a new pointer or the one it has.
//
// Every page that changes is written bottom-up with write, which returns the
// pointer to it and must not keep pg after it returns. moved names pages, in
// any order, that are written even if they did not change, because their
// extent is to be emptied; owners of pages that the tree does not have are
// ignored. A page that would be empty becomes a hole. All other subtrees are
// shared with r.
//
// free is told, once each, of every data and page pointer of r that the new
// map no longer uses. A subtree inside one zero range is dropped by loading its
// pages only.
//
// Invalid: an argument breaks these rules; nothing was called. Any other error
// comes from l or write (Internal: write returned no valid pointer) and means
// that r is still the map: what write and free were told is to be forgotten.
func Update(r Root, newLevel int, zeros []Range, changes []Change, moved []Owner, l Loader,
	write func(o Owner, pg *Page) (Ptr, error), free func(Ptr)) (Root, error) {
	if err := checkWork(r, newLevel, zeros, changes); err != nil {
		return Root{}, err
	}
	u := &updater{l: l, write: write, free: free}
	w := work{zeros: zeros, changes: changes, moved: sortMoved(moved, newLevel)}
	p, err := u.page(newLevel, 0, r, w)
	if err != nil {
		return Root{}, err
	}
	return Root{Ptr: p, Level: newLevel}, nil
}

func checkWork(r Root, newLevel int, zeros []Range, changes []Change) error {
	const op = "update map"
	if r.Level < 0 || newLevel < r.Level || newLevel > LevelMax {
		return invalidf(op, "a root of level %d cannot become one of level %d", r.Level, newLevel)
	}
	limit := span(newLevel)
	last := uint64(0)
	for _, z := range zeros {
		if z.From < last || z.From >= z.To || z.To > limit {
			return invalidf(op, "zero range [%d,%d) is empty, out of order or beyond block %d", z.From, z.To, limit)
		}
		last = z.To
	}
	last = 0 // the first block that may come next
	for i := range changes {
		c := &changes[i]
		if c.Block < last || c.Block >= limit {
			return invalidf(op, "the change of block %d is out of order or beyond block %d", c.Block, limit)
		}
		if !c.Ptr.Valid() {
			return invalidf(op, "block %d is given the pointer %#v", c.Block, c.Ptr)
		}
		last = c.Block + 1
	}
	return nil
}

// movedPage is a page to rewrite: its level and the first block it covers.
type movedPage struct {
	first uint64
	level int
}

// sortMoved orders pages so that those of a subtree are together, the top of
// the subtree first.
func sortMoved(moved []Owner, rootLevel int) []movedPage {
	if len(moved) == 0 {
		return nil
	}
	ms := make([]movedPage, 0, len(moved))
	for _, o := range moved {
		level := o.Level()
		if level < 0 || level > rootLevel || o.Index() >= span(rootLevel)/span(level) {
			continue
		}
		ms = append(ms, movedPage{first: o.Index() * span(level), level: level})
	}
	slices.SortFunc(ms, func(a, b movedPage) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.level, a.level))
	})
	return ms
}

// work is what is to be done under one page, each list in order.
type work struct {
	zeros   []Range
	changes []Change
	moved   []movedPage
}

func (w *work) none() bool { return len(w.zeros) == 0 && len(w.changes) == 0 && len(w.moved) == 0 }

// next is the first block at or after from that w touches; it may be past the
// page when nothing is left.
func (w *work) next(from uint64) uint64 {
	n := ^uint64(0)
	if len(w.zeros) > 0 {
		n = max(from, w.zeros[0].From)
	}
	if len(w.changes) > 0 {
		n = min(n, w.changes[0].Block)
	}
	if len(w.moved) > 0 {
		n = min(n, w.moved[0].first)
	}
	return n
}

// cut takes off the work below block end. A zero range that reaches past end
// stays in both parts.
func (w *work) cut(end uint64) work {
	var head work
	n := 0
	for n < len(w.zeros) && w.zeros[n].From < end {
		n++
	}
	head.zeros = w.zeros[:n]
	if n > 0 && w.zeros[n-1].To > end {
		n--
	}
	w.zeros = w.zeros[n:]
	n = 0
	for n < len(w.changes) && w.changes[n].Block < end {
		n++
	}
	head.changes, w.changes = w.changes[:n], w.changes[n:]
	n = 0
	for n < len(w.moved) && w.moved[n].first < end {
		n++
	}
	head.moved, w.moved = w.moved[:n], w.moved[n:]
	return head
}

// updater carries one Update. A page is worked on in the scratch of its level:
// the recursion has at most one page of each level open.
type updater struct {
	l       Loader
	write   func(o Owner, pg *Page) (Ptr, error)
	free    func(Ptr)
	scratch [LevelMax + 1]Page
}

// page brings page index of a level up to date and returns its new pointer.
// old stands where the page is: it is the page itself, a hole, or, while the
// tree grows, a subtree of a lower level that belongs under the first child.
func (u *updater) page(level int, index uint64, old Root, w work) (Ptr, error) {
	stored := !old.Ptr.IsHole() && old.Level == level
	growing := !old.Ptr.IsHole() && old.Level < level
	if w.none() && !growing {
		return old.Ptr, nil
	}
	base := index * span(level)
	if z := w.zeros; len(z) > 0 && z[0].From <= base && z[0].To >= base+span(level) && len(w.changes) == 0 {
		// With changes below it is taken page by page instead: a change may
		// give a block the pointer it has, which must then not be freed.
		return Ptr{}, u.drop(old)
	}
	if old.Ptr.IsHole() && len(w.changes) == 0 {
		return Ptr{}, nil // nothing to zero and nothing to move
	}
	pg := &u.scratch[level]
	clear(pg[:])
	if stored {
		src, err := u.l.LoadPage(old.Ptr, level)
		if err != nil {
			return Ptr{}, err
		}
		*pg = *src
	}
	changed := false
	for len(w.moved) > 0 && w.moved[0].first == base && w.moved[0].level >= level {
		w.moved = w.moved[1:]
		changed = stored
	}
	var below bool
	var err error
	if level == 0 {
		below = u.leaf(pg, base, w)
	} else {
		below, err = u.inner(pg, level, index, old, growing, w)
	}
	if err != nil {
		return Ptr{}, err
	}
	if !changed && !below {
		if stored {
			return old.Ptr, nil
		}
		return Ptr{}, nil
	}
	return u.replace(level, index, old.Ptr, stored, pg)
}

// replace writes a changed page, or makes it a hole, and frees the old one.
func (u *updater) replace(level int, index uint64, old Ptr, stored bool, pg *Page) (Ptr, error) {
	var p Ptr
	if !pg.empty() {
		o := PageOwner(level, index)
		var err error
		if p, err = u.write(o, pg); err != nil {
			return Ptr{}, err
		}
		if p.IsHole() || !p.Valid() || (stored && p == old) {
			return Ptr{}, fault.Newf(fault.Internal, "update map", o.String(), "it was written to %v", p)
		}
	}
	if stored {
		u.free(old)
	}
	return p, nil
}

// leaf applies w to a page of data pointers and reports whether it changed.
func (u *updater) leaf(pg *Page, base uint64, w work) bool {
	changed := false
	for _, z := range w.zeros {
		for b := max(z.From, base); b < min(z.To, base+Fanout); b++ {
			// A block that is also changed is freed below, where its old
			// and new pointer can be compared.
			for len(w.changes) > 0 && w.changes[0].Block < b {
				changed = u.set(&pg[w.changes[0].Block-base], w.changes[0].Ptr) || changed
				w.changes = w.changes[1:]
			}
			if len(w.changes) > 0 && w.changes[0].Block == b {
				continue
			}
			changed = u.set(&pg[b-base], Ptr{}) || changed
		}
	}
	for _, c := range w.changes {
		changed = u.set(&pg[c.Block-base], c.Ptr) || changed
	}
	return changed
}

// set gives one data block its new pointer and frees the old one.
func (u *updater) set(at *Ptr, p Ptr) bool {
	if *at == p {
		return false
	}
	if !at.IsHole() {
		u.free(*at)
	}
	*at = p
	return true
}

// inner brings the children of a page up to date and reports whether any
// pointer changed.
func (u *updater) inner(pg *Page, level int, index uint64, old Root, growing bool, w work) (bool, error) {
	changed := false
	base, below := index*span(level), span(level-1)
	for i := uint64(0); i < Fanout; i++ {
		if !growing || i > 0 {
			i = max(i, (w.next(base+i*below)-base)/below)
			if i >= Fanout {
				break
			}
		}
		child := Root{Ptr: pg[i], Level: level - 1}
		if growing && i == 0 {
			child = old
		}
		p, err := u.page(level-1, index*Fanout+i, child, w.cut(base+(i+1)*below))
		if err != nil {
			return false, err
		}
		if p != pg[i] {
			pg[i] = p
			changed = true
		}
	}
	return changed, nil
}

// drop frees a subtree and everything under it.
func (u *updater) drop(r Root) error {
	if r.Ptr.IsHole() {
		return nil
	}
	pg, err := u.l.LoadPage(r.Ptr, r.Level)
	if err != nil {
		return err
	}
	for i := range pg {
		if pg[i].IsHole() {
			continue
		}
		if r.Level == 0 {
			u.free(pg[i])
		} else if err := u.drop(Root{Ptr: pg[i], Level: r.Level - 1}); err != nil {
			return err
		}
	}
	u.free(r.Ptr)
	return nil
}

package extentmap

// Loader gets the page that a pointer names, as a page of the stated level. It
// may block. The page is shared: nobody changes it, and it stays valid as long
// as it is referred to. Calls for one tree walk come one at a time; walks on
// several goroutines need a Loader that allows it.
type Loader interface {
	LoadPage(p Ptr, level int) (*Page, error)
}

// Root is a whole map: its top page and that page's level. The zero value is
// an empty map of level 0.
type Root struct {
	Ptr   Ptr
	Level int
}

// Blocks is the number of blocks the tree covers, whatever the volume's size.
func (r Root) Blocks() uint64 { return span(r.Level) }

// Lookup fills out with the pointers of blocks [first, first+len(out)); a hole
// is the zero Ptr, and so is every block past what the tree covers. Each page
// on the way is loaded once. On an error, the loader's own, out is unspecified.
func (r Root) Lookup(first uint64, out []Ptr, l Loader) error {
	covered := span(r.Level)
	if first >= covered || r.Ptr.IsHole() {
		clear(out)
		return nil
	}
	if n := covered - first; uint64(len(out)) > n {
		clear(out[n:])
		out = out[:n]
	}
	return lookup(r.Ptr, r.Level, first, out, l)
}

// lookup fills out from the page p, which is not a hole; first counts from the
// first block of the page, and out ends within it.
func lookup(p Ptr, level int, first uint64, out []Ptr, l Loader) error {
	pg, err := l.LoadPage(p, level)
	if err != nil {
		return err
	}
	if level == 0 {
		copy(out, pg[first:])
		return nil
	}
	below := span(level - 1)
	for len(out) > 0 {
		i, from := first/below, first%below
		n := min(below-from, uint64(len(out)))
		if child := pg[i]; child.IsHole() {
			clear(out[:n])
		} else if err := lookup(child, level-1, from, out[:n], l); err != nil {
			return err
		}
		first += n
		out = out[n:]
	}
	return nil
}

// PageAt is the current pointer to page index of a level, the hole if the tree
// has no such page. Only the pages above it are loaded. A stored page is live
// exactly when PageAt of its owner gives the pointer to it.
func (r Root) PageAt(level int, index uint64, l Loader) (Ptr, error) {
	if level < 0 || level > r.Level || index >= span(r.Level)/span(level) {
		return Ptr{}, nil
	}
	p := r.Ptr
	for at := r.Level; at > level && !p.IsHole(); at-- {
		pg, err := l.LoadPage(p, at)
		if err != nil {
			return Ptr{}, err
		}
		p = pg[index>>(fanoutBits*(at-1-level))%Fanout]
	}
	return p, nil
}

// Diff calls visit, by ascending block, for every block whose pointers in a
// and b differ. Subtrees under equal pointers are not entered. The roots may
// have different levels. An error of visit or l ends the walk and is returned.
func Diff(a, b Root, l Loader, visit func(block uint64, pa, pb Ptr) error) error {
	return diff(a, b, max(a.Level, b.Level), 0, l, visit)
}

// diff compares two subtrees that stand where a page of a level has its place,
// first block base. A Root of a lower level stands for the first child of it.
func diff(a, b Root, level int, base uint64, l Loader, visit func(uint64, Ptr, Ptr) error) error {
	if a.Ptr == b.Ptr {
		return nil // a stored page has one level, so the levels are equal, too
	}
	pa, err := children(a, level, l)
	if err != nil {
		return err
	}
	pb, err := children(b, level, l)
	if err != nil {
		return err
	}
	for i := range Fanout {
		ca, cb := childAt(a, pa, level, i), childAt(b, pb, level, i)
		if level > 0 {
			err = diff(ca, cb, level-1, base+uint64(i)*span(level-1), l, visit)
		} else if ca.Ptr != cb.Ptr {
			err = visit(base+uint64(i), ca.Ptr, cb.Ptr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// children loads the page of r, or gives nil if r is a hole or stands lower.
func children(r Root, level int, l Loader) (*Page, error) {
	if r.Ptr.IsHole() || r.Level < level {
		return nil, nil
	}
	return l.LoadPage(r.Ptr, level)
}

// childAt is child i of r at a level, given what children returned.
func childAt(r Root, pg *Page, level, i int) Root {
	switch {
	case pg != nil:
		return Root{Ptr: pg[i], Level: level - 1}
	case i == 0 && !r.Ptr.IsHole():
		return r
	}
	return Root{Level: level - 1}
}

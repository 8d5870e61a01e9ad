package extentmap

// Changes cuts the blocks [from, to) into runs, in order and without gaps: of
// blocks whose pointers in a and b are equal, and of blocks whose pointers
// differ. Neighbouring runs may be of the same sort. A subtree under equal
// pointers is one run and is not entered, so that the cost follows the pages
// that differ, not the blocks. Changes from the empty Root tell what b stores.
// The roots may have different levels, and the range may reach past both. An
// error of visit or l ends the walk and is returned.
func Changes(a, b Root, from, to uint64, l Loader, visit func(from, to uint64, same bool) error) error {
	level := max(a.Level, b.Level)
	if end := min(to, span(level)); from < end {
		c := changes{from: from, to: end, l: l, visit: visit}
		if err := c.walk(a, b, level, 0); err != nil {
			return err
		}
		from = end
	}
	if from < to {
		return visit(from, to, true)
	}
	return nil
}

// changes carries one walk over the blocks [from, to).
type changes struct {
	from, to uint64
	l        Loader
	visit    func(from, to uint64, same bool) error
}

// walk compares two subtrees at a place of a level, first block base, which
// overlaps the range. What stands lower than level belongs under its first child.
func (c *changes) walk(a, b Root, level int, base uint64) error {
	first, end := max(base, c.from), min(base+span(level), c.to)
	if a.Ptr == b.Ptr {
		return c.visit(first, end, true)
	}
	pa, err := children(a, level, c.l)
	if err != nil {
		return err
	}
	pb, err := children(b, level, c.l)
	if err != nil {
		return err
	}
	if level == 0 {
		return c.leaf(a, b, pa, pb, base, first, end)
	}
	below := span(level - 1)
	for i := (first - base) / below; base+i*below < end; i++ {
		ca, cb := childAt(a, pa, level, int(i)), childAt(b, pb, level, int(i))
		if err := c.walk(ca, cb, level-1, base+i*below); err != nil {
			return err
		}
	}
	return nil
}

// leaf visits the runs of [first, end) in two pages of data pointers.
func (c *changes) leaf(a, b Root, pa, pb *Page, base, first, end uint64) error {
	same := func(block uint64) bool {
		i := int(block - base)
		return childAt(a, pa, 0, i).Ptr == childAt(b, pb, 0, i).Ptr
	}
	for first < end {
		is := same(first)
		next := first + 1
		for next < end && same(next) == is {
			next++
		}
		if err := c.visit(first, next, is); err != nil {
			return err
		}
		first = next
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

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

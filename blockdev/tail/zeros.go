package tail

import "slices"

// zeroRange is blocks [from, to) that were zeroed in a generation.
type zeroRange struct {
	from, to uint64
	gen      uint32
	entry    uint64 // the newest log slot that zeroed a part of it
}

// runMax is how many ranges a run holds at most.
const runMax = 128

// zeroSet is a set of disjoint ranges by ascending from, in runs of at most
// runMax, so that a change moves little memory however many ranges there are.
// A new range cuts away what it overlaps: the newest one counts.
type zeroSet struct {
	n    int
	runs [][]zeroRange // none empty
}

// find returns the place of the first range that ends after block: its run and
// its position, or len(runs) if there is none.
func (z *zeroSet) find(block uint64) (run, at int) {
	lo, hi := 0, len(z.runs)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if r := z.runs[mid]; r[len(r)-1].to <= block {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(z.runs) {
		return lo, 0
	}
	run = lo
	r := z.runs[run]
	lo, hi = 0, len(r)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); r[mid].to <= block {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return run, lo
}

// at is the range that holds block.
func (z *zeroSet) at(block uint64) (zeroRange, bool) {
	run, at := z.find(block)
	if run == len(z.runs) || z.runs[run][at].from > block {
		return zeroRange{}, false
	}
	return z.runs[run][at], true
}

// put adds a range of the newest generation. It takes the place of what it
// overlaps and joins what it touches of its own generation.
func (z *zeroSet) put(from, to uint64, gen uint32, entry uint64) {
	n := zeroRange{from, to, gen, entry}
	if from > 0 {
		z.join(&n, from-1)
	}
	z.join(&n, to)
	for {
		run, at := z.find(n.from)
		if run == len(z.runs) || z.runs[run][at].from >= n.to {
			break
		}
		o := z.remove(run, at)
		if o.gen == gen {
			n.from, n.to = min(n.from, o.from), max(n.to, o.to)
			continue
		}
		if o.from < n.from {
			z.insert(zeroRange{o.from, n.from, o.gen, o.entry})
		}
		if o.to > n.to {
			z.insert(zeroRange{n.to, o.to, o.gen, o.entry})
		}
	}
	z.insert(n)
}

// join takes the range that holds block into n if it is of n's generation.
func (z *zeroSet) join(n *zeroRange, block uint64) {
	run, at := z.find(block)
	if run == len(z.runs) {
		return
	}
	if o := z.runs[run][at]; o.from <= block && o.gen == n.gen {
		n.from, n.to = min(n.from, o.from), max(n.to, o.to)
		z.remove(run, at)
	}
}

func (z *zeroSet) remove(run, at int) zeroRange {
	o := z.runs[run][at]
	z.n--
	if r := slices.Delete(z.runs[run], at, at+1); len(r) > 0 {
		z.runs[run] = r
	} else {
		z.runs = slices.Delete(z.runs, run, run+1)
	}
	return o
}

// insert puts in a range that overlaps none.
func (z *zeroSet) insert(n zeroRange) {
	z.n++
	run, at := z.find(n.from)
	if run == len(z.runs) {
		if run == 0 {
			z.runs = append(z.runs, make([]zeroRange, 0, runMax))
		} else {
			run--
		}
		at = len(z.runs[run])
	}
	if len(z.runs[run]) == runMax {
		keep := runMax / 2
		if run == len(z.runs)-1 && at == runMax {
			keep = runMax // ascending ranges leave full runs behind
		}
		upper := append(make([]zeroRange, 0, runMax), z.runs[run][keep:]...)
		z.runs[run] = z.runs[run][:keep]
		z.runs = slices.Insert(z.runs, run+1, upper)
		if at >= keep {
			run, at = run+1, at-keep
		}
	}
	z.runs[run] = slices.Insert(z.runs[run], at, n)
}

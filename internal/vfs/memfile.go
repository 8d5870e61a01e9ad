package vfs

import (
	"io"
	"maps"
	"math/rand"
	"os"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
)

const (
	pageSize   = 4096 // unit of allocation and of holes
	sectorSize = 512  // unit that a power cut keeps or loses as a whole
)

type (
	page   [pageSize]byte
	sector [sectorSize]byte
)

// inode is the content of a file. pages is what programs see; a page that is
// absent is a hole. before holds, for each sector that is not durable, what the
// disk has instead; lost likewise for sectors whose Sync failed: the kernel
// thinks them clean, and only writing them again helps.
type inode struct {
	pages        map[int64]*page
	size         int64
	durableSize  int64
	before, lost map[int64]*sector
	links        int // names; 0 after removal
	handles      int // open files
}

func newInode() *inode {
	return &inode{pages: map[int64]*page{}, before: map[int64]*sector{}, lost: map[int64]*sector{}}
}

func (n *inode) clone() *inode {
	c := newInode()
	for i, p := range n.pages {
		q := *p
		c.pages[i] = &q
	}
	c.size, c.durableSize = n.size, n.durableSize
	maps.Copy(c.before, n.before) // sectors are never changed once made
	maps.Copy(c.lost, n.lost)
	return c
}

// crash draws the content after a power cut.
func (n *inode) crash(rng *rand.Rand, torn bool) *inode {
	c := n.clone()
	for _, s := range sortedKeys64(c.before) {
		switch old := c.before[s]; {
		case torn && rng.Intn(4) == 0:
			half := c.sector(s)
			cut := rng.Intn(sectorSize)
			copy(half[cut:], old[cut:])
			c.put(s, half)
		case rng.Intn(2) == 0:
			c.put(s, old)
		}
	}
	for s, old := range c.lost {
		c.put(s, old)
	}
	c.before, c.lost = map[int64]*sector{}, map[int64]*sector{}
	if c.size != c.durableSize {
		lo, hi := min(c.size, c.durableSize), max(c.size, c.durableSize)
		switch rng.Intn(3) {
		case 0:
			c.size = c.durableSize
		case 1:
			c.size = lo + rng.Int63n(hi-lo+1)
		}
	}
	c.trimTo(c.size)
	c.durableSize = c.size
	return c
}

func sortedKeys64[V any](m map[int64]V) []int64 {
	keys := make([]int64, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// sector returns a copy of what programs see of sector s.
func (n *inode) sector(s int64) *sector {
	var c sector
	if p := n.pages[s*sectorSize/pageSize]; p != nil {
		copy(c[:], p[s*sectorSize%pageSize:])
	}
	return &c
}

func (n *inode) put(s int64, content *sector) {
	i := s * sectorSize / pageSize
	p := n.pages[i]
	if p == nil {
		if *content == (sector{}) {
			return
		}
		p = new(page)
		n.pages[i] = p
	}
	copy(p[s*sectorSize%pageSize:][:sectorSize], content[:])
}

// touch notes that the sectors of [off, end) are about to change. Now and then
// the kernel has written an earlier unsynced state back by itself: then that,
// not the synced state, is what a power cut uncovers.
func (n *inode) touch(off, end int64, coin *rand.Rand) {
	for s := off / sectorSize; s*sectorSize < end; s++ {
		if old, ok := n.lost[s]; ok {
			n.before[s] = old
			delete(n.lost, s)
			continue
		}
		if _, dirty := n.before[s]; !dirty || coin.Intn(4) == 0 {
			n.before[s] = n.sector(s)
		}
	}
}

// trimTo drops the pages above size and zeroes the rest of the last one.
func (n *inode) trimTo(size int64) {
	for i, p := range n.pages {
		switch start := i * pageSize; {
		case start >= size:
			delete(n.pages, i)
		case start+pageSize > size:
			clear(p[size-start:])
		}
	}
}

func (n *inode) flip(off int64) {
	i := off / pageSize
	if n.pages[i] == nil {
		n.pages[i] = new(page)
	}
	n.pages[i][off%pageSize] ^= 1 << (off % 8)
}

// memFile is an open file of Mem; the inode is guarded by m.mu.
type memFile struct {
	m      *Mem
	n      *inode
	name   string
	closed bool
}

func (f *memFile) begin(op string) (after, err error) {
	v, err := f.beginRange(op, 0, -1)
	return v.after, err
}

func (f *memFile) beginRange(op string, off, n int64) (v verdict, err error) {
	v, err = f.m.beginRange(op, f.name, off, n)
	if err == nil && f.closed {
		f.m.mu.Unlock()
		err = fault.New(fault.Invalid, "vfs."+op, f.name, os.ErrClosed)
	}
	return v, err
}

func (f *memFile) read(p []byte, off int64) int {
	want := min(int64(len(p)), max(0, f.n.size-off))
	for done := int64(0); done < want; {
		in := (off + done) % pageSize
		part := p[done:min(want, done+pageSize-in)]
		if pg := f.n.pages[(off+done)/pageSize]; pg != nil {
			copy(part, pg[in:])
		} else {
			clear(part)
		}
		done += int64(len(part))
	}
	return int(want)
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	v, err := f.beginRange("read", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	after := v.after
	defer f.m.mu.Unlock()
	if off < 0 {
		return 0, fault.Newf(fault.Invalid, "vfs.read", f.name, "offset %d", off)
	}
	n := f.read(p, off)
	if after == nil && n < len(p) {
		after = io.EOF
	}
	return n, after
}

func (f *memFile) TryReadAt(p []byte, off int64) bool {
	v, err := f.beginRange("tryread", off, int64(len(p)))
	if err != nil {
		return false
	}
	defer f.m.mu.Unlock()
	return v.after == nil && !f.m.cold && off >= 0 && f.read(p, off) == len(p)
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	return f.WritevAt([][]byte{p}, off)
}

// write writes as much of p as fits on the disk, as a kernel does.
func (f *memFile) write(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.Newf(fault.Invalid, "vfs.write", f.name, "offset %d", off)
	}
	m, n := f.m, f.n
	done := 0
	for done < len(p) {
		at := off + int64(done)
		part := p[done:min(len(p), done+int(pageSize-at%pageSize))]
		pg := n.pages[at/pageSize]
		if pg == nil && m.capacity > 0 && m.used+pageSize > m.capacity {
			return done, fault.Newf(fault.NoSpace, "vfs.write", f.name, "no space left on the disk")
		}
		n.touch(at, at+int64(len(part)), m.coin)
		if pg == nil {
			pg = new(page)
			n.pages[at/pageSize] = pg
			m.used += pageSize
		}
		copy(pg[at%pageSize:], part)
		done += len(part)
		n.size = max(n.size, off+int64(done))
	}
	return done, nil
}

func (f *memFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	want := int64(0)
	for _, b := range bufs {
		want += int64(len(b))
	}
	v, err := f.beginRange("write", off, want)
	if err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	total := 0
	for _, b := range bufs {
		n, werr := f.write(b, off+int64(total))
		total += n
		if err = werr; err != nil {
			break
		}
	}
	if v.lost {
		f.loseWrite(&v, off, int64(total))
	}
	if err == nil {
		err = v.after
	}
	return total, err
}

func (f *memFile) Sync() error {
	after, err := f.begin("sync")
	if err != nil {
		f.failedSync()
		return err
	}
	defer f.m.mu.Unlock()
	clear(f.n.before)
	f.n.durableSize = f.n.size
	return after
}

// failedSync is what Linux does when writing back fails: the pages are marked
// clean, so that a later Sync succeeds without having written them.
func (f *memFile) failedSync() {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.off || f.closed {
		return
	}
	for s, old := range f.n.before {
		f.n.lost[s] = old
	}
	clear(f.n.before)
}

func (f *memFile) PunchHole(off, n int64) error {
	v, err := f.beginRange("punch", off, n)
	if err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	if off < 0 || n <= 0 {
		return fault.Newf(fault.Invalid, "vfs.punch", f.name, "range %d+%d", off, n)
	}
	end := min(off+n, f.n.size)
	for at := off; at < end; {
		i := at / pageSize
		stop := min(end, (i+1)*pageSize)
		if pg := f.n.pages[i]; pg != nil {
			f.n.touch(at, stop, f.m.coin)
			clear(pg[at%pageSize : at%pageSize+(stop-at)])
			if at == i*pageSize && (stop == at+pageSize || stop == f.n.size) {
				delete(f.n.pages, i)
				f.m.used -= pageSize
			}
		}
		at = stop
	}
	return v.after
}

func (f *memFile) Truncate(size int64) error {
	after, err := f.begin("truncate")
	if err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	if size < 0 {
		return fault.Newf(fault.Invalid, "vfs.truncate", f.name, "size %d", size)
	}
	if size < f.n.size {
		pages := len(f.n.pages)
		for i := size / pageSize; i*pageSize < f.n.size; i++ {
			if f.n.pages[i] != nil {
				f.n.touch(max(i*pageSize, size), (i+1)*pageSize, f.m.coin)
			}
		}
		f.n.trimTo(size)
		f.m.used -= int64(pages-len(f.n.pages)) * pageSize
	}
	f.n.size = size
	return after
}

func (f *memFile) Size() (int64, error) {
	after, err := f.begin("size")
	if err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	return f.n.size, after
}

func (f *memFile) Close() error {
	after, err := f.begin("close")
	if err != nil {
		return err
	}
	defer f.m.mu.Unlock()
	f.closed = true
	f.n.handles--
	if f.n.handles == 0 && f.n.links == 0 {
		f.m.used -= int64(len(f.n.pages)) * pageSize
	}
	return after
}

package vfs

import (
	"errors"
	"math/rand"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/gabion-storage/gabion/internal/fault"
)

// EIO is what a disk says of a sector that it cannot read or write, for
// Fault.Err.
var EIO error = syscall.EIO

// Fault is one way in which a disk of Mem misbehaves. The first four fields say
// to which operations it happens, the others what happens to them. Faults are
// asked after the Hook, in the order in which they were injected; all that match
// take effect, up to the first with an Err.
type Fault struct {
	// Op is an operation as a Hook gets it; empty means every one.
	Op string
	// Name is how the file's name begins; empty means every file.
	Name string
	// From and To limit reads, writes and holes to those that touch the bytes
	// [From, To) of the file; To 0 means the whole file. Operations without a
	// range match in any case.
	From, To int64
	// Chance is how likely the fault happens to an operation that matches, drawn
	// with the seed of the Mem; 0 means always.
	Chance float64
	// Times is how often it happens before it is over; 0 means until removed.
	Times int

	// Wait runs before the operation, without locks: a slow disk sleeps in it on
	// whatever clock the test has, a hung one blocks (see Hang).
	Wait func(op, name string)
	// Err is returned instead of doing the operation, with the kind that the same
	// error of the machine would have; an error that has a kind keeps it. A Sync
	// that fails loses its bytes, as on Linux.
	Err error
	// Applied does the operation and reports Err nevertheless.
	Applied bool
	// Lost acknowledges writes that never reach the disk. They are in the page
	// cache, and no Sync helps: Evict or Crash uncovers what the disk has.
	Lost bool
	// Misdirect is Lost, and the sectors of the write land elsewhere instead, over
	// what was there. That too shows only after Evict or Crash.
	Misdirect *Place
}

// Place is where misdirected sectors land: Delta bytes further, a multiple of
// 512, in the file Name, or in the same one if Name is empty. Sectors that would
// land outside of the file are just lost.
type Place struct {
	Name  string
	Delta int64
}

// Inject makes the disk misbehave until remove is called; Kill and Crash keep
// nothing of it.
func (m *Mem) Inject(f Fault) (remove func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &f
	m.faults = append(slices.Clone(m.faults), p)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.forget(p)
	}
}

func (m *Mem) forget(p *Fault) {
	if i := slices.Index(m.faults, p); i >= 0 {
		m.faults = slices.Delete(slices.Clone(m.faults), i, i+1)
	}
}

// Hang makes the operations that f matches block until release is called or
// the Mem is over; then they go on, or fail with the power. What else f says
// happens to them afterwards.
func (m *Mem) Hang(f Fault) (release func()) {
	let := make(chan struct{})
	gone := m.gone
	f.Wait = func(string, string) {
		select {
		case <-let:
		case <-gone:
		}
	}
	remove := m.Inject(f)
	return sync.OnceFunc(func() {
		remove()
		close(let)
	})
}

// verdict is what the faults say of one operation.
type verdict struct {
	after     error // reported when it is done
	lost      bool
	misdirect []Place
}

// matches asks the fault about the bytes [off, off+n); n < 0 is no range.
func (p *Fault) matches(op, name string, off, n int64) bool {
	return (p.Op == "" || p.Op == op) && strings.HasPrefix(name, p.Name) &&
		(n < 0 || p.To == 0 || off < p.To && off+n > p.From)
}

// judge asks the faults about an operation. m.mu is held, and released while
// one of them waits. err ends the operation.
func (m *Mem) judge(v *verdict, op, name string, off, n int64) (err error) {
	for _, p := range m.faults {
		if !p.matches(op, name, off, n) || p.Chance > 0 && m.coin.Float64() >= p.Chance {
			continue
		}
		if p.Times > 0 {
			if p.Times--; p.Times == 0 {
				m.forget(p)
			}
		}
		if p.Wait != nil {
			m.mu.Unlock()
			p.Wait(op, name)
			m.mu.Lock()
		}
		v.lost = v.lost || p.Lost || p.Misdirect != nil
		if p.Misdirect != nil {
			v.misdirect = append(v.misdirect, *p.Misdirect)
		}
		if p.Err == nil {
			continue
		}
		err := p.Err
		if !errors.As(err, new(*fault.Error)) {
			err = OSError("vfs."+op, name, err)
		}
		if !p.Applied {
			return err
		}
		v.after = err
		return nil
	}
	return nil
}

// loseWrite makes the disk forget a write of n bytes at off, which programs
// see, and puts it where the verdict says. m.mu is held.
func (f *memFile) loseWrite(v *verdict, off, n int64) {
	for s := off / sectorSize; n > 0 && s*sectorSize < off+n; s++ {
		if old, dirty := f.n.before[s]; dirty {
			f.n.lost[s] = old
			delete(f.n.before, s)
		}
		for _, to := range v.misdirect {
			node := f.n
			if to.Name != "" {
				node = f.m.now.files[path.Clean(to.Name)]
			}
			t := s + to.Delta/sectorSize
			if node == nil || t < 0 || t*sectorSize >= node.size {
				continue
			}
			if _, dirty := node.before[t]; dirty {
				node.before[t] = f.n.sector(s) // the write-back of t comes later and heals it
			} else {
				node.lost[t] = f.n.sector(s)
			}
		}
	}
}

// Evict drops the page cache: from here on programs see what the disk has in
// place of writes that were lost, were misdirected, or whose Sync failed. What is
// merely not synced yet stays.
func (m *Mem) Evict() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.now.files {
		before := len(n.pages)
		for s, disk := range n.lost {
			n.put(s, disk)
		}
		clear(n.lost)
		m.used += int64(len(n.pages)-before) * pageSize
	}
}

// Rot is bit rot somewhere: it inverts one bit of a byte, drawn with rng among
// the allocated bytes of the files whose names begin with prefix, and returns
// where. Kind NotFound if there is no such byte.
func (m *Mem) Rot(rng *rand.Rand, prefix string) (name string, off int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pages := 0
	for name, n := range m.now.files {
		if strings.HasPrefix(name, prefix) {
			pages += len(n.pages)
		}
	}
	if pages == 0 {
		return "", 0, fault.Newf(fault.NotFound, "vfs.rot", prefix, "no byte is allocated in such a file")
	}
	at := rng.Intn(pages)
	for _, name := range sortedKeys(m.now.files) {
		n := m.now.files[name]
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if at >= len(n.pages) {
			at -= len(n.pages)
			continue
		}
		start := sortedKeys64(n.pages)[at] * pageSize
		off = start + rng.Int63n(min(pageSize, n.size-start))
		n.flip(off)
		return name, off, nil
	}
	return "", 0, fault.Newf(fault.NotFound, "vfs.rot", prefix, "no byte is allocated in such a file")
}

// SetTorn makes Crash tear sectors: of one that was not synced the beginning may
// be new and the rest old. Disks promise not to; the formats of a brick rely on
// that only for the headers of journal segments.
func (m *Mem) SetTorn(torn bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.torn = torn
}

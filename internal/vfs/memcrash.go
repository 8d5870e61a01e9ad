package vfs

import (
	"math/rand"
	"path"

	"github.com/gabion-storage/gabion/internal/fault"
)

// FlipBit is bit rot: it inverts one bit of the byte at off of the named file.
func (m *Mem) FlipBit(name string, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.now.files[path.Clean(name)]
	if n == nil || off < 0 || off >= n.size {
		return fault.Newf(fault.NotFound, "vfs.flipbit", name, "no byte %d", off)
	}
	n.flip(off)
	return nil
}

// Kill is the death of the process: the result holds everything, with what is
// unsynced still unsynced, and no locks. m itself is over: every further use of
// it or of its files fails. Capacity and tearing are kept, the hook and the
// injected faults are not.
func (m *Mem) Kill() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end()
	n := NewMem()
	n.capacity, n.used, n.coin, n.torn = m.capacity, m.used, m.coin, m.torn
	copies := map[*inode]*inode{}
	copied := func(old *inode) *inode {
		c := copies[old]
		if c == nil {
			c = old.clone()
			copies[old] = c
		}
		return c
	}
	move := func(to, from tree) {
		for d := range from.dirs {
			to.dirs[d] = true
		}
		for name, f := range from.files {
			to.files[name] = copied(f)
		}
	}
	move(n.now, m.now)
	move(n.durable, m.durable)
	for _, op := range m.pending {
		if op.node != nil {
			op.node = copied(op.node)
		}
		n.pending = append(n.pending, op)
	}
	n.recount()
	return n
}

// Crash is a power cut: the result is a disk as it could be found afterwards,
// drawn with rng. m itself is over: every further use of it or of its files
// fails. Capacity and tearing are kept, the hook and the injected faults are not.
func (m *Mem) Crash(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end()
	n := NewMem()
	n.capacity, n.torn, n.coin = m.capacity, m.torn, rand.New(rand.NewSource(rng.Int63()))
	left := map[string]int{} // operations that reached the disk, for each directory
	for _, op := range m.pending {
		left[op.dir]++
	}
	for _, d := range sortedKeys(left) {
		left[d] = rng.Intn(left[d] + 1)
	}
	found := tree{dirs: m.durable.dirs, files: m.durable.files}
	for _, op := range m.pending {
		if left[op.dir] > 0 {
			left[op.dir]--
			found.apply(op)
		}
	}
	for d := range found.dirs {
		n.now.dirs[d], n.durable.dirs[d] = true, true
	}
	for _, name := range sortedKeys(found.files) {
		if found.dirs[path.Dir(name)] {
			f := found.files[name].crash(rng, m.torn)
			n.now.files[name], n.durable.files[name] = f, f
		}
	}
	n.recount()
	return n
}

// end ends this Mem, and what hangs in it. m.mu is held.
func (m *Mem) end() {
	m.off = true
	select {
	case <-m.gone:
	default:
		close(m.gone)
	}
}

func (m *Mem) recount() {
	m.used = 0
	for _, f := range m.now.files {
		f.links = 1
		m.used += int64(len(f.pages)) * pageSize
	}
}

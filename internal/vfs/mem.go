package vfs

import (
	"errors"
	"math/rand"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Mem is an FS in memory that keeps what is durable apart from what is merely
// written, for bytes and for directory entries, so that a test can cut the
// power at any moment. Faults are injected with SetCapacity, SetHook, Inject,
// Hang, FlipBit, Rot, Evict and SetTorn. Safe for concurrent use.
//
// What Crash may lose follows POSIX read by a pessimist: bytes that Sync did not
// cover, in sectors of 512 bytes, in any combination; creations, removals and
// renames that SyncDir did not cover, in each directory all after some point.
type Mem struct {
	mu       sync.Mutex
	now      tree             // what running programs see
	durable  tree             // what SyncDir has made durable
	pending  []dirOp          // what leads from durable to now, in order
	locks    map[string]*bool // held lock names
	capacity int64            // bytes; 0 is without limit
	used     int64            // bytes of allocated pages
	off      bool             // power is off: this Mem is over
	cold     bool             // TryReadAt finds nothing
	torn     bool             // Crash may tear sectors
	hook     Hook
	faults   []*Fault      // replaced, never changed in place
	gone     chan struct{} // closed when this Mem is over
	coin     *rand.Rand    // decides which writes the kernel wrote back by itself
}

// Hook is asked before every operation with its name ("create", "open",
// "remove", "rename", "list", "mkdir", "syncdir", "free", "lock", "read",
// "tryread", "write", "sync", "punch", "truncate", "size", "close") and the
// file's. A non-nil error is returned instead of doing the operation; Applied
// does it and then returns its error. A hook may block: that is a slow disk. It
// runs without locks.
type Hook func(op, name string) error

// Applied is the answer of a Hook that wants the operation done and then
// reported as failed with Err.
type Applied struct{ Err error }

func (a Applied) Error() string { return "applied, then: " + a.Err.Error() }

// tree is a name space: directories and files by clean path.
type tree struct {
	dirs  map[string]bool
	files map[string]*inode
}

func newTree() tree {
	return tree{dirs: map[string]bool{".": true}, files: map[string]*inode{}}
}

// dirOp is one change of a directory that a power cut may undo.
type dirOp struct {
	kind     byte // 'c' create, 'r' remove, 'm' move, 'd' mkdir
	dir      string
	name, to string
	node     *inode
}

func (t tree) apply(op dirOp) {
	switch op.kind {
	case 'c':
		t.files[op.name] = op.node
	case 'r':
		delete(t.files, op.name)
	case 'm':
		if t.files[op.name] == op.node {
			delete(t.files, op.name)
		}
		t.files[op.to] = op.node
	case 'd':
		t.dirs[op.name] = true
	}
}

// NewMem makes an empty disk without limits.
func NewMem() *Mem { return NewMemSeed(1) }

// NewMemSeed is NewMem with a seed for what the kernel writes back by itself.
func NewMemSeed(seed int64) *Mem {
	return &Mem{now: newTree(), durable: newTree(), locks: map[string]*bool{},
		gone: make(chan struct{}), coin: rand.New(rand.NewSource(seed))}
}

// SetHook installs h (nil removes it).
func (m *Mem) SetHook(h Hook) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = h
}

// SetCapacity makes writes fail with NoSpace once n bytes (in 4 KiB pages) are
// allocated; 0 is without limit.
func (m *Mem) SetCapacity(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = n
}

// SetCold makes TryReadAt find nothing, as after the page cache was dropped.
func (m *Mem) SetCold(cold bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cold = cold
}

// Used is the number of bytes allocated, in whole pages.
func (m *Mem) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// Allocated is the number of bytes, in whole pages, of the files whose names
// begin with prefix.
func (m *Mem) Allocated(prefix string) (n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, f := range m.now.files {
		if strings.HasPrefix(name, prefix) {
			n += int64(len(f.pages)) * pageSize
		}
	}
	return n
}

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

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

var errPowerOff = errors.New("the power is off")

// begin asks the hook and the faults and takes the lock. after is the error that
// the operation must report once it is done; err ends it at once, without the
// lock.
func (m *Mem) begin(op, name string) (after, err error) {
	v, err := m.beginRange(op, name, 0, -1)
	return v.after, err
}

// beginRange is begin for an operation on the bytes [off, off+n) of a file.
func (m *Mem) beginRange(op, name string, off, n int64) (v verdict, err error) {
	m.mu.Lock()
	if h := m.hook; h != nil {
		m.mu.Unlock()
		err := h(op, name)
		var a Applied
		switch {
		case errors.As(err, &a):
			v.after = a.Err
		case err != nil:
			return v, err
		}
		m.mu.Lock()
	}
	err = m.judge(&v, op, name, off, n)
	if err == nil && m.off {
		err = fault.New(fault.Unavailable, "vfs."+op, name, errPowerOff)
	}
	if err != nil {
		m.mu.Unlock()
	}
	return v, err
}

// cleanName is checkName for Mem: the clean path, "." for the root.
func cleanName(op, name string) (string, error) {
	if name == "" {
		return ".", nil
	}
	c := path.Clean(name)
	if strings.HasPrefix(c, "/") || c == ".." || strings.HasPrefix(c, "../") {
		return "", fault.Newf(fault.Invalid, op, name, "the name leaves the directory of the disk")
	}
	return c, nil
}

func (m *Mem) change(op dirOp) {
	op.dir = path.Dir(op.name)
	if op.kind == 'm' {
		op.dir = path.Dir(op.to)
	}
	m.now.apply(op)
	m.pending = append(m.pending, op)
}

func (m *Mem) unlink(n *inode) {
	n.links--
	if n.links == 0 && n.handles == 0 {
		m.used -= int64(len(n.pages)) * pageSize
	}
}

func (m *Mem) Create(name string) (File, error) {
	name, err := cleanName("vfs.create", name)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("create", name)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	switch {
	case m.now.files[name] != nil || m.now.dirs[name]:
		return nil, fault.New(fault.Exists, "vfs.create", name, os.ErrExist)
	case !m.now.dirs[path.Dir(name)]:
		return nil, fault.New(fault.NotFound, "vfs.create", name, os.ErrNotExist)
	}
	n := newInode()
	n.links, n.handles = 1, 1
	m.change(dirOp{kind: 'c', name: name, node: n})
	if after != nil {
		return nil, after
	}
	return &memFile{m: m, n: n, name: name}, nil
}

func (m *Mem) Open(name string) (File, error) {
	name, err := cleanName("vfs.open", name)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("open", name)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n := m.now.files[name]
	if n == nil {
		return nil, fault.New(fault.NotFound, "vfs.open", name, os.ErrNotExist)
	}
	if after != nil {
		return nil, after
	}
	n.handles++
	return &memFile{m: m, n: n, name: name}, nil
}

func (m *Mem) Remove(name string) error {
	name, err := cleanName("vfs.remove", name)
	if err != nil {
		return err
	}
	after, err := m.begin("remove", name)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	n := m.now.files[name]
	if n == nil {
		return fault.New(fault.NotFound, "vfs.remove", name, os.ErrNotExist)
	}
	m.change(dirOp{kind: 'r', name: name})
	m.unlink(n)
	return after
}

func (m *Mem) Rename(oldname, newname string) error {
	from, err := cleanName("vfs.rename", oldname)
	if err != nil {
		return err
	}
	to, err := cleanName("vfs.rename", newname)
	if err != nil {
		return err
	}
	after, err := m.begin("rename", from)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	n := m.now.files[from]
	if n == nil || !m.now.dirs[path.Dir(to)] {
		return fault.New(fault.NotFound, "vfs.rename", from, os.ErrNotExist)
	}
	if old := m.now.files[to]; old != nil && old != n {
		m.unlink(old)
	}
	m.change(dirOp{kind: 'm', name: from, to: to, node: n})
	return after
}

func (m *Mem) List(dir string) ([]string, error) {
	dir, err := cleanName("vfs.list", dir)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("list", dir)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if !m.now.dirs[dir] {
		return nil, fault.New(fault.NotFound, "vfs.list", dir, os.ErrNotExist)
	}
	var names []string
	for d := range m.now.dirs {
		if d != "." && path.Dir(d) == dir {
			names = append(names, path.Base(d))
		}
	}
	for f := range m.now.files {
		if path.Dir(f) == dir {
			names = append(names, path.Base(f))
		}
	}
	slices.Sort(names)
	return names, after
}

func (m *Mem) MkdirAll(dir string) error {
	dir, err := cleanName("vfs.mkdir", dir)
	if err != nil {
		return err
	}
	after, err := m.begin("mkdir", dir)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		d := dir[:i]
		if m.now.files[d] != nil {
			return fault.Newf(fault.Invalid, "vfs.mkdir", d, "a file has this name")
		}
		if !m.now.dirs[d] {
			m.change(dirOp{kind: 'd', name: d})
		}
	}
	return after
}

func (m *Mem) SyncDir(dir string) error {
	dir, err := cleanName("vfs.syncdir", dir)
	if err != nil {
		return err
	}
	after, err := m.begin("syncdir", dir)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if !m.now.dirs[dir] {
		return fault.New(fault.NotFound, "vfs.syncdir", dir, os.ErrNotExist)
	}
	rest := m.pending[:0:0]
	for _, op := range m.pending {
		if op.dir == dir {
			m.durable.apply(op)
		} else {
			rest = append(rest, op)
		}
	}
	m.pending = rest
	return after
}

// memTotal is the size that an unlimited Mem reports.
const memTotal = 1 << 40

func (m *Mem) Free() (free, total int64, err error) {
	after, err := m.begin("free", "")
	if err != nil {
		return 0, 0, err
	}
	defer m.mu.Unlock()
	total = m.capacity
	if total == 0 {
		total = memTotal
	}
	return max(0, total-m.used), total, after
}

func (m *Mem) Lock(name string) (func(), error) {
	name, err := cleanName("vfs.lock", name)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("lock", name)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if after != nil {
		return nil, after
	}
	if m.locks[name] != nil {
		return nil, fault.Newf(fault.Busy, "vfs.lock", name, "another process holds the lock")
	}
	if !m.now.dirs[path.Dir(name)] {
		return nil, fault.New(fault.NotFound, "vfs.lock", name, os.ErrNotExist)
	}
	if m.now.files[name] == nil {
		n := newInode()
		n.links = 1
		m.change(dirOp{kind: 'c', name: name, node: n})
	}
	held := new(bool)
	m.locks[name] = held
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.locks[name] == held {
			delete(m.locks, name)
		}
	}, nil
}

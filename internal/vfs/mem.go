package vfs

import (
	"math/rand"
	"slices"
	"strings"
	"sync"
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

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

package dht

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// Extent is what Put stores. Data is read only and not kept after the call.
type Extent struct {
	Addr   ident.Addr // SHA-256 of Data
	Number uint64     // within its volume
	// Epoch is of the attempt that made the extent; 0: the epoch of the put.
	Epoch uint64
	Data  []byte // at most ExtentMax bytes
	// Relief: it is needed to give space back, and may use a part of what full
	// bricks keep in reserve for that, if it is small and put alone.
	Relief bool
	// Hashed: Addr was made of Data by this process, or found to be right, and at the same time
	// Sum was made, its CRC32C. A brick of this node then verifies nothing; those of other nodes
	// compare Sum, so that what changed in memory or on the way since is refused.
	Hashed bool
	Sum    uint32
}

// Store puts, reads and deletes extents on the pool's bricks, and serves this
// node's bricks. All methods may be called concurrently.
type Store struct {
	cfg   Config
	self  ident.NodeID
	bytes *bytesGate
	stats statistics
	pages snapshots

	mu    sync.Mutex // orders changes of local, and spawn and Close
	local atomic.Pointer[[]*localBrick]

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	disk    sync.WaitGroup // operations of this node's disks
	health  health
	repairs repairQueue
}

// localBrick is a brick of this node.
type localBrick struct {
	Brick
	ref    overlay.BrickRef
	fences *fences
	bytes  *bytesGate // of puts under way
}

// New makes a store and registers its handlers (0x40-0x46) on the transport,
// before its Start.
func New(cfg Config) *Store {
	s := &Store{cfg: cfg.withDefaults(), self: cfg.Transport.Self(), bytes: newBytesGate(PutBytesMax)}
	s.local.Store(new([]*localBrick))
	s.stats.holders = map[overlay.BrickRef]*holderCount{}
	s.health.of = map[overlay.BrickRef]*pulse{}
	s.repairs.wanted = map[repair]bool{}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.handle()
	return s
}

// Close ends background work and waits for it, and, for a while, for
// operations of this node's own disks. What is called afterwards fails where it would start more.
func (s *Store) Close() {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
	done := make(chan struct{})
	go func() {
		s.disk.Wait()
		close(done)
	}()
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		s.cfg.Log.Warn("operations of a disk that hangs were left behind")
	}
}

// closeGrace is how long Close waits for disks.
const closeGrace = 5 * time.Second

// onDisk runs f, which may hang, on a goroutine, and returns its result or
// why nobody waits for it any more. f must touch nothing of the caller's.
func (s *Store) onDisk(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return fault.Newf(fault.Unavailable, "dht", "", "the store is closed")
	}
	s.disk.Go(func() { done <- f() })
	s.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// spawn runs f on a goroutine that Close waits for; false after Close.
func (s *Store) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.running.Go(f)
	return true
}

// AddBrick begins to serve a brick of this node. Exists: it is served already.
func (s *Store) AddBrick(b Brick) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range *s.local.Load() {
		if l.ref.Brick == b.ID() {
			return fault.Newf(fault.Exists, "dht.addbrick", b.ID().Short(), "the brick was added before")
		}
	}
	l := &localBrick{Brick: b, ref: overlay.BrickRef{Node: s.self, Brick: b.ID()}, fences: newFences(b), bytes: newBytesGate(DiskBytesMax)}
	bs := append(slices.Clone(*s.local.Load()), l)
	s.local.Store(&bs)
	return nil
}

// SetBrickDown ends serving a brick of this node, because it is broken or being
// closed.
func (s *Store) SetBrickDown(id ident.BrickID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bs := slices.DeleteFunc(slices.Clone(*s.local.Load()), func(l *localBrick) bool { return l.ref.Brick == id })
	s.local.Store(&bs)
}

// brick returns a brick of this node. Unavailable: it has none of that id, or
// not any more.
func (s *Store) brick(op string, id ident.BrickID) (*localBrick, error) {
	for _, l := range *s.local.Load() {
		if l.ref.Brick == id {
			return l, nil
		}
	}
	return nil, fault.Newf(fault.Unavailable, op, id.Short(), "node %s does not serve this brick: it is broken or gone", s.self.Short())
}

// lane returns all bricks of the lane of addr, in order; shared, read only.
func (s *Store) lane(addr ident.Addr) []overlay.BrickRef {
	n := s.cfg.View.LaneCount()
	if n == 0 {
		return nil
	}
	return s.cfg.View.Lane(LaneOf(addr, n))
}

// LaneOf is the index of the lane that addr falls into, of lanes in all: its
// first eight bytes as a big-endian number, modulo lanes.
func LaneOf(addr ident.Addr, lanes int) int {
	var n uint64
	for _, b := range addr[:8] {
		n = n<<8 | uint64(b)
	}
	return int(n % uint64(lanes))
}

// Holders returns the bricks that shall hold an extent of a volume with the
// given number of replicas: the first of its lane, fewer if the lane is
// narrower. The result is shared and read only.
func (s *Store) Holders(addr ident.Addr, replicas int) []overlay.BrickRef {
	l := s.lane(addr)
	return l[:min(max(replicas, 1), len(l))]
}

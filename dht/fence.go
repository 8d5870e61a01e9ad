package dht

import (
	"math"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// fences keeps for each volume the highest epoch that one brick has met. A
// writer of a lower epoch is refused: it has been replaced, even if it does not
// know yet. The epoch is durable in the brick before anything is done under it, so
// that a restart does not let an old writer in again.
type fences struct {
	brick Brick
	mu    sync.Mutex // guards m and the users counts
	m     map[ident.VolumeID]*fence
}

// fence is one volume's. Operations hold mu for reading from their check to
// their end; raising takes it for writing. So when a raise returns, no operation
// of a lower epoch is under way any more. That is the one place where a lock is
// held across I/O: it is what the lock is for.
type fence struct {
	users  int
	mu     sync.RWMutex
	loaded bool
	floor  uint64
}

// epochGone is the floor of a volume that was dropped: no epoch passes.
const epochGone = math.MaxUint64

func newFences(b Brick) *fences {
	return &fences{brick: b, m: map[ident.VolumeID]*fence{}}
}

func fenceKey(v ident.VolumeID) string { return "dht.epoch/" + v.String() }

// take returns the volume's fence; give must follow.
func (s *fences) take(v ident.VolumeID) *fence {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.m[v]
	if f == nil {
		if len(s.m) >= FencesMax {
			s.evict()
		}
		f = new(fence)
		s.m[v] = f
	}
	f.users++
	return f
}

func (s *fences) give(f *fence) {
	s.mu.Lock()
	f.users--
	s.mu.Unlock()
}

// evict forgets a volume that nobody is using; its floor is in the brick. mu
// is held.
func (s *fences) evict() {
	for v, f := range s.m {
		if f.users == 0 {
			delete(s.m, v)
			return
		}
	}
}

// load reads the floor from the brick, once. f.mu is held for writing.
func (s *fences) load(f *fence, v ident.VolumeID) error {
	if f.loaded {
		return nil
	}
	b, err := s.brick.Stable().Get(fenceKey(v))
	if err != nil {
		return err
	}
	switch len(b) {
	case 0:
	case 8:
		f.floor = le.Uint64(b)
	default:
		return fault.Newf(fault.Corrupt, "dht.fence", v.Short(), "the recorded epoch has %d bytes, not 8", len(b))
	}
	f.loaded = true
	return nil
}

// raise makes epoch the floor, durably, and returns once no operation of a
// lower one is under way. Fenced: the floor is higher already.
func (s *fences) raise(v ident.VolumeID, epoch uint64) error {
	f := s.take(v)
	defer s.give(f)
	if !mutant.On("seal-at-once") {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	if err := s.load(f, v); err != nil {
		return err
	}
	if epoch < f.floor && mutant.On("old-epoch-enters") {
		f.floor = epoch
		return nil
	}
	if epoch < f.floor {
		return fencedBy(v, epoch, f.floor)
	}
	if epoch == f.floor {
		return nil
	}
	if err := s.brick.Stable().Set(fenceKey(v), le.AppendUint64(nil, epoch)); err != nil {
		return err
	}
	f.floor = epoch
	return nil
}

func fencedBy(v ident.VolumeID, epoch, floor uint64) error {
	if floor == epochGone {
		return fault.Newf(fault.Fenced, "dht.fence", v.Short(), "the volume was deleted")
	}
	return fault.Newf(fault.Fenced, "dht.fence", v.Short(), "epoch %d has been replaced by epoch %d: another node attached the volume", epoch, floor)
}

// enter lets an operation of epoch begin; leave ends it. Fenced: the floor is
// higher.
func (s *fences) enter(v ident.VolumeID, epoch uint64) (leave func(), err error) {
	f := s.take(v)
	for {
		f.mu.RLock()
		if f.loaded && f.floor == epoch {
			return func() { f.mu.RUnlock(); s.give(f) }, nil
		}
		f.mu.RUnlock()
		if err := s.raise(v, epoch); err != nil {
			s.give(f)
			return nil, err
		}
	}
}

// enterAny lets an operation of no epoch begin (replacing a damaged copy),
// unless the volume was dropped.
func (s *fences) enterAny(v ident.VolumeID) (leave func(), err error) {
	f := s.take(v)
	f.mu.Lock()
	err = s.load(f, v)
	f.mu.Unlock()
	if err != nil {
		s.give(f)
		return nil, err
	}
	f.mu.RLock()
	if f.floor == epochGone {
		f.mu.RUnlock()
		s.give(f)
		return nil, fencedBy(v, 0, epochGone)
	}
	return func() { f.mu.RUnlock(); s.give(f) }, nil
}

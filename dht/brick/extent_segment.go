package brick

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// OpenSegmentsMax bounds the extent segment files that are open at once.
const OpenSegmentsMax = 512

func extentSegmentName(number uint32) string { return fmt.Sprintf("extents/%08d", number) }

// extentSegment is one append-only file of extents.
type extentSegment struct {
	number uint32

	mu   sync.RWMutex // read: f is in use; write: f is opened or closed
	f    vfs.File     // nil while closed
	used atomic.Bool  // since the clock hand last passed

	// Guarded by segments.mu.
	end      int64  // where the next record goes
	live     int    // extents
	inflight int    // reserved, not yet in the table or given up
	sealed   bool   // no further record will be reserved
	gaps     uint64 // grows with every gap; 0 once all are holes and the index says so
	punching int    // gaps that somebody is about to punch
	removed  bool

	announced bool // an open operation is in the index; owned by the committer
}

// segments is the set of extent segments. mu is a leaf in the lock order.
type segments struct {
	*core
	openMax int

	mu       sync.RWMutex
	all      map[uint32]*extentSegment
	next     uint32           // number of the next segment
	files    []*extentSegment // that have a file open, in clock order
	hand     int
	dirty    map[*extentSegment]bool // gaps > 0
	removing map[uint32]bool         // removed, but for the file

	closed bool
}

func newSegments(c *core) *segments {
	return &segments{core: c, openMax: OpenSegmentsMax, all: map[uint32]*extentSegment{},
		dirty: map[*extentSegment]bool{}, removing: map[uint32]bool{}, next: 1}
}

func (s *segments) get(number uint32) *extentSegment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all[number]
}

// create adds a segment whose file durably exists.
func (s *segments) create() (*extentSegment, error) {
	s.mu.Lock()
	number := s.next
	s.next++
	s.mu.Unlock()
	name := extentSegmentName(number)
	f, err := s.fs.Create(name)
	if err != nil {
		return nil, err
	}
	if err := s.fs.SyncDir("extents"); err != nil {
		f.Close()
		return nil, err
	}
	s.count.created.Add(1)
	seg := &extentSegment{number: number, f: f}
	s.mu.Lock()
	s.all[number] = seg
	s.gap(seg) // what follows its end, until it is sealed and clean
	s.mu.Unlock()
	s.opened(seg)
	return seg, nil
}

// pin returns the open file of seg; the caller ends its use with seg.mu.RUnlock.
// NotFound when the segment was removed. Lock order: extentSegment.mu, then
// segments.mu.
func (s *segments) pin(seg *extentSegment) (vfs.File, error) {
	for {
		seg.mu.RLock()
		if seg.f != nil {
			seg.used.Store(true)
			return seg.f, nil
		}
		seg.mu.RUnlock()
		seg.mu.Lock()
		if seg.f == nil {
			if err := s.gone(seg); err != nil {
				seg.mu.Unlock()
				return nil, err
			}
			f, err := s.fs.Open(extentSegmentName(seg.number))
			if err != nil {
				seg.mu.Unlock()
				return nil, err
			}
			seg.f = f
			seg.mu.Unlock()
			s.opened(seg)
			continue
		}
		seg.mu.Unlock()
	}
}

// gone is why the file of seg must not be opened any more.
func (s *segments) gone(seg *extentSegment) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.closed:
		return fault.Newf(fault.Unavailable, "brick", s.id.Short(), "the brick is closed")
	case seg.removed:
		return fault.Newf(fault.NotFound, "brick", extentSegmentName(seg.number), "the segment was removed")
	}
	return nil
}

// opened notes that seg has a file open and closes another one if there are too
// many.
func (s *segments) opened(seg *extentSegment) {
	s.mu.Lock()
	s.files = append(s.files, seg)
	var victim *extentSegment
	for tries := 0; len(s.files) > s.openMax && tries < 2*len(s.files); tries++ {
		s.hand = (s.hand + 1) % len(s.files)
		v := s.files[s.hand]
		if v == seg || v.inflight > 0 || v.used.Swap(false) || !v.mu.TryLock() {
			continue
		}
		victim = v
		s.forget(s.hand)
		break
	}
	s.mu.Unlock()
	if victim != nil {
		_ = victim.f.Close() // what matters of it is synced, or is synced through a new descriptor
		victim.f = nil
		victim.mu.Unlock()
	}
}

// forget takes files[i] out of the clock. mu is held.
func (s *segments) forget(i int) {
	last := len(s.files) - 1
	s.files[i] = s.files[last]
	s.files[last] = nil
	s.files = s.files[:last]
}

// gap notes that seg has room that no extent uses. mu is held.
func (s *segments) gap(seg *extentSegment) {
	seg.gaps++
	s.dirty[seg] = true
}

// dead reports whether nothing in seg lives or will live. mu is held.
func (s *segments) dead(seg *extentSegment) bool {
	return seg.sealed && seg.live == 0 && seg.inflight == 0 && !seg.removed
}

// removeDead removes the file of seg if nothing in it lives.
func (s *segments) removeDead(seg *extentSegment) error {
	s.mu.Lock()
	if !s.dead(seg) {
		s.mu.Unlock()
		return nil
	}
	seg.removed = true
	s.removing[seg.number] = true
	defer func() {
		s.mu.Lock()
		delete(s.removing, seg.number)
		s.mu.Unlock()
	}()
	delete(s.all, seg.number)
	delete(s.dirty, seg)
	for i, f := range s.files {
		if f == seg {
			s.forget(i)
			break
		}
	}
	s.mu.Unlock()
	seg.mu.Lock()
	if seg.f != nil {
		_ = seg.f.Close() // nothing in it matters
		seg.f = nil
	}
	seg.mu.Unlock()
	if err := s.fs.Remove(extentSegmentName(seg.number)); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	s.count.removed.Add(1)
	return nil
}

// close closes all files.
func (s *segments) close() {
	s.mu.Lock()
	files := s.files
	s.files, s.closed = nil, true
	s.mu.Unlock()
	for _, seg := range files {
		seg.mu.Lock()
		if seg.f != nil {
			_ = seg.f.Close() // synced before, or the brick is broken anyway
			seg.f = nil
		}
		seg.mu.Unlock()
	}
}

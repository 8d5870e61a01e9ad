package brick

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
)

const (
	// deleteBatchMax bounds the addresses of one index commit of a deletion, so
	// that on a full disk the first holes make room for the rest.
	deleteBatchMax = 4096
	// DirtySegmentsMax bounds the segments whose holes an open after a crash has
	// to punch again.
	DirtySegmentsMax = 1024
)

func compareRefs(a, b Ref) int {
	if c := cmp.Compare(a.Number, b.Number); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Epoch, b.Epoch); c != 0 {
		return c
	}
	return bytes.Compare(a.Addr[:], b.Addr[:])
}

// DeleteExtents forgets the extents durably and gives their room back to the
// file system; absent ones are a success. It works on a full disk. A deleted
// extent does not come back after a crash; its room is found again at open.
func (b *Brick) DeleteExtents(addrs []ident.Addr) error {
	s := b.extents
	for part := range slices.Chunk(addrs, deleteBatchMax) {
		r := newRequest()
		r.deletes = part
		if mutant.On("hole-before-index") {
			s.punchNow(part)
		}
		if err := s.ask(r); err != nil {
			return err
		}
		s.count.deletes.Add(uint64(len(r.removed)))
		s.release(r.removed)
	}
	return s.tidyMany()
}

// punchNow is the defect of holeBeforeIndex.
func (s *extents) punchNow(addrs []ident.Addr) {
	for _, a := range addrs {
		if e, ok := s.table.get(a); ok {
			s.punch(s.segments.get(e.segment), int64(e.offset)*extentAlign, recordSpan(int64(e.size)))
		}
	}
}

// release punches the room of removed entries and removes dead segments.
func (s *extents) release(removed []entry) {
	slices.SortFunc(removed, func(a, b entry) int {
		if c := cmp.Compare(a.segment, b.segment); c != 0 {
			return c
		}
		return cmp.Compare(a.offset, b.offset)
	})
	for i := 0; i < len(removed); {
		first := removed[i]
		seg := s.segments.get(first.segment)
		start := int64(first.offset) * extentAlign
		end := start
		for i < len(removed) && removed[i].segment == first.segment && int64(removed[i].offset)*extentAlign == end {
			end += recordSpan(int64(removed[i].size))
			i++
		}
		if seg != nil && !s.remove(seg) {
			s.punch(seg, start, end-start)
		}
	}
	s.segments.mu.Lock()
	defer s.segments.mu.Unlock()
	for _, e := range removed {
		if seg := s.segments.all[e.segment]; seg != nil {
			seg.punching--
		}
	}
}

// remove removes the segment if it is dead and reports whether it is gone.
func (s *extents) remove(seg *extentSegment) bool {
	if err := s.segments.removeDead(seg); err != nil {
		s.log.Warn("extent segment not removed", "file", extentSegmentName(seg.number), "err", err)
	}
	s.segments.mu.RLock()
	defer s.segments.mu.RUnlock()
	return seg.removed
}

// punch gives a range back. What goes wrong costs only space, and is logged.
func (s *extents) punch(seg *extentSegment, off, n int64) {
	f, err := s.segments.pin(seg)
	if err == nil {
		if mutant.On("punch-wrong-range") {
			off += extentAlign
		}
		err = f.PunchHole(off, n)
		seg.mu.RUnlock()
	}
	switch {
	case err == nil:
		s.count.punched.Add(uint64(n))
	case fault.Is(err, fault.Invalid):
		s.noHoles.Do(func() {
			s.log.Warn("the file system has no holes: room comes back only with whole segments", "err", err)
		})
	default:
		s.log.Warn("hole not punched", "file", extentSegmentName(seg.number), "err", err)
	}
}

// tidyMany bounds the work of the next open after a crash.
func (s *extents) tidyMany() error {
	s.segments.mu.RLock()
	many := len(s.segments.dirty) > DirtySegmentsMax
	s.segments.mu.RUnlock()
	if !many {
		return nil
	}
	return s.tidy()
}

// tidy makes the holes of all quiet segments durable and says so in the index.
func (s *extents) tidy() error {
	r := newRequest()
	s.segments.mu.RLock()
	for seg := range s.segments.dirty {
		if seg.sealed && seg.inflight == 0 && seg.punching == 0 {
			r.cleans = append(r.cleans, clean{seg, seg.gaps})
		}
	}
	s.segments.mu.RUnlock()
	slices.SortFunc(r.cleans, func(a, b clean) int { return cmp.Compare(a.seg.number, b.seg.number) })
	for _, c := range r.cleans {
		f, err := s.segments.pin(c.seg)
		if fault.Is(err, fault.NotFound) {
			continue // removed meanwhile; the committer sees that too
		}
		if err == nil {
			err = s.sync(f)
			c.seg.mu.RUnlock()
		}
		if err != nil {
			return s.fail("tidy", err)
		}
	}
	if len(r.cleans) == 0 {
		return nil
	}
	return s.ask(r)
}

// reclaim punches every gap of the given segments, as found at open, and
// removes those that hold nothing. It runs beside everything else: gaps stay
// gaps, since a reopened segment is never appended to.
func (s *extents) reclaim(found []gapsOf) {
	defer s.running.Done()
	defer close(s.reclaimed)
	for _, g := range found {
		if s.ending.Load() {
			return // what is left stays marked
		}
		if s.remove(g.seg) {
			continue
		}
		for _, r := range g.gaps {
			s.punch(g.seg, r[0], r[1]-r[0])
		}
		s.segments.mu.Lock()
		g.seg.punching--
		s.segments.mu.Unlock()
	}
	if err := s.tidy(); err != nil {
		s.log.Warn("segments stay marked for the next open", "err", err)
	}
}

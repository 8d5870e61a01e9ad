package brick

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// indexed is an extent as the index has it.
type indexed struct {
	addr ident.Addr
	entry
}

func (r *indexed) start() int64 { return int64(r.offset) * extentAlign }

// checkExtents verifies every extent of every segment from s.at on, and that
// what no extent uses is empty.
func (s *scrub) checkExtents() error {
	numbers, err := s.strayFiles()
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n < s.at.Segment {
			continue
		}
		if n > s.at.Segment {
			s.at = ScrubPos{Segment: n}
		}
		if err := s.checkExtentSegment(n); err != nil {
			return err
		}
	}
	s.at = ScrubPos{}
	return nil
}

// strayFiles compares the files with the segments, removes files that are none
// and returns the numbers of all segments, ascending.
func (s *scrub) strayFiles() ([]uint32, error) {
	s.extents.alloc.Lock() // a new segment has its file before it is one
	files, err := s.core.fs.List("extents")
	segs := s.extents.segments
	segs.mu.RLock()
	numbers := make([]uint32, 0, len(segs.all))
	for n := range segs.all {
		numbers = append(numbers, n)
	}
	segs.mu.RUnlock()
	s.extents.alloc.Unlock()
	if err != nil {
		return nil, s.fatal("extents", err)
	}
	slices.Sort(numbers)
	for _, name := range files {
		var n uint32
		k, _ := fmt.Sscanf(name, "%08d", &n)
		if _, known := slices.BinarySearch(numbers, n); k == 1 && (known || segs.isRemoving(n)) {
			continue
		}
		err := s.core.fs.Remove("extents/" + name)
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return nil, s.fatal("extents/"+name, err)
		default:
			s.found("extents/"+name, true, fault.Newf(fault.Corrupt, "brick.scrub", name, "not a segment that the index names"))
		}
	}
	return numbers, nil
}

// isRemoving tells whether segment n was there and is on its way out.
func (s *segments) isRemoving(n uint32) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.removing[n]
}

// recordsOf lists the extents of a segment in the order of their places.
func (s *extents) recordsOf(segment uint32) []indexed {
	var rs []indexed
	s.table.each(func(a ident.Addr, e entry) {
		if e.segment == segment {
			rs = append(rs, indexed{a, e})
		}
	})
	slices.SortFunc(rs, func(a, b indexed) int { return cmp.Compare(a.offset, b.offset) })
	return rs
}

func (s *scrub) checkExtentSegment(n uint32) error {
	seg := s.extents.segments.get(n)
	if seg == nil {
		return nil
	}
	rs := s.extents.recordsOf(n)
	for i := range rs {
		r := &rs[i]
		if r.start() < s.at.Offset {
			continue
		}
		if err := s.checkRecord(seg, r); err != nil {
			return err
		}
		s.at.Offset = r.start() + recordSpan(int64(r.size))
	}
	return s.checkGaps(seg)
}

// checkRecord verifies one extent, and has it healed.
func (s *scrub) checkRecord(seg *extentSegment, r *indexed) error {
	if err := s.pace(recordSpan(int64(r.size))); err != nil {
		return err
	}
	err := s.verifyRecord(seg, r)
	if err != nil {
		err = s.verifyRecord(seg, r) // once more: only what stays is damage
	}
	s.count.Extents++
	if err == nil {
		return nil
	}
	if now, ok := s.extents.table.get(r.addr); !ok || now != r.entry {
		return nil // deleted or moved meanwhile
	}
	if err := s.core.down(); err != nil {
		return err
	}
	err = fault.New(fault.Corrupt, "brick.scrub", r.addr.Short(), err)
	s.core.damage(r.addr, err)
	s.found("extent "+r.addr.String(), s.cfg.Extent != nil && s.cfg.Extent(r.addr, err), err)
	return s.core.down()
}

func (s *scrub) verifyRecord(seg *extentSegment, r *indexed) error {
	f, err := s.extents.segments.pin(seg)
	if err != nil {
		return err
	}
	defer seg.mu.RUnlock()
	n := extentHeader + int(r.size)
	if cap(s.buf) < n {
		s.buf = make([]byte, max(n, 1<<20+extentHeader))
	}
	b := s.buf[:n]
	m, err := readDisk(f, b, r.start())
	switch {
	case err != nil && err != io.EOF:
		return err
	case m < n:
		return fault.Newf(fault.Corrupt, "brick.scrub", r.addr.Short(), "%s ends inside the extent", extentSegmentName(r.segment))
	case !checkExtentHeader(b, r.addr, r.size):
		return fault.Newf(fault.Corrupt, "brick.scrub", r.addr.Short(), "damaged record header in %s at byte %d",
			extentSegmentName(r.segment), r.start())
	case ident.AddrOf(b[extentHeader:]) != r.addr:
		return fault.Newf(fault.Corrupt, "brick.scrub", r.addr.Short(), "in %s at byte %d are other bytes than those of its address",
			extentSegmentName(r.segment), r.start())
	}
	return nil
}

// checkGaps looks for bytes in a quiet segment that should be holes, and punches
// them again.
func (s *scrub) checkGaps(seg *extentSegment) error {
	segs := s.extents.segments
	segs.mu.RLock()
	quiet := seg.sealed && seg.inflight == 0 && seg.gaps == 0 && seg.punching == 0 && !seg.removed
	end := seg.end
	segs.mu.RUnlock()
	if !quiet {
		return nil
	}
	rs := s.extents.recordsOf(seg.number)
	used := make([][2]int64, len(rs))
	for i := range rs {
		used[i] = [2]int64{rs[i].start(), rs[i].start() + recordSpan(int64(rs[i].size))}
	}
	for _, g := range between(used, end) {
		stray, err := s.strayBytes(seg, g[0], g[1])
		if err != nil {
			return err
		}
		if stray > 0 { // a reopened or sealed segment is never appended to: the gap is still one
			s.extents.punch(seg, g[0], g[1]-g[0])
			s.count.Stray += stray
		}
	}
	return nil
}

// strayBytes counts, in blocks, the bytes in [from, to) that are not zero.
func (s *scrub) strayBytes(seg *extentSegment, from, to int64) (n int64, err error) {
	f, err := s.extents.segments.pin(seg)
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			return 0, nil
		}
		return 0, err
	}
	defer seg.mu.RUnlock()
	if cap(s.buf) < 1<<20 {
		s.buf = make([]byte, 1<<20+extentHeader)
	}
	for from < to {
		b := s.buf[:min(1<<20, to-from)]
		m, err := readDisk(f, b, from)
		if err != nil && err != io.EOF {
			return n, nil // what cannot be read is not in use
		}
		for blocks := b[:m]; len(blocks) > 0; {
			block := blocks[:min(extentAlign, len(blocks))]
			blocks = blocks[len(block):]
			if string(block) != string(zeroBlock[:len(block)]) {
				n += int64(len(block))
			}
		}
		from += int64(len(b))
		if s.ctx.Err() != nil {
			return n, s.ctx.Err()
		}
	}
	return n, nil
}

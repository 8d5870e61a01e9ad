package brick

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// gapsOf is the room in a segment that no extent uses, as byte ranges [0], [1).
type gapsOf struct {
	seg  *extentSegment
	gaps [][2]int64
}

func newExtents(c *core, segSize, reserve int64) *extents {
	s := &extents{core: c, segSize: segSize, reserve: reserve, table: newTable(), segments: newSegments(c),
		index: &indexLog{core: c, view: new(atomic.Pointer[indexView]), ahead: indexAhead, slack: indexSlack}, pending: map[ident.Addr]*request{},
		reclaimed: make(chan struct{})}
	s.queue.wake = make(chan struct{}, 1)
	return s
}

// create makes the index of a new brick.
func (s *extents) create() error {
	if err := s.index.create(1, func(func(*indexOp)) {}); err != nil {
		return err
	}
	return s.index.f.Close()
}

// open reads the index, compares it with the sizes of the segment files, and
// starts the committer. It reads no extent.
func (s *extents) open() error {
	marked := map[uint32]bool{} // segments that may hold gaps
	err := s.index.open(func(op *indexOp) {
		switch op.code {
		case opPut:
			old, replaced := s.table.put(op.addr, entry{number: op.number, epoch: op.epoch, segment: op.segment,
				offset: op.offset, size: op.size, volume: s.table.volume(op.volume)})
			if replaced {
				marked[old.segment] = true
			}
			s.segments.next = max(s.segments.next, op.segment+1)
		case opDelete:
			if e, ok := s.table.delete(op.addr); ok {
				marked[e.segment] = true
			}
		case opOpen:
			marked[op.segment] = true
		case opClean:
			delete(marked, op.segment)
		}
	})
	if err == nil {
		err = s.load()
	}
	if err != nil {
		s.close()
		return err
	}
	s.running.Add(2)
	go s.commit()
	go s.reclaim(s.findGaps(marked))
	return nil
}

// load finds the segment files: one that no extent is in goes, one that an
// extent is in must be there, and long enough.
func (s *extents) load() error {
	live, reach := map[uint32]int{}, map[uint32]int64{}
	s.table.each(func(_ ident.Addr, e entry) {
		live[e.segment]++
		reach[e.segment] = max(reach[e.segment], int64(e.offset)*extentAlign+extentHeader+int64(e.size))
	})
	names, err := s.fs.List("extents")
	if err != nil {
		return err
	}
	for _, name := range names {
		var number uint32
		path := "extents/" + name
		if n, _ := fmt.Sscanf(name, "%08d", &number); n != 1 || extentSegmentName(number) != path {
			return fault.Newf(fault.Corrupt, "brick.open", path, "not an extent segment; remove the file")
		}
		s.segments.next = max(s.segments.next, number+1)
		if live[number] == 0 {
			if err := s.fs.Remove(path); err != nil {
				return err
			}
			continue
		}
		size, err := s.fileSize(path)
		if err != nil {
			return err
		}
		if size < reach[number] {
			return fault.Newf(fault.Corrupt, "brick.open", path, "%d bytes long, its extents reach to byte %d",
				size, reach[number])
		}
		s.segments.all[number] = &extentSegment{number: number, end: size, live: live[number], sealed: true,
			announced: true}
	}
	for number := range live {
		if s.segments.all[number] == nil {
			return fault.Newf(fault.Corrupt, "brick.open", extentSegmentName(number),
				"the file with %d extents was removed", live[number])
		}
	}
	return nil
}

func (s *extents) fileSize(name string) (int64, error) {
	f, err := s.fs.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Size()
}

// findGaps marks the segments and lists what of them no extent uses.
func (s *extents) findGaps(marked map[uint32]bool) []gapsOf {
	used := map[uint32][][2]int64{}
	s.table.each(func(_ ident.Addr, e entry) {
		if marked[e.segment] {
			start := int64(e.offset) * extentAlign
			used[e.segment] = append(used[e.segment], [2]int64{start, start + recordSpan(int64(e.size))})
		}
	})
	found := make([]gapsOf, 0, len(used))
	s.segments.mu.Lock()
	for number, ranges := range used {
		seg := s.segments.all[number]
		s.segments.gap(seg)
		seg.punching++
		found = append(found, gapsOf{seg, between(ranges, seg.end)})
	}
	s.segments.mu.Unlock()
	slices.SortFunc(found, func(a, b gapsOf) int { return cmp.Compare(a.seg.number, b.seg.number) })
	return found
}

// between returns what of [0, end) the ranges leave.
func between(ranges [][2]int64, end int64) (gaps [][2]int64) {
	slices.SortFunc(ranges, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	at := int64(0)
	for _, r := range ranges {
		if r[0] > at {
			gaps = append(gaps, [2]int64{at, r[0]})
		}
		at = max(at, r[1])
	}
	if at < end {
		gaps = append(gaps, [2]int64{at, end})
	}
	return gaps
}

// end finishes what waits, makes the holes durable and closes the files.
func (s *extents) end() error {
	s.ending.Store(true)
	s.alloc.Lock()
	s.seal()
	s.active = nil
	s.alloc.Unlock()
	err := s.down()
	if err == nil {
		err = s.tidy()
	}
	s.queue.mu.Lock()
	s.queue.closed = true
	s.queue.kick()
	s.queue.mu.Unlock()
	s.running.Wait()
	s.close()
	return err
}

// close closes the files.
func (s *extents) close() {
	s.segments.close()
	if s.index.f != nil {
		_ = s.index.f.Close() // synced with every commit
	}
}

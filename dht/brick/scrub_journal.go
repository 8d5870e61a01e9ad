package brick

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// checkJournal verifies the headers of all segments and the durable records.
func (s *scrub) checkJournal() error {
	if mutant.On("scrub-skips-journal") {
		return nil
	}
	if err := s.checkHeaders(); err != nil {
		return err
	}
	for p := Pos(0); ; {
		seg, ok := s.journal.durableFrom(p)
		if !ok {
			return nil
		}
		if err := s.checkSegment(seg); err != nil {
			return err
		}
		p = seg.first + 1
	}
}

func (s *scrub) checkSegment(seg durableRun) error {
	scan := seg.scan
	scan.direct, scan.pace = true, s.pace
	stop, err := scan.frames(seg.first, seg.end, func(_, _ Pos, _ []byte) error { return nil })
	if err := s.core.down(); err != nil {
		return err
	}
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if err == nil && stop == seg.end || s.journal.isGone(seg.first) {
		return nil
	}
	name := fmt.Sprintf("%s, record at position %d", seg.name, stop)
	if err == nil {
		err = fault.Newf(fault.Corrupt, "brick.scrub", seg.name, "the record at position %d (byte %d) is damaged", stop, scan.offset(stop))
	}
	end, serr := s.journal.endOf(seg.first)
	if serr != nil || s.cfg.Journal == nil || !s.cfg.Journal(end, err) || !s.journal.isGone(seg.first) {
		return s.fatal(name, err)
	}
	if err := s.journal.awaitRetired(seg.first); err != nil {
		return err
	}
	s.found(name, true, err)
	return nil
}

// durableRun is the part of a live segment that is durable.
type durableRun struct {
	first, end Pos
	name       string
	scan       *frameScan
}

// durableFrom returns the oldest live segment that begins at or after p.
func (j *Journal) durableFrom(p Pos) (run durableRun, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segs {
		if s.h.first < p || s.h.first >= j.synced {
			continue
		}
		run = durableRun{first: s.h.first, end: j.synced, name: s.name, scan: s.scan()}
		if s.end > 0 {
			run.end = min(run.end, s.end)
		}
		return run, true
	}
	return run, false
}

// isGone tells whether the segment that began at first was trimmed.
func (j *Journal) isGone(first Pos) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return first < j.oldest()
}

// awaitRetired returns when the segment that began at first, which was trimmed, is
// no segment of the journal on the disk either: until then a brick that is opened again
// would find its damage.
func (j *Journal) awaitRetired(first Pos) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for slices.ContainsFunc(j.retiring, func(s *jseg) bool { return s.h.first == first }) {
		if err := j.usable(); err != nil {
			return err
		}
		j.kick()
		j.ready.Wait()
	}
	return nil
}

// endOf returns where the segment that began at first ends: trimming to there
// gives it back. The active one is ended first.
func (j *Journal) endOf(first Pos) (Pos, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.active().h.first == first {
		if err := j.usable(); err != nil {
			return 0, err
		}
		if err := j.roll(); err != nil {
			return 0, err
		}
		if j.active().h.first == first {
			continue // it waited for a spare
		}
		// An empty frame takes the header of the new segment along to the disk.
		if _, err := j.append(0, nil); err != nil {
			return 0, err
		}
	}
	for _, s := range j.segs {
		if s.h.first == first {
			return s.end, nil
		}
	}
	return j.oldest(), nil
}

// headerCheck asks the keeper, who owns the headers, to verify them.
type headerCheck struct {
	pace   func(n int64) error
	healed []string // segments whose headers were damaged
	err    error
	done   chan struct{}
}

func (c *headerCheck) end(err error) {
	c.err = err
	close(c.done)
}

// checkHeaders verifies the headers of all segments, also of free ones: a damaged
// one would keep the brick from opening.
func (s *scrub) checkHeaders() error {
	c := &headerCheck{pace: s.pace, done: make(chan struct{})}
	j := s.journal
	j.mu.Lock()
	if err := j.usable(); err != nil {
		j.mu.Unlock()
		return err
	}
	j.check = c
	j.kick()
	j.mu.Unlock()
	select {
	case <-c.done:
	case <-s.core.dead:
		return s.core.down()
	}
	for _, name := range c.healed {
		s.found(name, true, fault.Newf(fault.Corrupt, "brick.scrub", name, "damaged journal segment header"))
	}
	if c.err != nil && !s.stopped(c.err) {
		return s.fatal("journal", c.err)
	}
	return c.err
}

// verifyHeaders compares the headers on the disk with what they should be and
// writes the damaged ones again. The keeper runs it.
func (j *Journal) verifyHeaders(c *headerCheck) error {
	j.mu.Lock()
	live := make([]*jseg, 0, len(j.segs))
	for _, s := range j.segs {
		if s.proven {
			live = append(live, s)
		}
	}
	spares := len(j.spares)
	j.mu.Unlock()
	for _, s := range live {
		if err := j.verifyHeader(s, c); err != nil {
			return err
		}
	}
	for range spares {
		j.mu.Lock()
		if len(j.spares) == 0 {
			j.mu.Unlock()
			return nil
		}
		s := j.spares[0]
		j.spares = append(j.spares[:0], j.spares[1:]...)
		j.borrowed++
		j.mu.Unlock()
		err := j.verifyHeader(s, c)
		j.mu.Lock()
		j.spares = append(j.spares, s)
		j.borrowed--
		j.ready.Broadcast()
		j.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *Journal) verifyHeader(s *jseg, c *headerCheck) error {
	var got, want [segmentHeaderSize]byte
	if err := c.pace(segmentHeaderSize); err != nil {
		return err
	}
	s.h.encode(want[:])
	_, err := readDisk(s.f, got[:], 0)
	if err == nil && bytes.Equal(got[:], want[:]) {
		return nil
	}
	if err := s.writeHeader(); err != nil {
		return err
	}
	if err := j.sync(s.f); err != nil {
		return err
	}
	c.healed = append(c.healed, s.name)
	return nil
}

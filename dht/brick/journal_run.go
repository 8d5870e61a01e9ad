package brick

import (
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
)

// commit is the committer: the only goroutine that answers Sync.
func (j *Journal) commit() {
	defer j.running.Done()
	var spent []func(error)
	for range j.syncWake {
		j.mu.Lock()
		work, closed := j.waiting, j.closed
		j.waiting, j.answered = spent, work
		j.mu.Unlock()
		if len(work) > 0 {
			err := j.Write()
			if err == nil {
				err = j.syncWritten()
			}
			j.mu.Lock()
			owed := j.answered // nil when they were told that the disk is dead
			j.answered = nil
			j.mu.Unlock()
			for _, done := range owed {
				done(err)
			}
		}
		clear(work)
		spent = work[:0]
		if closed { // nothing joins waiting once closed is set
			return
		}
	}
}

// syncWritten makes everything that is in the page cache durable.
func (j *Journal) syncWritten() error {
	if err := j.syncDirty(); err != nil {
		return j.fail("journal", err)
	}
	return nil
}

func (j *Journal) syncDirty() error {
	j.smu.Lock()
	defer j.smu.Unlock()
	if err := j.down(); err != nil {
		return err
	}
	j.mu.Lock()
	target := j.written
	j.syncing = append(j.syncing[:0], j.dirty...)
	segs := j.syncing
	for _, s := range segs {
		s.dirty = false
	}
	j.dirty = j.dirty[:0]
	j.mu.Unlock()
	for _, s := range segs {
		if err := j.sync(s.f); err != nil {
			j.condemn("journal", err)
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range segs {
		s.proven = true
	}
	j.synced = max(j.synced, target)
	return nil
}

// keep is the keeper: it recycles trimmed segments and prepares spares.
func (j *Journal) keep() {
	defer j.running.Done()
	for range j.keepWake {
		for j.keepOne() {
		}
		j.mu.Lock()
		closed := j.closed
		j.ready.Broadcast()
		j.mu.Unlock()
		if closed {
			return
		}
	}
}

// keepOne does one piece of work and reports whether there may be more.
func (j *Journal) keepOne() bool {
	j.mu.Lock()
	ended := j.usable() != nil
	var old *jseg
	if len(j.retiring) > 0 {
		old = j.retiring[0]
	}
	wantSpare := len(j.spares) == 0 && j.reserved+j.segSize <= j.max
	number, check := j.number, j.check
	j.check = nil
	j.mu.Unlock()
	switch {
	case ended:
		if check != nil {
			check.end(j.down())
		}
		return false
	case check != nil:
		check.end(j.verifyHeaders(check))
		return true
	case old != nil:
		if err := j.retire(old); err != nil {
			_ = j.fail("journal", err)
			return false
		}
		return true
	case wantSpare:
		return j.prepare(number)
	}
	return false
}

// prepare adds a spare segment. A full disk is not an error of the brick: the
// next Append that needs the spare reports it.
func (j *Journal) prepare(number uint64) bool {
	s, err := j.createSegment(number, j.segSize)
	if err != nil && !fault.Is(err, fault.NoSpace) {
		_ = j.fail("journal", err)
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.number++
	if err != nil {
		j.noSpare = err
		return false
	}
	j.noSpare = nil
	j.spares = append(j.spares, s)
	j.reserved += s.h.size
	j.ready.Broadcast()
	return true
}

// retire turns the oldest trimmed segment into a spare. Two orders matter: the
// headers of the segments that stay are durable before one goes, so that the
// journal never loses its place; and segments go oldest first, each durably, so
// that what stays is one run.
func (j *Journal) retire(s *jseg) error {
	if err := j.Write(); err != nil {
		return err
	}
	if !j.proven() {
		if err := j.syncDirty(); err != nil {
			return err
		}
	}
	s.h.state = segmentFree
	if err := s.writeHeader(); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	return j.shelve(s)
}

// proven reports whether the header of the oldest live segment is durable.
func (j *Journal) proven() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segs[0].proven
}

// shelve keeps a retired segment for reuse, or removes it if there are enough. It
// is not dirty: it was written before the header that retire found durable, and
// syncs go in the order of writing. A sync that is running may still use it: smu.
func (j *Journal) shelve(s *jseg) error {
	j.smu.Lock()
	defer j.smu.Unlock()
	j.mu.Lock()
	j.retiring = append(j.retiring[:0], j.retiring[1:]...)
	keep := len(j.spares) < SpareSegmentsMax && s.h.size == j.segSize
	if keep {
		j.spares = append(j.spares, s)
		j.count.segmentsRecycled.Add(1)
	} else {
		j.reserved -= s.h.size
	}
	j.ready.Broadcast()
	j.mu.Unlock()
	if keep {
		return nil
	}
	if err := s.f.Close(); err != nil {
		return err
	}
	return j.fs.Remove(s.name)
}

// end ends the journal: pending Syncs are answered, everything is durable, and
// a marker says so, which lets the next open tell damage from a torn tail up to
// the very end.
func (j *Journal) end() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.mu.Unlock()
	err := j.Write()
	if err == nil {
		err = j.syncWritten()
	}
	j.mu.Lock()
	if err == nil && !j.marked && j.active().fits(j.next, frameSize(0)) {
		if _, err = j.append(0, nil); err == nil {
			j.mu.Unlock()
			if err = j.Write(); err == nil {
				err = j.syncWritten()
			}
			j.mu.Lock()
		}
	}
	j.closed = true
	j.ready.Broadcast()
	j.mu.Unlock()
	j.kick()
	j.kickSync()
	j.running.Wait()
	for _, s := range slices.Concat(j.segs, j.spares, j.retiring) {
		_ = s.f.Close() // everything is synced, or the brick is broken anyway
	}
	return err
}

// wakeAll lets all who wait notice that the brick is broken: the committer may
// hang in the disk and never answer them.
func (j *Journal) wakeAll() {
	j.mu.Lock()
	owed := slices.Concat(j.answered, j.waiting)
	j.answered, j.waiting = nil, nil
	j.ready.Broadcast()
	j.mu.Unlock()
	if len(owed) > 0 { // elsewhere: who found the disk dead may hold what done wants
		go func() {
			for _, done := range owed {
				done(j.down())
			}
		}()
	}
}

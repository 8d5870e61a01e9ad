package brick

import (
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// request is one call waiting for the committer. places are written to the page
// cache before it is queued.
type request struct {
	places  []place
	deletes []ident.Addr
	cleans  []clean
	gentle  bool    // places are written gently
	replace bool    // places take the place of what the table has
	reindex bool    // write the index anew
	removed []entry // what the deletes took out of the table
	err     error   // set before done is closed
	done    chan struct{}
}

// clean asks to record that seg had all its gaps punched when it had this many.
type clean struct {
	seg  *extentSegment
	gaps uint64
}

func newRequest() *request { return &request{done: make(chan struct{})} }

func (r *request) finish(err error) {
	r.err = err
	close(r.done)
}

// requestQueue hands requests to the committer. Its length is bounded by the
// number of callers.
type requestQueue struct {
	mu      sync.Mutex
	waiting []*request
	closed  bool
	wake    chan struct{} // capacity 1
}

// add queues r, unless the committer has ended.
func (q *requestQueue) add(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.waiting = append(q.waiting, r)
	q.kick()
	return true
}

func (q *requestQueue) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns all waiting requests; the slice spare is used for the next ones.
func (q *requestQueue) take(spare []*request) (batch []*request, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, q.waiting = q.waiting, spare
	return batch, q.closed
}

// ask queues r and waits for its end.
func (s *extents) ask(r *request) error {
	if !s.queue.add(r) {
		s.refuse(r, fault.Newf(fault.Unavailable, "brick", s.id.Short(), "the brick is closed"))
	}
	select {
	case <-r.done:
		return r.err
	case <-s.dead: // the committer may hang in the disk
	}
	select {
	case <-r.done:
		return r.err
	default:
		return s.down()
	}
}

// refuse ends r without effect.
func (s *extents) refuse(r *request, err error) {
	if len(r.places) > 0 {
		s.giveUp(r, err)
		return
	}
	r.finish(err)
}

// commit is the committer: it makes data durable, then the index, then tells the
// table and the callers, in that order, for everything that waits at once.
func (s *extents) commit() {
	defer s.running.Done()
	var spare []*request
	var ops []indexOp
	for range s.queue.wake {
		batch, closed := s.queue.take(spare)
		if len(batch) > 0 {
			ops = s.commitBatch(batch, ops[:0])
		}
		clear(batch)
		spare = batch[:0]
		if closed {
			return
		}
	}
}

// commitBatch commits and answers a batch. ops is scratch.
func (s *extents) commitBatch(batch []*request, ops []indexOp) []indexOp {
	err := s.down()
	if err == nil && !mutant.On("index-before-data") {
		err = s.syncData(batch)
	}
	if err == nil {
		ops = s.encode(batch, ops)
		err = s.record(ops)
	}
	if err == nil && mutant.On("index-before-data") {
		err = s.syncData(batch)
	}
	if fault.Is(err, fault.NoSpace) {
		// The disk is full to the last byte. Puts fail; deletes fit into the
		// zeros kept ahead for them.
		full := err
		var rest []*request
		for _, r := range batch {
			if len(r.places) > 0 {
				s.giveUp(r, full)
			} else {
				rest = append(rest, r)
			}
		}
		batch = rest
		ops = s.encode(batch, ops[:0])
		err = s.record(ops)
	}
	if err != nil {
		for _, r := range batch {
			s.refuse(r, err)
		}
		return ops
	}
	var asked []*request
	for _, r := range batch {
		if r.reindex {
			asked = append(asked, r)
			continue
		}
		s.applyRequest(r)
	}
	if len(asked) == 0 {
		s.rewriteIfLong()
		return ops
	}
	err = s.rewriteIndex()
	for _, r := range asked {
		r.finish(err)
	}
	return ops
}

// syncData makes the records of a batch durable.
func (s *extents) syncData(batch []*request) error {
	var done []*extentSegment // two at most, in practice
	for _, r := range batch {
	places:
		for _, p := range r.places {
			for _, d := range done {
				if d == p.seg {
					continue places
				}
			}
			done = append(done, p.seg)
			f, err := s.segments.pin(p.seg)
			if err == nil {
				err = s.sync(f)
				p.seg.mu.RUnlock()
			}
			if err != nil {
				return s.fail("put", err)
			}
		}
	}
	return nil
}

// encode makes the index operations of a batch.
func (s *extents) encode(batch []*request, ops []indexOp) []indexOp {
	puts := false
	for _, r := range batch {
		for _, p := range r.places {
			puts = true
			if !p.seg.announced {
				ops = append(ops, indexOp{code: opOpen, segment: p.seg.number})
			}
			ops = append(ops, indexOp{code: opPut, addr: p.x.Addr, volume: p.x.Volume, number: p.x.Number,
				epoch: p.x.Epoch, segment: p.seg.number, offset: uint32(p.offset / extentAlign), size: uint32(len(p.x.Data))})
		}
		for _, a := range r.deletes {
			// A put earlier in the batch may be what is deleted.
			if _, ok := s.table.get(a); ok || puts {
				ops = append(ops, indexOp{code: opDelete, addr: a})
			}
		}
		s.segments.mu.RLock()
		for _, c := range r.cleans {
			if c.seg.gaps == c.gaps && !c.seg.removed {
				ops = append(ops, indexOp{code: opClean, segment: c.seg.number})
			}
		}
		s.segments.mu.RUnlock()
	}
	return ops
}

// record makes ops durable in the index.
func (s *extents) record(ops []indexOp) error {
	if len(ops) == 0 {
		return nil
	}
	return s.orFail("index", s.index.append(ops))
}

// applyRequest brings the table up to what the index says and answers.
func (s *extents) applyRequest(r *request) {
	for _, p := range r.places {
		e := entry{number: p.x.Number, epoch: p.x.Epoch, segment: p.seg.number,
			offset: uint32(p.offset / extentAlign), size: uint32(len(p.x.Data)), volume: s.table.volume(p.x.Volume)}
		s.segments.mu.Lock()
		p.seg.inflight--
		p.seg.live++
		s.segments.mu.Unlock()
		p.seg.announced = true
		if old, replaced := s.table.put(p.x.Addr, e); replaced {
			r.removed = append(r.removed, old)
			s.dropped(old)
		}
		s.count.puts.Add(1)
		s.count.putBytes.Add(uint64(len(p.x.Data)))
	}
	for _, a := range r.deletes {
		if e, ok := s.table.delete(a); ok {
			r.removed = append(r.removed, e)
			s.dropped(e)
		}
	}
	s.segments.mu.Lock()
	for _, c := range r.cleans {
		if c.seg.gaps == c.gaps {
			c.seg.gaps = 0
			delete(s.segments.dirty, c.seg)
		}
	}
	s.segments.mu.Unlock()
	s.settled(r)
}

func (s *extents) dropped(e entry) {
	s.segments.mu.Lock()
	defer s.segments.mu.Unlock()
	if seg := s.segments.all[e.segment]; seg != nil {
		seg.live--
		seg.punching++
		s.segments.gap(seg)
	}
}

// indexSlack is how long a log may grow over twice its live entries before it is
// rewritten, in bytes.
const indexSlack = 1 << 20

// rewriteIfLong rewrites the index when most of it is history.
func (s *extents) rewriteIfLong() {
	live := int64(s.table.len())*(opPutSize+1) + indexDataOff
	if int64(s.index.next) <= 2*live+s.index.slack {
		return
	}
	if err := s.rewriteIndex(); err != nil {
		if fault.Is(err, fault.NoSpace) {
			s.index.slack += int64(s.index.next) / 4 // later, when there is room
			s.log.Warn("index not rewritten", "err", err)
			return
		}
		_ = s.fail("index", err)
	}
}

// rewriteIndex makes a new index of the live entries and the segments that may
// hold gaps that are no holes.
func (s *extents) rewriteIndex() error {
	err := s.index.create(s.index.gen+1, func(put func(op *indexOp)) {
		s.segments.mu.RLock()
		for n, seg := range s.segments.all {
			if seg.gaps > 0 {
				put(&indexOp{code: opOpen, segment: n})
			}
		}
		s.segments.mu.RUnlock()
		s.table.each(func(a ident.Addr, e entry) {
			put(&indexOp{code: opPut, addr: a, volume: s.table.volumeID(e.volume), number: e.number,
				epoch: e.epoch, segment: e.segment, offset: e.offset, size: e.size})
		})
	})
	if err == nil {
		s.index.slack = indexSlack
		s.count.rewrites.Add(1)
	}
	return err
}

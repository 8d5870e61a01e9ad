package brick

import (
	"errors"
	"io"
	"sort"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
)

const (
	// RecordMax bounds the body of one journal record, in bytes; a small segment
	// size bounds it further.
	RecordMax = 4 << 20
	// BatchBytesMax is how much Append keeps in memory before it writes by itself.
	BatchBytesMax = 8 << 20
	// SpareSegmentsMax is how many trimmed segments are kept for reuse; more are
	// given back to the file system.
	SpareSegmentsMax = 8
	// journalStart is the first Pos of a new journal; 0 stays free for "none".
	journalStart Pos = 4096
)

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// Journal is the log of one brick: records in the order of Append, shared by
// everything on the brick that needs group commit. Safe for concurrent use,
// except Replay, which is called once before the first Append.
//
// Lock order: wmu, smu, mu.
type Journal struct {
	*core
	segSize, max int64
	bodyMax      int

	wmu     giveUpLock // held while a batch goes to the page cache
	smu     sync.Mutex // held while segments are synced or closed
	syncing []*jseg    // what the running sync covers; guarded by smu

	mu       sync.Mutex
	ready    sync.Cond    // a spare appeared, the keeper gave up, or the journal ended
	segs     []*jseg      // live, ascending; the last one is active
	spares   []*jseg      // free, ready for use
	retiring []*jseg      // trimmed, ascending; the keeper turns them into spares
	borrowed int          // spares whose headers are being verified
	check    *headerCheck // for the keeper
	noSpare  error        // why the keeper could not make a spare; NoSpace
	dirty    []*jseg      // written since their last sync
	reserved int64        // bytes of all segment files
	number   uint64       // next file number
	seq      uint64       // sequence of the newest live segment
	next     Pos          // of the next Append
	written  Pos          // everything before is in the page cache
	synced   Pos          // everything before is durable
	trimmed  Pos          // records before are dead
	cur, fly *batch       // being filled, being written
	waiting  []func(error)
	answered []func(error) // by the sync that runs
	marked   bool          // the last frame is the marker of a clean end
	closed   bool

	syncWake, keepWake chan struct{}
	running            sync.WaitGroup
}

// batch is a run of frames on its way to the page cache.
type batch struct {
	buf   []byte
	parts []part
}

// part is the bytes buf[start:end) of a batch, which belong at offset off of a
// segment.
type part struct {
	seg        *jseg
	off        int64
	start, end int
}

// find returns the frame bytes at p up to the end of its part, nil if the batch
// does not hold p.
func (b *batch) find(p Pos) []byte {
	for _, t := range b.parts {
		i := int64(t.start) + t.seg.offset(p) - t.off
		if p >= t.seg.h.first && i >= int64(t.start) && i < int64(t.end) {
			return b.buf[i:t.end]
		}
	}
	return nil
}

// Append adds one record, the concatenation of bufs, in memory; its bytes are
// copied. It waits for the disk only when a new segment is needed and none is
// ready, or when BatchBytesMax are waiting to be written. Kinds: Invalid (empty,
// or longer than RecordMax or a segment), NoSpace (JournalMax or the disk is
// full: Trim), Unavailable (broken).
func (j *Journal) Append(bufs ...[]byte) (Pos, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	if n == 0 || n > j.bodyMax {
		return 0, fault.Newf(fault.Invalid, "journal.append", "", "a record has 1 to %d bytes, not %d", j.bodyMax, n)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.cur.buf) > BatchBytesMax {
		j.mu.Unlock()
		err := j.Write()
		j.mu.Lock()
		if err != nil {
			return 0, err
		}
	}
	pos, err := j.append(n, bufs)
	if err == nil {
		j.count.appends.Add(1)
		j.count.appendBytes.Add(uint64(n))
	}
	return pos, err
}

// append does Append under mu, which it may release while it waits for a
// segment.
func (j *Journal) append(n int, bufs [][]byte) (Pos, error) {
	size := frameSize(n)
	for {
		if err := j.usable(); err != nil {
			return 0, err
		}
		if j.active().fits(j.next, size) {
			break
		}
		if err := j.roll(); err != nil {
			return 0, err
		}
	}
	b, s, pos := j.cur, j.active(), j.next
	if k := len(b.parts); k == 0 || b.parts[k-1].seg != s {
		b.parts = append(b.parts, part{seg: s, off: s.offset(pos), start: len(b.buf), end: len(b.buf)})
	}
	b.buf = appendFrame(b.buf, s.seed, pos, j.synced, bufs...)
	b.parts[len(b.parts)-1].end = len(b.buf)
	j.next += Pos(size)
	j.marked = false
	return pos, nil
}

func (j *Journal) active() *jseg { return j.segs[len(j.segs)-1] }

// usable is nil while the journal takes records. mu is held.
func (j *Journal) usable() error {
	if j.closed {
		return fault.Newf(fault.Unavailable, "journal", j.id.Short(), "the brick is closed")
	}
	return j.down()
}

// roll makes a spare the active segment, or waits until something changed. The
// header of the new segment goes out with its first frames. mu is held, and
// released while waiting.
func (j *Journal) roll() error {
	if len(j.spares) == 0 {
		j.kick()
		if err := j.noSpare; err != nil {
			j.noSpare = nil // the keeper tries again, for the next caller
			return err
		}
		if len(j.retiring) == 0 && j.borrowed == 0 && j.reserved+j.segSize > j.max {
			return fault.Newf(fault.NoSpace, "journal.append", j.id.Short(),
				"the journal holds its limit of %d bytes; a checkpoint has to trim it", j.max)
		}
		j.ready.Wait()
		return nil
	}
	s := j.spares[0]
	j.spares = append(j.spares[:0], j.spares[1:]...)
	j.active().end = j.next
	j.seq++
	s.begin(j.seq, j.next, j.synced)
	j.segs = append(j.segs, s)
	b := j.cur
	start := len(b.buf)
	b.buf = append(b.buf, zeroBlock[:]...)
	s.h.encode(b.buf[start:])
	b.parts = append(b.parts, part{seg: s, off: 0, start: start, end: len(b.buf)})
	j.kick()
	return nil
}

var zeroBlock [segmentDataOff]byte

// kick wakes the keeper.
func (j *Journal) kick() {
	select {
	case j.keepWake <- struct{}{}:
	default:
	}
}

// giveUpLock is a mutex that nobody waits for once the disk is dead: who holds
// it then may never let go.
type giveUpLock chan struct{}

func (l giveUpLock) lock(dead <-chan struct{}) bool {
	select {
	case l <- struct{}{}:
		return true
	default:
	}
	select {
	case l <- struct{}{}:
		return true
	case <-dead:
		return false
	}
}

func (l giveUpLock) unlock() { <-l }

// Write returns when everything appended before the call is in the page cache,
// where it survives the death of the process. Concurrent callers share writes.
// An error breaks the brick.
func (j *Journal) Write() error {
	j.mu.Lock()
	err, target, done := j.down(), j.next, j.written >= j.next
	j.mu.Unlock()
	if err != nil || done {
		return err
	}
	if err := j.writeTo(target); err != nil {
		return j.fail("journal", err)
	}
	return nil
}

func (j *Journal) writeTo(target Pos) error {
	if !j.wmu.lock(j.dead) {
		return j.down()
	}
	defer j.wmu.unlock()
	j.mu.Lock()
	if err := j.down(); err != nil || j.written >= target {
		j.mu.Unlock()
		return err
	}
	j.cur, j.fly = j.fly, j.cur
	b, upTo := j.fly, j.next
	j.mu.Unlock()
	var err error
	for _, t := range b.parts {
		if _, err = t.seg.f.WriteAt(b.buf[t.start:t.end], t.off); err != nil {
			break
		}
	}
	j.count.writes.Add(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.condemn("journal", err)
		return err
	}
	j.written = upTo
	for _, t := range b.parts {
		t.seg.placed = true
		if !t.seg.dirty {
			t.seg.dirty = true
			j.dirty = append(j.dirty, t.seg)
		}
	}
	clear(b.parts)
	b.buf, b.parts = b.buf[:0], b.parts[:0]
	return nil
}

// Sync makes everything appended before the call durable, then calls done, on a
// goroutine of the journal: done must not block. Requests that arrive while a
// sync runs share the next one. An error breaks the brick: OnBroken is called,
// and every later call fails.
func (j *Journal) Sync(done func(error)) {
	j.count.syncRequests.Add(1)
	j.mu.Lock()
	if err := j.usable(); err != nil {
		j.mu.Unlock()
		go done(err) // not inline: the caller may hold what done wants
		return
	}
	j.waiting = append(j.waiting, done)
	j.mu.Unlock()
	j.kickSync()
}

// kickSync wakes the committer.
func (j *Journal) kickSync() {
	select {
	case j.syncWake <- struct{}{}:
	default:
	}
}

// ReadAt returns the body, of n bytes, of the record at pos, also when it is not
// written yet. The caller owns the result. Kinds: NotFound (trimmed, or never
// appended), Corrupt (not the record that was written), Unavailable (broken).
func (j *Journal) ReadAt(pos Pos, n int) ([]byte, error) {
	if n < 0 || n > RecordMax {
		return nil, fault.Newf(fault.Invalid, "journal.read", "", "length %d", n)
	}
	frame := make([]byte, frameSize(n))
	j.mu.Lock()
	s, b, err := j.locate(pos)
	if b != nil {
		copy(frame, b)
	}
	j.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if b == nil {
		m, rerr := s.f.ReadAt(frame, s.offset(pos))
		frame, err = frame[:m], rerr
	}
	body, _, ok := decodeFrame(frame, s.seed, pos, RecordMax)
	if ok && len(body) == n {
		return body, nil
	}
	j.mu.Lock()
	gone := pos < j.oldest()
	j.mu.Unlock()
	switch {
	case gone:
		return nil, j.absent(pos)
	case err != nil && !isEOF(err):
		return nil, err
	}
	return nil, fault.Newf(fault.Corrupt, "journal.read", s.name, "no record of %d bytes at position %d", n, pos)
}

// locate finds the segment of pos, and its bytes if they are still in memory,
// valid while mu is held.
func (j *Journal) locate(pos Pos) (*jseg, []byte, error) {
	if err := j.usable(); err != nil {
		return nil, nil, err
	}
	if pos < j.oldest() || pos >= j.next || pos%frameAlign != 0 {
		return nil, nil, j.absent(pos)
	}
	i := sort.Search(len(j.segs), func(i int) bool { return j.segs[i].h.first > pos }) - 1
	if pos >= j.written {
		for _, b := range [...]*batch{j.fly, j.cur} {
			if f := b.find(pos); f != nil {
				return j.segs[i], f, nil
			}
		}
	}
	return j.segs[i], nil, nil
}

func (j *Journal) absent(pos Pos) error {
	return fault.Newf(fault.NotFound, "journal.read", j.id.Short(), "no record at position %d", pos)
}

func (j *Journal) oldest() Pos { return j.segs[0].h.first }

// Trim declares the records before pos dead. Whole dead segments are recycled in
// the background; until then their records may show up in a Replay.
func (j *Journal) Trim(pos Pos) {
	j.mu.Lock()
	defer j.mu.Unlock()
	pos = min(pos, j.next)
	if j.closed || pos <= j.trimmed {
		return
	}
	j.trimmed = pos
	k := 0
	for k < len(j.segs)-1 && j.segs[k].end <= pos {
		k++
	}
	if k > 0 {
		j.retiring = append(j.retiring, j.segs[:k]...)
		j.segs = append(j.segs[:0:0], j.segs[k:]...)
	}
	j.kick()
}

// Live reports the oldest position that is not trimmed, the position of the next
// record, and the number of bytes between them that surely fit: Append may fail
// with NoSpace beyond that.
func (j *Journal) Live() (oldest, next Pos, max int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	oldest = j.oldest()
	if j.trimmed > oldest {
		oldest = j.trimmed
	}
	return oldest, j.next, j.liveMax()
}

// liveMax: of all segments one is pinned by the oldest record, and each ends
// with a rest that the next record did not fit into.
func (j *Journal) liveMax() int64 {
	rest := min(frameSize(j.bodyMax), j.segSize/8) + segmentDataOff
	return (j.max/j.segSize - 1) * (j.segSize - rest)
}

package brick

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// newJournal makes the journal of a brick without opening or creating anything.
func newJournal(c *core, segSize, max int64) *Journal {
	j := &Journal{core: c, segSize: segSize, max: max, cur: &batch{}, fly: &batch{}, wmu: make(giveUpLock, 1),
		syncWake: make(chan struct{}, 1), keepWake: make(chan struct{}, 1)}
	j.ready.L = &j.mu
	j.bodyMax = int(min(RecordMax, (segSize-segmentDataOff-frameHeader)&^(frameAlign-1)))
	return j
}

// create writes the segments of a new journal: one live, one spare.
func (j *Journal) create() error {
	for number := uint64(1); number <= 2; number++ {
		s, err := j.createSegment(number, j.segSize)
		if err != nil {
			return err
		}
		if number == 1 {
			s.begin(1, journalStart, 0)
			if err = s.writeHeader(); err == nil {
				err = s.f.Sync()
			}
		}
		if cerr := s.f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// open finds the live segments, cuts a torn tail, refuses a torn middle, and
// makes what is left durable. DESIGN.md has the argument.
func (j *Journal) open() (err error) {
	live, err := j.load()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			for _, s := range slices.Concat(live, j.spares) {
				_ = s.f.Close() // the first error is the one to report
			}
		}
	}()
	if len(live) == 0 {
		return fault.Newf(fault.Corrupt, "brick.open", "journal", "no live segment: the journal was removed")
	}
	k, mark, err := j.walk(live)
	if err != nil {
		return err
	}
	if err := j.cut(live, k); err != nil {
		return err
	}
	j.segs = slices.Clone(live[:k+1])
	if err := j.settle(mark); err != nil {
		return err
	}
	j.segs[k].end = 0
	j.written, j.synced, j.trimmed = j.next, j.next, j.oldest()
	j.running.Add(2)
	go j.commit()
	go j.keep()
	j.kick()
	return nil
}

// load opens all segment files: the live ones by sequence are returned, free
// ones become spares, leftovers of an unfinished preparation are removed.
func (j *Journal) load() (live []*jseg, err error) {
	names, err := j.fs.List("journal")
	if err != nil {
		return nil, err
	}
	j.number = 1
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			if err = j.fs.Remove("journal/" + name); err != nil {
				break
			}
			continue
		}
		var number uint64
		if _, serr := fmt.Sscanf(name, "%08d", &number); serr != nil || journalName(number) != "journal/"+name {
			err = fault.Newf(fault.Corrupt, "brick.open", "journal/"+name, "not a journal segment; remove the file")
			break
		}
		var s *jseg
		if s, err = j.openSegment("journal/" + name); err != nil {
			break
		}
		j.number = max(j.number, number+1)
		j.seq = max(j.seq, s.h.seq)
		j.reserved += s.h.size
		if s.h.state == segmentLive {
			live = append(live, s)
			continue
		}
		if err = j.admit(s); err != nil {
			break
		}
	}
	if err != nil {
		for _, s := range slices.Concat(live, j.spares) {
			_ = s.f.Close() // the first error is the one to report
		}
		return nil, err
	}
	slices.SortFunc(live, func(a, b *jseg) int { return cmp.Compare(a.h.seq, b.h.seq) })
	return live, nil
}

// admit makes a free segment a spare, or removes one that cannot be used. Its
// header is made durable here: the process that freed it may have died before its
// sync, and a power cut would bring the old life back under the frames of the new.
func (j *Journal) admit(s *jseg) error {
	if err := s.writeHeader(); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	if s.h.size == j.segSize && len(j.spares) < SpareSegmentsMax {
		j.spares = append(j.spares, s)
		return nil
	}
	j.reserved -= s.h.size
	if err := s.f.Close(); err != nil {
		return err
	}
	return j.fs.Remove(s.name)
}

// walk follows the records from the oldest live segment and sets next to where
// they end, which is in live[k]. mark is the highest position that a valid frame
// or header before next says is durable. If anything that comes later says that
// the bytes at next were durable once, they are damaged: kind Corrupt.
func (j *Journal) walk(live []*jseg) (k int, mark Pos, err error) {
	p := live[0].h.first
	for i, s := range live {
		k, mark = i, max(mark, s.h.synced)
		limit := Pos(0)
		if i+1 < len(live) {
			limit = live[i+1].h.first
		}
		p, err = s.scan().frames(p, limit, func(at, synced Pos, body []byte) error {
			mark = max(mark, synced)
			j.marked = len(body) == 0
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
		s.end = p
		if limit > 0 && p > limit {
			return 0, 0, fault.Newf(fault.Corrupt, "brick.open", s.name,
				"its records reach to position %d, over the next segment (%d)", p, limit)
		}
		if p != limit {
			break
		}
	}
	j.next = p
	claim, err := j.claims(live[k:], p)
	if err != nil {
		return 0, 0, err
	}
	if claim > p && !mutant.On("torn-middle") {
		return 0, 0, fault.Newf(fault.Corrupt, "brick.open", live[k].name,
			"the record at position %d (byte %d of the file) is damaged although everything before position %d was "+
				"durable; this brick cannot vouch for what it acknowledged: replace it", p, live[k].offset(p), claim)
	}
	return k, mark, nil
}

// claims returns the highest synced mark in what follows the bad position p of
// the first segment.
func (j *Journal) claims(segs []*jseg, p Pos) (claim Pos, err error) {
	for i, s := range segs {
		from := p
		if i > 0 {
			claim = max(claim, s.h.synced)
			from = s.h.first - frameAlign // its first frame counts too
		}
		synced, _, err := s.scan().later(from)
		if err != nil {
			return 0, err
		}
		claim = max(claim, synced)
	}
	return claim, nil
}

// cut removes what follows next: newest segments first, so that a crash in
// between leaves a journal that is cut at the same place; then frames in live[k],
// which would come back to life when new frames reach up to them.
func (j *Journal) cut(live []*jseg, k int) error {
	for i := len(live) - 1; i > k; i-- {
		s := live[i]
		s.h.state = segmentFree
		if err := j.admit(s); err != nil {
			return err
		}
		j.log.Warn("journal segment after a torn record dropped", "file", s.name, "position", j.next)
	}
	s := live[k]
	_, found, err := s.scan().later(j.next)
	if err != nil || !found {
		return err
	}
	j.log.Warn("journal records after a torn record dropped", "file", s.name, "position", j.next)
	if err := writeZeros(s.f, s.offset(j.next), s.h.size); err != nil {
		return err
	}
	return s.f.Sync()
}

// settle makes the records from mark on durable, which they may not be.
func (j *Journal) settle(mark Pos) error {
	for _, s := range j.segs {
		if s.end <= mark {
			continue
		}
		if err := s.writeHeader(); err != nil {
			return err
		}
		if err := rewrite(s.f, s.offset(max(mark, s.h.first)), s.offset(s.end)); err != nil {
			return err
		}
		if err := s.f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// Replay calls f with every record in order. body is valid until f returns; an
// error of f ends the replay and is returned. It is called once, before the
// first Append. Records before the last Trim may be among them.
func (j *Journal) Replay(f func(pos Pos, body []byte) error) error {
	j.mu.Lock()
	segs, next := slices.Clone(j.segs), j.next
	j.mu.Unlock()
	for i, s := range segs {
		limit := next
		if i+1 < len(segs) {
			limit = s.end
		}
		stop := s.h.first
		if limit > stop {
			var err error
			stop, err = s.scan().frames(stop, limit, func(pos, _ Pos, body []byte) error {
				if len(body) == 0 {
					return nil
				}
				return f(pos, body)
			})
			if err != nil {
				return err
			}
		}
		if stop != limit {
			return fault.Newf(fault.Corrupt, "journal.replay", s.name, "the record at position %d changed since the brick was opened", stop)
		}
	}
	return nil
}

package brick

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// ScrubPos is where a pass of Scrub stands in the extents: the next record is
// the first at or after Offset of segment Segment. Zero is the beginning.
type ScrubPos struct {
	Segment uint32 `json:"segment"`
	Offset  int64  `json:"offset"` // bytes
}

// ScrubConfig says how a pass goes and who heals what it finds.
type ScrubConfig struct {
	// From is where to go on with the extents. What stands outside of them is
	// verified in every pass from its beginning.
	From ScrubPos
	// Rate is asked all the time how many bytes may be read each second; 0 or
	// less is as fast as the disk can. nil: 0.
	Rate func() int64
	// Extent is told of a damaged extent and reports whether good bytes have
	// taken its place.
	Extent func(addr ident.Addr, err error) (healed bool)
	// Journal is told of a damaged record of the journal: everything that lives
	// before the position end has to be written again, whatever the brick does not
	// have from elsewhere, and trimmed. It reports whether that is done. nil: no.
	Journal func(end Pos, err error) (healed bool)
	// Progress is told now and then where the pass stands and what it found since
	// it was last told. It may store that.
	Progress func(at ScrubPos, found ScrubCount)
}

// ScrubCount is what a scrub has read and found.
type ScrubCount struct {
	Bytes    int64    `json:"bytes"` // read and verified
	Extents  int64    `json:"extents"`
	Damaged  int64    `json:"damaged"` // places: extents, records, files
	Repaired int64    `json:"repaired"`
	Stray    int64    `json:"stray"`          // bytes in extent segments that nothing names, given back
	Lost     []string `json:"lost,omitempty"` // names of what was not repaired, ScrubLostMax at most
}

// ScrubLostMax bounds ScrubCount.Lost.
const ScrubLostMax = 64

// Add adds what was found later.
func (c *ScrubCount) Add(d ScrubCount) {
	c.Bytes += d.Bytes
	c.Extents += d.Extents
	c.Damaged += d.Damaged
	c.Repaired += d.Repaired
	c.Stray += d.Stray
	for _, name := range d.Lost {
		if len(c.Lost) < ScrubLostMax {
			c.Lost = append(c.Lost, name)
		}
	}
}

// progressBytes is how often Progress is told, in bytes read.
const progressBytes = 64 << 20

// scrub is one pass.
type scrub struct {
	*Brick
	ctx   context.Context
	cfg   ScrubConfig
	at    ScrubPos
	count ScrubCount // since Progress was last told
	due   time.Time  // when the next read may begin
	buf   []byte
}

// Scrub reads everything on the disk past the page cache and verifies it: identity,
// stable store, index, journal, extents; and compares what the index names
// with what is there. What the brick knows by itself (identity, index, headers
// of segments) it writes again; extents and journal records are healed by the
// caller. If anything else is damaged, or cannot be healed, or cannot be read,
// the brick is broken: it may have promised what it does not know any more. It
// returns nil when the pass is complete, and the error of ctx or of the brick. One
// pass at a time: Busy.
func (b *Brick) Scrub(ctx context.Context, cfg ScrubConfig) error {
	if !b.scrubbing.TryLock() {
		return fault.Newf(fault.Busy, "brick.scrub", b.core.id.Short(), "a scrub of this brick runs already")
	}
	defer b.scrubbing.Unlock()
	s := &scrub{Brick: b, ctx: ctx, cfg: cfg, at: cfg.From}
	defer func() { s.tell() }()
	for _, part := range []func() error{s.checkIdentity, s.checkStable, s.checkIndex, s.checkJournal, s.checkExtents} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// readDisk reads past the page cache, little at a time.
func readDisk(f vfs.File, p []byte, off int64) (int, error) {
	if mutant.On("scrub-trusts-cache") {
		return f.ReadAt(p, off)
	}
	return readPieces(f, p, off)
}

// pace waits until n more bytes may be read. It returns why the pass must end.
func (s *scrub) pace(n int64) error {
	if err := s.core.down(); err != nil {
		return err
	}
	if err := s.ctx.Err(); err != nil {
		return err
	}
	s.count.Bytes += n
	if s.count.Bytes >= progressBytes {
		s.tell()
	}
	rate := int64(0)
	if s.cfg.Rate != nil {
		rate = s.cfg.Rate()
	}
	if rate <= 0 {
		return nil
	}
	now := time.Now()
	if s.due.Before(now) {
		s.due = now
	}
	wait := s.due.Sub(now)
	s.due = s.due.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.core.dead:
		return s.core.down()
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *scrub) tell() {
	if s.cfg.Progress != nil {
		s.cfg.Progress(s.at, s.count)
	}
	s.count = ScrubCount{}
}

// found counts a damaged place.
func (s *scrub) found(name string, healed bool, err error) {
	s.count.Damaged++
	if healed {
		s.count.Repaired++
		s.core.log.Warn("scrub: damage healed", "brick", s.core.id.Short(), "what", name, "err", err)
		return
	}
	if len(s.count.Lost) < ScrubLostMax {
		s.count.Lost = append(s.count.Lost, name)
	}
	s.core.log.Error("scrub: damage not healed", "brick", s.core.id.Short(), "what", name, "err", err)
}

// fatal ends a pass that met damage which the brick cannot live with.
func (s *scrub) fatal(name string, err error) error {
	if down := s.core.down(); down != nil && !errors.Is(err, down) {
		return down // it ended under the scrub
	}
	s.found(name, false, err)
	return s.core.fail("scrub", err)
}

func (s *scrub) checkIdentity() error {
	want := s.identity.encode()
	if err := s.pace(int64(len(want))); err != nil {
		return err
	}
	got, err := s.readFile(identityFile, identityMaxLen)
	if err == nil && bytes.Equal(got, want) {
		return nil
	}
	if err == nil {
		err = fault.Newf(fault.Corrupt, "brick.scrub", identityFile, "the identity of the brick is damaged")
	}
	if werr := vfs.WriteFileAtomic(s.core.fs, identityFile, want); werr != nil {
		return s.fatal(identityFile, werr)
	}
	s.found(identityFile, true, err)
	return nil
}

// readFile reads a small file from the disk.
func (s *scrub) readFile(name string, max int) ([]byte, error) {
	f, err := s.core.fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, max)
	n, err := readDisk(f, b, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return b[:n], nil
}

func (s *scrub) checkStable() error {
	n, err := s.stable.check()
	if err == nil {
		return s.pace(n)
	}
	// What memory has is verified with every use: if it is whole, writing it
	// again moves it to other pages.
	if err2 := s.stable.rewrite(); err2 != nil {
		return s.fatal(stableFile, err)
	}
	if _, err2 := s.stable.check(); err2 != nil {
		return s.fatal(stableFile, err2)
	}
	s.found(stableFile, true, err)
	return nil
}

func (s *scrub) checkIndex() error {
	v := s.extents.index.view.Load()
	err := s.scanIndex(v)
	if err == nil || s.stopped(err) {
		return err
	}
	if s.extents.index.view.Load().gen != v.gen {
		return nil // it was replaced meanwhile, by one that was just written
	}
	r := newRequest()
	r.reindex = true
	if werr := s.extents.ask(r); werr != nil {
		return s.fatal(indexName(v.gen), err)
	}
	s.found(indexName(v.gen), true, err)
	return nil
}

// stopped tells whether err ends the pass, rather than tells of damage.
func (s *scrub) stopped(err error) bool { return s.ctx.Err() != nil || s.core.down() != nil }

func (s *scrub) scanIndex(v *indexView) error {
	f, err := s.core.fs.Open(indexName(v.gen))
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, indexDataOff)
	if _, err := readDisk(f, head, 0); err != nil && err != io.EOF {
		return err
	}
	if !bytes.Equal(head, v.header) {
		return fault.Newf(fault.Corrupt, "brick.scrub", indexName(v.gen), "damaged header")
	}
	scan := &frameScan{f: f, seed: frameSeed(s.core.id, v.gen), end: int64(v.end.Load()), bodyMax: indexBodyMax, direct: true, pace: s.pace}
	end := Pos(scan.end)
	stop, err := scan.frames(indexDataOff, end, func(_, _ Pos, _ []byte) error { return nil })
	if err == nil && stop != end {
		err = fault.Newf(fault.Corrupt, "brick.scrub", indexName(v.gen), "the record at byte %d is damaged", stop)
	}
	return err
}

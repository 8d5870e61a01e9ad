package brick

import (
	"hash/crc32"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// Extent is what PutExtents stores. Data stays the caller's.
type Extent struct {
	Addr          ident.Addr // SHA-256 of Data
	Volume        ident.VolumeID
	Number, Epoch uint64
	Data          []byte
	// Relief: a volume on full bricks needs it to give space back. Alone in a
	// put, it may use a part of the reserve if it is small.
	Relief bool
	// Hashed: this process made Addr of Data or compared them, so PutExtents need not do it again.
	Hashed bool
	// Summed: Sum is the CRC32C of Data, made by whoever made Addr of it, and PutExtents
	// compares that, which costs a tenth. Whoever reads the extent verifies it in any case.
	Summed bool
	Sum    uint32
}

// intact tells whether Data is what it was when Addr was made of it.
func (x *Extent) intact() bool {
	switch {
	case x.Hashed:
		return true
	case x.Summed:
		return crc32.Checksum(x.Data, castagnoli) == x.Sum
	}
	return ident.AddrOf(x.Data) == x.Addr
}

// Ref names a stored extent of a volume. Size is in bytes.
type Ref struct {
	Addr          ident.Addr
	Number, Epoch uint64
	Size          int64
}

// extents stores and finds extents. Lock order: alloc, then segments.mu or the
// table's locks; queue.mu is a leaf.
type extents struct {
	*core
	segSize, reserve int64
	table            *table
	segments         *segments
	index            *indexLog // owned by the committer once it runs

	alloc    sync.Mutex
	active   *extentSegment          // guarded by alloc
	pending  map[ident.Addr]*request // being put; guarded by alloc
	inflight int64                   // bytes reserved, not yet written or given up; guarded by alloc
	ending   atomic.Bool
	queue    requestQueue
	noHoles  sync.Once
	// One gentle put writes at a time, and one gentle read reads; taken before everything else.
	putting, reading sync.Mutex
	running          sync.WaitGroup
	// reclaimed is closed when the gaps found at open are punched.
	reclaimed chan struct{}
}

// place is the room reserved for one extent.
type place struct {
	x      *Extent
	seg    *extentSegment
	offset int64
}

// PutExtents stores xs and returns when all of them are durable; one that is
// there already is a success. Concurrent calls share syncs. After an error some
// of xs may be stored; putting them again is right. Kinds: Invalid (size),
// Corrupt (Data is not what Addr says), NoSpace (the reserve would be touched),
// Unavailable (broken).
func (b *Brick) PutExtents(xs []Extent) error { return b.putExtents(xs, false) }

func (b *Brick) putExtents(xs []Extent, gentle bool) error {
	s := b.extents
	for i := range xs {
		x := &xs[i]
		if n := int64(len(x.Data)); n == 0 || recordSpan(n) > s.segSize {
			return fault.Newf(fault.Invalid, "brick.put", x.Addr.Short(),
				"an extent has 1 to %d bytes, not %d", s.segSize-extentHeader, n)
		}
		if !x.intact() && !mutant.On("put-unverified") {
			return fault.Newf(fault.Corrupt, "brick.put", x.Addr.Short(), "the bytes are not those of the address")
		}
	}
	todo := make([]*Extent, len(xs))
	for i := range xs {
		todo[i] = &xs[i]
	}
	for len(todo) > 0 {
		r := newRequest()
		r.gentle = gentle
		again, err := s.put(r, todo)
		if err != nil {
			return err
		}
		todo = again
	}
	return nil
}

// ReplaceExtent stores x in a new place and then gives the old one back: at no
// moment is there neither. It is for a copy that is damaged. NotFound: it was
// deleted; else as PutExtents.
func (b *Brick) ReplaceExtent(x Extent) error {
	s := b.extents
	if ident.AddrOf(x.Data) != x.Addr {
		return fault.Newf(fault.Corrupt, "brick.replace", x.Addr.Short(), "the bytes are not those of the address")
	}
	if _, ok := s.table.get(x.Addr); !ok {
		return noExtent(x.Addr)
	}
	r := newRequest()
	r.replace = true
	if _, err := s.put(r, []*Extent{&x}); err != nil {
		return err
	}
	s.release(r.removed)
	return nil
}

// put stores xs. again are those that another call was storing and failed to.
func (s *extents) put(r *request, xs []*Extent) (again []*Extent, err error) {
	others, err := s.place(r, xs)
	if err != nil {
		return nil, err
	}
	if len(r.places) > 0 {
		if err := s.writeAs(r); err != nil {
			s.giveUp(r, err)
			return nil, s.orFail("put", err)
		}
		if err := s.ask(r); err != nil {
			return nil, err
		}
	}
	for _, o := range others {
		select {
		case <-o.request.done:
		case <-s.dead:
			return nil, s.down()
		}
		if o.request.err != nil {
			again = append(again, o.x)
		}
	}
	return again, nil
}

// other is an extent that another request is putting.
type other struct {
	x       *Extent
	request *request
}

// place reserves room for those of xs that are neither stored nor being put.
func (s *extents) place(r *request, xs []*Extent) (others []other, err error) {
	if err := s.down(); err != nil {
		return nil, err
	}
	others, err = s.placeAll(r, xs)
	if err != nil {
		r.finish(err)
		return nil, s.orFail("put", err)
	}
	return others, nil
}

func (s *extents) placeAll(r *request, xs []*Extent) (others []other, err error) {
	s.alloc.Lock()
	defer s.alloc.Unlock()
	var need int64
	fresh := make([]*Extent, 0, len(xs))
	for _, x := range xs {
		if _, ok := s.table.get(x.Addr); ok && !r.replace {
			continue
		}
		switch p := s.pending[x.Addr]; {
		case p == r: // twice in one call
		case p != nil:
			others = append(others, other{x, p})
		default:
			s.pending[x.Addr] = r
			fresh = append(fresh, x)
			need += recordSpan(int64(len(x.Data)))
		}
	}
	if len(fresh) == 0 {
		return others, nil
	}
	err = s.room(need, len(fresh) == 1 && fresh[0].Relief)
	for i := 0; err == nil && i < len(fresh); i++ {
		err = s.reserveOne(r, fresh[i])
	}
	if err != nil {
		for _, x := range fresh {
			delete(s.pending, x.Addr)
		}
		s.unreserve(r)
		s.punched(r) // nothing was written: the gaps are holes already
	}
	return others, err
}

// Volumes whose bricks are full give space back with checkpoints of small
// extents. One of reliefMax bytes or less may use half of the reserve, one of
// lastReliefMax three quarters. No other extent may, however small: if what is
// written every day could use the reserve, none would be left when it is needed.
const (
	reliefMax     = 768 << 10
	lastReliefMax = 320 << 10
)

// room checks that need bytes leave the reserve alone, or what of it they may
// not use if they are one extent for relief. alloc is held.
func (s *extents) room(need int64, relief bool) error {
	free, _, err := s.fs.Free()
	if err != nil {
		return err
	}
	reserve := s.reserve
	switch {
	case relief && need <= lastReliefMax:
		reserve /= 4
	case relief && need <= reliefMax:
		reserve /= 2
	}
	if free-s.inflight-need < reserve {
		return fault.Newf(fault.NoSpace, "brick.put", s.id.Short(),
			"%d bytes free, %d of them reserved for deletes, journal and index: delete volumes or add bricks",
			free, s.reserve)
	}
	return nil
}

// reserveOne finds room for x in the active segment or a new one. alloc is held.
func (s *extents) reserveOne(r *request, x *Extent) error {
	span := recordSpan(int64(len(x.Data)))
	if s.active == nil || s.active.end+span > s.segSize {
		seg, err := s.segments.create()
		if err != nil {
			return err
		}
		s.seal()
		s.active = seg
	}
	seg := s.active
	s.segments.mu.Lock()
	r.places = append(r.places, place{x: x, seg: seg, offset: seg.end})
	seg.end += span
	seg.inflight++
	s.segments.mu.Unlock()
	s.inflight += span
	return nil
}

// seal ends the active segment. alloc is held.
func (s *extents) seal() {
	if s.active == nil {
		return
	}
	s.segments.mu.Lock()
	s.active.sealed = true
	dead := s.segments.dead(s.active)
	s.segments.mu.Unlock()
	if dead {
		s.remove(s.active)
	}
}

// writeAs writes the records of a request in its way.
func (s *extents) writeAs(r *request) error {
	if !r.gentle {
		return s.write(r.places, func(f vfs.File, bufs [][]byte, off int64) error {
			_, err := f.WritevAt(bufs, off)
			return err
		})
	}
	s.putting.Lock()
	defer s.putting.Unlock()
	return s.write(r.places, writeGently)
}

// write writes records that follow each other in one call of to.
func (s *extents) write(places []place, to func(f vfs.File, bufs [][]byte, off int64) error) error {
	heads := make([]byte, len(places)*extentHeader)
	bufs := make([][]byte, 0, 3*len(places))
	for i := 0; i < len(places); {
		first, next := places[i], places[i].offset
		bufs = bufs[:0]
		for ; i < len(places) && places[i].seg == first.seg && places[i].offset == next; i++ {
			p, head := places[i], heads[i*extentHeader:][:extentHeader]
			encodeExtentHeader(head, p.x)
			size := int64(len(p.x.Data))
			span := recordSpan(size)
			bufs = append(bufs, head, p.x.Data)
			if rest := span - extentHeader - size; rest > 0 {
				bufs = append(bufs, zeroBlock[:rest])
			}
			next += span
		}
		f, err := s.segments.pin(first.seg)
		if err != nil {
			return err
		}
		err = to(f, bufs, first.offset)
		first.seg.mu.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// unreserve turns the room of a request that comes to nothing into gaps that
// nobody has punched yet. alloc is held.
func (s *extents) unreserve(r *request) {
	s.segments.mu.Lock()
	defer s.segments.mu.Unlock()
	for _, p := range r.places {
		p.seg.inflight--
		p.seg.punching++
		s.segments.gap(p.seg)
		s.inflight -= recordSpan(int64(len(p.x.Data)))
	}
}

// giveUp ends a request whose extents are not in the index: its room becomes
// holes.
func (s *extents) giveUp(r *request, err error) {
	s.alloc.Lock()
	for _, p := range r.places {
		delete(s.pending, p.x.Addr)
	}
	s.unreserve(r)
	s.alloc.Unlock()
	if s.down() == nil {
		for _, p := range r.places {
			s.punch(p.seg, p.offset, recordSpan(int64(len(p.x.Data))))
		}
		s.punched(r)
	}
	r.finish(err)
}

// punched ends what unreserve began.
func (s *extents) punched(r *request) {
	s.segments.mu.Lock()
	defer s.segments.mu.Unlock()
	for _, p := range r.places {
		p.seg.punching--
	}
}

// settled ends a request whose extents are in the table.
func (s *extents) settled(r *request) {
	s.alloc.Lock()
	for _, p := range r.places {
		delete(s.pending, p.x.Addr)
		s.inflight -= recordSpan(int64(len(p.x.Data)))
	}
	s.alloc.Unlock()
	r.finish(nil)
}

// ReadExtent fills p from byte off of the extent. The bytes are as the disk
// gives them: the caller verifies them; a read from 0 also compares the record
// header. It works on a broken brick. Kinds: NotFound, Invalid (the range leaves
// the extent), Corrupt (another record, or none, stands in its place).
func (b *Brick) ReadExtent(addr ident.Addr, p []byte, off int64) error {
	return b.readExtent(addr, p, off, false)
}

func (b *Brick) readExtent(addr ident.Addr, p []byte, off int64, gentle bool) error {
	s := b.extents
	e, ok := s.table.get(addr)
	if !ok {
		return noExtent(addr)
	}
	if off < 0 || off+int64(len(p)) > int64(e.size) {
		return fault.Newf(fault.Invalid, "brick.read", addr.Short(), "[%d,+%d) leaves its %d bytes", off, len(p), e.size)
	}
	err := s.read(addr, e, p, off, gentle)
	if err != nil {
		if _, ok := s.table.get(addr); !ok {
			return noExtent(addr) // deleted meanwhile
		}
		return s.unreadable(addr, err)
	}
	s.count.reads.Add(1)
	s.count.readBytes.Add(uint64(len(p)))
	return nil
}

func noExtent(addr ident.Addr) error {
	return fault.Newf(fault.NotFound, "brick.read", addr.Short(), "no such extent on this brick")
}

// unreadable makes what the disk says of an extent that the index has an error
// that a caller can act on: an extent that cannot be read is as good as damaged.
func (s *extents) unreadable(addr ident.Addr, err error) error {
	switch fault.KindOf(err) {
	case fault.Internal, fault.NotFound:
		err = fault.New(fault.Corrupt, "brick.read", addr.Short(), err)
	}
	return err
}

// NoteDamage tells the brick that a reader found the bytes of an extent damaged.
// A brick with too many of them (Config.DamageMax) is broken.
func (b *Brick) NoteDamage(addr ident.Addr, err error) { b.core.damage(addr, err) }

func (s *extents) read(addr ident.Addr, e entry, p []byte, off int64, gentle bool) error {
	seg := s.segments.get(e.segment)
	if seg == nil {
		return noExtent(addr)
	}
	f, err := s.segments.pin(seg)
	if err != nil {
		return err
	}
	defer seg.mu.RUnlock()
	start := int64(e.offset) * extentAlign
	var head [extentHeader]byte
	n := 0
	switch {
	case gentle && !mutant.On("read-ahead"):
		n, err = readGently(f, head[:], p, start)
	case off == 0:
		if _, err = f.ReadAt(head[:], start); err != nil && !isEOF(err) {
			return err
		}
		n, err = f.ReadAt(p, start+extentHeader)
	default:
		n, err = f.ReadAt(p, start+extentHeader+off)
	}
	if off == 0 && (err == nil || isEOF(err)) && !checkExtentHeader(head[:], addr, e.size) {
		return fault.Newf(fault.Corrupt, "brick.read", addr.Short(), "damaged record header in %s at byte %d",
			extentSegmentName(e.segment), start)
	}
	if n < len(p) && (err == nil || isEOF(err)) {
		return fault.Newf(fault.Corrupt, "brick.read", addr.Short(), "%s ends inside the extent", extentSegmentName(e.segment))
	}
	if n == len(p) {
		return nil
	}
	return err
}

// TryReadExtent is ReadExtent for bytes that are in memory: it reports whether
// it filled p and never waits for the disk. It does not allocate.
func (b *Brick) TryReadExtent(addr ident.Addr, p []byte, off int64) bool {
	s := b.extents
	hit := s.tryRead(addr, p, off)
	if hit {
		s.count.tryHits.Add(1)
	} else {
		s.count.tryMisses.Add(1)
	}
	return hit
}

func (s *extents) tryRead(addr ident.Addr, p []byte, off int64) bool {
	e, ok := s.table.get(addr)
	if !ok || off < 0 || off+int64(len(p)) > int64(e.size) {
		return false
	}
	seg := s.segments.get(e.segment)
	if seg == nil || !seg.mu.TryRLock() {
		return false
	}
	defer seg.mu.RUnlock()
	f, ok := seg.f.(vfs.TryReader) // not ok when closed: opening would wait
	if !ok {
		return false
	}
	if !seg.used.Load() {
		seg.used.Store(true)
	}
	return f.TryReadAt(p, int64(e.offset)*extentAlign+extentHeader+off)
}

// StatExtent reports the size of a stored extent in bytes.
func (b *Brick) StatExtent(addr ident.Addr) (size int64, ok bool) {
	e, ok := b.extents.table.get(addr)
	return int64(e.size), ok
}

// ListVolume returns the extents of v by number, then epoch, then address. One
// that is put or deleted during the call may be listed or not. It walks the
// whole index: for reconciling, not for every request.
func (b *Brick) ListVolume(v ident.VolumeID) []Ref {
	t := b.extents.table
	t.mu.Lock()
	vol, ok := t.byID[v]
	t.mu.Unlock()
	if !ok {
		return nil
	}
	var refs []Ref
	t.each(func(a ident.Addr, e entry) {
		if e.volume == vol {
			refs = append(refs, Ref{Addr: a, Number: e.number, Epoch: e.epoch, Size: int64(e.size)})
		}
	})
	slices.SortFunc(refs, compareRefs)
	return refs
}

// Volumes reports the bytes of extents of each volume that has any.
func (b *Brick) Volumes() map[ident.VolumeID]int64 {
	t := b.extents.table
	t.mu.Lock()
	defer t.mu.Unlock()
	use := make(map[ident.VolumeID]int64, len(t.volumes))
	for _, v := range t.volumes {
		if v.extents > 0 {
			use[v.id] = v.bytes
		}
	}
	return use
}

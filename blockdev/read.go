package blockdev

import (
	"context"
	"errors"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum"
)

// errWouldWait is what a non-waiting lookup says when a page is not in memory.
var errWouldWait = errors.New("page is not in memory")

// readSpanMax is how many blocks one pass of a read resolves.
const readSpanMax = 256

// tailGet looks block up in the active tail, then in the frozen one. The
// caller holds mu or reads under it.
func (v *Volume) tailGet(block uint64) tail.Hit {
	h := v.active.Get(block)
	if h.Kind == tail.Miss && v.frozen != nil {
		h = v.frozen.Get(block)
	}
	if h.Slot < v.foldFrom {
		return tail.Hit{} // the map has it, perhaps elsewhere by now
	}
	return h
}

// lease is what the right to answer reads rests on: voters that have answered
// this ballot, and the mark of the overlay at the time.
type lease struct {
	version uint64                          // of the configuration
	nodes   [quorum.MembersMax]ident.NodeID // as many as there are voters; zero: does not count
	n       int
	mark    uint64
}

// leased reports whether this node may serve reads now: a majority of the
// voters has answered this very ballot and has been in touch ever since, so
// that it refuses any other holder. A voter that is in touch but has not met
// the ballot (it was away when the volume was attached) gives no lease: it would
// let another holder in.
func (v *Volume) leased() bool {
	if mutant.On("lease-ignored") {
		return true
	}
	l := v.lease.Load()
	if l == nil || l.version != v.log.Members().Version {
		return false
	}
	if l.n == 1 && l.nodes[0] == v.cfg.View.Self() {
		return true
	}
	mark, ok := v.cfg.View.LeaseMark(l.nodes[:l.n])
	return ok && mark == l.mark
}

// renew proves with an entry that a majority still follows this ballot, and
// rests the lease on those voters that have it on disk: one that had only
// received it could forget the ballot in a power cut and let another holder in.
func (v *Volume) renew(ctx context.Context) error {
	v.leasing.Lock()
	defer v.leasing.Unlock()
	if v.leased() {
		return nil // somebody else has just done it
	}
	cfg := v.log.Members()
	before := map[ident.NodeID]uint64{}
	for _, m := range cfg.Members {
		before[m.Node], _ = v.cfg.View.LeaseMark([]ident.NodeID{m.Node})
	}
	slot, err := v.confirm(ctx)
	if err != nil {
		return err
	}
	l := &lease{version: cfg.Version}
	for _, m := range v.log.Status() {
		if m.Member.Role == quorum.Learner {
			continue
		}
		if m.Durable >= slot {
			l.nodes[l.n] = m.Member.Node
			l.mark += before[m.Member.Node]
		}
		l.n++
	}
	v.lease.Store(l)
	return nil
}

// waitLease waits until this node may answer reads.
func (v *Volume) waitLease(ctx context.Context) error {
	wait := 2 * time.Millisecond
	for !v.leased() {
		if err := v.renew(ctx); err != nil {
			return err
		}
		if v.leased() {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return fault.Newf(fault.Timeout, "volume.read", v.cfg.Name, "a majority of its members did not answer in time")
		case <-t.C:
		}
		wait = min(2*wait, 100*time.Millisecond)
	}
	return nil
}

// confirm logs an entry that does nothing and waits until a majority has it
// durable, which it takes only while no higher ballot is promised there.
func (v *Volume) confirm(ctx context.Context) (uint64, error) {
	body := make([]byte, entryHead)
	putEntryHead(body, opNothing, 0, 1)
	slot, err := v.log.Propose(quorum.EntryData, body)
	if err != nil {
		return 0, err
	}
	got := make(chan error, 1)
	v.log.Sync(slot)
	v.pend.add(slot, true, func(err error) { got <- err })
	v.log.Kick()
	select {
	case err := <-got:
		return slot, err
	case <-ctx.Done():
		return 0, fault.Newf(fault.Timeout, "volume.read", v.cfg.Name, "a majority of its members did not answer in time")
	}
}

// cached is a Loader that never waits.
type cached struct{ v *Volume }

func (c cached) LoadPage(p extentmap.Ptr, _ int) (*extentmap.Page, error) {
	if pg := c.v.pages.get(p); pg != nil {
		return pg, nil
	}
	return nil, errWouldWait
}

// waiting is a Loader that reads pages from the extent store.
type waiting struct {
	v   *Volume
	ctx context.Context
}

func (w waiting) LoadPage(p extentmap.Ptr, _ int) (*extentmap.Page, error) {
	if pg := w.v.pages.get(p); pg != nil {
		return pg, nil
	}
	var raw [BlockSize]byte
	if err := w.v.readBlock(w.ctx, p, raw[:]); err != nil {
		return nil, err
	}
	pg := new(extentmap.Page)
	if err := pg.Decode(raw[:]); err != nil {
		return nil, err
	}
	w.v.pages.add(p, pg)
	return pg, nil
}

// TryReadAt implements target.Device: memory, the page cache of a local brick,
// or nothing.
func (v *Volume) TryReadAt(p []byte, off int64) bool {
	if v.check("read", off, int64(len(p))) != nil || off%BlockSize != 0 || len(p)%BlockSize != 0 {
		return false
	}
	if !v.leased() {
		return false
	}
	first := uint64(off / BlockSize)
	for len(p) > 0 {
		n := min(len(p)/BlockSize, readSpanMax)
		if !v.tryRead(p[:n*BlockSize], first) {
			return false
		}
		p, first = p[n*BlockSize:], first+uint64(n)
	}
	// The lease is looked at again after the bytes are there, so that a holder
	// that was stopped in between does not answer with old data.
	return v.leased() || mutant.On("lease-once")
}

func (v *Volume) tryRead(p []byte, first uint64) bool {
	n := len(p) / BlockSize
	var buf [readSpanMax]extentmap.Ptr
	ptrs := buf[:n]
	v.mu.RLock()
	if v.err != nil {
		v.mu.RUnlock()
		return false
	}
	missing, newest := v.fromTails(p, first, ptrs)
	root := v.root
	v.mu.RUnlock()
	if !v.showable(newest) {
		return false
	}
	if missing == 0 {
		v.stats.ReadTail.Add(1)
		return true
	}
	if !v.lookup(root, first, ptrs, cached{v}) {
		return false
	}
	return v.eachRun(p, ptrs, v.tryRun) == nil
}

// Marks in a pointer slice while a read is being resolved. No real pointer has
// these extent numbers.
const (
	markMiss = ^uint64(0)     // look into the map
	markDone = ^uint64(0) - 1 // the bytes are in place
)

// fromTails copies what the tails have of [first, first+len(ptrs)) into p,
// under mu, and marks each block done, to be read through a pointer, or to be
// looked up. It returns the number of blocks not done and the newest slot of
// what it found.
func (v *Volume) fromTails(p []byte, first uint64, ptrs []extentmap.Ptr) (missing int, newest uint64) {
	for i := range ptrs {
		b := p[i*BlockSize : (i+1)*BlockSize]
		h := v.tailGet(first + uint64(i))
		newest = max(newest, h.Slot)
		switch h.Kind {
		case tail.Data:
			copy(b, h.Data)
			ptrs[i] = extentmap.Ptr{Ext: markDone}
		case tail.Zero:
			clear(b)
			ptrs[i] = extentmap.Ptr{Ext: markDone}
		case tail.Extent:
			ptrs[i] = h.Ptr
			missing++
		default:
			ptrs[i] = extentmap.Ptr{Ext: markMiss}
			missing++
		}
	}
	return missing, newest
}

// showable reports whether what the log says up to slot may be shown to a
// reader: a write that is still under way can be lost with its holder, and a
// later read would then see what was there before it. With the write cache at
// the writer, answered writes can be lost anyway.
func (v *Volume) showable(slot uint64) bool {
	return slot <= v.pend.settled.Load() || v.cfg.WriteCache == CacheWriter || mutant.On("dirty-read")
}

// waitShowable waits until showable.
func (v *Volume) waitShowable(ctx context.Context, slot uint64) error {
	if v.showable(slot) {
		return nil
	}
	got := make(chan error, 1)
	v.pend.add(slot, false, func(err error) { got <- err })
	v.touch()
	v.log.Kick()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return fault.Newf(fault.Timeout, "volume.read", v.cfg.Name, "a majority of its members did not answer in time")
	}
}

// lookup fills in the pointers marked as missing.
func (v *Volume) lookup(root extentmap.Root, first uint64, ptrs []extentmap.Ptr, l extentmap.Loader) bool {
	return v.lookupErr(root, first, ptrs, l) == nil
}

func (v *Volume) lookupErr(root extentmap.Root, first uint64, ptrs []extentmap.Ptr, l extentmap.Loader) error {
	for i := 0; i < len(ptrs); {
		if ptrs[i].Ext != markMiss {
			i++
			continue
		}
		j := i + 1
		for j < len(ptrs) && ptrs[j].Ext == markMiss {
			j++
		}
		if err := root.Lookup(first+uint64(i), ptrs[i:j], l); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// addrOf finds the address of an extent by its number.
func (v *Volume) addrOf(number uint64) (ident.Addr, bool) {
	if e, ok := v.table.Get(number); ok {
		return e.Addr, true
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if x, ok := v.loose[number]; ok {
		return x.addr, true
	}
	return ident.Addr{}, false
}

// run is a stretch of blocks whose stored bytes lie side by side in one extent.
type run struct {
	addr ident.Addr
	ptrs []extentmap.Ptr
	size int // stored bytes
}

// eachRun cuts ptrs into runs and reads each into its part of p; holes are
// zeroed, finished blocks left alone.
func (v *Volume) eachRun(p []byte, ptrs []extentmap.Ptr, read func(r run, p []byte) error) error {
	for i := 0; i < len(ptrs); {
		at := ptrs[i]
		if at.Ext == markDone {
			i++
			continue
		}
		if at.IsHole() {
			clear(p[i*BlockSize : (i+1)*BlockSize])
			i++
			continue
		}
		j, size := i+1, int(at.Len)
		for j < len(ptrs) && ptrs[j].Ext == at.Ext && ptrs[j].Off == at.Off+uint32(size) {
			size += int(ptrs[j].Len)
			j++
		}
		addr, ok := v.addrOf(at.Ext)
		if !ok {
			return errStale
		}
		if err := read(run{addr, ptrs[i:j], size}, p[i*BlockSize:j*BlockSize]); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// errStale says that the map changed between lookup and read.
var errStale = errors.New("the map changed")

func (r run) raw() bool { return r.size == len(r.ptrs)*BlockSize }

// unpack turns the stored bytes of a run into blocks in p (which may be the
// same memory when all are raw) and verifies each against its pointer.
func (r run) unpack(stored, p []byte) bool {
	for i, at := range r.ptrs {
		b, s := p[i*BlockSize:(i+1)*BlockSize], stored[:at.Len]
		stored = stored[at.Len:]
		var ok bool
		if &b[0] != &s[0] {
			ok = extent.ReadBlock(b, s, at.CRC) == nil
		} else {
			ok = extent.Checksum(b) == at.CRC
		}
		if !ok && !mutant.On("skip-crc") {
			return false
		}
	}
	return true
}

func (v *Volume) tryRun(r run, p []byte) error {
	stored := p
	if !r.raw() {
		buf := getBuf(r.size)
		defer putBuf(buf)
		stored = *buf
	}
	if !v.cfg.Extents.TryReadAt(r.addr, int64(r.ptrs[0].Off), stored[:r.size]) || !r.unpack(stored[:r.size], p) {
		return errWouldWait
	}
	v.stats.ReadLocal.Add(1)
	return nil
}

// ReadAt implements target.Device.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := v.check("read", off, int64(len(p))); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, v.cfg.IOTimeout)
	defer cancel()
	stop := context.AfterFunc(v.ctx, cancel)
	defer stop()
	newest, err := v.readAligned(ctx, p, off)
	if err == nil {
		err = v.waitShowable(ctx, newest)
	}
	if err == nil && !mutant.On("lease-once") {
		err = v.waitLease(ctx)
	}
	if gone := v.Err(); gone != nil {
		return gone
	}
	return err
}

// readAligned reads through a copy where the range does not begin and end on
// 4 KiB boundaries. It returns as readMap.
func (v *Volume) readAligned(ctx context.Context, p []byte, off int64) (uint64, error) {
	if off%BlockSize == 0 && len(p)%BlockSize == 0 {
		return v.readMap(ctx, p, uint64(off/BlockSize))
	}
	first := off / BlockSize * BlockSize
	end := (off + int64(len(p)) + BlockSize - 1) / BlockSize * BlockSize
	buf := make([]byte, end-first)
	newest, err := v.readMap(ctx, buf, uint64(first/BlockSize))
	if err == nil {
		copy(p, buf[off-first:])
	}
	return newest, err
}

// readMap reads whole blocks, waiting for what is not in memory. A checkpoint
// may free an extent between lookup and read; then it looks again. It returns
// the newest slot of what it read from the log. While no holder of an extent has
// an answer it tries again, until ctx ends: a brick that broke is no client's
// business as long as another one comes back or has the bytes.
func (v *Volume) readMap(ctx context.Context, p []byte, first uint64) (newest uint64, err error) {
	var buf [readSpanMax]extentmap.Ptr
	for len(p) > 0 {
		n := min(len(p)/BlockSize, readSpanMax)
		ptrs := buf[:n]
		v.mu.RLock()
		_, slot := v.fromTails(p[:n*BlockSize], first, ptrs)
		root, gen := v.root, v.mapGen
		v.mu.RUnlock()
		err := v.lookupErr(root, first, ptrs, waiting{v, ctx})
		if err == nil {
			err = v.eachRun(p[:n*BlockSize], ptrs, func(r run, p []byte) error { return v.waitRun(ctx, r, p) })
		}
		if err != nil {
			v.mu.RLock()
			changed := v.mapGen != gen
			v.mu.RUnlock()
			if changed && ctx.Err() == nil {
				continue
			}
			if fault.Is(err, fault.Unavailable) && paused(ctx, putPause) {
				continue
			}
			if errors.Is(err, errStale) {
				err = fault.Newf(fault.Corrupt, "volume.read", v.cfg.Name, "the map names an extent that its table does not have")
			}
			return 0, err
		}
		newest = max(newest, slot)
		p, first = p[n*BlockSize:], first+uint64(n)
	}
	return newest, nil
}

// paused waits for d; false if ctx ends before.
func paused(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (v *Volume) waitRun(ctx context.Context, r run, p []byte) error {
	if v.tryRun(r, p) == nil {
		return nil
	}
	buf := getBuf(r.size)
	defer putBuf(buf)
	v.stats.ReadRemote.Add(1)
	return v.cfg.Extents.ReadAt(ctx, v.cfg.Replicas, r.addr, int64(r.ptrs[0].Off), *buf, func(stored []byte) bool {
		return r.unpack(stored, p)
	})
}

// readBlock reads the one block that a pointer names.
func (v *Volume) readBlock(ctx context.Context, at extentmap.Ptr, p []byte) error {
	addr, ok := v.addrOf(at.Ext)
	if !ok {
		return errStale
	}
	return v.waitRun(ctx, run{addr, []extentmap.Ptr{at}, int(at.Len)}, p[:BlockSize])
}

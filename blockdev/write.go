package blockdev

import (
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum"
)

// check validates a range of a request.
func (v *Volume) check(op string, off, n int64) error {
	bs := int64(v.cfg.BlockSize)
	if off < 0 || n < 0 || off > v.Size()-n || off%bs != 0 || n%bs != 0 {
		return fault.Newf(fault.Invalid, "volume."+op, v.cfg.Name,
			"[%d, +%d) is not a range of %d-byte blocks within %d bytes", off, n, bs, v.Size())
	}
	return nil
}

// Write implements target.Device. The bytes go into the log tail, whence they
// are sent to all members; done is called when a majority has received them
// (fua: has them durable).
func (v *Volume) Write(p []byte, off int64, fua bool, done func(error)) {
	if err := v.check("write", off, int64(len(p))); err != nil {
		done(err)
		return
	}
	if len(p) == 0 {
		done(nil)
		return
	}
	if len(p) >= v.cfg.LargeWrite && off%BlockSize == 0 && len(p)%BlockSize == 0 && v.pressed() {
		v.writeLarge(p, off, fua, done)
		return
	}
	if off%BlockSize != 0 || len(p)%BlockSize != 0 {
		v.writePartial(p, off, fua, done)
		return
	}
	v.mu.Lock()
	if refused := v.admit(len(p)); refused != nil {
		q := append([]byte(nil), p...)
		v.turnAway(refused, func() { v.Write(q, off, fua, done) }, done)
		return
	}
	slot, err := v.appendWrite(p, uint64(off/BlockSize))
	full := v.tailFull()
	v.mu.Unlock()
	v.wrote(slot, err, fua, full, done)
}

// noSpace is what writes get while the bricks cannot take what the tail holds.
// Reads, trims and deletions go on; a checkpoint is tried every second, and when
// one succeeds writes do too.
func (v *Volume) noSpace() error {
	return fault.Newf(fault.NoSpace, "volume.write", v.cfg.Name, "the bricks are full; delete or trim something, or add a brick")
}

// pressed reports whether the tail is so full that a long write should not add
// to it, or others are on their way past it: a stream of several at a time that
// has filled it once stays out of it, as it would cross each disk twice.
func (v *Volume) pressed() bool {
	if v.largeWrites.Load() > 0 {
		return true
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.cfg.EagerLarge || v.frozen != nil || v.active.Bytes() >= v.cfg.CheckpointBytes/2
}

// stall reports whether an operation of n bytes must wait for a checkpoint.
// The caller holds mu. Operations that came earlier and still wait go first.
func (v *Volume) stall(n int) bool {
	switch {
	case v.err != nil:
		return false
	case v.frozen == nil: // a checkpoint is about to freeze the tail, or gives back what the last one replaced
		return v.active.Bytes() >= v.cfg.TailBytes && !mutant.On("endless-tail")
	case mutant.On("wait-for-checkpoint"):
		return true
	}
	return v.active.Bytes()+v.frozen.Bytes()+int64(n) > v.cfg.TailBytes
}

// tailFull reports whether the active tail wants to be folded. The caller holds mu.
func (v *Volume) tailFull() bool {
	return v.active.Bytes() >= v.cfg.CheckpointBytes || v.active.Zeros() >= tailZerosMax ||
		v.looseBytes >= v.cfg.CheckpointBytes || v.active.Entries() >= tailBlocksMax
}

// appendWrite makes log entries of whole blocks and puts them into the active
// tail, under mu, so that the order of slots is the order of the tail.
func (v *Volume) appendWrite(p []byte, block uint64) (slot uint64, err error) {
	if v.err != nil {
		return 0, v.err
	}
	for len(p) > 0 {
		n := min(len(p), inlineBytesMax)
		if mutant.On("record-for-each-block") {
			n = BlockSize
		}
		body := v.active.Alloc(entryHead + n)
		if mutant.On("heap-for-each") {
			body = make([]byte, entryHead+n)
		}
		putEntryHead(body, opWrite, block, uint64(n/BlockSize))
		copy(body[entryHead:], p[:n])
		if slot, err = v.log.Propose(quorum.EntryData, body); err != nil {
			return 0, err
		}
		v.active.Entry(slot)
		v.active.Put(block, body[entryHead:])
		p, block = p[n:], block+uint64(n/BlockSize)
	}
	return slot, nil
}

// stalled is a write that waits for room in the tail.
type stalled struct {
	since time.Time
	run   func()
	done  func(error)
}

// errNoRoom says that an operation must wait for a checkpoint.
var errNoRoom = fault.Newf(fault.Unavailable, "volume.write", "", "the log tail is full")

// admit decides under mu whether an operation of n bytes may add to the tail
// now: nil, errNoRoom, or NoSpace.
func (v *Volume) admit(n int) error {
	stall := v.stall(n)
	if v.full && (stall || v.active.Bytes() >= v.cfg.CheckpointBytes/2) {
		return v.noSpace()
	}
	if stall {
		return errNoRoom
	}
	return nil
}

// turnAway ends an operation that admit refused, or has it run again when there
// is room. The caller holds mu, which is released.
func (v *Volume) turnAway(refused error, run func(), done func(error)) {
	if refused == errNoRoom {
		v.stalled = append(v.stalled, stalled{time.Now(), run, done})
	}
	v.mu.Unlock()
	v.touch()
	v.startCheckpoint()
	if refused != errNoRoom {
		done(refused)
	}
}

// wrote ends the submission of one operation: it queues done for slot.
func (v *Volume) wrote(slot uint64, err error, fua, full bool, done func(error)) {
	if err != nil {
		done(err)
		return
	}
	v.writesSinceFlush.Add(1)
	v.lastWrite.Store(time.Now().UnixNano())
	fua = fua || v.cfg.WriteCache == CacheNone
	if fua {
		v.log.Sync(slot)
	}
	if !fua && (v.cfg.WriteCache == CacheWriter || mutant.On("ack-before-received")) {
		done(nil)
	} else {
		v.pend.add(slot, fua, done)
	}
	if !v.ticking.Load() {
		v.touch()
	}
	if full {
		v.startCheckpoint()
	}
}

// Flush implements target.Device: durable on a majority up to the newest entry.
func (v *Volume) Flush(done func(error)) {
	if err := v.Err(); err != nil {
		done(err)
		return
	}
	v.learnRhythm()
	slot := v.log.Next() - 1
	if v.pend.durableMark() < slot {
		v.log.Sync(slot)
	}
	v.pend.add(slot, !mutant.On("flush-received"), done)
	if !v.ticking.Load() {
		v.touch()
	}
}

// learnRhythm watches whether each write is followed by a flush. Where it is,
// members are asked to make entries durable as they arrive, which saves the
// flush its round trip.
func (v *Volume) learnRhythm() {
	n := v.writesSinceFlush.Swap(0)
	score := v.eagerScore.Load()
	switch {
	case n == 1 && score < 8:
		score++
	case n > 2 || n == 0 && score > 0:
		score -= 4
	}
	score = max(score, 0)
	was := v.eagerScore.Swap(score)
	if score >= 4 && was < 4 {
		v.log.SetEagerSync(true)
	} else if score < 4 && was >= 4 {
		v.log.SetEagerSync(false)
	}
}

// Zero implements target.Device in one map record, however long the range.
func (v *Volume) Zero(off, n int64, fua bool, done func(error)) {
	if err := v.check("zero", off, n); err != nil {
		done(err)
		return
	}
	if n == 0 {
		done(nil)
		return
	}
	from, to := (off+BlockSize-1)/BlockSize, (off+n)/BlockSize
	if off%BlockSize != 0 || (off+n)%BlockSize != 0 {
		v.zeroEdges(off, n, from, to, fua, done)
		return
	}
	v.zeroBlocks(uint64(from), uint64(to), fua, done)
}

// Trim implements target.Device: a trimmed range reads as zeros and its space
// is given back.
func (v *Volume) Trim(off, n int64, fua bool, done func(error)) { v.Zero(off, n, fua, done) }

func (v *Volume) zeroBlocks(from, to uint64, fua bool, done func(error)) {
	v.mu.Lock()
	if v.err != nil {
		err := v.err
		v.mu.Unlock()
		done(err)
		return
	}
	// Trims go on while bricks are full: they are what makes room.
	if v.stall(entryHead) && !v.full {
		v.turnAway(errNoRoom, func() { v.zeroBlocks(from, to, fua, done) }, done)
		return
	}
	body := v.active.Alloc(entryHead)
	putEntryHead(body, opZero, from, to-from)
	slot, err := v.log.Propose(quorum.EntryData, body)
	if err == nil {
		v.active.Entry(slot)
		v.active.Zero(from, to)
	}
	full := v.tailFull()
	v.mu.Unlock()
	v.wrote(slot, err, fua, full, done)
}

// Kick implements target.Device: what was queued is sent.
func (v *Volume) Kick() { v.log.Kick() }

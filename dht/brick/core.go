package brick

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// Stats are counters since Open. Bytes are of bodies and extents as given by
// the caller.
type Stats struct {
	JournalAppends, JournalAppendBytes  uint64
	JournalWrites                       uint64 // pushes to the page cache
	JournalSyncRequests                 uint64 // calls of Journal.Sync
	Syncs                               uint64 // fdatasyncs of all files
	ExtentPuts, ExtentPutBytes          uint64
	ExtentReads, ExtentReadBytes        uint64 // ReadExtent
	ExtentTryHits, ExtentTryMisses      uint64 // TryReadExtent
	ExtentDeletes                       uint64
	PunchedBytes                        uint64
	IndexCommits, IndexRewrites         uint64
	SegmentsCreated, SegmentsRemoved    uint64 // extent segments
	JournalSegments, JournalSegmentsNew uint64 // recycled and freshly written
}

// counters is Stats while it is being counted.
type counters struct {
	appends, appendBytes, writes, syncRequests, syncs     atomic.Uint64
	puts, putBytes, reads, readBytes, tryHits, tryMisses  atomic.Uint64
	deletes, punched, commits, rewrites, created, removed atomic.Uint64
	segmentsRecycled, segmentsNew                         atomic.Uint64
}

func (c *counters) stats() Stats {
	return Stats{
		JournalAppends: c.appends.Load(), JournalAppendBytes: c.appendBytes.Load(),
		JournalWrites: c.writes.Load(), JournalSyncRequests: c.syncRequests.Load(),
		Syncs: c.syncs.Load(), ExtentPuts: c.puts.Load(), ExtentPutBytes: c.putBytes.Load(),
		ExtentReads: c.reads.Load(), ExtentReadBytes: c.readBytes.Load(),
		ExtentTryHits: c.tryHits.Load(), ExtentTryMisses: c.tryMisses.Load(),
		ExtentDeletes: c.deletes.Load(), PunchedBytes: c.punched.Load(),
		IndexCommits: c.commits.Load(), IndexRewrites: c.rewrites.Load(),
		SegmentsCreated: c.created.Load(), SegmentsRemoved: c.removed.Load(),
		JournalSegments: c.segmentsRecycled.Load(), JournalSegmentsNew: c.segmentsNew.Load(),
	}
}

// core is what all parts of a brick share: the disk, the identity, and the
// verdict that the brick is broken.
type core struct {
	fs       vfs.FS
	watch    *watch // nil: operations are not timed
	id       ident.BrickID
	log      *slog.Logger
	onSync   func(time.Duration)
	onBroken func(error)
	count    counters

	once      sync.Once
	broken    atomic.Pointer[fault.Error]
	dead      chan struct{} // closed when the brick is broken, for those who wait for the disk
	hung      atomic.Bool   // an operation of the disk may never return
	stall     chan struct{} // closed when hung is set
	closed    atomic.Bool   // Close is over: errors that follow say nothing about the disk
	damageMax int
	damageMu  sync.Mutex
	damaged   map[ident.Addr]bool // extents found damaged since Open

	wake []func() // lets waiters notice that the brick is broken; set before use
}

// condemn records the verdict without telling anybody, so that it can be done
// under the lock that the failed operation holds: the next one to take that lock
// must not succeed because the failed one left nothing to do. fail follows.
func (c *core) condemn(op string, err error) {
	if c.closed.Load() {
		return
	}
	c.broken.CompareAndSwap(nil, fault.Newf(fault.Unavailable, "brick."+op, c.id.Short(),
		"the brick is broken and answers nothing until it is opened again; check its disk: %w", err))
}

// fail declares the brick broken because of err and returns the error that all
// later calls get. Callers hold no lock that OnBroken or a waiter could want.
func (c *core) fail(op string, err error) error {
	if c.closed.Load() {
		return c.down()
	}
	c.condemn(op, err)
	c.once.Do(func() {
		c.log.Error("brick is broken", "brick", c.id.Short(), "op", op, "err", err)
		close(c.dead)
		for _, w := range c.wake {
			w()
		}
		if c.onBroken != nil {
			c.onBroken(c.down())
		}
	})
	return c.down()
}

// down returns the error of a broken or closed brick, nil while it works.
func (c *core) down() error {
	if e := c.broken.Load(); e != nil {
		return e
	}
	if c.closed.Load() {
		return fault.Newf(fault.Unavailable, "brick", c.id.Short(), "the brick is closed")
	}
	return nil
}

// sync makes f durable and reports how long that took.
func (c *core) sync(f vfs.File) error {
	if mutant.On("skip-fsync") {
		return nil
	}
	start := time.Now()
	err := f.Sync()
	c.count.syncs.Add(1)
	if c.onSync != nil {
		c.onSync(time.Since(start))
	}
	return err
}

// stalled is the verdict on a disk that does not answer.
func (c *core) stalled(op, name string, d time.Duration) {
	c.hung.Store(true)
	close(c.stall) // the watch tells once
	_ = c.fail(op, fault.Newf(fault.Timeout, "brick."+op, name, "the disk has not answered for %v", d.Round(time.Millisecond)))
}

// DamageMaxDefault is how many damaged extents a brick may have between two
// openings.
const DamageMaxDefault = 256

// damage notes that an extent was found damaged. Too many of them break the
// brick.
func (c *core) damage(addr ident.Addr, err error) {
	c.damageMu.Lock()
	if c.damaged == nil {
		c.damaged = map[ident.Addr]bool{}
	}
	if len(c.damaged) <= max(c.damageMax, 0) {
		c.damaged[addr] = true
	}
	n := len(c.damaged)
	c.damageMu.Unlock()
	if c.damageMax >= 0 && n > c.damageMax {
		_ = c.fail("damage", fault.Newf(fault.Corrupt, "brick.damage", c.id.Short(),
			"more than %d extents were found damaged: %w", c.damageMax, err))
	}
}

// orFail passes NoSpace on, which the brick survives, and breaks it otherwise.
func (c *core) orFail(op string, err error) error {
	if err == nil || fault.Is(err, fault.NoSpace) {
		return err
	}
	return c.fail(op, err)
}

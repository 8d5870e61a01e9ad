// Package blockdev makes volumes out of mutable blocks and extents: the write
// path, the map, checkpoints, attaching and takeover.
//
// An attached Volume is the only proposer of its map block. It keeps the log
// tail (everything since the last checkpoint) in memory, answers writes when a
// majority of members has received them and flushes when a majority has them
// durable, and folds the tail into extents in the background.
package blockdev

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// Log is what a volume needs of the proposer of its map block.
type Log interface {
	Propose(kind quorum.EntryKind, body []byte) (slot uint64, err error)
	Kick()
	Sync(slot uint64)
	SetEagerSync(on bool)
	Checkpoint(upTo uint64, value []byte) (slot uint64, err error)
	Next() uint64
	Durable() uint64
	Status() []quorum.MemberStatus
	Members() quorum.Config
	Ballot() quorum.Ballot
	Join(ctx context.Context, m quorum.Member) error
	Replace(ctx context.Context, old, m quorum.Member) error
	Remove(ctx context.Context, m quorum.Member, keep int) error
	Close()
}

// Extents is what a volume needs of the extent store.
type Extents interface {
	Put(ctx context.Context, vol ident.VolumeID, epoch uint64, replicas int, xs []dht.Extent) (dht.PutResult, error)
	PutThen(ctx context.Context, vol ident.VolumeID, epoch uint64, replicas int, xs []dht.Extent, durable func()) (dht.PutResult, error)
	ReadAt(ctx context.Context, replicas int, addr ident.Addr, off int64, p []byte, verify func([]byte) bool) error
	TryReadAt(addr ident.Addr, off int64, p []byte) bool
	Get(ctx context.Context, addr ident.Addr) ([]byte, error)
	GetGently(ctx context.Context, addr ident.Addr) (data []byte, sum uint32, err error)
	Delete(ctx context.Context, vol ident.VolumeID, epoch uint64, addrs []ident.Addr, replicas int) error
	DeleteAt(ctx context.Context, b overlay.BrickRef, vol ident.VolumeID, epoch uint64, addrs []ident.Addr) error
	List(ctx context.Context, b overlay.BrickRef, vol ident.VolumeID) ([]brick.Ref, error)
	PutTo(ctx context.Context, b overlay.BrickRef, vol ident.VolumeID, epoch uint64, xs []dht.Extent) error
	Holders(addr ident.Addr, replicas int) []overlay.BrickRef
}

// Named limits; each is a field of Config so that tests can shrink it.
const (
	// CheckpointBytesDefault is the largest size of a log tail that starts a
	// checkpoint. Three times the size bounds active and frozen tail together;
	// beyond it writes wait.
	CheckpointBytesDefault = 128 << 20
	// LargeWriteDefault is the length in bytes from which a write goes through
	// extents rather than the log once the log tail is half full: a burst is
	// taken at the speed of the log, a long stream crosses each disk once.
	LargeWriteDefault = 256 << 10
	// CheckpointIdleDefault is how long a tail may lie unfolded without new writes.
	CheckpointIdleDefault = 10 * time.Second
	// IOTimeoutDefault is the stated time after which a request fails.
	IOTimeoutDefault = 60 * time.Second
	// PagesDefault bounds the map page cache, in pages of about 6 KiB.
	PagesDefault = 16384
	// tailZerosMax and tailBlocksMax are the numbers of zero ranges and of blocks
	// in a tail from which it is folded, whatever its bytes.
	tailZerosMax  = 4096
	tailBlocksMax = 1 << 20
	// inlineBytesMax is the longest write that is one log entry; longer ones are cut.
	inlineBytesMax = entryBlocksMax * BlockSize / 4
)

// WriteCache says when a plain write is answered. A flush is durable on a
// majority in any case.
type WriteCache string

const (
	// CacheNone: when a majority has it durable, as if every write were FUA.
	CacheNone WriteCache = "none"
	// CacheQuorum, the default: when a majority has received it, so that the
	// death of any one process loses nothing that was answered.
	CacheQuorum WriteCache = "quorum"
	// CacheWriter: at once. What was not flushed dies with the holder.
	CacheWriter WriteCache = "writer"
)

// Config describes one attachment.
type Config struct {
	ID        ident.VolumeID
	Name      string
	Size      int64 // bytes, a multiple of 4096
	BlockSize int   // logical block size in bytes: 512 or 4096
	Replicas  int

	Extents Extents
	View    overlay.View
	Log     *slog.Logger

	WriteCache WriteCache
	// Pace is asked before extents are copied and told of flushes; nil: nobody.
	Pace *Pacer
	// Publish makes a list of the volume's snapshots known in the pool, unless a
	// list of that revision or a newer one is; nil to keep it here.
	Publish func(ctx context.Context, list []SnapshotInfo, revision uint64) error

	CheckpointBytes int64
	TailBytes       int64
	CheckpointIdle  time.Duration
	IOTimeout       time.Duration
	Pages           int
	// LargeWrite as LargeWriteDefault. EagerLarge does not wait for the tail to
	// fill.
	LargeWrite int
	EagerLarge bool
}

func (c *Config) defaults() {
	if c.CheckpointBytes == 0 {
		// A small volume keeps a small tail, so that what lies twice during a
		// checkpoint stays small beside the data.
		c.CheckpointBytes = min(CheckpointBytesDefault, max(8<<20, c.Size/16))
	}
	if c.TailBytes == 0 {
		c.TailBytes = 3 * c.CheckpointBytes
	}
	if c.CheckpointIdle == 0 {
		c.CheckpointIdle = CheckpointIdleDefault
	}
	if c.IOTimeout == 0 {
		c.IOTimeout = IOTimeoutDefault
	}
	if c.LargeWrite == 0 {
		c.LargeWrite = LargeWriteDefault
	}
	if c.Pages == 0 {
		c.Pages = PagesDefault
	}
}

// Volume is an attached volume. It implements target.Device. Lock order: mu,
// then pend.mu.
type Volume struct {
	cfg   Config
	log   Log
	pages *pageCache
	epoch uint64

	size atomic.Int64 // bytes

	mu                       sync.RWMutex // guards what follows
	active                   *tail.Tail
	frozen                   *tail.Tail // being folded by a checkpoint; nil if none
	frozenTo                 uint64     // last slot of frozen
	foldFrom                 uint64     // what the tails have of lower slots is in the map
	root                     extentmap.Root
	table                    *extentmap.Table
	tableRefs                []extentmap.TableRef
	loose                    map[uint64]packed // extents named by the tails, not yet in the table
	looseActive, looseFrozen []uint64          // which tail names them
	looseBytes               int64             // of looseActive
	nextExt                  uint64
	largeWrites              atomic.Int32        // on their way into extents
	inflight                 map[uint64]struct{} // extent numbers whose fate is not decided
	mapGen                   uint64              // counts changes of root
	snaps                    []*snapshot         // oldest first; replaced, not changed
	snapSeq                  uint64              // creations and deletions of snapshots
	stalled                  []stalled           // operations that wait for room in the tail
	full                     bool                // the last checkpoint found no space
	err                      error               // set once: the attachment is over

	pend  pending
	lease atomic.Pointer[lease]

	writesSinceFlush atomic.Int32
	eagerScore       atomic.Int32
	lastWrite        atomic.Int64 // UnixNano, for the idle checkpoint only
	ticking          atomic.Bool
	checkpointing    atomic.Bool
	failedAt         atomic.Int64 // UnixNano of the last failed checkpoint; 0 after a good one
	leasing          sync.Mutex   // one renewal of the lease at a time
	lastCheckpoint   atomic.Int64 // UnixNano of the last chosen checkpoint
	maintain         maintenance
	stats            Stats

	gone   chan struct{} // closed when err is set
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Stats counts what a volume did since it was attached.
type Stats struct {
	Checkpoints, CheckpointErrors atomic.Int64
	FoldedBlocks, MovedBlocks     atomic.Int64
	ReadTail, ReadLocal           atomic.Int64
	ReadRemote, Repaired          atomic.Int64
}

// open finishes an attachment: v has been handed to the proposer as the
// receiver of its progress, and rec is what phase 1 learnt.
func (v *Volume) open(ctx context.Context, log Log, rec *quorum.Recovered) error {
	v.log = log
	v.epoch = log.Ballot().Epoch
	v.pend.reset(rec)
	st, err := extentmap.DecodeState(rec.Checkpoint.Value)
	if err != nil {
		return err
	}
	v.root, v.nextExt, v.tableRefs = st.Root, st.NextExt, st.Table
	v.foldFrom = rec.Checkpoint.UpTo + 1
	if v.table, err = v.loadTable(ctx, st.Table); err != nil {
		return err
	}
	if err := checkSnapshots(st, v.table); err != nil {
		return err
	}
	v.setSnapshots(st.Snapshots, st.SnapshotSeq)
	for _, e := range rec.Entries {
		if e.Kind != quorum.EntryData {
			continue
		}
		if err := v.replay(e.Slot, e.Body); err != nil {
			return err
		}
	}
	if dirty(v.active) {
		v.touch()
	}
	return nil
}

func newVolume(cfg Config) *Volume {
	cfg.defaults()
	ctx, cancel := context.WithCancel(context.Background())
	v := &Volume{
		cfg: cfg, pages: newPageCache(cfg.Pages), active: tail.New(),
		loose: map[uint64]packed{}, inflight: map[uint64]struct{}{},
		gone: make(chan struct{}), ctx: ctx, cancel: cancel, nextExt: 1,
	}
	v.pend.pace = cfg.Pace
	v.size.Store(cfg.Size)
	v.lastCheckpoint.Store(time.Now().UnixNano())
	v.maintain.init()
	return v
}

// replay applies one recovered log entry to the active tail. It is the same
// change that the write path made when the entry was new.
func (v *Volume) replay(slot uint64, body []byte) error {
	e, err := decodeEntry(body)
	if err != nil {
		return err
	}
	v.active.Entry(slot)
	switch e.op {
	case opWrite:
		b := v.active.Alloc(len(e.data))
		copy(b, e.data)
		v.active.Put(e.block, b)
	case opZero:
		if !mutant.On("lose-zero") {
			v.active.Zero(e.block, e.block+e.count)
		}
	case opNothing:
	case opExtent:
		e.extent.slot = slot
		v.loose[e.extent.number] = e.extent
		v.looseActive = append(v.looseActive, e.extent.number)
		v.looseBytes += int64(e.extent.bytes)
		if e.extent.number >= v.nextExt && !mutant.On("reuse-extent-number") {
			v.nextExt = e.extent.number + 1
		}
		v.active.PutExtent(e.block, e.ptrs)
	}
	return nil
}

// Gone is closed when the attachment is over: fenced, closed or broken.
func (v *Volume) Gone() <-chan struct{} { return v.gone }

// Err tells why the attachment is over, or nil.
func (v *Volume) Err() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.err
}

// fail ends the attachment: everything pending and everything new gets err.
func (v *Volume) fail(err error) {
	v.mu.Lock()
	if v.err != nil {
		v.mu.Unlock()
		return
	}
	v.err = err
	stalled := v.stalled
	v.stalled = nil
	close(v.gone)
	v.mu.Unlock()
	v.cancel()
	v.pend.fail(err)
	for _, w := range stalled {
		w.done(err)
	}
}

// fenced is the proposer's word that a higher ballot owns the map block.
func (v *Volume) fenced(by quorum.Ballot) {
	v.cfg.Log.Warn("volume fenced", "volume", v.cfg.Name, "by_node", by.Node.Short(), "by_epoch", by.Epoch)
	v.fail(fault.Newf(fault.Fenced, "volume", v.cfg.Name, "node %s took it over with epoch %d", by.Node.Short(), by.Epoch))
}

// Close ends the attachment. Operations still pending fail; everything that
// was answered is in the log and the next holder has it. Safe to call again.
func (v *Volume) Close() {
	v.fail(fault.Newf(fault.Unavailable, "volume", v.cfg.Name, "detached from this node"))
	v.wg.Wait()
	v.log.Close()
}

// spawn runs f on a goroutine that Close waits for, or reports why not.
func (v *Volume) spawn(f func()) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.err != nil {
		return v.err
	}
	v.wg.Go(f)
	return nil
}

// Size in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// BlockSize is the logical block size in bytes.
func (v *Volume) BlockSize() int { return v.cfg.BlockSize }

// ReadOnly is always false: read-only exports are of snapshots.
func (v *Volume) ReadOnly() bool { return false }

// Grow sets a larger size and reports whether it was one; a smaller one is
// ignored.
func (v *Volume) Grow(size int64) bool {
	for {
		cur := v.size.Load()
		if size <= cur {
			return false
		}
		if v.size.CompareAndSwap(cur, size) {
			return true
		}
	}
}

// expireStalled fails the writes that began to wait for room before limit.
// They were not proposed: they did not happen.
func (v *Volume) expireStalled(limit time.Time) {
	v.mu.Lock()
	n := 0
	for n < len(v.stalled) && v.stalled[n].since.Before(limit) {
		n++
	}
	old := v.stalled[:n]
	v.stalled = v.stalled[n:]
	v.mu.Unlock()
	for _, w := range old {
		w.done(fault.Newf(fault.Timeout, "volume.write", v.cfg.Name, "its log could not be folded in time; see gabion status"))
	}
}

// touch makes sure that the ticker runs while there is something to time.
func (v *Volume) touch() {
	if v.ticking.CompareAndSwap(false, true) {
		time.AfterFunc(time.Second, v.tick)
	}
}

// tick runs each second while requests are pending or the tail is not empty,
// and not at all on an idle volume.
func (v *Volume) tick() {
	select {
	case <-v.gone:
		return
	default:
	}
	now := time.Now()
	v.pend.expire(now.Add(-v.cfg.IOTimeout), v.cfg.Name)
	v.expireStalled(now.Add(-v.cfg.IOTimeout))
	v.mu.RLock()
	unfolded := dirty(v.active) || v.frozen != nil
	stalled, full := len(v.stalled) > 0, v.full
	v.mu.RUnlock()
	idle := now.Sub(time.Unix(0, v.lastWrite.Load())) >= v.cfg.CheckpointIdle
	if unfolded && (idle || stalled || full || v.tight()) {
		v.startCheckpoint()
	}
	if unfolded || stalled || !v.pend.empty() {
		time.AfterFunc(time.Second, v.tick)
		return
	}
	v.ticking.Store(false)
	v.mu.RLock()
	again := dirty(v.active)
	v.mu.RUnlock()
	if again || !v.pend.empty() { // something came between the look and the store
		v.touch()
	}
}

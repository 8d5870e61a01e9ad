package brick

import (
	"log/slog"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// Config says where a brick is and how it behaves. Sizes are bytes; zero means
// the default.
type Config struct {
	FS   vfs.FS       // the directory of the brick
	Pool ident.PoolID // who opens it; a brick of others is refused
	Node ident.NodeID

	// Stable is used for the stable state and not closed; nil opens stable.db
	// in OSDir, the machine's path of the directory of FS.
	Stable Stable
	OSDir  string

	JournalSegmentSize int64 // default 32 MiB; a multiple of 4096, at least 16 KiB
	JournalMax         int64 // default 4 GiB; all journal segments, at least two of them
	ExtentSegmentSize  int64 // default 64 MiB; a multiple of 4096, at least 16 KiB
	// Reserve is the free space that extents leave alone, so that journal,
	// index and deletes always work; default the larger of 64 MiB and 1 % of
	// the disk. Negative means none.
	Reserve int64

	// StallMax is how long one operation of the disk may take: beyond, the
	// brick is broken. Default StallMaxDefault; negative means for ever.
	StallMax time.Duration
	// DamageMax is how many extents may be found damaged since Open before the
	// brick is broken: a disk that rots here and there rots elsewhere too. Default
	// DamageMaxDefault; negative means any number.
	DamageMax int

	Log      *slog.Logger        // default: discard
	OnBroken func(error)         // called once, from any goroutine, when the disk failed
	OnSync   func(time.Duration) // called after every fdatasync with its duration
}

const (
	defaultJournalSegment = 32 << 20
	defaultJournalMax     = 4 << 30
	defaultExtentSegment  = 64 << 20
	defaultReserve        = 64 << 20
	segmentSizeMin        = 16 << 10
)

func (c *Config) complete() error {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.JournalSegmentSize, defaultJournalSegment)
	set(&c.JournalMax, max(defaultJournalMax, 2*c.JournalSegmentSize))
	set(&c.ExtentSegmentSize, defaultExtentSegment)
	if c.StallMax == 0 {
		c.StallMax = StallMaxDefault
	}
	if c.DamageMax == 0 {
		c.DamageMax = DamageMaxDefault
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	bad := func(s int64) bool { return s < segmentSizeMin || s > segmentSizeMax || s%extentAlign != 0 }
	switch {
	case c.FS == nil:
		return fault.Newf(fault.Invalid, "brick.open", "", "no file system given")
	case c.Stable == nil && c.OSDir == "":
		return fault.Newf(fault.Invalid, "brick.open", "", "neither a stable store nor a directory for one given")
	case bad(c.JournalSegmentSize) || bad(c.ExtentSegmentSize):
		return fault.Newf(fault.Invalid, "brick.open", "", "segment sizes are multiples of 4096 from %d to %d bytes",
			segmentSizeMin, int64(segmentSizeMax))
	case c.JournalMax < 2*c.JournalSegmentSize:
		return fault.Newf(fault.Invalid, "brick.open", "", "the journal limit of %d bytes is less than two segments",
			c.JournalMax)
	}
	return nil
}

// Brick is one disk of a node. All methods are safe for concurrent use.
type Brick struct {
	core      *core
	identity  identity
	capacity  int64
	journal   *Journal
	extents   *extents
	stable    *guardedStable
	owned     Stable // to be closed, nil if it was given
	unlock    func()
	scrubbing sync.Mutex // held by a pass of Scrub

	close    sync.Once
	closeErr error
}

// hangs tells of a disk that does not answer while it is not known yet what brick it has.
func (c *Config) hangs(op, name string, d time.Duration) {
	if c.OnBroken != nil {
		c.OnBroken(fault.Newf(fault.Timeout, "brick."+op, name, "the disk has not answered for %v", d.Round(time.Millisecond)))
	}
}

// Open opens the brick in cfg.FS, or lays out a new one in an empty directory. If the disk
// does not answer for cfg.StallMax, cfg.OnBroken is told; Open returns when, and if, it does.
// Kinds: Denied (a brick of another pool or node), Busy (locked), Corrupt
// (damaged; the subject is the file), Invalid (configuration), NoSpace.
func Open(cfg Config) (b *Brick, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	inner := cfg.FS
	var w *watch
	if cfg.StallMax > 0 {
		w = &watch{max: cfg.StallMax, stalled: cfg.hangs}
		cfg.FS = watchedFS{inner, w}
	}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	i := w.begin("lock", lockFile)
	unlock, err := inner.Lock(lockFile)
	w.end(i)
	if err != nil {
		if fault.Is(err, fault.Busy) {
			err = fault.New(fault.Busy, "brick.open", cfg.OSDir, err)
		}
		return nil, err
	}
	b = &Brick{unlock: unlock}
	defer func() {
		if err != nil {
			if b.owned != nil {
				_ = b.owned.Close() // the first error is the one to report
			}
			unlock()
			b = nil
		}
	}()
	id, found, err := readIdentity(cfg.FS)
	if err != nil {
		return b, err
	}
	if !found {
		if id, err = lay(cfg); err != nil {
			return b, err
		}
	}
	if err := id.check(cfg.Pool, cfg.Node); err != nil {
		return b, err
	}
	if err := cfg.FS.Remove(creatingFile); err != nil && !fault.Is(err, fault.NotFound) {
		return b, err
	}
	b.core = newCore(cfg, id.Brick)
	b.identity = id
	if err := b.core.watched(w); err != nil {
		return b, err
	}
	store := cfg.Stable
	if store == nil {
		i := w.begin("open", "stable")
		store, err = openBolt(cfg.OSDir, false)
		w.end(i)
		if err != nil {
			return b, err
		}
		b.owned = store
	}
	if b.stable, err = guard(b.core, store); err != nil {
		return b, err
	}
	return b, b.start(cfg)
}

// watched has the brick hear of w, nil for none, from now on. Timeout: the disk did not
// answer before.
func (c *core) watched(w *watch) error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return fault.Newf(fault.Timeout, "brick.open", c.id.Short(), "the disk did not answer for %v", w.max)
	}
	c.watch, w.stalled = w, c.stalled
	return nil
}

func newCore(cfg Config, id ident.BrickID) *core {
	return &core{fs: cfg.FS, id: id, log: cfg.Log, onSync: cfg.OnSync, onBroken: cfg.OnBroken,
		dead: make(chan struct{}), stall: make(chan struct{}), damageMax: cfg.DamageMax}
}

// start opens journal and extents.
func (b *Brick) start(cfg Config) error {
	_, total, err := cfg.FS.Free()
	if err != nil {
		return err
	}
	b.capacity = total
	reserve := cfg.Reserve
	if reserve == 0 {
		reserve = max(defaultReserve, total/100)
	}
	b.extents = newExtents(b.core, cfg.ExtentSegmentSize, max(0, reserve))
	b.journal = newJournal(b.core, cfg.JournalSegmentSize, cfg.JournalMax)
	b.core.wake = []func(){b.journal.wakeAll}
	// A process that died between creating a file and syncing its directory
	// left a name that is visible and not durable.
	for _, dir := range []string{".", "journal", "extents"} {
		if err := cfg.FS.SyncDir(dir); err != nil {
			return err
		}
	}
	if err := b.journal.open(); err != nil {
		return err
	}
	if err := b.extents.open(); err != nil {
		_ = b.journal.end() // the first error is the one to report
		return err
	}
	return nil
}

// lay makes a new brick: everything first, durably, its identity last.
func lay(cfg Config) (identity, error) {
	id := identity{Format: formatVersion, Pool: cfg.Pool, Node: cfg.Node, Brick: ident.NewBrick()}
	c := newCore(cfg, id.Brick)
	steps := []func() error{
		func() error {
			return vfs.WriteFileAtomic(cfg.FS, creatingFile, []byte("a new brick is being laid out\n"))
		},
		func() error { return clearLeftovers(cfg.FS) },
		func() error { return cfg.FS.MkdirAll("journal") },
		func() error { return cfg.FS.MkdirAll("extents") },
		func() error { return cfg.FS.SyncDir(".") },
		func() error { return newJournal(c, cfg.JournalSegmentSize, cfg.JournalMax).create() },
		func() error { return newExtents(c, cfg.ExtentSegmentSize, 0).create() },
		func() error {
			if cfg.Stable != nil {
				return nil
			}
			s, err := openBolt(cfg.OSDir, true)
			if err != nil {
				return err
			}
			if err := s.Close(); err != nil {
				return err
			}
			return cfg.FS.SyncDir(".")
		},
		func() error { return vfs.WriteFileAtomic(cfg.FS, identityFile, id.encode()) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return id, err
		}
	}
	return id, nil
}

// ID is the incarnation of the brick: a wiped disk gets a new one.
func (b *Brick) ID() ident.BrickID { return b.core.id }

// Journal is the log of the brick.
func (b *Brick) Journal() *Journal { return b.journal }

// Stable is the store for promises. Its errors other than NoSpace break the
// brick.
func (b *Brick) Stable() Stable { return b.stable }

// Capacity is the size of the disk when the brick was opened, in bytes.
func (b *Brick) Capacity() int64 { return b.capacity }

// Stalled is closed when the disk does not answer: then calls that wait for it
// may never return.
func (b *Brick) Stalled() <-chan struct{} { return b.core.stall }

// Hung tells whether the brick is broken because its disk does not answer.
func (b *Brick) Hung() bool { return b.core.hung.Load() }

// Broken is why the brick answers nothing but reads of extents any more, nil
// while it works.
func (b *Brick) Broken() error {
	if e := b.core.broken.Load(); e != nil {
		return e
	}
	return nil
}

// SetAside breaks the brick on the word of somebody else.
func (b *Brick) SetAside(why error) { _ = b.core.fail("aside", why) }

// Stats returns the counters since Open.
func (b *Brick) Stats() Stats { return b.core.count.stats() }

// Usage says how full a brick is, in bytes.
type Usage struct {
	Total, Free     int64 // of the disk; 0 if it cannot be asked
	Reserve         int64 // of Free, what extents leave alone
	ExtentStored    int64 // room that extents take in their segments
	ExtentLive      int64 // of it, bytes of the extents themselves
	Extents         int64 // how many
	JournalLive     int64 // records that are not trimmed
	JournalReserved int64 // files of the journal
	State           string
}

// The values of Usage.State.
const (
	StateOK     = "ok"
	StateFull   = "full" // puts fail with NoSpace
	StateBroken = "broken"
)

// Usage asks the disk.
func (b *Brick) Usage() Usage {
	var free, total int64
	err := b.core.down()
	if !b.core.hung.Load() {
		free, total, err = b.core.fs.Free()
	}
	u := Usage{Total: total, Free: free, Reserve: b.extents.reserve, State: StateOK}
	if err == nil && free <= u.Reserve {
		u.State = StateFull
	}
	if b.core.down() != nil {
		u.State = StateBroken
	}
	t := b.extents.table
	t.mu.Lock()
	u.ExtentStored, u.ExtentLive, u.Extents = t.stored, t.live, int64(t.count)
	t.mu.Unlock()
	oldest, next, _ := b.journal.Live()
	u.JournalLive = int64(next - oldest)
	b.journal.mu.Lock()
	u.JournalReserved = b.journal.reserved
	b.journal.mu.Unlock()
	return u
}

// Close finishes what is under way, makes it durable and releases the brick.
// Calls that follow fail with kind Unavailable. It does not wait for a disk that
// hangs: what is left of the brick ends when the disk answers.
func (b *Brick) Close() error {
	b.close.Do(func() {
		if b.core.hung.Load() {
			go b.end()
			b.closeErr = b.core.down()
			return
		}
		b.closeErr = b.end()
	})
	return b.closeErr
}

func (b *Brick) end() error {
	first := b.extents.end()
	if err := b.journal.end(); first == nil {
		first = err
	}
	b.core.closed.Store(true)
	b.core.watch.stop()
	if b.owned != nil {
		if err := b.owned.Close(); first == nil {
			first = err
		}
	}
	b.unlock()
	return first
}

package quorum

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

const (
	// LazySyncDelay is how long received entries may stay unsynced when nobody
	// asks for durability.
	LazySyncDelay = time.Second
	// LazySyncBytes of them are synced at once.
	LazySyncBytes = 8 << 20
	// A journal that is more than 1/forwardFraction full is tight. One of which
	// more than 1/pinnedFraction is kept although most of that is dead gets its
	// oldest live entries copied forward, forwardBytesMax at a time: few entries
	// of quiet groups must not keep what busy groups let go.
	forwardFraction = 2
	pinnedFraction  = 32
	forwardBytesMax = 4 << 20
	// The last 1/reserveFraction of a journal is for what makes room again:
	// openings with what they recovered, checkpoints, and copies.
	reserveFraction = 8
)

// care is what Run needs to know of a brick.
type care struct {
	bytes atomic.Int64 // appended since the last round
	due   atomic.Bool  // a round is coming
	tight atomic.Bool  // the journal is more than 1/forwardFraction full
	full  atomic.Bool  // only the reserve is left
}

// measure keeps tight up to date.
func (b *brick) measure() {
	oldest, next, limit := b.j.Live()
	if tight := next-oldest > limit/forwardFraction; tight != b.care.tight.Load() {
		b.care.tight.Store(tight)
	}
	if full := next-oldest > limit-limit/reserveFraction; full != b.care.full.Load() {
		b.care.full.Store(full)
	}
}

// appended notes that there is something to look after within LazySyncDelay. A
// brick that nobody writes to is never looked at.
func (a *Acceptors) appended(b *brick, n int) {
	full := b.care.bytes.Add(int64(n)) >= LazySyncBytes
	if !b.care.due.Swap(true) || full {
		a.poke()
	}
}

// Run does the background work until ctx ends: truncation after chosen
// checkpoints, copy-forward of entries that pin old journal segments, lazy sync,
// asking whether copies that nobody feeds still belong to their groups.
func (a *Acceptors) Run(ctx context.Context) {
	var belonging sync.WaitGroup
	defer belonging.Wait()
	belonging.Go(func() { a.belongLoop(ctx) })
	defer a.over.Store(true)
	rounds(ctx, a.wake, a.delay, a.tend)
}

// rounds calls work until ctx ends: with false at every wake, and with true after
// delay for as long as something is left. It has no timer while nothing is.
func rounds(ctx context.Context, wake <-chan struct{}, delay time.Duration, work func(late bool) (left bool)) {
	timer := time.NewTimer(delay)
	timer.Stop()
	defer timer.Stop()
	armed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			if work(false) && !armed {
				timer.Reset(delay)
				armed = true
			}
		case <-timer.C:
			if armed = work(true); armed {
				timer.Reset(delay)
			}
		}
	}
}

// tend looks after every brick that has collected LazySyncBytes or, if late,
// anything at all. It reports whether something was left for later.
func (a *Acceptors) tend(late bool) (left bool) {
	a.mu.RLock()
	bricks := make([]*brick, 0, len(a.bricks))
	for _, b := range a.bricks {
		bricks = append(bricks, b)
	}
	a.mu.RUnlock()
	for _, b := range bricks {
		switch {
		case !b.care.due.Load():
		case late || b.care.bytes.Load() >= LazySyncBytes:
			b.care.due.Store(false) // before the work: what comes now is for the next round
			b.care.bytes.Store(0)
			a.tendBrick(b)
		default:
			left = true
		}
	}
	return left
}

func (a *Acceptors) tendBrick(b *brick) {
	var groups []*group
	for _, g := range a.all() {
		if g.brick != b {
			continue
		}
		groups = append(groups, g)
		g.lazySync()
		g.truncate()
	}
	if err := forward(b, groups); err != nil {
		a.log.Error("copying journal entries forward failed", "brick", b.id.Short(), "error", err)
	}
}

// lazySync bounds what a power cut can take of entries that nobody flushed.
func (g *group) lazySync() {
	g.mu.Lock()
	start := g.broken == nil && !g.dropped && g.core.Received() > g.core.Durable() && g.startSync()
	g.mu.Unlock()
	if start {
		g.brick.j.Sync(g.synced)
	}
}

// truncate takes a checkpoint that was chosen: durably first, then the log goes.
func (g *group) truncate() {
	g.mu.Lock()
	c, ok := g.core.Due()
	g.mu.Unlock()
	if !ok {
		return
	}
	if err := g.persist(&c); err != nil {
		g.a.log.Warn("a checkpoint was not persisted", "group", g.id.Short(), "error", err)
	}
}

// forward trims the journal to its oldest live entry and, if too much is pinned
// by few old entries, copies those to the end first.
func forward(b *brick, groups []*group) error {
	oldest, next, limit := b.j.Live()
	floor := floorOf(groups, next)
	if floor > oldest {
		if err := trim(b, groups, floor); err != nil {
			return err
		}
	}
	live := int64(0)
	for _, g := range groups {
		g.mu.Lock()
		live += g.core.LogBytes()
		g.mu.Unlock()
	}
	kept := next - floor
	if kept <= limit/forwardFraction && kept <= limit/pinnedFraction+2*live {
		return nil
	}
	below := floor + limit/64
	moved := int64(0)
	for _, g := range groups {
		n, err := g.forward(below, forwardBytesMax-moved)
		if err != nil {
			return err
		}
		moved += n
	}
	if moved == 0 {
		return nil
	}
	return trim(b, groups, floorOf(groups, next))
}

// trim lets the journal before floor go. What makes it needless must be durable first: a copy, an
// entry taken again at a higher ballot, an opening that cut it off. What only an opening's
// record there tells goes to the stable store.
func trim(b *brick, groups []*group, floor int64) error {
	if !mutant.On("trim-early") {
		if err := syncNow(b.j); err != nil {
			return err
		}
	}
	for _, g := range groups {
		g.mu.Lock()
		pos, ok := g.core.OpenPos()
		ok = ok && pos < floor && !g.dropped
		g.mu.Unlock()
		if ok {
			if err := g.persist(nil); err != nil {
				return err
			}
		}
	}
	b.j.Trim(floor)
	b.measure()
	return nil
}

// floorOf is the oldest position that any group needs, or next. A group that is being dropped, or
// left, needs its own until that is durable; then it is no longer among the groups.
func floorOf(groups []*group, next int64) int64 {
	for _, g := range groups {
		g.mu.Lock()
		pos, ok := g.core.OldestPos()
		opened, held := g.core.OpenPos()
		ended := g.dropped
		g.mu.Unlock()
		if ended && mutant.On("trim-dropped") {
			continue
		}
		if ok {
			next = min(next, pos)
		}
		if held && ended { // it is not persisted any more
			next = min(next, opened)
		}
	}
	return next
}

// forward copies entries whose records lie before pos, up to budget bytes.
func (g *group) forward(pos, budget int64) (moved int64, err error) {
	if budget <= 0 {
		return 0, nil
	}
	if err := g.brick.j.Write(); err != nil {
		return 0, err
	}
	g.mu.Lock()
	entries := g.core.Below(pos, fetchEntriesMax)
	g.mu.Unlock()
	for _, w := range entries {
		if moved >= budget {
			break
		}
		if err := g.move(w); err != nil {
			return moved, err
		}
		moved += int64(w.Size)
	}
	return moved, nil
}

func (g *group) move(w paxos.Where) error {
	rec, err := g.brick.j.ReadAt(w.Pos, w.Size)
	if err != nil {
		if g.movedFrom(w) {
			return nil
		}
		return err
	}
	_, r, err := decodeRecord(rec)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return nil
	}
	return g.core.Move(w, r.Body, g)
}

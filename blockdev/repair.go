package blockdev

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/lend"
	"github.com/gabion-storage/gabion/overlay"
)

// A repair works by difference of sets: what a brick should hold by the volume's
// table and the lanes, less what it lists. So a brick that was away for a minute
// is given what was written in that minute. Extents with the fewest copies go
// first, also among the volumes of a node (Pacer); each is read once, however many
// bricks lack it.

const (
	// repairBatchBytes is about how much is read and written at a time, one message
	// and two syncs of a disk (dht.PutMessageMax), and repairStreams how many batches
	// are under way.
	repairBatchBytes = 2 << 20
	repairStreams    = 3
)

// repairProgress is what is left to copy, for status.
type repairProgress struct {
	extents, bytes int64
	rate           float64 // bytes per second, lately
	since          time.Time
	copied         int64 // since then
}

// brickRepair is one brick that is not known to be complete.
type brickRepair struct {
	ref   overlay.BrickRef
	lapse uint64 // before it was listed
	refs  []brick.Ref
	have  map[ident.Addr]struct{}

	mu  sync.Mutex
	err error
}

func (b *brickRepair) fail(err error) {
	b.mu.Lock()
	b.err = cmp.Or(b.err, err)
	b.mu.Unlock()
}

func (b *brickRepair) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// lack is an extent with bricks that should have it and do not.
type lack struct {
	dht.Extent
	bytes  int64
	copies int // in reach
	at     []*brickRepair
}

// reconcile makes every brick of the lanes that is in reach hold what it should and
// nothing that nothing names. complete is false if it has to be tried again.
func (v *Volume) reconcile(ctx context.Context) (complete bool, err error) {
	version := v.cfg.View.TableVersion()
	v.mu.RLock()
	next := v.nextExt
	v.mu.RUnlock()
	v.maintain.mu.Lock()
	if v.maintain.version != version {
		v.maintain.version, v.maintain.barrier, v.maintain.seen = version, next, maps.Clone(v.maintain.lapse)
	}
	v.maintain.mu.Unlock()
	defer v.maintain.report(nil)
	todo, all := v.unclean(version)
	complete = true
	for len(todo) > 0 {
		v.listBricks(ctx, todo)
		w := v.wanted()
		lacks := v.lacking(todo, w, version)
		lacking := map[*brickRepair]bool{}
		for _, l := range lacks {
			for _, b := range l.at {
				lacking[b] = true
			}
		}
		v.copyAll(ctx, lacks)
		var again []*brickRepair
		for _, b := range todo {
			switch err2 := b.failed(); {
			case err2 != nil:
				complete, all, err = false, false, errors.Join(err, err2)
			case lacking[b]:
				// What died between the look at the table and the copy would be left
				// behind; one more listing finds it.
				again = append(again, b)
			case !v.settled(w) || !v.maintain.cleaned(b, version):
				complete, all = false, false
			}
		}
		todo = again
	}
	if complete {
		v.place(version)
	}
	if all && v.cfg.View.TableVersion() == version {
		complete = v.dropSurplus(ctx, version)
	}
	return complete, err
}

// unclean lists the bricks in reach that are not known to be complete; all is
// false if some are out of reach.
func (v *Volume) unclean(version uint64) (todo []*brickRepair, all bool) {
	all = true
	for _, b := range v.wantedBricks() {
		v.maintain.mu.Lock()
		at, ok := v.maintain.clean[b]
		lapse := v.maintain.lapse[b]
		v.maintain.mu.Unlock()
		switch {
		case ok && at == version:
		case v.cfg.View.State(b.Node) != overlay.Alive:
			all = false // its return is an event
		default:
			todo = append(todo, &brickRepair{ref: b, lapse: lapse})
		}
	}
	return todo, all
}

// cleaned notes that a brick is complete, unless it missed something meanwhile.
func (m *maintenance) cleaned(b *brickRepair, version uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lapse[b.ref] != b.lapse {
		return false
	}
	m.clean[b.ref] = version
	return true
}

// listBricks lists what each brick has. The listing comes before the look at the
// table: what is put in between is then in the table or in flight, never garbage.
func (v *Volume) listBricks(ctx context.Context, todo []*brickRepair) {
	var wg sync.WaitGroup
	for _, b := range todo {
		wg.Go(func() {
			refs, err := v.cfg.Extents.List(ctx, b.ref, v.cfg.ID)
			if err != nil {
				b.fail(err)
				return
			}
			b.refs, b.have = refs, make(map[ident.Addr]struct{}, len(refs))
			for _, r := range refs {
				b.have[r.Addr] = struct{}{}
			}
		})
	}
	wg.Wait()
}

// lacking deletes what nothing names from the listed bricks and tells what they
// lack, the most endangered first.
func (v *Volume) lacking(todo []*brickRepair, w wanted, version uint64) []*lack {
	byRef := map[overlay.BrickRef]*brickRepair{}
	for _, b := range todo {
		byRef[b.ref] = b
		var drop []ident.Addr
		for _, r := range b.refs {
			if w.garbage(r) {
				drop = append(drop, r.Addr)
			}
		}
		if len(drop) > 0 {
			if err := v.cfg.Extents.DeleteAt(v.ctx, b.ref, v.cfg.ID, v.epoch, drop); err != nil {
				b.fail(err)
			}
		}
	}
	var out []*lack
	for addr, x := range w.keep {
		l := &lack{Extent: dht.Extent{Addr: addr, Number: x.number}, bytes: x.bytes}
		for _, h := range v.cfg.Extents.Holders(addr, v.cfg.Replicas) {
			b := byRef[h]
			if b == nil || b.failed() != nil {
				if v.maintain.complete(h, version) && v.cfg.View.State(h.Node) == overlay.Alive {
					l.copies++
				}
				continue
			}
			if _, ok := b.have[addr]; ok {
				l.copies++
			} else {
				l.at = append(l.at, b)
			}
		}
		if len(l.at) > 0 {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *lack) int {
		return cmp.Or(cmp.Compare(a.copies, b.copies), cmp.Compare(a.Number, b.Number))
	})
	return out
}

// complete tells whether a brick was found complete under the present lanes.
func (m *maintenance) complete(b overlay.BrickRef, version uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.clean[b]
	return ok && at == version
}

// copyAll copies what is lacking, several batches at a time.
func (v *Volume) copyAll(ctx context.Context, lacks []*lack) {
	if len(lacks) == 0 {
		return
	}
	v.maintain.report(lacks)
	batches := make(chan []*lack)
	var wg sync.WaitGroup
	for range min(repairStreams, len(lacks)) {
		wg.Go(func() {
			for batch := range batches {
				v.copyBatch(ctx, batch)
			}
		})
	}
	for i := 0; i < len(lacks); {
		n, size := i, int64(0)
		for i < len(lacks) && (i == n || size+lacks[i].bytes <= repairBatchBytes && lacks[i].copies == lacks[n].copies) {
			size += lacks[i].bytes
			i++
		}
		batches <- lacks[n:i]
	}
	close(batches)
	wg.Wait()
}

// copyBatch reads each extent once and gives it to every brick that lacks it. An
// extent that died meanwhile is passed over; one that cannot be read fails the
// bricks that lack it and nothing else.
func (v *Volume) copyBatch(ctx context.Context, batch []*lack) {
	var size int64
	for _, l := range batch {
		size += l.bytes
	}
	defer v.maintain.copied(batch, size)
	if v.cfg.Pace != nil {
		if err := v.cfg.Pace.Wait(ctx, size, batch[0].copies); err != nil {
			failAll(batch, err)
			return
		}
	}
	give := map[*brickRepair][]dht.Extent{}
	read := make([][]byte, 0, len(batch))
	for _, l := range batch {
		if !slices.ContainsFunc(l.at, func(b *brickRepair) bool { return b.failed() == nil }) {
			continue
		}
		data, sum, err := v.cfg.Extents.GetGently(ctx, l.Addr)
		if err != nil {
			if _, still := v.wanted().keep[l.Addr]; still {
				failAll([]*lack{l}, err)
			}
			continue
		}
		read = append(read, data)
		x := l.Extent
		x.Data, x.Hashed, x.Sum = data, true, sum // it was compared with its address
		for _, b := range l.at {
			give[b] = append(give[b], x)
		}
	}
	var wg sync.WaitGroup
	var kept atomic.Bool // a disk may still work on what was not put
	for b, xs := range give {
		if b.failed() != nil {
			continue
		}
		wg.Go(func() {
			if err := v.cfg.Extents.PutTo(ctx, b.ref, v.cfg.ID, v.epoch, xs); err != nil {
				kept.Store(true)
				b.fail(err)
				return
			}
			v.stats.Repaired.Add(int64(len(xs)))
		})
	}
	wg.Wait()
	if !kept.Load() {
		for _, data := range read {
			lend.Put(data)
		}
	}
}

func failAll(batch []*lack, err error) {
	for _, l := range batch {
		for _, b := range l.at {
			b.fail(err)
		}
	}
}

// report begins the progress of copying lacks; none: nothing is left.
func (m *maintenance) report(lacks []*lack) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := repairProgress{since: time.Now(), rate: m.progress.rate}
	for _, l := range lacks {
		p.extents++
		p.bytes += l.bytes
	}
	m.progress = p
}

// copied notes that a batch is done, well or not.
func (m *maintenance) copied(batch []*lack, size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &m.progress
	p.extents -= int64(len(batch))
	p.bytes -= size
	p.copied += size
	if d := time.Since(p.since); d >= time.Second {
		rate := float64(p.copied) / d.Seconds()
		if p.rate > 0 {
			rate = (p.rate + rate) / 2
		}
		p.rate, p.since, p.copied = rate, time.Now(), 0
	}
}

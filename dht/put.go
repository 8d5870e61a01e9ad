package dht

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
)

// PutResult tells what a successful put left undone.
type PutResult struct {
	// Missed are the bricks that lack at least one of the extents, in order of
	// their ids. They are found by reconcile.
	Missed []overlay.BrickRef
}

// Put stores xs, each on the first replicas bricks of its lane. It returns once
// all of them are durable on a majority of their holders and the other
// holders have it too, or PutGrace has passed. Putting an extent again is success.
// After an error some copies may exist; putting them again is right. Kinds:
// Fenced (a holder has met a higher epoch), NoSpace (full bricks kept an extent
// from its majority), Unavailable (missing holders did), Corrupt (Data is not
// what Addr says), Invalid (size), Timeout.
func (s *Store) Put(ctx context.Context, vol ident.VolumeID, epoch uint64, replicas int, xs []Extent) (PutResult, error) {
	return s.PutThen(ctx, vol, epoch, replicas, xs, nil)
}

// PutThen is Put that calls durable, on this goroutine, as soon as every extent is
// durable on a majority of its holders, and only then waits for the others. What
// goes wrong with those is in the result alone. Either durable was called, once,
// or there is an error.
func (s *Store) PutThen(ctx context.Context, vol ident.VolumeID, epoch uint64, replicas int, xs []Extent, durable func()) (PutResult, error) {
	p := &put{store: s, volume: vol, epoch: epoch, xs: xs, settled: make(chan struct{}), finished: make(chan struct{})}
	if err := p.plan(replicas); err != nil {
		return PutResult{}, err
	}
	if len(xs) == 0 {
		close(p.settled)
	}
	ctx, cancel := context.WithCancel(ctx)
	p.start(ctx)
	told := durable != nil && mutant.On("told-before-majority")
	if told {
		durable()
	}
	select {
	case <-p.settled:
		if p.verdictIn() == nil {
			if durable != nil && !told {
				durable()
				told = true
			}
			p.grace(ctx)
		}
	case <-ctx.Done():
	}
	ended := ctx.Err()
	cancel()
	<-p.finished
	res, err := p.outcome(told, ended)
	if err == nil && durable != nil && !told {
		durable() // the majority came with the end of ctx
	}
	return res, err
}

// outcome is the result of a put whose goroutines have ended. told: its caller
// counts on the majority that there was, whatever came later. ended is why the
// rest was not waited for.
func (p *put) outcome(told bool, ended error) (PutResult, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case told:
	case p.err != nil:
		return PutResult{}, p.err
	case p.lacking > 0:
		return PutResult{}, fault.New(fault.Timeout, "dht.put", p.volume.Short(), ended)
	}
	res := PutResult{Missed: p.missed()}
	p.store.stats.missed.Add(uint64(len(res.Missed)))
	return res, nil
}

// PutTo stores xs on one brick, durable on return. The brick writes them gently:
// nobody waits for a repair. If PutTo fails the bytes of xs must never change again: a disk of this node
// that hangs may still work on them.
func (s *Store) PutTo(ctx context.Context, b overlay.BrickRef, vol ident.VolumeID, epoch uint64, xs []Extent) error {
	all := make([]int, len(xs))
	for i := range xs {
		if err := checkExtent(&xs[i]); err != nil {
			return err
		}
		all[i] = i
	}
	p := &put{store: s, volume: vol, epoch: epoch, xs: xs, gentle: true}
	for _, part := range p.messages(all) {
		if err := p.send(ctx, b, part); err != nil {
			return err
		}
	}
	return nil
}

func checkExtent(x *Extent) error {
	if len(x.Data) == 0 || len(x.Data) > ExtentMax {
		return fault.Newf(fault.Invalid, "dht.put", x.Addr.Short(), "an extent has 1 to %d bytes, not %d", ExtentMax, len(x.Data))
	}
	return nil
}

// put is one call of Put.
type put struct {
	store  *Store
	volume ident.VolumeID
	epoch  uint64
	xs     []Extent
	gentle bool

	bricks []*putBrick // sorted

	mu       sync.Mutex
	need     []int8 // acknowledgements that extent i still lacks; 0 or less: has its majority
	slack    []int8 // failures that extent i can still bear
	lacking  int    // extents with need > 0
	err      error  // the verdict
	settled  chan struct{}
	finished chan struct{} // all goroutines of this put have ended
}

// putBrick is one brick's share of a put.
type putBrick struct {
	ref     overlay.BrickRef
	extents []int // indexes into xs
	acked   int   // guarded by put.mu
	err     error // why the rest failed; guarded by put.mu
}

func (p *put) plan(replicas int) error {
	p.need, p.slack = make([]int8, len(p.xs)), make([]int8, len(p.xs))
	p.lacking = len(p.xs)
	byRef := map[overlay.BrickRef]*putBrick{}
	for i := range p.xs {
		x := &p.xs[i]
		if err := checkExtent(x); err != nil {
			return err
		}
		holders := p.store.Holders(x.Addr, replicas)
		if len(holders) == 0 {
			return fault.Newf(fault.Unavailable, "dht.put", p.volume.Short(), "the pool has no lanes yet: no node with a brick has joined")
		}
		for _, h := range holders {
			b := byRef[h]
			if b == nil {
				b = &putBrick{ref: h}
				byRef[h] = b
				p.bricks = append(p.bricks, b)
			}
			b.extents = append(b.extents, i)
		}
		majority := len(holders)/2 + 1
		if mutant.On("majority-of-one") {
			majority = 1
		}
		p.need[i], p.slack[i] = int8(majority), int8(len(holders)-majority)
	}
	slices.SortFunc(p.bricks, func(a, b *putBrick) int { return compareBricks(a.ref, b.ref) })
	return nil
}

func compareBricks(a, b overlay.BrickRef) int {
	if c := a.Node.Compare(b.Node); c != 0 {
		return c
	}
	return a.Brick.Compare(b.Brick)
}

func (p *put) start(ctx context.Context) {
	var wg sync.WaitGroup
	for _, b := range p.bricks {
		wg.Go(func() { p.feed(ctx, b) })
	}
	go func() { wg.Wait(); close(p.finished) }()
}

// verdictIn is the verdict of a settled put.
func (p *put) verdictIn() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// grace waits for the slower holders, but not for one that has been late before:
// its disk may hang.
func (p *put) grace(ctx context.Context) {
	wait := p.store.cfg.PutGrace
	if p.onlyLaggardsLeft() && !mutant.On("wait-for-slow") {
		wait = 0
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-p.finished:
	case <-t.C:
	case <-ctx.Done():
	}
}

// onlyLaggardsLeft tells whether no brick that has not answered is worth waiting for.
func (p *put) onlyLaggardsLeft() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.bricks {
		if b.acked < len(b.extents) && b.err == nil && p.store.health.waitFor(b.ref, 5*p.store.cfg.ProbeEvery) {
			return false
		}
	}
	return true
}

// inFlightMax is how many messages of one put are under way to one brick: one
// is on the network while the other is being synced.
const inFlightMax = 2

// feed sends one brick its share and notes what came of it. The first error ends
// the brick's part: what makes one message fail makes the next ones fail.
func (p *put) feed(ctx context.Context, b *putBrick) {
	parts := p.messages(b.extents)
	slots := make(chan struct{}, inFlightMax)
	var wg sync.WaitGroup
	for _, part := range parts {
		slots <- struct{}{}
		p.mu.Lock()
		failed := b.err
		p.mu.Unlock()
		if failed != nil {
			p.note(b, part, failed)
			<-slots
			continue
		}
		wg.Go(func() {
			p.note(b, part, p.send(ctx, b.ref, part))
			<-slots
		})
	}
	wg.Wait()
}

// messages cuts a list of extents into messages.
func (p *put) messages(extents []int) [][]int {
	var parts [][]int
	start, size := 0, 0
	for i, x := range extents {
		n := len(p.xs[x].Data)
		if i > start && (size+n > PutMessageMax || i-start == PutCountMax) {
			parts = append(parts, extents[start:i])
			start, size = i, 0
		}
		size += n
	}
	if start < len(extents) {
		parts = append(parts, extents[start:])
	}
	return parts
}

func (p *put) send(ctx context.Context, b overlay.BrickRef, part []int) (err error) {
	s := p.store
	r := putRequest{brick: b.Brick, volume: p.volume, epoch: p.epoch, gentle: p.gentle, extents: make([]brick.Extent, len(part))}
	n := 0
	for i, x := range part {
		x := &p.xs[x]
		r.extents[i] = brick.Extent{Addr: x.Addr, Volume: p.volume, Number: x.Number, Epoch: x.Epoch, Data: x.Data,
			Relief: x.Relief, Hashed: x.Hashed, Summed: x.Hashed, Sum: x.Sum}
		if x.Epoch == 0 {
			r.extents[i].Epoch = p.epoch
		}
		n += len(x.Data)
	}
	if err := s.bytes.acquire(ctx, n); err != nil {
		return err
	}
	beat := s.health.begin(b, putPulse)
	defer func() { beat(err) }()
	limited, cancel := context.WithTimeout(ctx, s.cfg.PutTimeout)
	defer cancel()
	if b.Node == s.self {
		err = s.putHere(limited, r, n)
	} else {
		err = s.putThere(limited, b, r)
	}
	s.bytes.release(n)
	if fault.Is(err, fault.Timeout) && ctx.Err() == nil {
		err = fault.Newf(fault.Unavailable, "dht.put", b.Brick.Short(), "no answer within %v", s.cfg.PutTimeout)
	}
	s.stats.put(b, n, err)
	return err
}

func (s *Store) putThere(ctx context.Context, b overlay.BrickRef, r putRequest) error {
	if s.cfg.View.State(b.Node) == overlay.Down && !s.cfg.Transport.Connected(b.Node) {
		return fault.Newf(fault.Unavailable, "dht.put", b.Brick.Short(), "node %s is down", b.Node.Short())
	}
	bufs := make([][]byte, 1, 1+len(r.extents))
	bufs[0] = r.head()
	for i := range r.extents {
		bufs = append(bufs, r.extents[i].Data)
	}
	typ := typePut
	if r.gentle {
		typ = typePutGently
	}
	_, err := s.cfg.Transport.Call(ctx, b.Node, typ, bufs...)
	return err
}

// putHere stores on a brick of this node. A disk that hangs must not hang the
// caller, who owns the data: so the disk works on a copy. What hangs counts
// against its own brick only.
func (s *Store) putHere(ctx context.Context, r putRequest, n int) error {
	l, err := s.brick("dht.put", r.brick)
	if err != nil {
		return err
	}
	if err := l.bytes.acquire(ctx, n); err != nil {
		return err
	}
	if r.gentle { // the bytes stay as they are
		return s.onDisk(ctx, func() error {
			defer l.bytes.release(n)
			return s.servePut(r, func() {})
		})
	}
	lent := copies.Get().(*[]byte)
	buf := slices.Grow((*lent)[:0], n)
	*lent = buf
	for i := range r.extents {
		at := len(buf)
		buf = append(buf, r.extents[i].Data...)
		r.extents[i].Data = buf[at:len(buf):len(buf)]
	}
	return s.onDisk(ctx, func() error {
		defer l.bytes.release(n)
		return s.servePut(r, func() { copies.Put(lent) })
	})
}

// copies lends what a disk of this node works on. A disk that hangs keeps it.
var copies = sync.Pool{New: func() any { return new([]byte) }}

// note counts the outcome of one message and settles the put when it can.
func (p *put) note(b *putBrick, part []int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		b.acked += len(part)
	} else if b.err == nil {
		b.err = err
	}
	before := p.lacking == 0 || p.err != nil
	for _, x := range part {
		switch {
		case err != nil:
			if p.slack[x]--; p.slack[x] < 0 && p.err == nil {
				p.err = p.verdict(x)
			}
		default:
			if p.need[x]--; p.need[x] == 0 {
				p.lacking--
			}
		}
	}
	if fault.Is(err, fault.Fenced) && p.err == nil {
		p.err = err
	}
	if !before && (p.lacking == 0 || p.err != nil) {
		close(p.settled)
	}
}

// verdict says why extent x cannot have its majority. mu is held.
func (p *put) verdict(x int) error {
	kind, same := fault.Kind(0), true
	var why []string
	for _, b := range p.bricks {
		if b.err == nil || !slices.Contains(b.extents, x) {
			continue
		}
		k := fault.KindOf(b.err)
		if len(why) > 0 && k != kind {
			same = false
		}
		if len(why) == 0 || k == fault.NoSpace || k == fault.Fenced {
			kind = k
		}
		why = append(why, fmt.Sprintf("brick %s of node %s: %v", b.ref.Brick.Short(), b.ref.Node.Short(), b.err))
	}
	if !same && kind != fault.NoSpace && kind != fault.Fenced || kind == fault.Indeterminate {
		kind = fault.Unavailable // a put may be repeated, so nothing is indeterminate
	}
	return fault.Newf(kind, "dht.put", p.volume.Short(), "extent %s finds no majority of its bricks: %s",
		p.xs[x].Addr.Short(), strings.Join(why, "; "))
}

// missed lists the bricks without all their extents. mu is held.
func (p *put) missed() []overlay.BrickRef {
	var bs []overlay.BrickRef
	for _, b := range p.bricks {
		if b.acked < len(b.extents) {
			bs = append(bs, b.ref)
		}
	}
	return bs
}

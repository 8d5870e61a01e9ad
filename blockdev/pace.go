package blockdev

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a Pacer, in bytes per second, and what it steers by.
const (
	// PaceFloor is granted however slow the foreground gets: redundancy must come
	// back in the end.
	PaceFloor = 8 << 20
	// PaceCeiling is beyond any disk.
	PaceCeiling = 4 << 30
	paceStart   = 64 << 20
	// paceWindow is how long latencies are collected before the rate changes.
	paceWindow = 250 * time.Millisecond
	// Foreground syncs may take paceCalm times their undisturbed latency before
	// the rate stops rising, and paceTense times before it falls.
	paceCalm, paceTense = 1.4, 1.8
	// paceSlack is a difference in latency that nobody minds.
	paceSlack   = 300 * time.Microsecond
	paceSamples = 256
	// Of the samples of a window, this many are enough to speak, and the one at
	// this share of them does.
	paceEnough   = 5
	paceQuantile = 0.9
	// Undisturbed latencies are looked at for one flush in so many.
	paceSparse = 16
)

// Pacer shares out how fast the volumes of a node copy extents: those with the
// fewest copies first, as fast as the syncs of the foreground bear, within a floor
// and a ceiling, and not at all while paused. All methods may be called
// concurrently.
type Pacer struct {
	now func() time.Time

	busy   atomic.Bool  // copies are under way
	nth    atomic.Int64 // flushes seen
	mu     sync.Mutex
	rate   float64 // bytes per second
	limit  float64 // the operator's; 0 for none
	paused bool
	queue  []*turn
	seq    uint64
	next   time.Time // when the next copy may begin
	change chan struct{}

	samples   []time.Duration // foreground syncs of this window
	begun     time.Time       // of this window
	last      time.Time       // a copy began
	baseline  time.Duration   // undisturbed; 0 if not known
	measuring bool            // this window ran at the floor to learn the baseline
}

// turn is a copy that waits to begin.
type turn struct {
	copies int
	seq    uint64
}

// NewPacer makes one that knows nothing of the foreground yet.
func NewPacer() *Pacer {
	return &Pacer{now: time.Now, rate: paceStart, change: make(chan struct{})}
}

// SetPolicy takes over the operator's word. bytesPerSecond 0 is no limit.
func (p *Pacer) SetPolicy(paused bool, bytesPerSecond int64) {
	p.mu.Lock()
	p.paused, p.limit = paused, float64(bytesPerSecond)
	p.stir()
	p.mu.Unlock()
}

// Paused tells whether an operator has paused copying.
func (p *Pacer) Paused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// Rate is how many bytes per second may be copied now.
func (p *Pacer) Rate() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(p.allowed())
}

func (p *Pacer) allowed() float64 {
	if p.limit > 0 {
		return min(p.rate, p.limit)
	}
	return p.rate
}

// stir wakes all waiters. Under mu.
func (p *Pacer) stir() {
	close(p.change)
	p.change = make(chan struct{})
}

// Wait waits until n bytes of extents of which copies exist may be copied. It
// fails only with ctx's error.
func (p *Pacer) Wait(ctx context.Context, n int64, copies int) error {
	p.mu.Lock()
	p.seq++
	t := &turn{copies, p.seq}
	p.queue = append(p.queue, t)
	p.busy.Store(true)
	for {
		p.adapt()
		var until time.Duration
		switch {
		case p.paused, p.first() != t:
			until = -1
		default:
			until = p.next.Sub(p.now())
			if until <= 0 {
				p.leave(t)
				p.last = p.now()
				p.next = p.last.Add(time.Duration(float64(n) / p.allowed() * float64(time.Second)))
				p.mu.Unlock()
				return nil
			}
		}
		change := p.change
		p.mu.Unlock()
		if err := await(ctx, change, until); err != nil {
			p.mu.Lock()
			p.leave(t)
			p.mu.Unlock()
			return err
		}
		p.mu.Lock()
	}
}

// await waits for change, for a time unless it is negative, or for ctx.
func await(ctx context.Context, change <-chan struct{}, d time.Duration) error {
	var due <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-change:
	case <-due:
	}
	return nil
}

// first is whose turn it is: the most endangered, then the longest waiting.
func (p *Pacer) first() *turn {
	return slices.MinFunc(p.queue, func(a, b *turn) int {
		if a.copies != b.copies {
			return a.copies - b.copies
		}
		return int(int64(a.seq) - int64(b.seq))
	})
}

func (p *Pacer) leave(t *turn) {
	p.queue = slices.DeleteFunc(p.queue, func(o *turn) bool { return o == t })
	p.stir()
}

// Wants tells whether the latency of this flush is of interest. It costs next to
// nothing.
func (p *Pacer) Wants() bool { return p.busy.Load() || p.nth.Add(1)%paceSparse == 0 }

// Foreground is told how long a flush took.
func (p *Pacer) Foreground(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.samples) < paceSamples {
		p.samples = append(p.samples, d)
	}
	if p.now().Sub(p.last) > 4*paceWindow { // nobody copies
		p.busy.Store(len(p.queue) > 0)
		if len(p.samples) >= 64 {
			q := p.quantile()
			if p.baseline > 0 {
				q = (3*p.baseline + q) / 4
			}
			p.baseline = q
		}
	}
}

// quantile empties the samples and tells what speaks for them.
func (p *Pacer) quantile() time.Duration {
	slices.Sort(p.samples)
	q := p.samples[int(float64(len(p.samples)-1)*paceQuantile)]
	p.samples = p.samples[:0]
	p.begun = p.now()
	return q
}

// adapt changes the rate once a window is over. Under mu.
func (p *Pacer) adapt() {
	now := p.now()
	if now.Sub(p.begun) < paceWindow {
		return
	}
	if now.Sub(p.last) > 4*paceWindow { // copying begins: what was seen is undisturbed
		p.samples, p.begun = p.samples[:0], now
		return
	}
	if len(p.samples) < paceEnough { // nobody to disturb
		p.samples, p.begun, p.measuring = p.samples[:0], now, false
		p.rate = min(PaceCeiling, 2*p.rate)
		return
	}
	q := p.quantile()
	if p.baseline == 0 {
		if p.measuring {
			p.baseline = q
		}
		p.measuring, p.rate = true, PaceFloor
		return
	}
	switch ratio := float64(q-paceSlack) / float64(p.baseline); {
	case ratio > paceTense:
		p.rate = max(PaceFloor, p.rate*0.6)
	case ratio < paceCalm:
		p.rate = min(PaceCeiling, p.rate*1.25)
	}
}

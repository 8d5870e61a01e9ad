package blockdev

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a Pacer, in bytes per second.
const (
	// PaceFloor is granted however slow the foreground gets: redundancy must come
	// back in the end.
	PaceFloor = 8 << 20
	// PaceCeiling is beyond any disk.
	PaceCeiling = 4 << 30
)

// Pacer shares out how fast the volumes of a node copy extents: those with the
// fewest copies first, as fast as the flushes of the foreground bear, within a floor
// and a ceiling, and not at all while paused. How the rate is found is in pace_rate.go. All
// methods may be called concurrently.
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

	calm      samples   // flushes while nobody copied
	tense     samples   // flushes while somebody did, since the rate changed
	begun     time.Time // of tense
	begunSize int64     // bytes of the copies begun since then
	last      time.Time // a copy began
	heard     time.Time // the newest flush ended
	alone     bool      // the rate was reached while nobody flushed
	quietFrom time.Time // the last stop to learn what is undisturbed, or the one to come
	quietTo   time.Time

	full      float64   // bytes per second that copies reach when nothing holds them back; 0: not known
	fullAt    time.Time // when that was looked at
	freeFrom  time.Time // the last time that nothing held them back, to learn that
	freeTo    time.Time
	freeBegan int64 // bytes of the copies that began then
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
		case p.paused, p.first() != t, p.quiet(p.now()):
			until = -1
		default:
			until = p.next.Sub(p.now())
			if until <= 0 {
				p.leave(t)
				p.last = p.now()
				p.count(n)
				rate := p.allowed()
				if p.limit == 0 && p.free(p.last) {
					rate = PaceCeiling
				}
				took := time.Duration(float64(n) / rate * float64(time.Second))
				if late := p.last.Add(-took); p.next.Before(late) {
					p.next = late // of what was not copied in time, one is made up for
				}
				p.next = p.next.Add(took)
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

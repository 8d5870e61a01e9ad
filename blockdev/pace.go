package blockdev

import (
	"context"
	"math"
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
	paceStart   = 96 << 20
	// paceRise is the part by which the rate rises in a step while nobody is disturbed (at least
	// by paceRiseMin), paceGain that by which it falls for each time that as many as
	// allowed are disturbed too much: as much, so that it settles where as many are. paceFall is
	// what is left of it at the least: one stall disturbs many flushes. In a step one flush or two
	// may be disturbed; by chance it is none or three as well, and larger steps made the rate
	// swing by itself.
	paceRise    = 0.05
	paceRiseMin = 5 << 20
	paceGain    = 0.05
	paceFall    = 0.8
	// paceGoal is how many times its undisturbed value the tail of the foreground's
	// flushes may be, and paceSlack a difference that nobody minds.
	paceGoal  = 1.75
	paceSlack = 100 * time.Microsecond
	// paceTail is the quantile that counts: one flush in a hundred may be slower.
	paceTail = 0.99
	// paceStep is the least time between two changes of the rate, paceLong the most
	// that is waited for paceEnough flushes to judge by.
	paceStep   = 250 * time.Millisecond
	paceLong   = 2 * time.Second
	paceEnough = 100
	// Every paceQuietEvery copying stops for paceQuiet, so that the undisturbed value
	// is that of now, whatever else the disk does. Of that time, the first
	// paceSettle is for copies under way.
	paceQuietEvery = 4 * time.Second
	paceQuiet      = 300 * time.Millisecond
	paceSettle     = 80 * time.Millisecond
	// paceSamples bounds the latencies that are kept of either kind.
	paceSamples = 1024
	// paceOver is how long after the last copy nobody copies.
	paceOver = time.Second
	// Undisturbed latencies are looked at for one flush in so many while nobody copies.
	paceSparse = 16
)

// Pacer shares out how fast the volumes of a node copy extents: those with the
// fewest copies first, as fast as the flushes of the foreground bear, within a floor
// and a ceiling, and not at all while paused. It compares the slowest hundredth of flushes
// while it copies with that while it does not, and changes the rate in proportion to how many
// flushes take too long. All methods may be called concurrently.
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
}

// samples are the newest latencies.
type samples struct {
	all []time.Duration
	at  int // where the next one goes, once it is full
}

func (s *samples) add(d time.Duration) {
	if len(s.all) < paceSamples {
		s.all = append(s.all, d)
		return
	}
	s.all[s.at] = d
	s.at = (s.at + 1) % paceSamples
}

func (s *samples) clear() { s.all, s.at = s.all[:0], 0 }

// tail is the latency that all but a hundredth of the samples stay below.
func (s *samples) tail() time.Duration {
	sorted := slices.Clone(s.all)
	slices.Sort(sorted)
	return sorted[int(math.Ceil(float64(len(sorted))*paceTail))-1]
}

// over counts the samples above a limit.
func (s *samples) over(limit time.Duration) (n int) {
	for _, d := range s.all {
		if d > limit {
			n++
		}
	}
	return n
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
				p.begunSize += n
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
	now := p.now()
	p.heard = now
	if p.alone { // what nobody minded may be many times what this one bears
		p.alone, p.rate = false, min(p.rate, paceStart)
		p.judge(now)
	}
	switch {
	case now.Sub(p.last) > paceOver: // nobody copies
		p.busy.Store(len(p.queue) > 0)
		p.calm.add(d)
	case p.quiet(now):
		if now.Add(-d).Sub(p.quietFrom) >= paceSettle {
			p.calm.add(d)
		}
	case !p.quiet(now.Add(-d)):
		p.tense.add(d)
	}
}

// quiet tells whether copying is stopped at that time to learn what is undisturbed.
func (p *Pacer) quiet(t time.Time) bool { return !t.Before(p.quietFrom) && t.Before(p.quietTo) }

// adapt changes the rate when there is enough to judge by. Under mu.
func (p *Pacer) adapt() {
	now := p.now()
	switch {
	case p.quiet(now):
		return
	case now.Sub(p.last) > paceOver && now.Sub(p.quietTo) > paceOver: // copying begins
		p.quietFrom = now.Add(paceQuietEvery)
		p.judge(now)
		return
	case now.Sub(p.begun) < paceStep:
		return
	}
	n := len(p.tense.all)
	if n == 0 && now.Sub(p.heard) < paceLong {
		return // who flushed a moment ago may be waiting for the next one
	}
	if n == 0 { // nobody to disturb
		p.alone = true
		p.raise(now, 2*p.rate)
		p.judge(now)
		return
	}
	if n < paceEnough && now.Sub(p.begun) < paceLong {
		return
	}
	if len(p.calm.all) == 0 || !now.Before(p.quietFrom) {
		p.quietFrom, p.quietTo = now, now.Add(paceQuiet)
		time.AfterFunc(paceQuiet, p.resume)
	}
	if len(p.calm.all) > 0 {
		p.steer(now)
	}
	p.judge(now)
}

// resume ends a quiet time.
func (p *Pacer) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.quietFrom, p.quietTo = now.Add(paceQuietEvery), now
	p.judge(now)
	p.stir()
}

// judge begins a new window.
func (p *Pacer) judge(now time.Time) {
	p.tense.clear()
	p.begun, p.begunSize = now, 0
}

// raise lets copies go faster, as far as they did go about as fast as they might: a rate
// that nothing reaches would have to come down again first when it becomes too high.
func (p *Pacer) raise(now time.Time, to float64) {
	went := float64(p.begunSize) / now.Sub(p.begun).Seconds()
	p.rate = max(p.rate, min(PaceCeiling, to, max(2*went, paceStart)))
}

// steer changes the rate by how many flushes took longer than the tail may be.
func (p *Pacer) steer(now time.Time) {
	limit := paceSlack + time.Duration(paceGoal*float64(p.calm.tail()))
	// As many as may be make 1.
	over := float64(p.tense.over(limit)) / (float64(len(p.tense.all)) * (1 - paceTail))
	if over > 1 {
		p.rate = max(PaceFloor, p.rate*max(paceFall, 1-paceGain*(over-1)))
		return
	}
	p.raise(now, p.rate+(1-over)*max(paceRiseMin, paceRise*p.rate))
}

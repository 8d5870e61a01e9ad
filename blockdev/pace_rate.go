package blockdev

import (
	"math"
	"slices"
	"time"
)

// What a Pacer steers by. It compares the slowest hundredth of flushes while it copies with that while
// it does not, and changes the rate in proportion to how many flushes take too long. As long as copies
// go at less than half of what they could reach, they may disturb the foreground more.
const (
	// paceStart is where it begins, in bytes per second, as long as it is not known what could be reached.
	paceStart = 96 << 20
	// paceGain is the part by which the rate changes for each time that as many flushes as
	// allowed are disturbed too much, down by as much as up, so that it settles where as many
	// are. In a step one flush or two may be disturbed; by chance it is none or four as well, and
	// larger steps made the rate swing by itself. It rises by paceRiseMin at least. paceFall is
	// what is left of it at the least: one stall disturbs many flushes.
	paceGain    = 0.025
	paceRiseMin = 3 << 20
	paceFall    = 0.8
	// paceGoal is how many times its undisturbed value the tail of the foreground's
	// flushes may be, and paceSlack a difference that nobody minds.
	paceGoal  = 1.6
	paceSlack = 100 * time.Microsecond
	// paceHalf is the part of what could be reached below which redundancy comes back late, half of it with the
	// stops: the tail may then be paceMost times its undisturbed value, and the rate rises twice as fast. Above paceFair it rises by a
	// fifth of that: what is gained there is hardly missed, and the tail grows fastest.
	paceHalf = 0.55
	paceMost = 1.9
	paceFair = 0.65
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
	paceQuietEvery = 8 * time.Second
	paceQuiet      = 300 * time.Millisecond
	paceSettle     = 80 * time.Millisecond
	// What could be reached is looked at every paceFreeEvery beside a client: for paceFree nothing
	// holds copies back. Again the first paceSettle does not count.
	paceFree      = 240 * time.Millisecond
	paceFreeEvery = time.Minute
	// paceReached is the part of the rate that copies stay below when it is not the rate that holds them back.
	// paceLess is what is left at the least of what could be reached, after one window with less: part of it may
	// have been without copies.
	paceReached = 0.8
	paceLess    = 0.9
	// paceSamples bounds the latencies that are kept of either kind. What a hundredth of them exceeds is known
	// to a fifth from 2500.
	paceSamples = 4096
	// paceOver is how long after the last copy nobody copies.
	paceOver = time.Second
	// Undisturbed latencies are looked at for one flush in so many while nobody copies.
	paceSparse = 4
)

// samples are the newest latencies.
type samples struct {
	all   []time.Duration
	at    int           // where the next one goes, once it is full
	known time.Duration // the tail, unless it is 0
}

func (s *samples) add(d time.Duration) {
	s.known = 0
	if len(s.all) < paceSamples {
		s.all = append(s.all, d)
		return
	}
	s.all[s.at] = d
	s.at = (s.at + 1) % paceSamples
}

func (s *samples) clear() { s.all, s.at, s.known = s.all[:0], 0, 0 }

// tail is the latency that all but a hundredth of the samples stay below.
func (s *samples) tail() time.Duration {
	if s.known == 0 {
		sorted := slices.Sorted(slices.Values(s.all))
		s.known = sorted[int(math.Ceil(float64(len(sorted))*paceTail))-1]
	}
	return s.known
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
		p.alone, p.rate = false, min(p.rate, p.start())
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
	case p.free(now), p.free(now.Add(-d)), p.quiet(now.Add(-d)):
	default:
		p.tense.add(d)
	}
}

// quiet tells whether copying is stopped at that time to learn what is undisturbed.
func (p *Pacer) quiet(t time.Time) bool { return !t.Before(p.quietFrom) && t.Before(p.quietTo) }

// free tells whether nothing holds copies back at that time, to learn how fast they could be.
func (p *Pacer) free(t time.Time) bool { return !t.Before(p.freeFrom) && t.Before(p.freeTo) }

// start is where the rate begins beside a client.
func (p *Pacer) start() float64 {
	if p.full > 0 {
		return max(PaceFloor, paceHalf*p.full)
	}
	return paceStart
}

// count notes that a copy of n bytes begins. Under mu.
func (p *Pacer) count(n int64) {
	p.begunSize += n
	if p.free(p.last) && p.last.Sub(p.freeFrom) >= paceSettle {
		p.freeBegan += n
	}
}

// adapt changes the rate when there is enough to judge by. Under mu.
func (p *Pacer) adapt() {
	now := p.now()
	switch {
	case p.quiet(now), p.free(now):
		return
	case now.Sub(p.last) > paceOver && now.Sub(p.quietTo) > paceOver: // copying begins
		p.quietFrom = now.Add(paceQuietEvery)
		p.judge(now)
		return
	case p.limit == 0 && now.Sub(p.heard) < paceLong && now.Sub(p.fullAt) > paceFreeEvery && now.Add(paceFree).Before(p.quietFrom):
		p.fullAt, p.freeFrom, p.freeTo, p.freeBegan = now, now, now.Add(paceFree), 0
		p.next = now
		p.stir()
		time.AfterFunc(paceFree, p.bound)
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
		if went := p.went(now); went < paceReached*p.allowed() {
			p.full, p.fullAt = max(went, paceLess*p.full), now
		}
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

// bound ends a time in which nothing held copies back.
func (p *Pacer) bound() {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.full == 0
	// Otherwise there was nothing more to copy, or an operator held it back.
	if p.limit == 0 && p.freeTo.Sub(p.last) < paceSettle {
		p.full = float64(p.freeBegan) / (paceFree - paceSettle).Seconds()
	}
	if first {
		p.rate = p.start()
	}
	p.judge(p.now())
	p.stir()
}

// judge begins a new window.
func (p *Pacer) judge(now time.Time) {
	p.tense.clear()
	p.begun, p.begunSize = now, 0
}

// went is at how many bytes per second copies began in this window.
func (p *Pacer) went(now time.Time) float64 { return float64(p.begunSize) / now.Sub(p.begun).Seconds() }

// raise lets copies go faster, as far as they did go about as fast as they might: a rate
// that nothing reaches would have to come down again first when it becomes too high.
func (p *Pacer) raise(now time.Time, to float64) {
	p.rate = max(p.rate, min(PaceCeiling, to, max(2*p.went(now), paceStart)))
}

// steer changes the rate by how many flushes took longer than the tail may be.
func (p *Pacer) steer(now time.Time) {
	goal, gain := paceGoal, paceGain
	switch {
	case p.full == 0:
	case p.rate < paceHalf*p.full:
		goal, gain = paceMost, 2*paceGain
	case p.rate > paceFair*p.full:
		gain = paceGain / 5
	}
	limit := paceSlack + time.Duration(goal*float64(p.calm.tail()))
	// As many as may be make 1.
	over := float64(p.tense.over(limit)) / (float64(len(p.tense.all)) * (1 - paceTail))
	if over > 1 {
		p.rate = max(PaceFloor, p.rate*max(paceFall, 1-paceGain*(over-1)))
		return
	}
	p.raise(now, p.rate+(1-over)*gain*max(paceRiseMin/paceGain, p.rate))
}

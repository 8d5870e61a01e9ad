package dht

import (
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
)

// What counts as slow, and what is done about it.
const (
	// hedgeDefault is how long a read waits before it asks the next holder too,
	// until the brick's own times are known.
	hedgeDefault = 50 * time.Millisecond
	hedgeMin     = time.Millisecond
	// hedgeShare bounds the reads that are asked for twice: one in twenty, and
	// hedgeBurst at once.
	hedgeShare = 0.05
	hedgeBurst = 8
	// A brick is slow while its reads take slowFactor times as long as those of
	// another holder, and more than slowMin; or once slowSilent reads in a row
	// got no answer before that of another; or while one read or put of it is
	// under way for lateFactor times what nineteen of twenty take, and more than
	// lateRead, lateGently or latePut.
	slowFactor = 8
	slowMin    = 5 * time.Millisecond
	slowSilent = 3
	lateFactor = 10
	lateRead   = 250 * time.Millisecond
	lateGently = 2 * time.Second
	latePut    = 2 * time.Second
	// pulseKnown is how many reads of a kind make a brick's times known.
	pulseKnown = 16
)

type pulseKind int

const (
	readPulse pulseKind = iota
	// gentlePulse is reads that nobody waits for: they take turns, and each reads a whole
	// extent. By their times a read that somebody waits for would be hedged too late, and
	// a brick that others copy from would look slow.
	gentlePulse
	putPulse
)

// tempo is how long one kind of read takes.
type tempo struct {
	seen   int           // up to pulseKnown
	mean   time.Duration // recent ones counting more
	p95    time.Duration // nineteen of twenty take less
	probed time.Time
}

// pulse is how quick one brick is, as this node sees it.
type pulse struct {
	mu    sync.Mutex
	reads [putPulse]tempo
	begun [putPulse + 1][]time.Time

	silent  int       // reads in a row that were not waited for to the end
	lagging bool      // its last put was not waited for to the end
	waited  time.Time // when one was last waited for although it lagged
}

// health is the pulses of all bricks, and the budget of hedged reads.
type health struct {
	mu     sync.Mutex // guards all, but what has a lock of its own
	of     map[overlay.BrickRef]*pulse
	tokens float64 // hedged reads that may begin; starts full
	began  bool
}

func (h *health) pulse(b overlay.BrickRef) *pulse {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.of[b]
	if p == nil {
		p = new(pulse)
		if len(h.of) < HoldersMax {
			h.of[b] = p
		}
	}
	return p
}

// begin notes that an operation starts; the result notes its end.
func (h *health) begin(b overlay.BrickRef, kind pulseKind) (end func(err error)) {
	p, start := h.pulse(b), time.Now()
	p.mu.Lock()
	p.begun[kind] = append(p.begun[kind], start)
	p.mu.Unlock()
	return func(err error) {
		took := time.Since(start)
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, t := range p.begun[kind] {
			if t.Equal(start) {
				last := len(p.begun[kind]) - 1
				p.begun[kind][i] = p.begun[kind][last]
				p.begun[kind] = p.begun[kind][:last]
				break
			}
		}
		switch {
		case kind == putPulse && err == nil:
			p.lagging = false
		case kind == putPulse:
			p.lagging = p.lagging || unanswered(err) && took > latePut/2
		case err == nil:
			p.tempo(kind).learn(took)
			p.silent = 0
		case unanswered(err) && took >= p.tempo(kind).p95:
			p.silent++
		}
	}
}

func unanswered(err error) bool {
	return fault.Is(err, fault.Timeout) || fault.Is(err, fault.Unavailable)
}

func (p *pulse) tempo(kind pulseKind) *tempo {
	if mutant.On("one-tempo") {
		kind = readPulse
	}
	return &p.reads[kind]
}

// learn takes one read into account. The pulse's mu is held.
func (t *tempo) learn(took time.Duration) {
	took = max(took, time.Microsecond)
	if t.seen == 0 {
		t.seen, t.mean, t.p95 = 1, took, 2*took
		return
	}
	share := time.Duration(8)
	if t.seen < pulseKnown {
		t.seen++
		share = 4
	}
	if took < t.mean/2 {
		t.probed = time.Time{} // it recovers: if it is being probed, see how far
	}
	t.mean += (took - t.mean) / share
	// A step up for one read in twenty weighs as much as nineteen steps down.
	if took > t.p95 {
		t.p95 += t.p95*19/80 + 1
	} else {
		t.p95 -= t.p95 / 80
	}
}

// late tells whether something is under way for too long. mu is held.
func (p *pulse) late() bool {
	now := time.Now()
	limits := [putPulse + 1]time.Duration{
		readPulse:   max(lateRead, lateFactor*p.tempo(readPulse).p95),
		gentlePulse: max(lateGently, lateFactor*p.tempo(gentlePulse).p95),
		putPulse:    latePut,
	}
	for kind, limit := range limits {
		for _, t := range p.begun[kind] {
			if now.Sub(t) > limit {
				return true
			}
		}
	}
	return false
}

// slow tells which of bs, all holders of one extent, are slow.
func (h *health) slow(bs []overlay.BrickRef) map[overlay.BrickRef]bool {
	var slow map[overlay.BrickRef]bool
	mark := func(b overlay.BrickRef) {
		if slow == nil {
			slow = map[overlay.BrickRef]bool{}
		}
		slow[b] = true
	}
	best := time.Duration(-1)
	means := make([]time.Duration, len(bs))
	for i, b := range bs {
		p := h.pulse(b)
		p.mu.Lock()
		if p.late() || p.silent >= slowSilent {
			mark(b)
		} else if t := p.tempo(readPulse); t.seen >= pulseKnown {
			means[i] = t.mean
			if best < 0 || t.mean < best {
				best = t.mean
			}
		}
		p.mu.Unlock()
	}
	for i, b := range bs {
		if best >= 0 && means[i] > max(slowMin, slowFactor*best) {
			mark(b)
		}
	}
	return slow
}

// waitFor tells whether a put that has its majority shall wait for b too: not
// for one that lagged behind the last time, but now and then.
func (h *health) waitFor(b overlay.BrickRef, every time.Duration) bool {
	p := h.pulse(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.lagging && !p.late() {
		return true
	}
	if time.Since(p.waited) < every {
		return false
	}
	p.waited = time.Now()
	return true
}

// noAnswer notes that a read was given up after took, while the disk may still
// be at it.
func (h *health) noAnswer(b overlay.BrickRef, kind pulseKind, took time.Duration) {
	p := h.pulse(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if took >= p.tempo(kind).p95 {
		p.silent++
	}
}

// isSlow tells whether b does not answer, whatever others take.
func (h *health) isSlow(b overlay.BrickRef) bool {
	p := h.pulse(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.late() || p.silent >= slowSilent
}

// patience is how long to wait for a read of b, of that kind, before the next holder is asked.
func (h *health) patience(b overlay.BrickRef, kind pulseKind, most time.Duration) time.Duration {
	p := h.pulse(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	d := hedgeDefault
	if t := p.tempo(kind); t.seen >= pulseKnown {
		d = max(t.p95, hedgeMin)
	}
	return min(d, most)
}

// earn counts a read, which earns a part of a hedged one.
func (h *health) earn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.began {
		h.began, h.tokens = true, hedgeBurst
	}
	h.tokens = min(h.tokens+hedgeShare, hedgeBurst)
}

// spend takes the right to one hedged read.
func (h *health) spend() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tokens < 1 && !mutant.On("hedge-unbounded") {
		return false
	}
	h.tokens--
	return true
}

// probe tells whether it is time to see, by a read of that kind, if a slow brick still is.
func (h *health) probe(b overlay.BrickRef, kind pulseKind, every time.Duration) bool {
	p := h.pulse(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late() || time.Since(p.tempo(kind).probed) < every {
		return false
	}
	p.tempo(kind).probed = time.Now()
	return true
}

// view is what Stats tells of b: of reads that somebody waits for.
func (h *health) view(b overlay.BrickRef) (mean, p95 time.Duration, late bool) {
	p := h.pulse(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tempo(readPulse)
	return t.mean, t.p95, p.late() || p.silent >= slowSilent
}

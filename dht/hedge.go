package dht

import (
	"context"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/overlay"
)

// fetch reads from one brick, on a goroutine of its own, and returns bytes that
// nobody else has.
type fetch func(context.Context, overlay.BrickRef) ([]byte, error)

// attempt is what came of asking one brick.
type attempt struct {
	brick overlay.BrickRef
	data  []byte
	err   error
}

// fromHolders asks one brick after another until accept, which runs on the
// caller's goroutine, takes what one gave. A brick that takes longer than it
// mostly does is not waited for alone: the next holder is asked too, and the
// first good answer wins. hedgeShare bounds how often.
func (s *Store) fromHolders(ctx context.Context, replicas int, t *tries, get fetch, accept func([]byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the losers
	s.health.earn()
	c := s.candidates(replicas, t)
	answers := make(chan attempt, ReadHoldersMax)
	patience := time.NewTimer(time.Hour)
	defer patience.Stop()
	pending := 0
	ask := func(b overlay.BrickRef) {
		pending++
		patience.Reset(s.health.patience(b, t.kind, s.cfg.ReadTimeout/2))
		s.ask(ctx, b, t.kind, get, answers)
	}
	for {
		if pending == 0 {
			b, ok := c.next(ctx, false)
			if !ok {
				return t.verdict(ctx)
			}
			ask(b)
		}
		select {
		case a := <-answers:
			pending--
			if a.err == nil {
				a.err = accept(a.data)
			}
			s.stats.read(a.brick, len(a.data), a.err)
			if a.err == nil {
				s.won(c, a.brick, get)
				return nil
			}
			t.failed(a.brick, a.err)
			if b, ok := c.next(ctx, false); ok {
				ask(b)
			}
		case <-patience.C:
			if !c.more() || !s.health.spend() {
				continue
			}
			if b, ok := c.next(ctx, true); ok {
				c.hedged = append(c.hedged, b)
				s.stats.hedges.Add(1)
				ask(b)
			}
		case <-ctx.Done():
			return t.verdict(ctx)
		}
	}
}

// ask reads from a brick in the background.
func (s *Store) ask(ctx context.Context, b overlay.BrickRef, kind pulseKind, get fetch, answers chan<- attempt) {
	if b.Node != s.self && s.cfg.View.State(b.Node) == overlay.Down && !s.cfg.Transport.Connected(b.Node) {
		answers <- attempt{b, nil, fault.Newf(fault.Unavailable, "dht.read", b.Brick.Short(), "node %s is down", b.Node.Short())}
		return
	}
	go func() {
		data, err := s.timed(ctx, b, kind, get)
		if fault.Is(err, fault.Timeout) && ctx.Err() == nil {
			err = fault.Newf(fault.Unavailable, "dht.read", b.Brick.Short(), "no answer within %v", s.cfg.ReadTimeout)
		}
		answers <- attempt{b, data, err}
	}()
}

// timed reads from a brick and remembers how long that takes. A disk of this
// node is timed by readHere, to the end, also when nobody waits any more.
func (s *Store) timed(ctx context.Context, b overlay.BrickRef, kind pulseKind, get fetch) ([]byte, error) {
	if b.Node != s.self {
		end := s.health.begin(b, kind)
		data, err := get(ctx, b)
		end(err)
		return data, err
	}
	start := time.Now()
	data, err := get(ctx, b)
	if fault.Is(err, fault.Timeout) {
		s.health.noAnswer(b, kind, time.Since(start))
	}
	return data, err
}

// won counts who won, and sees to it that a brick that was passed over because
// it is slow is asked now and then whether it still is.
func (s *Store) won(c *candidates, b overlay.BrickRef, get fetch) {
	if slices.Contains(c.hedged, b) {
		s.stats.hedgesWon.Add(1)
	}
	for _, b := range c.slow {
		if slices.Contains(c.t.tried, b) || !s.health.probe(b, c.t.kind, s.cfg.ProbeEvery) {
			continue
		}
		s.stats.probes.Add(1)
		s.spawn(func() {
			ctx, cancel := context.WithTimeout(s.ctx, s.cfg.ReadTimeout)
			defer cancel()
			_, _ = s.timed(ctx, b, c.t.kind, get) // only how long it takes matters
		})
	}
}

// candidates are the bricks to ask for one extent, in order: those of this node
// that have it, the first of its lane, the rest of it, everybody else: the lane
// may have been given to other bricks since the extent was put, and its data not
// have followed yet. The next group is looked at when it is needed.
type candidates struct {
	s        *Store
	t        *tries
	replicas int
	group    int
	queue    []overlay.BrickRef
	slow     []overlay.BrickRef // of those that should have it
	hedged   []overlay.BrickRef
}

func (s *Store) candidates(replicas int, t *tries) *candidates {
	return &candidates{s: s, t: t, replicas: replicas}
}

// holderGroups are the groups that should have the extent: only they are worth
// asking a second time.
const holderGroups = 3

func (c *candidates) fill() bool {
	s := c.s
	lane := s.lane(c.t.addr)
	n := min(max(c.replicas, 0), len(lane))
	switch c.group {
	case 0:
		slow := s.health.slow(lane[:n])
		for _, b := range lane[:n] {
			if slow[b] {
				c.slow = append(c.slow, b)
			}
		}
		for _, l := range *s.local.Load() {
			if _, ok := l.StatExtent(c.t.addr); ok && !slow[l.ref] && !s.health.isSlow(l.ref) {
				c.queue = append(c.queue, l.ref)
			}
		}
	case 1:
		c.queue = s.byLiveness(lane[:n])
	case 2:
		c.queue = s.byLiveness(lane[n:])
	case 3:
		c.queue = s.byLiveness(s.allBricks())
	default:
		return false
	}
	c.group++
	return true
}

// next returns a brick that was not tried yet. hedge: only one that should have
// the extent.
func (c *candidates) next(ctx context.Context, hedge bool) (b overlay.BrickRef, ok bool) {
	for ctx.Err() == nil && c.t.count < ReadHoldersMax {
		if len(c.queue) == 0 {
			if hedge && c.group >= holderGroups || !c.fill() {
				return b, false
			}
			continue
		}
		b, c.queue = c.queue[0], c.queue[1:]
		if slices.Contains(c.t.tried, b) {
			continue
		}
		c.t.tried = append(c.t.tried, b)
		c.t.count++
		return b, true
	}
	return b, false
}

// more tells whether next(hedge) may have another one.
func (c *candidates) more() bool { return len(c.queue) > 0 || c.group < holderGroups }

package edge

import "sync"

// Budget hands out bytes that all connections share, first come, first served.
// It is a leaf: it calls nothing, so it may be used under any lock.
type Budget struct {
	mu    sync.Mutex
	free  int64
	queue []*claim
}

type claim struct {
	n  int64
	ok chan struct{} // closed when the bytes are the claimant's
}

// NewBudget returns a budget of n bytes.
func NewBudget(n int64) *Budget { return &Budget{free: n} }

// Try takes n bytes if nobody waits and they are there.
func (b *Budget) Try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

// Acquire waits for n bytes until stop is closed and reports whether it got
// them. n must not exceed the whole.
func (b *Budget) Acquire(n int64, stop <-chan struct{}) bool {
	b.mu.Lock()
	c := &claim{n: n, ok: make(chan struct{})}
	b.queue = append(b.queue, c)
	b.serve()
	b.mu.Unlock()
	select {
	case <-c.ok:
		return true
	case <-stop:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, q := range b.queue {
		if q == c {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			b.serve() // those behind may fit
			return false
		}
	}
	return true // served at the same moment
}

// Release gives n bytes back.
func (b *Budget) Release(n int64) {
	b.mu.Lock()
	b.free += n
	b.serve()
	b.mu.Unlock()
}

func (b *Budget) serve() {
	for len(b.queue) > 0 && b.queue[0].n <= b.free {
		b.free -= b.queue[0].n
		close(b.queue[0].ok)
		b.queue[0] = nil
		b.queue = b.queue[1:]
	}
}

// Share is what one connection took of a budget, beyond BytesFree, which each has
// for nothing. It is guarded by a lock of its owner.
type Share struct {
	budget  *Budget
	granted int64 // bytes
}

// NewShare returns a share of b that has taken nothing.
func NewShare(b *Budget) Share { return Share{budget: b} }

// grantStep is the unit of taking from the budget, in bytes.
const grantStep = 1 << 20

// Short is how many bytes must be taken for a connection that holds held: 0 if
// they are covered.
func (s *Share) Short(held int64) int64 {
	short := max(0, held-BytesFree-s.granted)
	return (short + grantStep - 1) / grantStep * grantStep
}

// Cover takes what is short, if it can be had without waiting.
func (s *Share) Cover(held int64) bool {
	short := s.Short(held)
	if short == 0 {
		return true
	}
	if !s.budget.Try(short) {
		return false
	}
	s.granted += short
	return true
}

// Grant adds n bytes that the owner has acquired.
func (s *Share) Grant(n int64) { s.granted += n }

// Shrink gives back what a connection that holds held needs no longer. Some is
// kept so that a busy connection does not come back for every request.
func (s *Share) Shrink(held int64) {
	if s.granted == 0 {
		return
	}
	need := max(0, held-BytesFree)
	if need > 0 {
		need += grantStep
	}
	if excess := s.granted - need; excess > 0 && (need == 0 || excess >= 4*grantStep) {
		s.granted -= excess
		s.budget.Release(excess)
	}
}

// Return gives everything back.
func (s *Share) Return() { s.Shrink(0) }

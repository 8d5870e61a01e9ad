package nbd

import "sync"

// budget hands out bytes that all connections share, first come, first served.
// It is a leaf: it calls nothing, so it may be used under any lock.
type budget struct {
	mu    sync.Mutex
	free  int64
	queue []*claim
}

type claim struct {
	n  int64
	ok chan struct{} // closed when the bytes are the claimant's
}

// try takes n bytes if nobody waits and they are there.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

// acquire waits for n bytes until stop is closed and reports whether it got
// them. n must not exceed the whole.
func (b *budget) acquire(n int64, stop <-chan struct{}) bool {
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

// release gives n bytes back.
func (b *budget) release(n int64) {
	b.mu.Lock()
	b.free += n
	b.serve()
	b.mu.Unlock()
}

func (b *budget) serve() {
	for len(b.queue) > 0 && b.queue[0].n <= b.free {
		b.free -= b.queue[0].n
		close(b.queue[0].ok)
		b.queue[0] = nil
		b.queue = b.queue[1:]
	}
}

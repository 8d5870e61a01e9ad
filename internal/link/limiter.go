package link

import (
	"context"
	"sync"
)

// limiter is a weighted semaphore, first come first served. It bounds the
// calls that one connection has under way, by bytes.
type limiter struct {
	mu      sync.Mutex
	free    int64
	waiters []*limitWaiter
}

type limitWaiter struct {
	n     int64
	ready chan struct{}
}

// acquire takes n, waiting until ctx or gone ends. n must not exceed the
// limiter's size.
func (l *limiter) acquire(ctx context.Context, gone <-chan struct{}, n int64) bool {
	l.mu.Lock()
	if len(l.waiters) == 0 && l.free >= n {
		l.free -= n
		l.mu.Unlock()
		return true
	}
	w := &limitWaiter{n: n, ready: make(chan struct{})}
	l.waiters = append(l.waiters, w)
	l.mu.Unlock()
	select {
	case <-w.ready:
		return true
	case <-ctx.Done():
	case <-gone:
	}
	l.mu.Lock()
	for i, o := range l.waiters {
		if o == w {
			l.waiters = append(l.waiters[:i], l.waiters[i+1:]...)
			l.wake()
			l.mu.Unlock()
			return false
		}
	}
	l.mu.Unlock()
	l.release(n) // it was granted in the same moment
	return false
}

func (l *limiter) release(n int64) {
	l.mu.Lock()
	l.free += n
	l.wake()
	l.mu.Unlock()
}

func (l *limiter) wake() {
	for len(l.waiters) > 0 && l.waiters[0].n <= l.free {
		w := l.waiters[0]
		l.waiters = l.waiters[1:]
		l.free -= w.n
		close(w.ready)
	}
}

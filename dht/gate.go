package dht

import (
	"context"
	"sync"
)

// bytesGate bounds the bytes that are under way. Those who wait are served in
// order, so that a large request is not passed for ever by small ones.
type bytesGate struct {
	max int

	mu      sync.Mutex
	used    int
	waiting []*gateWaiter
}

type gateWaiter struct {
	n     int
	ready chan struct{}
}

func newBytesGate(max int) *bytesGate { return &bytesGate{max: max} }

// acquire takes n bytes, n <= max, or fails when ctx ends.
func (g *bytesGate) acquire(ctx context.Context, n int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	if len(g.waiting) == 0 && g.used+n <= g.max {
		g.used += n
		g.mu.Unlock()
		return nil
	}
	w := &gateWaiter{n: n, ready: make(chan struct{})}
	g.waiting = append(g.waiting, w)
	g.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, o := range g.waiting {
		if o == w {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			g.admit() // those behind may fit
			return ctx.Err()
		}
	}
	g.used -= n // it was admitted at the same moment
	g.admit()
	return ctx.Err()
}

func (g *bytesGate) release(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used -= n
	g.admit()
}

// admit lets waiters in, in order. mu is held.
func (g *bytesGate) admit() {
	for len(g.waiting) > 0 && g.used+g.waiting[0].n <= g.max {
		g.used += g.waiting[0].n
		close(g.waiting[0].ready)
		g.waiting = g.waiting[1:]
	}
}

// inFlight is the number of bytes under way.
func (g *bytesGate) inFlight() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used
}

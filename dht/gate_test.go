package dht

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestGateBoundsAndOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newBytesGate(10)
		ctx, cancel := context.WithCancel(context.Background())
		if err := g.acquire(ctx, 8); err != nil {
			t.Fatal(err)
		}
		var order []int
		var mu sync.Mutex
		wait := func(ctx context.Context, n int) {
			if g.acquire(ctx, n) == nil {
				mu.Lock()
				order = append(order, n)
				mu.Unlock()
			}
		}
		gone, leave := context.WithCancel(ctx)
		go wait(gone, 9)
		synctest.Wait()
		go wait(ctx, 5)
		synctest.Wait()
		go wait(ctx, 1) // would fit, but others came first
		synctest.Wait()
		if g.inFlight() != 8 || len(order) != 0 {
			t.Fatalf("%d in flight, %v let in", g.inFlight(), order)
		}
		leave() // the large one gives up; 8+5 is still too much
		synctest.Wait()
		if len(order) != 0 {
			t.Fatalf("%v let in", order)
		}
		g.release(8)
		synctest.Wait()
		if g.inFlight() != 6 || len(order) != 2 {
			t.Fatalf("%d in flight, %v let in", g.inFlight(), order)
		}
		cancel()
		if g.acquire(ctx, 1) == nil {
			t.Fatal("let in after the end of the context")
		}
	})
}

func TestGateNeverExceedsItsBound(t *testing.T) {
	g := newBytesGate(100)
	var used atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 500 {
				n := (i*31+k*17)%100 + 1
				if err := g.acquire(context.Background(), n); err != nil {
					t.Error(err)
				}
				if used.Add(int64(n)) > 100 {
					t.Error("over the bound")
				}
				used.Add(-int64(n))
				g.release(n)
			}
		})
	}
	wg.Wait()
	if g.inFlight() != 0 {
		t.Fatal(g.inFlight())
	}
}

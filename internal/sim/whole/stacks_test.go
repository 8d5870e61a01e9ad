package whole

import (
	"strings"
	"sync"
	"testing"
)

func waitHere(mu *sync.Mutex, done chan struct{}) {
	defer close(done)
	mu.Lock()
	defer mu.Unlock()
}

func TestStacksNameWhoWaits(t *testing.T) {
	var mu sync.Mutex
	mu.Lock()
	done := make(chan struct{})
	go waitHere(&mu, done)
	for !strings.Contains(stacks(), "sync.Mutex.Lock: internal/sim/whole.waitHere") {
		select {
		case <-t.Context().Done():
			t.Fatal(stacks())
		default:
		}
	}
	mu.Unlock()
	<-done
}

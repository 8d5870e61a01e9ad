package node

import (
	"context"
	"testing"
)

// A disk may break, or the pool let a node go, in the moment in which the node ends. What is begun
// for that is either waited for or not run. The race detector tells if the two meet.
func TestWorkBegunWhileANodeEnds(t *testing.T) {
	for range 200 {
		c := &Core{}
		c.ctx, c.cancel = context.WithCancel(context.Background())
		ended := false // what runs, runs before the end
		begun := make(chan struct{})
		go func() {
			defer close(begun)
			for range 4 {
				c.spawn(func() { _ = ended })
			}
		}()
		c.end()
		ended = true
		<-begun
	}
}

package blockdev

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// An opening that gets on is not given up, one that does not is, and none lasts for ever.
func TestPatience(t *testing.T) {
	const idle, most = 12 * time.Second, 10 * time.Minute
	for name, c := range map[string]struct {
		steps int // of idle-1s each, before nothing happens any more
		want  time.Duration
	}{
		"nothing happens":  {0, idle},
		"it gets on":       {10, 10*(idle-time.Second) + idle},
		"it goes on a lot": {1000, most},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				ctx, progress, cancel := patience(context.Background(), idle, most)
				defer cancel()
				for range c.steps {
					select {
					case <-time.After(idle - time.Second):
						progress()
					case <-ctx.Done():
					}
				}
				<-ctx.Done()
				if d := time.Since(began); d != c.want {
					t.Errorf("given up after %v, not %v", d, c.want)
				}
			})
		})
	}
}

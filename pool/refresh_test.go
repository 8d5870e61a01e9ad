package pool

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// A leader that is cut off takes its own state for the newest no longer; back in
// touch every node gets what the others decided meanwhile, and the asking itself
// changes nothing, also in the log that the next leader reads.
func TestRefresh(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		old := r.leader()
		r.net.Isolate(old.id)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := old.pool.Refresh(ctx); !fault.Is(err, fault.Indeterminate) && !fault.Is(err, fault.Unavailable) {
			t.Fatalf("a leader that is cut off refreshed its state: %v", err)
		}
		early := make(chan string, 1) // one under way when the leader is replaced
		go func() {
			err := old.pool.Refresh(context.Background())
			early <- fmt.Sprint(err, len(old.pool.State().Volumes))
		}()
		for _, nd := range r.nodes {
			if nd != old {
				if err := nd.create("v" + nd.id.Short()); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.net.Rejoin(old.id)
		if got := <-early; got != "<nil> 2" {
			t.Fatalf("error and volumes seen after a refresh that began before there were two: %s", got)
		}
		if err := old.pool.Refresh(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := len(old.pool.State().Volumes); n != 2 {
			t.Fatalf("%d volumes are seen after a refresh, of 2", n)
		}
		r.agree()
		version := old.pool.State().Version
		for _, nd := range r.nodes {
			if err := nd.pool.Refresh(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		r.leader().end()
		for _, nd := range r.live() {
			if err := nd.pool.Refresh(context.Background()); err != nil {
				t.Fatal(err)
			}
			if now := nd.pool.State().Version; now != version {
				t.Errorf("version %d was refreshed to %d", version, now)
			}
		}
	})
}

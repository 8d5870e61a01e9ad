// Package idle measures what a pool costs while nobody uses it.
package idle

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
)

const (
	volumes = 1000
	watch   = 10 * time.Second
	// coreShare bounds the processor time of one node with idle volumes.
	coreShare = 0.01
)

// A thousand idle volumes cost no messages and next to no processor time: a
// pool with them sends what a pool without them sends.
func TestIdlePool(t *testing.T) {
	c := cluster.New(t, 3)
	n := c.Nodes[0]
	rest(t, c)
	empty := measure(t, c, watch/2)
	t.Logf("no volumes: %v", empty)

	ctl := n.Control()
	defer ctl.Close()
	began := time.Now()
	work := make(chan int)
	errs := make(chan error, 16)
	for range cap(errs) {
		go func() {
			var first error
			for i := range work {
				ctx, cancel := context.WithTimeout(context.Background(), cluster.CallTimeout)
				_, err := ctl.CreateVolume(ctx, control.CreateVolume{Name: fmt.Sprintf("v%04d", i), SizeBytes: 1 << 30, Replicas: 3})
				cancel()
				if first == nil {
					first = err
				}
			}
			errs <- first
		}()
	}
	for i := range volumes {
		work <- i
	}
	close(work)
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d volumes made in %v", volumes, time.Since(began).Round(time.Millisecond))
	_, err := n.Await(30*time.Second, func(s *control.Status) error {
		if len(s.Volumes) != volumes {
			return fmt.Errorf("status lists %d volumes", len(s.Volumes))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rest(t, c)
	full := measure(t, c, watch)
	t.Logf("%d volumes: %v", volumes, full)
	for i := range full {
		if full[i].share > coreShare {
			t.Errorf("%s uses %.2f %% of a core with %d idle volumes", c.Nodes[i].Name, 100*full[i].share, volumes)
		}
		// Pings go on either way; their number wobbles by one in the time watched.
		if full[i].bytes > empty[i].bytes*1.2+200 {
			t.Errorf("%s writes %.0f bytes/s with %d idle volumes, %.0f without",
				c.Nodes[i].Name, full[i].bytes, volumes, empty[i].bytes)
		}
	}
}

// rest waits until what creation left to do in the background is done: two
// seconds in a row in which no node uses more than a fiftieth of a core.
func rest(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	quiet := 0
	for end := time.Now().Add(60 * time.Second); quiet < 2; {
		quiet++
		for _, cost := range measure(t, c, time.Second) {
			if cost.share > 0.02 {
				quiet = 0
			}
		}
		if time.Now().After(end) {
			t.Fatal("the pool does not come to rest")
		}
	}
}

// cost of one node per second of watching.
type cost struct {
	share float64 // of a core
	bytes float64 // written by system calls per second: sockets, files
}

func (c cost) String() string {
	return fmt.Sprintf("%.2f %% of a core, %.0f bytes/s", 100*c.share, c.bytes)
}

func measure(t *testing.T, c *cluster.Cluster, d time.Duration) []cost {
	t.Helper()
	cpu := make([]time.Duration, len(c.Nodes))
	out := make([]int64, len(c.Nodes))
	look := func(sign int64) {
		for i, n := range c.Nodes {
			used, err := cluster.CPU(n.PID())
			if err != nil {
				t.Fatal(err)
			}
			cpu[i] += time.Duration(sign) * used
			out[i] += sign * written(t, n.PID())
		}
	}
	began := time.Now()
	look(-1)
	<-time.After(d) // the time watched is the measurement itself
	look(1)
	took := time.Since(began).Seconds()
	costs := make([]cost, len(c.Nodes))
	for i := range costs {
		costs[i] = cost{share: cpu[i].Seconds() / took, bytes: float64(out[i]) / took}
	}
	return costs
}

// written is how many bytes the process gave to write calls of any kind.
func written(t *testing.T, pid int) (n int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		fmt.Sscanf(l, "wchar: %d", &n)
	}
	return n
}

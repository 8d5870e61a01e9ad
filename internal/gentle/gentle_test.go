package gentle

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// priority of the calling thread, as a nice value. The system call gives 20 less it.
func niceness(t *testing.T) int {
	t.Helper()
	p, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
	if err != nil {
		t.Fatal(err)
	}
	return 20 - p
}

func TestRunsAtLowPriority(t *testing.T) {
	before := niceness(t)
	for range 3 { // a new thread, then one that was there
		in := before
		Run(func() { in = niceness(t) })
		if in != max(before, Nice) {
			t.Fatalf("nice value %d, of the process %d", in, before)
		}
	}
	// A thread that was lowered never runs other goroutines.
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if n := niceness(t); n != before {
				t.Errorf("a usual goroutine runs with nice value %d", n)
			}
		})
	}
	all.Wait()
}

func TestRunsAtOnceAndNested(t *testing.T) {
	const n = ThreadsMax + 20 // some run in place
	var all, here sync.WaitGroup
	here.Add(n)
	for range n {
		all.Go(func() {
			Run(func() {
				here.Done()
				here.Wait() // all of them are running
				Run(func() {})
				if k := threads.Load(); k > ThreadsMax {
					t.Errorf("%d threads", k)
				}
			})
		})
	}
	all.Wait()
}

func BenchmarkRun(b *testing.B) {
	for b.Loop() {
		Run(func() {})
	}
}

package gentle

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// priority of the calling thread: its nice value, and the turn it asks for.
func priority(t *testing.T) (nice int, slice uint64) {
	t.Helper()
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return int(a.Nice), a.Runtime
}

func TestRunsAtLowPriority(t *testing.T) {
	before, slice := priority(t)
	want := before
	if permitted() {
		want = max(before, Nice)
	}
	check := func(want int) {
		t.Helper()
		if n, _ := priority(t); n != want {
			t.Fatalf("nice value %d, not %d, of the process %d", n, want, before)
		}
	}
	for range 3 {
		Run(func() {
			check(want)
			Run(func() { check(want) })
			check(want)
		})
		check(before)
		if _, s := priority(t); s != slice {
			t.Fatalf("a turn of %d ns instead of %d", s, slice)
		}
	}
}

// A thread that is low runs nothing else: neither when what it runs waits, nor when the kernel
// does not let it rise again.
func TestOthersRunAsUsual(t *testing.T) {
	before, _ := priority(t)
	if !permitted() {
		t.Logf("without CAP_SYS_NICE nothing is run gently; nice value %d", before)
	}
	end := make(chan struct{})
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			runtime.LockOSThread()
			if i%2 == 0 {
				drop(t)
			}
			Run(func() { <-end })
			runtime.UnlockOSThread()
		})
	}
	usual := func(n int) {
		var some sync.WaitGroup
		for range n {
			some.Go(func() {
				if n, _ := priority(t); n != before {
					t.Errorf("a usual goroutine runs with nice value %d", n)
				}
			})
		}
		some.Wait()
	}
	usual(50)
	close(end)
	all.Wait()
	usual(50)
}

// drop takes from the calling thread alone what it needs to raise its priority.
func drop(t *testing.T) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		t.Error(err)
	}
	d[0].Effective &^= 1 << unix.CAP_SYS_NICE
	if err := unix.Capset(&h, &d[0]); err != nil {
		t.Error(err)
	}
}

func BenchmarkRun(b *testing.B) {
	for b.Loop() {
		Run(func() {})
	}
}

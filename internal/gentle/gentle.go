// Package gentle runs work that nobody waits for, such as repair, where it is in nobody's
// way: on a thread of low priority. A goroutine has no priority of its own, and a core that
// hashes and encrypts a megabyte for a new copy is a core that a flush waits for.
package gentle

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Nice is the nice value of a thread while it runs such work. Where all cores are busy, it
	// still gets a tenth of what others get, so that redundancy comes back in the end.
	Nice = 10
	// Slice is how long a turn on a core it asks of the kernel: the longest there is. Since
	// Linux 6.12 a thread that wakes up takes the core at once from one that asked for a longer turn, but waits for
	// the end of the turn of any other, whatever their nice values. Older kernels go by the nice value.
	Slice = 100 * time.Millisecond
)

// Run runs f on this goroutine, and its thread gives way to all others meanwhile. It is for
// work that computes or is in the kernel: whenever f waits for another goroutine, that costs a switch
// of threads. f may call Run. A process that may not raise the priority of a thread again (it needs
// CAP_SYS_NICE, or a limit RLIMIT_NICE as high as its own priority) runs f with the usual one.
func Run(f func()) {
	if !permitted() {
		f()
		return
	}
	runtime.LockOSThread()
	usual, err := lower()
	if err != nil {
		runtime.UnlockOSThread()
		f()
		return
	}
	defer func() {
		// A thread that stays low must not run other goroutines: it is left locked, and so ends with this one.
		if unix.SchedSetAttr(0, usual, 0) == nil {
			runtime.UnlockOSThread()
		}
	}()
	f()
}

// lower lowers the priority of this thread and tells what it was.
func lower() (usual *unix.SchedAttr, err error) {
	if usual, err = unix.SchedGetAttr(0, 0); err != nil {
		return nil, err
	}
	low := *usual
	low.Nice, low.Runtime = max(usual.Nice, Nice), uint64(Slice)
	return usual, unix.SchedSetAttr(0, &low, 0)
}

// permitted tells whether the kernel lets a thread have its priority back: it is tried once,
// on a thread that ends with that.
var permitted = sync.OnceValue(func() bool {
	done := make(chan bool)
	go func() {
		runtime.LockOSThread()
		usual, err := lower()
		done <- err == nil && unix.SchedSetAttr(0, usual, 0) == nil
	}()
	return <-done
})

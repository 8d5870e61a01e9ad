// Package gentle runs work that nobody waits for, such as repair, where it is in nobody's
// way: on threads of low priority. A goroutine has no priority of its own, and a core that
// hashes and encrypts a megabyte for a new copy is a core that a flush waits for.
package gentle

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Nice is the nice value of the threads. A thread that wakes up takes the core from one of
	// these at once; where all cores are busy, these still get a tenth of what others get, so that
	// redundancy comes back in the end.
	Nice = 10
	// ThreadsMax bounds the threads, the sleeping ones included.
	ThreadsMax = 64
	// idleMax is how long a thread without work stays.
	idleMax = 5 * time.Second
)

var (
	work    = make(chan func())
	threads atomic.Int64
)

// Run runs f on a thread of low priority and returns when f has. It never waits for a
// thread: beyond ThreadsMax, f runs where Run was called, with the usual priority, as it does where the
// kernel forbids to lower one. So f may call Run, and wait for what others run.
func Run(f func()) {
	done := make(chan struct{})
	job := func() { defer close(done); f() }
	select {
	case work <- job:
	default:
		if !another() {
			f()
			return
		}
		go worker(job)
	}
	<-done
}

// another counts one more thread, if there may be one.
func another() bool {
	for n := threads.Load(); n < ThreadsMax; n = threads.Load() {
		if threads.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// worker has a thread to itself until it ends, and the thread with it: whoever may lower
// a priority may not raise it again.
func worker(job func()) {
	defer threads.Add(-1)
	runtime.LockOSThread()
	// Best effort: it tells how soon, not whether.
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), Nice)
	idle := time.NewTimer(idleMax)
	defer idle.Stop()
	for {
		job()
		idle.Reset(idleMax)
		select {
		case job = <-work:
		case <-idle.C:
			return
		}
	}
}

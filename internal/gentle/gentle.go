// Package gentle runs work that nobody waits for, such as repair, where it is in nobody's
// way: on threads of low priority. A goroutine has no priority of its own, and a core that
// hashes and encrypts a megabyte for a new copy is a core that a flush waits for.
package gentle

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Nice is the nice value of the threads. A thread that wakes up takes the core from one of
	// these at once; where all cores are busy, these still get a tenth of what others get, so that
	// redundancy comes back in the end.
	Nice = 10
	// idleMax is how long a thread without work stays.
	idleMax = 5 * time.Second
)

var work = make(chan func())

// Run runs f on a thread of low priority and returns when f has. As many run at once as
// are asked for: the caller bounds them. f may call Run. Where the kernel forbids it to lower a priority
// (it does not, as a rule), f runs with the usual one.
func Run(f func()) {
	done := make(chan struct{})
	job := func() { defer close(done); f() }
	select {
	case work <- job:
	default:
		go worker(job)
	}
	<-done
}

// worker has a thread to itself until it ends, and the thread with it: whoever may lower
// a priority may not raise it again.
func worker(job func()) {
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

package attach

import (
	"log/slog"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// prSetIOFlusher is PR_SET_IO_FLUSHER of linux/prctl.h: memory that this
	// process asks for is not got by writing dirty pages, which may be its own to
	// write.
	prSetIOFlusher = 57
	mclOnFault     = 4 // MCL_ONFAULT
	flusherEnv     = "GABION_IO_FLUSHER"
)

// BecomeFlusher restarts the program as one that the kernel's memory management
// does not wait for. The property belongs to a thread and is inherited over
// exec, so that all threads have it afterwards. Without the right to it, it
// returns. It must be called before anything else is begun.
func BecomeFlusher() {
	if os.Getenv(flusherEnv) != "" {
		return
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(prSetIOFlusher, 1, 0, 0, 0) == nil {
		_ = unix.Exec(self, os.Args, append(os.Environ(), flusherEnv+"=1"))
	}
}

// harden keeps the process from being killed or paged out for want of memory:
// what the memory waits for is that this process writes.
func harden(log *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		log.Warn("the process may be killed when memory runs out", "error", err)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | mclOnFault); err != nil {
		log.Warn("the process may be paged out", "error", err)
	}
}

package targettest

import (
	"syscall"
	"testing"
	"time"
)

// CPU is the CPU time that this process has used.
func CPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ReportCPU measures f, which does b.N operations, and reports its allocations
// and, as cpu-ns/op, the CPU time of the process: that hardly depends on what else
// the machine does.
func ReportCPU(b *testing.B, f func()) {
	b.ReportAllocs()
	b.ResetTimer()
	before := CPU()
	f()
	b.ReportMetric(float64(CPU()-before)/float64(b.N), "cpu-ns/op")
}

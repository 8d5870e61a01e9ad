//go:build speed

package nbd_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/targettest"
)

// TestSpeedBesideNbdkit prints 4 KiB random I/O rates of the server on a device
// in memory and of "nbdkit memory", in turns, with the CPU time that each
// server used for an operation. It asserts nothing, since other load decides too
// much, and is built with -tags speed only.
func TestSpeedBesideNbdkit(t *testing.T) {
	need(t, "nbdkit", "fio")
	mem := targettest.NewMemory(256<<20, 4096)
	slow := targettest.NewMemory(256<<20, 4096)
	slow.Delay = time.Millisecond
	var e targettest.Exports
	e.Add("mem", mem)
	e.Add("slow", slow)
	_, addr := start(t, &e, nil)
	kit, kitPid := startNbdkit(t)
	own := cpuOf(t, os.Getpid())
	for _, job := range []struct {
		rw    string
		depth int
	}{{"randread", 1}, {"randread", 32}, {"randwrite", 1}, {"randwrite", 32}} {
		for range 3 {
			a := fio(t, "nbd://"+addr+"/mem", job.rw, job.depth, own)
			b := fio(t, "nbd://"+kit, job.rw, job.depth, cpuOf(t, kitPid))
			t.Logf("%-9s depth %2d: gabion %6.0f/s %5.1f us, nbdkit %6.0f/s %5.1f us, ratio %.2f",
				job.rw, job.depth, a.rate, a.cpu, b.rate, b.cpu, a.rate/b.rate)
		}
	}
	for _, rw := range []string{"randread", "randwrite"} {
		a := fio(t, "nbd://"+addr+"/slow", rw, 32, own)
		t.Logf("%-9s depth 32, 1 ms device: gabion %6.0f/s %5.1f us", rw, a.rate, a.cpu)
	}
}

type speed struct{ rate, cpu float64 } // operations a second, us of server CPU each

func fio(t *testing.T, uri, rw string, depth int, cpu func() time.Duration) speed {
	t.Helper()
	before := cpu()
	out, err := exec.Command("fio", "--name=x", "--ioengine=nbd", "--uri="+uri, "--rw="+rw, "--bs=4k",
		"--iodepth="+strconv.Itoa(depth), "--size=256M", "--time_based", "--runtime=2",
		"--norandommap", "--randrepeat=0", "--output-format=json").Output()
	if err != nil {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	used := cpu() - before
	var r struct {
		Jobs []struct {
			Read, Write struct {
				IOPS  float64 `json:"iops"`
				Total float64 `json:"total_ios"`
			}
		}
	}
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:]
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	j := r.Jobs[0]
	n := j.Read.Total + j.Write.Total
	return speed{j.Read.IOPS + j.Write.IOPS, float64(used.Microseconds()) / n}
}

// cpuOf returns a function that reads the CPU time of a process.
func cpuOf(t *testing.T, pid int) func() time.Duration {
	return func() time.Duration {
		if pid == os.Getpid() {
			var u syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &u)
			return time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		sys, _ := strconv.Atoi(f[12])
		return time.Duration(user+sys) * 10 * time.Millisecond
	}
}

// startNbdkit serves memory and returns its address and process id.
func startNbdkit(t *testing.T) (string, int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	pidFile := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command("nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "-P", pidFile, "memory", "256M")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	until(t, "nbdkit listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr, cmd.Process.Pid
}

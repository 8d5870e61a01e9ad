package fuse_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/attach/fuse"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/targettest"
)

func need(t *testing.T) {
	t.Helper()
	if err := fuse.Available(); err != nil {
		t.Skip("not here: ", err)
	}
}

func attach(t *testing.T, d *targettest.Memory) *fuse.Loop {
	t.Helper()
	need(t)
	l, err := fuse.Attach(d, filepath.Join(t.TempDir(), "v.fuse"), "v")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// What a loop device on the file does reaches the device: data, flushes, holes.
func TestLoopDevice(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		mem := targettest.NewMemory(64<<20, bs)
		l := attach(t, mem)
		f, err := os.OpenFile(l.Path(), os.O_RDWR|unix.O_EXCL, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := f.Seek(0, 2); err != nil || n != 64<<20 {
			t.Errorf("%d bytes: %v", n, err)
		}
		if got, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err != nil || got != bs {
			t.Errorf("sectors of %d bytes, not %d: %v", got, bs, err)
		}
		p := bytes.Repeat([]byte("gabion.."), 1<<18) // 2 MiB
		if _, err := f.WriteAt(p, 1<<20); err != nil {
			t.Fatal(err)
		}
		flushes := mem.Flushes()
		if err := f.Sync(); err != nil || mem.Flushes() == flushes {
			t.Errorf("%d flushes: %v", mem.Flushes()-flushes, err)
		}
		if got, _ := targettest.Read(mem, 1<<20, len(p)); !bytes.Equal(got, p) {
			t.Error("the device does not have what was written")
		}
		f.Close()
		if out, err := exec.Command("blkdiscard", "-o", "1048576", "-l", "1048576", l.Path()).CombinedOutput(); err != nil {
			t.Errorf("blkdiscard: %v %s", err, out)
		}
		if out, err := exec.Command("blkdiscard", "-z", "-o", "2097152", "-l", "65536", l.Path()).CombinedOutput(); err != nil {
			t.Errorf("blkdiscard -z: %v %s", err, out)
		}
		got, _ := targettest.Read(mem, 1<<20, len(p))
		if !bytes.Equal(got[:1<<20+65536], make([]byte, 1<<20+65536)) || !bytes.Equal(got[1<<20+65536:], p[1<<20+65536:]) {
			t.Error("the discarded range, and only that, is zero")
		}
		if err := l.Detach(); err != nil {
			t.Fatal(err)
		}
		if mem.Closed() != 0 {
			t.Error("the device is the caller's to close")
		}
	}
}

// Requests of the loop device are under way side by side, in both directions.
func TestRequestsGoSideBySide(t *testing.T) {
	const each, workers, delay = 4, 32, 20 * time.Millisecond
	mem := targettest.NewMemory(64<<20, 4096)
	mem.Delay = delay
	l := attach(t, mem)
	defer l.Detach()
	f, err := os.OpenFile(l.Path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, op := range map[string]func([]byte, int64) (int, error){"writes": f.WriteAt, "reads": f.ReadAt} {
		began := time.Now()
		var wg sync.WaitGroup
		for i := range int64(workers) {
			wg.Go(func() {
				page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
				if err != nil {
					t.Error(err)
					return
				}
				defer unix.Munmap(page)
				for k := range int64(each) {
					if _, err := op(page, (i*each+k)*8192); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took > each*workers*delay/2 {
			t.Errorf("%s took %v: one after the other", name, took)
		}
	}
}

// Failures of the device are failures of the file.
func TestErrorsReachTheLoopDevice(t *testing.T) {
	mem := targettest.NewMemory(1<<20, 4096)
	var fail atomic.Bool
	mem.Fail = func(op string, _ int64, _ int) error {
		if fail.Load() && op != "read" {
			return fault.Newf(fault.NoSpace, "volume", "v", "full")
		}
		return nil
	}
	l := attach(t, mem)
	defer l.Detach()
	f, err := os.OpenFile(l.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fail.Store(true)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err == nil && f.Sync() == nil {
		t.Error("a write that failed was flushed")
	}
	fail.Store(false)
}

// A read-only device makes a read-only loop device.
func TestReadOnlyDevice(t *testing.T) {
	l := attach(t, targettest.NewReadOnly(1<<20, 4096))
	defer l.Detach()
	f, err := os.OpenFile(l.Path(), os.O_RDWR, 0)
	if err == nil {
		if _, err = f.WriteAt(make([]byte, 4096), 0); err == nil {
			err = f.Sync()
		}
		f.Close()
	}
	if err == nil {
		t.Error("it can be written to")
	}
}

// What a process left that died is cleaned up by the next.
func TestCleanAfterADeadProcess(t *testing.T) {
	mem := targettest.NewMemory(1<<20, 4096)
	need(t)
	dir := filepath.Join(t.TempDir(), "v.fuse")
	l, err := fuse.Attach(mem, dir, "v")
	if err != nil {
		t.Fatal(err)
	}
	fuse.Clean(dir, l.Path())
	if _, err := os.Stat("/sys/block/" + filepath.Base(l.Path()) + "/loop/backing_file"); err == nil {
		t.Error("the loop device is still there")
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the mount is still there")
	}
}

// A device that grew is seen larger by whoever has it open, and its new part is
// as good as the old one.
func TestLoopDeviceGrows(t *testing.T) {
	const was, is = 64 << 20, 96 << 20
	mem := targettest.NewMemory(was, 4096)
	l := attach(t, mem)
	defer l.Detach()
	f, err := os.OpenFile(l.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.Seek(0, 2); err != nil || n != was {
		t.Fatalf("%d bytes: %v", n, err)
	}
	if err := l.Grow(is); err == nil {
		t.Error("it grew without the device under it")
	}
	mem.Grow(is)
	if err := l.Grow(is); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Seek(0, 2); err != nil || n != is {
		t.Fatalf("%d bytes after growing: %v", n, err)
	}
	p := bytes.Repeat([]byte("gabion.."), 512)
	if _, err := f.WriteAt(p, is-int64(len(p))); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if got, _ := targettest.Read(mem, is-int64(len(p)), len(p)); !bytes.Equal(got, p) {
		t.Error("the end of the device does not have what was written there")
	}
}

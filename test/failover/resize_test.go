package failover

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/test/cluster"
)

// A volume that grows under a mounted file system: the device grows with it
// while writers go on, the file system is made to fill it, and the new part
// outlives the node that served when it came, like the old one. xfs, for ext4 is
// made larger only with a right that not every container has; the virtual machine
// does that.
func TestResizeUnderAMountedFileSystem(t *testing.T) {
	cluster.Need(t, true, "mkfs.xfs", "xfs_growfs", "xfs_repair", "fallocate", "mount")
	const was, is = 512 << 20, 768 << 20
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "512M", "--replicas", "3")
	a := mountAs(t, c, c.Nodes[0], "v", "xfs")
	if n := deviceSize(t, a); n != was {
		t.Fatalf("the device has %d bytes", n)
	}
	l := startLedger(t, a)
	l.gauge.more(t, 20)

	l.gauge.reset()
	began := time.Now()
	if _, err := c.Nodes[1].Do("volume", "resize", "v", "--size", "768M"); err != nil {
		t.Fatal(err)
	}
	for end := began.Add(patience); deviceSize(t, a) != is; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the device still has %d bytes", deviceSize(t, a))
		}
	}
	took := time.Since(began)
	run(t, "xfs_growfs", a.Path)
	pause := l.gauge.more(t, 20)
	t.Logf("the device had its new size after %v; a writer waited %v at most", took.Round(time.Millisecond), pause.Round(time.Millisecond))
	if pause > pauseMax/2 {
		t.Errorf("a write took %v", pause)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(a.Path, &fs); err != nil || int64(fs.Blocks)*fs.Bsize < is*8/10 {
		t.Fatalf("the file system has %d bytes: %v", int64(fs.Blocks)*fs.Bsize, err)
	}

	// With the old part taken, there is room in the new one alone.
	run(t, "fallocate", "-l", "480M", filepath.Join(a.Path, "filler"))
	big, name := bytes.Repeat([]byte("gabion.."), 4<<20), filepath.Join(a.Path, "big")
	if err := os.WriteFile(name, big, 0o600); err != nil {
		t.Fatal(err)
	}
	killed(t, a)
	l.gauge.more(t, 20)
	l.stop(t)
	run(t, "umount", a.Path)
	run(t, "mount", a.Link, a.Path)
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, big) {
		t.Errorf("the file is another one: %v", err)
	}
	i, err := a.look()
	if err != nil || i.SizeBytes != is {
		t.Errorf("--list says %d bytes: %v", i.SizeBytes, err)
	}
	a.finish(t)
}

// deviceSize asks the kernel.
func deviceSize(t *testing.T, a *attached) int64 {
	t.Helper()
	f, err := os.Open(a.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

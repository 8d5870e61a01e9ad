package conform

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/gabion-storage/gabion/test/cluster"
)

// TestIncrementalBackup is docs/NBD.md's backup with stock tools only: a full
// copy of a snapshot, changes, the map of what changed, a copy of that alone.
// What is restored must equal the second snapshot byte for byte.
func TestIncrementalBackup(t *testing.T) {
	cluster.Need(t, false, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio")
	n, uri := volumes(t, "64M", "db")
	do := func(args ...string) {
		t.Helper()
		if _, err := n.Do(args...); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	backup := filepath.Join(dir, "backup.raw")
	work := func(seed string) {
		t.Helper()
		tool(t, "fio", "--name=w", "--ioengine=nbd", "--uri="+uri("db"), "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k", "--size=64M",
			"--io_size=2M", "--randseed="+seed, "--refill_buffers", "--verify_state_save=0")
	}

	// Monday: everything.
	work("1")
	do("volume", "snapshot", "create", "db", "mon")
	tool(t, "nbdcopy", uri("db@mon"), backup)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", backup, uri("db@mon"))

	// Tuesday: what changed, and only that.
	work("2")
	tool(t, "qemu-io", "-f", "raw", "-c", "discard 8M 4M", "-c", "write -z 20M 1M", "-c", "flush", uri("db"))
	do("volume", "snapshot", "create", "db", "tue")
	work("3") // after the snapshot: in nobody's backup
	dirty := nbdMap(t, uri("db@tue"), "gabion:dirty:mon")
	copied := int64(0)
	in, err := os.OpenFile(backup, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for _, e := range dirty {
		if e.Type&1 == 0 {
			continue
		}
		copied += e.Length
		part := filepath.Join(dir, "part")
		tool(t, "qemu-img", "dd", "-U", "-f", "raw", "-O", "raw", "bs=4096", fmt.Sprint("skip=", e.Offset/4096),
			fmt.Sprint("count=", (e.Offset+e.Length)/4096), "if="+uri("db@tue"), "of="+part)
		b, err := os.ReadFile(part)
		if err != nil || int64(len(b)) != e.Length {
			t.Fatalf("the part at %d has %d bytes, not %d: %v", e.Offset, len(b), e.Length, err)
		}
		if _, err := in.WriteAt(b, e.Offset); err != nil {
			t.Fatal(err)
		}
	}
	if copied == 0 || copied > 24<<20 {
		t.Errorf("%d bytes of 64 MiB were copied", copied)
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", backup, uri("db@tue"))

	// The same map under the name that QEMU asks for.
	host, port, _ := net.SplitHostPort(n.Info.NBD)
	out := tool(t, "qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,host="+host+",port="+port+",export=db@tue,x-dirty-bitmap=qemu:dirty-bitmap:mon")
	var m []qemuExtent
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		t.Fatal(err)
	}
	seen := int64(0)
	for _, e := range m {
		if !e.Data { // QEMU's way to show a dirty stretch
			seen += e.Length
		}
	}
	if seen != copied {
		t.Errorf("qemu-img sees %d dirty bytes, nbdinfo %d", seen, copied)
	}

	// Restored, it is Tuesday's volume.
	do("volume", "create", "restored", "--size", "64M", "--replicas", "1")
	tool(t, "nbdcopy", "--flush", backup, uri("restored"))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri("restored"), uri("db@tue"))
	if out, err := try("qemu-io", "-f", "raw", "-c", "write 0 4k", uri("db@tue")); err == nil {
		t.Error("a snapshot was written to: ", out)
	}
}

package conform

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// volumes starts one node with volumes of one copy.
func volumes(t *testing.T, size string, names ...string) (*cluster.Node, func(export string) string) {
	t.Helper()
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	for _, v := range names {
		c.CreateVolume(t, n, v, size, "--replicas", "1")
	}
	return n, func(export string) string { return "nbd://" + n.Info.NBD + "/" + export }
}

// sparse makes a raw image of 64 MiB that has data in two places.
func sparse(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 3M", "-c", "write -P 0xa5 40M 1M", file)
	return file
}

// allocated is what a file takes on its disk, in bytes.
func allocated(t *testing.T, file string) int64 {
	t.Helper()
	var s syscall.Stat_t
	if err := syscall.Stat(file, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}

type nbdExtent struct {
	Offset, Length int64
	Type           uint32
}

// nbdMap is what nbdinfo tells of a context.
func nbdMap(t *testing.T, uri, context string) (all []nbdExtent) {
	t.Helper()
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", "--map="+context, uri)), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

type qemuExtent struct {
	Start, Length int64
	Data, Zero    bool
}

// TestHolesSurvive copies a sparse image in and out by every tool, with its
// holes kept, and asks each for the map.
func TestHolesSurvive(t *testing.T) {
	cluster.Need(t, false, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io")
	_, uri := volumes(t, "64M", "a", "b", "c")
	file := sparse(t)
	want := fmt.Sprint([]nbdExtent{{0, 1 << 20, 3}, {1 << 20, 3 << 20, 0}, {4 << 20, 36 << 20, 3}, {40 << 20, 1 << 20, 0}, {41 << 20, 23 << 20, 3}})
	check := func(what, export string) {
		t.Helper()
		if got := fmt.Sprint(nbdMap(t, uri(export), "base:allocation")); got != want {
			t.Errorf("%s: the map is %s, not %s", what, got, want)
		}
		var m []qemuExtent
		if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", "-f", "raw", uri(export))), &m); err != nil {
			t.Fatal(err)
		}
		data := int64(0)
		for _, e := range m {
			if e.Data {
				data += e.Length
			}
			if e.Data == e.Zero {
				t.Errorf("%s: qemu-img map has %+v", what, e)
			}
		}
		if data != 4<<20 || len(m) != 5 {
			t.Errorf("%s: qemu-img map is %+v", what, m)
		}
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri(export))
	}
	tool(t, "nbdcopy", "--flush", file, uri("a"))
	check("nbdcopy from a file", "a")
	tool(t, "nbdcopy", "--flush", uri("a"), uri("b"))
	check("nbdcopy between volumes", "b")
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri("c"))
	check("qemu-img convert", "c")
	back := file + ".back"
	tool(t, "nbdcopy", uri("a"), back)
	tool(t, "cmp", file, back)
	if n := allocated(t, back); n > 5<<20 {
		t.Errorf("nbdcopy to a file: %d bytes take space", n)
	}
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri("b"), back+".qcow2")
	if n := allocated(t, back+".qcow2"); n > 6<<20 {
		t.Errorf("qemu-img convert to qcow2: %d bytes take space", n)
	}
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", back+".qcow2", uri("c"))

	// What is trimmed or zeroed is a hole again.
	tool(t, "qemu-io", "-f", "raw", "-c", "discard 1M 1M", "-c", "write -z 2M 1M", uri("a"))
	for _, e := range nbdMap(t, uri("a"), "base:allocation") {
		if e.Offset < 3<<20 && e.Offset+e.Length > 1<<20 && e.Type != 3 {
			t.Errorf("after TRIM and WRITE_ZEROES: %+v", e)
		}
	}
	if out := tool(t, "nbdinfo", "--map", "--totals", uri("a")); !strings.Contains(out, "hole,zero") {
		t.Error(out)
	}
}

// TestNbdfuse uses a volume as a file.
func TestNbdfuse(t *testing.T) {
	cluster.Need(t, true, "nbdfuse", "fusermount3", "dd", "cmp")
	_, uri := volumes(t, "16M", "v")
	dir := t.TempDir()
	cmd := exec.Command("nbdfuse", "-s", dir, uri("v"))
	if err := cluster.StartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { exec.Command("fusermount3", "-uz", dir).Run() })
	disk := filepath.Join(dir, "nbd")
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // nothing tells
		if _, err := os.Stat(disk); err == nil {
			break
		}
		if time.Now().After(until) {
			t.Fatal("nbdfuse did not mount")
		}
	}
	file := filepath.Join(t.TempDir(), "random")
	tool(t, "dd", "if=/dev/urandom", "of="+file, "bs=1M", "count=16", "status=none")
	tool(t, "dd", "if="+file, "of="+disk, "bs=1M", "conv=notrunc,fsync", "status=none")
	tool(t, "cmp", file, disk)
	tool(t, "fusermount3", "-u", dir)
	select {
	case err := <-ended:
		if err != nil {
			t.Error("nbdfuse: ", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("nbdfuse did not end")
	}
	tool(t, "nbdcopy", uri("v"), file+".back")
	tool(t, "cmp", file, file+".back")
}

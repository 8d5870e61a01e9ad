// Package conform puts clients that others wrote in front of a running pool:
// libnbd's tools, QEMU's and fio. Each knows the protocol in its own way.
package conform

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func TestClients(t *testing.T) {
	cluster.Need(t, false, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio", "nbdkit")
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	for _, v := range [][]string{{"big", "256M", "4096"}, {"small", "64M", "512"}, {"copy", "64M", "4096"}} {
		if _, err := n.Do("volume", "create", v[0], "--size", v[1], "--replicas", "1", "--block-size", v[2]); err != nil {
			t.Fatal(err)
		}
	}
	uri := func(export string) string { return "nbd://" + n.Info.NBD + "/" + export }

	t.Run("nbdinfo", func(t *testing.T) { info(t, n, uri) })
	t.Run("nbdcopy", func(t *testing.T) { copies(t, uri) })
	t.Run("qemu-io", func(t *testing.T) { qemuIO(t, uri) })
	t.Run("qemu-img", func(t *testing.T) { qemuImg(t, uri) })
	t.Run("fio", func(t *testing.T) {
		out := tool(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri("big"), "--rw=randwrite", "--bsrange=4k-64k",
			"--blockalign=4k", "--size=64M", "--iodepth=16", "--verify=crc32c", "--fsync=32", "--verify_fatal=1", "--verify_state_save=0")
		if !strings.Contains(out, "err= 0") {
			t.Fatal(out)
		}
	})
}

func info(t *testing.T, n *cluster.Node, uri func(string) string) {
	var list struct {
		Exports []struct {
			Name string `json:"export-name"`
			Size int64  `json:"export-size"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", "--list", "nbd://"+n.Info.NBD)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Exports) != 3 {
		t.Fatalf("%d exports listed", len(list.Exports))
	}
	var one struct {
		Exports []struct {
			Size     int64 `json:"export-size"`
			Min      int   `json:"block_size_minimum"`
			CanFUA   bool  `json:"can_fua"`
			CanFlush bool  `json:"can_flush"`
			CanTrim  bool  `json:"can_trim"`
			CanZero  bool  `json:"can_zero"`
			ReadOnly bool  `json:"is_read_only"`
		} `json:"exports"`
	}
	for name, min := range map[string]int{"big": 4096, "small": 512} {
		if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", uri(name))), &one); err != nil {
			t.Fatal(err)
		}
		e := one.Exports[0]
		if !e.CanFUA || !e.CanFlush || !e.CanTrim || !e.CanZero || e.ReadOnly || e.Min != min {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if out, err := try("nbdinfo", uri("absent")); err == nil {
		t.Errorf("an absent export was described: %s", out)
	}
}

// copies moves random data in, to another volume, and out again.
func copies(t *testing.T, uri func(string) string) {
	file := filepath.Join(t.TempDir(), "random")
	tool(t, "dd", "if=/dev/urandom", "of="+file, "bs=1M", "count=64", "status=none")
	tool(t, "nbdcopy", "--flush", file, uri("small"))
	tool(t, "nbdcopy", "--flush", uri("small"), uri("copy"))
	back := file + ".back"
	tool(t, "nbdcopy", uri("copy"), back)
	tool(t, "cmp", file, back)
}

func qemuIO(t *testing.T, uri func(string) string) {
	run := func(export string, commands ...string) string {
		args := []string{"-f", "raw", "-t", "none"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out := tool(t, "qemu-io", append(args, uri(export))...)
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io on %s %v: %s", export, commands, out)
		}
		return out
	}
	for _, export := range []string{"big", "small"} {
		run(export, "write -P 0x11 0 1M", "write -f -P 0x22 64k 4k", "flush", "read -P 0x11 0 64k", "read -P 0x22 64k 4k", "read -P 0x11 68k 956k")
		run(export, "write -z 128k 64k", "discard 256k 64k", "read -P 0 128k 64k", "read -P 0x11 192k 64k", "read -P 0 256k 64k")
		run(export, "aio_write -P 1 0 4k", "aio_write -P 2 4k 4k", "aio_write -P 3 8k 4k", "aio_flush", "read -P 1 0 4k", "read -P 3 8k 4k")
	}
	// Half a block: the volume with 512-byte blocks keeps the other half.
	run("small", "write -P 0x33 0 4k", "write -P 0x44 512 1k", "read -P 0x33 0 512", "read -P 0x44 512 1k", "read -P 0x33 1536 2560")
	if out, err := try("qemu-io", "-f", "raw", "-c", "write 1G 4k", uri("big")); err == nil && !strings.Contains(out, "error") && !strings.Contains(out, "out of range") {
		t.Errorf("a write past the end succeeded: %s", out)
	}
}

// qemuImg compares a volume with the image that was converted into it, and
// has the map of holes show what was never written as such.
func qemuImg(t *testing.T, uri func(string) string) {
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 3M", "-c", "write -P 0xa5 40M 1M", file)
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri("copy"))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri("copy"))
}

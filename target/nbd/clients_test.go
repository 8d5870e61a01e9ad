package nbd_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/targettest"
)

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func hasAll(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("%q is missing in:\n%s", w, out)
		}
	}
}

// image writes n random bytes with a hole in the middle into a file.
func image(t *testing.T, n int) (string, []byte) {
	t.Helper()
	r := rand.NewChaCha8([32]byte{1})
	p := make([]byte, n)
	r.Read(p)
	clear(p[n/4 : n/2])
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, p
}

// sameContents compares a device with p.
func sameContents(t *testing.T, mem *targettest.Memory, p []byte) {
	t.Helper()
	got, err := targettest.Read(mem, 0, len(p))
	if err != nil || !bytes.Equal(got, p) {
		t.Errorf("the device does not have the image: %v", err)
	}
}

func TestNbdinfo(t *testing.T) {
	need(t, "nbdinfo")
	e, _ := pool()
	_, addr := start(t, e, nil)
	hasAll(t, run(t, "nbdinfo", "nbd://"+addr+"/a"),
		"newstyle-fixed without TLS", "export-size: 67108864", "volume a of a test", "uri: nbd://",
		"is_read_only: false", "can_multi_conn: true", "can_flush: true", "can_fua: true", "can_trim: true",
		"can_zero: true", "can_fast_zero: true", "block_size_minimum: 4096", "block_size_preferred: 4096",
		"block_size_maximum: 33554432")
	hasAll(t, run(t, "nbdinfo", "nbd://"+addr+"/ro"), "is_read_only: true", "can_zero: false", "can_trim: false")
	hasAll(t, run(t, "nbdinfo", "--list", "nbd://"+addr), `export="a"`, `export="b"`, `export="ro"`, "block_size_minimum: 512")
	out, err := exec.Command("nbdinfo", "nbd://"+addr+"/nope").CombinedOutput()
	if err == nil {
		t.Error("an unknown export succeeds")
	}
	hasAll(t, string(out), "No such file or directory for export: nope")
}

func TestNbdcopy(t *testing.T) {
	need(t, "nbdcopy")
	for name, delay := range map[string]time.Duration{"at once": 0, "later": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			e, mem := pool()
			mem.Delay = delay
			_, addr := start(t, e, nil)
			file, p := image(t, 64<<20)
			run(t, "nbdcopy", "--flush", file, "nbd://"+addr+"/a")
			sameContents(t, mem, p)
			back := filepath.Join(t.TempDir(), "back")
			run(t, "nbdcopy", "--request-size=2097152", "nbd://"+addr+"/a", back)
			got, err := os.ReadFile(back)
			if err != nil || !bytes.Equal(got, p) {
				t.Error("what came back differs: ", err)
			}
		})
	}
}

func TestQemuIO(t *testing.T) {
	need(t, "qemu-io")
	e, mem := pool()
	_, sock := startUnix(t, e, nil)
	for _, export := range []string{"a", "b"} {
		out := run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x11 0 64k", "-c", "write -f -P 0x22 64k 64k",
			"-c", "write -z 4k 4k", "-c", "write -z -u 8k 4k", "-c", "discard 16k 8k", "-c", "flush",
			"-c", "read -P 0x11 0 4k", "-c", "read -P 0 4k 8k", "-c", "read -P 0x11 12k 4k", "-c", "read -P 0x22 64k 64k",
			"-c", "aio_write -P 0x33 128k 256k", "-c", "aio_flush", "-c", "read -P 0x33 128k 256k",
			// Unaligned for the volume: the client has to mend it by itself.
			"-c", "write -P 0x44 1000 100", "-c", "read -P 0x44 1000 100", "-c", "read -P 0x11 1100 100",
			"nbd+unix:///"+export+"?socket="+sock)
		if strings.Contains(out, "failed") || strings.Contains(out, "error") {
			t.Errorf("%s:\n%s", export, out)
		}
	}
	if mem.Flushes() == 0 {
		t.Error("no flush arrived")
	}
	out, _ := exec.Command("qemu-io", "-f", "raw", "-r", "-c", "read 0 4k", "nbd+unix:///ro?socket="+sock).CombinedOutput()
	hasAll(t, string(out), "read 4096/4096")
}

func TestQemuImg(t *testing.T) {
	need(t, "qemu-img")
	e, mem := pool()
	_, addr := start(t, e, nil)
	file, p := image(t, 64<<20)
	uri := "nbd://" + addr + "/a"
	hasAll(t, run(t, "qemu-img", "info", uri), "64 MiB (67108864 bytes)")
	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri)
	sameContents(t, mem, p)
	hasAll(t, run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri), "Images are identical")
	run(t, "qemu-img", "bench", "-f", "raw", "-w", "-c", "2000", "-d", "32", "--flush-interval=100", uri)
}

func TestFioVerifies(t *testing.T) {
	need(t, "fio")
	if !strings.Contains(run(t, "fio", "--enghelp"), "nbd") {
		if os.Getenv("CI") == "true" {
			t.Fatal("fio has no nbd engine, and CI must have it")
		}
		t.Skip("fio has no nbd engine")
	}
	for name, delay := range map[string]time.Duration{"at once": 0, "later": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			e, mem := pool()
			mem.Delay = delay
			_, addr := start(t, e, nil)
			run(t, "fio", "--name=v", "--ioengine=nbd", "--uri=nbd://"+addr+"/a", "--rw=randrw", "--bsrange=4k-128k",
				"--size=32M", "--iodepth=32", "--verify=crc32c", "--do_verify=1", "--fsync=50", "--randrepeat=0", "--verify_state_save=0")
		})
	}
}

// nbdfuse shows an export as a file, which is how file systems are put on it.
func TestNbdfuse(t *testing.T) {
	need(t, "nbdfuse", "fusermount3")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	e, mem := pool()
	_, addr := start(t, e, nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "volume")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nbdfuse", file, "nbd://"+addr+"/a")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		exec.Command("fusermount3", "-u", file).Run()
		cmd.Wait()
	}()
	until(t, "the file has the volume's size", func() bool {
		st, err := os.Stat(file)
		return err == nil && st.Size() == mem.Size()
	})
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := bytes.Repeat([]byte("fuse"), 64<<10)
	if _, err := f.WriteAt(p, 1<<20); err != nil {
		t.Fatal(err)
	}
	flushes := mem.Flushes()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if mem.Flushes() == flushes {
		t.Error("fsync did not reach the volume")
	}
	got, err := targettest.Read(mem, 1<<20, len(p))
	if err != nil || !bytes.Equal(got, p) {
		t.Error("the volume does not have what was written: ", err)
	}
}

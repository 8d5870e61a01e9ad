package failover

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/attach"
	"github.com/gabion-storage/gabion/test/cluster"
)

// A volume is attached over TLS with a certificate of the pool, and over a unix
// socket without the local node's help; what one way wrote the other finds.
func TestAttachOverTLSAndUnixSockets(t *testing.T) {
	cluster.Need(t, true, "mount")
	c := cluster.Empty(t)
	n := c.Add()
	socket := filepath.Join(c.Dir, "nbd.sock")
	n.Args = []string{"--nbd-tls", "required"}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Do("volume", "create", "v", "--size", "64M"); err != nil {
		t.Fatal(err)
	}
	a := &attached{c: c, root: filepath.Join(c.Dir, "attach")}
	err := a.gabion(&a.Info, "attach", "v", "--dir", n.Dir)
	if err == nil || !strings.Contains(err.Error(), "it wants TLS") {
		t.Fatalf("without TLS: %v", err)
	}
	certs := filepath.Join(c.Dir, "tls")
	if _, err := n.Do("node", "nbd-client", "me", "--out", certs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.drop(t) })
	if err := a.gabion(&a.Info, "attach", "v", "--dir", n.Dir, "--tls", certs); err != nil {
		t.Fatal(err)
	}
	block := []byte(strings.Repeat("gabion..", 512))
	write(t, a.Link, block)
	if err := a.gabion(&a.Info, "detach", "v"); err != nil {
		t.Fatal(err)
	}

	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	n.Args = []string{"--nbd", "127.0.0.1:0,unix:" + socket}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if err := a.gabion(&a.Info, "attach", "v", "--dir", c.Dir, "--node", "unix:"+socket); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(block))
	f, err := os.Open(a.Link)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != string(block) {
		t.Errorf("the block is another one: %v", err)
	}
	var i attach.Info
	again := []string{"attach", "v", "--dir", c.Dir, "--node", "unix:" + socket}
	if err := a.gabion(&i, again...); err == nil {
		t.Error("attached twice")
	}
	f.Close()

	// The process dies: its device is dead with FUSE, and gone when it is attached
	// again, by the same client.
	p, err := os.FindProcess(a.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		var all []attach.Info
		if err := a.gabion(&all, "attach", "--list"); err != nil {
			t.Fatal(err)
		}
		if !all[0].Running {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := a.gabion(&a.Info, again...); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(a.Link); err != nil || string(b[:len(block)]) != string(block) {
		t.Errorf("after the death of the process: %v", err)
	}
}

// write puts a block at the beginning of a device, durably.
func write(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

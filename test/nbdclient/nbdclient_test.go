package nbdclient

import (
	"bytes"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// serve starts nbdkit on a free port and returns the address.
func serve(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("nbdkit is not installed: test/needs.sh")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	pid := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command("nbdkit", append([]string{"-f", "-P", pid, "-i", "127.0.0.1", "-p", port}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(end) {
			t.Fatal("nbdkit did not listen: ", err)
		}
		time.Sleep(10 * time.Millisecond) // nothing tells when another process listens
	}
}

func TestClientReadsWhatItWrote(t *testing.T) {
	c, err := Dial(serve(t, "memory", "16M"), "any")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size != 16<<20 {
		t.Fatalf("size %d", c.Size)
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Add(1)
		p := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		c.Start(CmdWrite, 0, int64(i)*4096, len(p), p, func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
	}
	wg.Wait()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := c.Zero(4096, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3*4096)
	if err := c.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if got[0] != 1 || got[4096] != 0 || got[8192] != 3 {
		t.Fatalf("read %d %d %d", got[0], got[4096], got[8192])
	}
	if err := c.ReadAt(got, c.Size); err == nil {
		t.Fatal("a read past the end succeeded")
	}
}

func TestClientEndsRequestsWithTheConnection(t *testing.T) {
	c, err := Dial(serve(t, "--filter=delay", "memory", "16M", "rdelay=30"), "")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	c.Start(CmdRead, 0, 0, 512, make([]byte, 512), func(err error) { done <- err })
	c.Abort()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	if err := c.Flush(); err == nil {
		t.Fatal("a flush on a dead connection succeeded")
	}
}

func TestClientNamesARefusal(t *testing.T) {
	_, err := Dial(serve(t, "file", "dir="+t.TempDir()), "absent")
	var r *Refused
	if !errors.As(err, &r) {
		t.Fatal(err)
	}
}

package postgres

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// The rig itself, tried on a server that is known to work: it must see a
// complete ledger, and see when one is not.
func TestRigOnNbdkit(t *testing.T) {
	cluster.Need(t, true, append(Commands(), "nbdkit")...)
	dir := cluster.WorkDir(t)
	addr, err := cluster.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	kit := exec.Command("nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "memory", "1G")
	if err := cluster.StartCmd(kit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kit.Process.Kill(); kit.Wait() })
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatal("nbdkit does not listen")
		}
	}
	first := filepath.Join(dir, "a")
	m := Attach(t, addr, "", first, true)
	s := NewServer(t, m, first)
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	bench, err := s.StartBench(1, 2)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.StartCommits()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.More(200); err != nil {
		t.Fatal(err)
	}
	if err := bench.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	<-c.done
	n, pause, err := c.Acked()
	t.Logf("%d commits, longest %v, then: %v", n, pause, err)

	m.Drop() // as if the client machine died
	second := filepath.Join(dir, "b")
	m = Attach(t, addr, "", second, false)
	s = NewServer(t, m, second)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if err := s.Missing(n); err != nil {
		t.Fatal(err)
	}
	if err := s.Missing(n + 2); err == nil {
		t.Fatal("a commit that never was is not missed")
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if err := m.Fsck(); err != nil {
		t.Fatal(err)
	}
}

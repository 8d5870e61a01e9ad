package cluster

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// Tgt is a running tgtd with one thin disk, as it comes: what iSCSI is measured
// and compared with.
type Tgt struct {
	URL string // of the logical unit
	PID int

	cmd    *exec.Cmd
	socket string
}

// StartTgt runs tgtd with a disk of size bytes in dir, on loopback. It needs root,
// for tgtd keeps its control socket in /run/tgtd.
func StartTgt(dir string, size int64) (*Tgt, error) {
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(disk, size); err != nil {
		return nil, err
	}
	addr, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll("/run/tgtd", 0o755); err != nil {
		return nil, err
	}
	control := port // any number that nobody else uses
	t := &Tgt{
		cmd:    exec.Command("tgtd", "-f", "-C", control, "--iscsi", "portal="+addr),
		socket: "/run/tgtd/socket." + control,
	}
	if err := StartCmd(t.cmd); err != nil {
		return nil, err
	}
	t.PID = t.cmd.Process.Pid
	const name = "iqn.2026-11.test:tgt"
	t.URL = "iscsi://" + addr + "/" + name + "/1"
	admin := func(args ...string) error {
		out, err := exec.Command("tgtadm", append([]string{"-C", control, "--lld", "iscsi"}, args...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("tgtadm %v: %w: %s", args, err, out)
		}
		return err
	}
	unit := []string{"--mode", "logicalunit", "--tid", strconv.Itoa(1), "--lun", strconv.Itoa(1)}
	for end := time.Now().Add(StartTimeout); ; time.Sleep(pollInterval) {
		if err = admin("--op", "show", "--mode", "system"); err == nil || time.Now().After(end) {
			break
		}
	}
	for _, args := range [][]string{
		{"--op", "new", "--mode", "target", "--tid", "1", "-T", name},
		append([]string{"--op", "new", "-b", disk}, unit...),
		append([]string{"--op", "update", "--params", "thin_provisioning=1"}, unit...),
		{"--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"},
	} {
		if err == nil {
			err = admin(args...)
		}
	}
	if err != nil {
		t.Stop()
		return nil, err
	}
	return t, nil
}

// Stop kills tgtd.
func (t *Tgt) Stop() {
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
	_ = os.Remove(t.socket)
	_ = os.Remove(t.socket + ".lock")
}

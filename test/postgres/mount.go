// Package postgres runs PostgreSQL on a volume the way a user does: a file
// system on a block device on an NBD export, and a database on it whose
// acknowledged commits are written down outside.
package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// commandTimeout ends a tool that hangs on a device that does not answer.
const commandTimeout = 120 * time.Second

// Commands that Attach and Server need, for cluster.Need.
func Commands() []string {
	return []string{"nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "mount", Bin("pgbench")}
}

// Bin is the path of a program of PostgreSQL: Debian keeps them off PATH.
func Bin(name string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return name
	}
	return found[len(found)-1]
}

// Mount is an NBD export mounted as ext4: nbdfuse shows it as a file, losetup
// makes that a block device. It is near native speed and needs no module.
type Mount struct {
	Path string // where the file system is

	fuse   *exec.Cmd
	exited chan struct{}
	file   string
	loop   string
	log    bytes.Buffer
}

// Attach mounts export of the NBD server at addr below dir; with mkfs it makes
// the file system first. The mount ends with the test.
func Attach(t testing.TB, addr, export, dir string, mkfs bool) *Mount {
	t.Helper()
	m := &Mount{Path: filepath.Join(dir, "mnt"), file: filepath.Join(dir, "disk"), exited: make(chan struct{})}
	t.Cleanup(func() { m.Drop() })
	if err := m.attach(addr, export, mkfs); err != nil {
		t.Fatalf("attach %s: %v\n%s", export, err, m.log.String())
	}
	return m
}

func (m *Mount) attach(addr, export string, mkfs bool) error {
	if err := os.MkdirAll(m.Path, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(m.file, nil, 0o600); err != nil {
		return err
	}
	m.fuse = exec.Command("nbdfuse", "-o", "allow_other", m.file, "nbd://"+addr+"/"+export)
	m.fuse.Stdout, m.fuse.Stderr = &m.log, &m.log
	if err := cluster.StartCmd(m.fuse); err != nil {
		return err
	}
	go func() {
		m.fuse.Wait()
		close(m.exited)
	}()
	if err := m.waitForFile(); err != nil {
		return err
	}
	sector, err := sectorSize(addr, export)
	if err != nil {
		return err
	}
	out, err := run("losetup", "-f", "--show", "--direct-io=on", "--sector-size", strconv.Itoa(sector), m.file)
	if err != nil {
		return err
	}
	m.loop = strings.TrimSpace(out)
	if mkfs {
		if _, err := run("mkfs.ext4", "-q", "-F", m.loop); err != nil {
			return err
		}
	}
	_, err = run("mount", m.loop, m.Path)
	return err
}

// sectorSize is the smallest request that the export takes: losetup does not
// ask for itself.
func sectorSize(addr, export string) (int, error) {
	c, err := nbdclient.Dial(addr, export)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return max(512, int(c.BlockMin)), nil
}

// waitForFile waits until the file has the export's size: nbdfuse says nothing
// when it is ready.
func (m *Mount) waitForFile() error {
	for end := time.Now().Add(30 * time.Second); ; {
		if st, err := os.Stat(m.file); err == nil && st.Size() > 0 {
			return nil
		}
		select {
		case <-m.exited:
			return errors.New("nbdfuse ended")
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return errors.New("nbdfuse shows no file")
		}
	}
}

// Fsck checks the file system of a mount that is to be detached: it unmounts
// it, checks without repairing, and detaches.
func (m *Mount) Fsck() error {
	if _, err := run("umount", m.Path); err != nil {
		return err
	}
	_, err := run("e2fsck", "-f", "-n", m.loop)
	m.Drop()
	return err
}

// Drop takes the mount away by force, also when the server behind it is dead.
func (m *Mount) Drop() {
	if m.fuse == nil || m.fuse.Process == nil {
		return
	}
	// The server first: what waits for an answer gets an error and ends.
	m.fuse.Process.Kill()
	<-m.exited
	run("umount", "-l", m.Path)
	if m.loop != "" {
		run("losetup", "-d", m.loop)
	}
	run("fusermount3", "-u", "-z", m.file)
	m.fuse = nil
}

func run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return string(out), nil
}

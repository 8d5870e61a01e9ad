package attach

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/attach/fuse"
	"github.com/gabion-storage/gabion/attach/nbdkernel"
	"github.com/gabion-storage/gabion/internal/fault"
)

// List tells of every attached volume of this machine, sorted by name.
func List(d Dirs) ([]Info, error) {
	files, err := filepath.Glob(d.runFile("*"))
	if err != nil {
		return nil, fault.New(fault.Invalid, op, d.Run, err)
	}
	slices.Sort(files)
	out := []Info{}
	for _, f := range files {
		i, err := d.look(strings.TrimSuffix(filepath.Base(f), ".json"))
		if err == nil {
			out = append(out, i)
		} else if !fault.Is(err, fault.NotFound) { // detached meanwhile
			return nil, err
		}
	}
	return out, nil
}

// look reads one run file and looks whether it is true.
func (d Dirs) look(volume string) (Info, error) {
	var i Info
	if err := load(d.runFile(volume), &i); err != nil {
		return i, err
	}
	lock, err := d.lock(volume, unix.LOCK_SH)
	i.Running = fault.Is(err, fault.Busy)
	if lock != nil {
		lock.Close()
	}
	i.Used = usedBy(i.Device)
	return i, nil
}

// NameOf finds the volume of a kernel's device ("nbd0", "loop3"), for udev.
func NameOf(d Dirs, kernel string) (string, error) {
	all, err := List(d)
	if err != nil {
		return "", err
	}
	for _, i := range all {
		if filepath.Base(i.Device) == kernel {
			return i.Volume, nil
		}
	}
	return "", fault.Newf(fault.NotFound, op, kernel, "no volume is attached there")
}

const detachPoll = 20 * time.Millisecond

// Detach ends an attachment and returns when the device is gone. Busy while
// something uses it, NotFound when the volume is not attached here.
func Detach(ctx context.Context, d Dirs, volume string) (Info, error) {
	const op = "detach"
	if err := checkName(volume); err != nil {
		return Info{}, err
	}
	i, err := d.look(volume)
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			return i, fault.Newf(fault.NotFound, op, volume, "it is not attached on this machine; 'gabion attach --list' shows what is")
		}
		return i, err
	}
	if i.Used != "" {
		return i, fault.Newf(fault.Busy, op, volume, "%s is in use: %s; unmount it first", i.Device, i.Used)
	}
	if !i.Running {
		return i, clean(d, i)
	}
	if err := unix.Kill(i.PID, unix.SIGTERM); err != nil {
		return i, fault.Newf(fault.Denied, op, volume, "process %d cannot be told: %w", i.PID, err)
	}
	for {
		// The device is not looked at: opened at the wrong moment it gives errors.
		var now Info
		switch err := load(d.runFile(volume), &now); {
		case fault.Is(err, fault.NotFound):
			if lock, err := d.lock(volume, unix.LOCK_SH); err == nil { // the process is gone too
				lock.Close()
				i.Running = false
				return i, nil
			}
		case err == nil && now.Used != "":
			return now, fault.Newf(fault.Busy, op, volume, "%s came into use: %s; unmount it first", i.Device, now.Used)
		}
		select {
		case <-ctx.Done():
			return i, fault.Newf(fault.Timeout, op, volume, "process %d is still at it; its log is %s", i.PID, d.LogFile(volume))
		case <-time.After(detachPoll):
		}
	}
}

// clean takes away the device that a process which died has left.
func clean(d Dirs, i Info) error {
	switch i.Kind {
	case KindNBD:
		if n, err := strconv.Atoi(strings.TrimPrefix(i.Device, "/dev/nbd")); err == nil && nbdkernel.IsOurs(n, i.Volume) {
			if err := nbdkernel.Disconnect(n); err != nil {
				return err
			}
		}
	case KindFUSE:
		fuse.Clean(d.fuseDir(i.Volume), i.Device)
	}
	forget(d, i)
	return nil
}

// usedBy tells what uses a block device: where it is mounted, or that somebody
// has it for himself; "" for nobody.
func usedBy(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	if at := mountedAt(unix.Major(st.Rdev), unix.Minor(st.Rdev)); at != "" {
		return "mounted at " + at
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return "in use"
	}
	if err == nil {
		f.Close()
	}
	return ""
}

// mountedAt looks for a device in this process's mounts.
func mountedAt(major, minor uint32) string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	want := fmt.Sprintf("%d:%d", major, minor)
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 4 && fields[2] == want {
			return fields[4]
		}
	}
	return ""
}

package fuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

const op = "attach"

// Available tells whether this machine can do it, or what it lacks.
func Available() error {
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			return fault.Newf(fault.Unavailable, op, dev, "%w; FUSE and the loop driver are needed, and root", err)
		}
		f.Close()
	}
	return nil
}

// Loop is a device under a loop device.
type Loop struct {
	dir    string
	path   string // of the loop device
	server *fuse.Server
}

const (
	// writeMax is the longest request of the kernel, in bytes; requestsMax how
	// many it has under way.
	writeMax, requestsMax = 1 << 20, 128
	// tries bounds the search for a loop device that nobody else takes first.
	tries = 64
)

// Attach mounts the file system on dir, which it makes, and puts a loop device
// on its file. name is what losetup shows.
func Attach(dev target.Device, dir, name string) (*Loop, error) {
	Clean(dir, "")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Denied, op, dir, err)
	}
	fs := &disk{RawFileSystem: fuse.NewDefaultRawFileSystem(), dev: dev}
	s, err := fuse.NewServer(fs, dir, &fuse.MountOptions{
		DirectMountStrict: true, FsName: "gabion:" + name, Name: "gabion", MaxWrite: writeMax, MaxBackground: requestsMax,
		DisableXAttrs: true, DisableSplice: true, ExtraCapabilities: fuse.CAP_ASYNC_DIO,
	})
	if err != nil {
		_ = os.Remove(dir)
		return nil, fault.Newf(fault.Unavailable, op, dir, "cannot mount with FUSE: %w", err)
	}
	go s.Serve()
	l := &Loop{dir: dir, server: s}
	if err = s.WaitMount(); err == nil {
		err = l.losetup(dev, name)
	}
	if err != nil {
		_ = l.unmount()
		return nil, fault.New(fault.Unavailable, op, dir, err)
	}
	return l, nil
}

func (l *Loop) losetup(dev target.Device, name string) error {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_DIRECT_IO)
	if dev.ReadOnly() {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	file, err := os.OpenFile(filepath.Join(l.dir, fileName), mode, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer ctl.Close()
	cfg := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(max(512, dev.BlockSize()))}
	cfg.Info.Flags = flags
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], "gabion:"+name)
	for range tries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("no free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		lo, err := openSoon(path)
		if err != nil {
			return err
		}
		err = unix.IoctlLoopConfigure(int(lo.Fd()), &cfg)
		lo.Close()
		if err == nil {
			l.path = path
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return errors.New("every free loop device was taken by somebody else")
}

// openSoon opens a device node that may be made only now.
func openSoon(path string) (*os.File, error) {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil || !errors.Is(err, os.ErrNotExist) || time.Now().After(end) {
			return f, err
		}
	}
}

// Path is the loop device.
func (l *Loop) Path() string { return l.path }

// Grow has the kernel see that the device has become larger: first the file,
// whose size the kernel keeps for a while, then the loop device on it.
func (l *Loop) Grow(size int64) error {
	// One that does not know the notice keeps the size for a second at most.
	_ = l.server.InodeNotify(fileNode, -1, 0)
	if st, err := os.Stat(filepath.Join(l.dir, fileName)); err != nil || st.Size() < size {
		return fault.Newf(fault.Unavailable, op, l.path, "the kernel does not see the file's new size yet: %w", err)
	}
	f, err := os.Open(l.path)
	if err != nil {
		return fault.New(fault.Unavailable, op, l.path, err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fault.Newf(fault.Unavailable, op, l.path, "the loop device does not take its new size: %w", err)
	}
	return nil
}

// Detach takes the loop device and the mount away. Nobody may use the device.
func (l *Loop) Detach() error {
	if err := clearLoop(l.path); err != nil {
		return fault.New(fault.Busy, op, l.path, err)
	}
	if err := l.unmount(); err != nil {
		return fault.New(fault.Busy, op, l.dir, err)
	}
	return nil
}

// unmount ends the mount; the kernel lets go of the file of a loop device a
// moment after the ioctl.
func (l *Loop) unmount() error {
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = unix.Unmount(l.dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		err = errors.Join(err, unix.Unmount(l.dir, unix.MNT_DETACH))
	}
	l.server.Wait()
	_ = os.Remove(l.dir)
	return err
}

func clearLoop(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
}

// Clean removes what a process that died has left: its mount, and its loop
// device if one is named and still has that mount's file.
func Clean(dir, path string) {
	if path != "" && backs(dir, path) {
		_ = clearLoop(path)
	}
	for unix.Unmount(dir, unix.MNT_DETACH) == nil {
	}
	_ = os.Remove(dir)
}

// backs tells whether the loop device's file is the one below dir.
func backs(dir, path string) bool {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), "loop/backing_file"))
	return err == nil && string(b) == filepath.Join(dir, fileName)+"\n"
}

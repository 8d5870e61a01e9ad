// Package fuse makes a block device of a target.Device where the kernel has no
// nbd driver: a FUSE file system with one file, and a loop device on that file.
//
// The loop device reads and writes the file directly, past the page cache, so
// that what is written there is in no other memory than gabion's. A flush of
// the loop device is an fsync of the file and waits for the device's Flush; a
// discard, and writing zeros, is a hole punched into it, which must read as zeros
// and is therefore a Zero.
package fuse

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// fileName is the one file; its node is next to the root's, which is 1.
const (
	fileName = "volume"
	fileNode = fuse.FUSE_ROOT_ID + 1
)

// foreverSeconds is for how long the kernel may keep what never changes.
const foreverSeconds = 1 << 30

// disk is the file system.
type disk struct {
	fuse.RawFileSystem
	dev target.Device
}

func (d *disk) String() string { return "gabion" }

func (d *disk) attr(node uint64, a *fuse.Attr) fuse.Status {
	*a = fuse.Attr{Ino: node, Nlink: 1, Blksize: 4096}
	switch node {
	case fuse.FUSE_ROOT_ID:
		a.Mode = syscall.S_IFDIR | 0o500
	case fileNode:
		a.Mode = syscall.S_IFREG | 0o600
		a.Size = uint64(d.dev.Size())
		a.Blocks = a.Size / 512
	default:
		return fuse.ENOENT
	}
	return fuse.OK
}

func (d *disk) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != fuse.FUSE_ROOT_ID || name != fileName {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation, out.EntryValid, out.AttrValid = fileNode, 1, foreverSeconds, 1
	return d.attr(fileNode, &out.Attr)
}

func (d *disk) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = 1
	return d.attr(in.NodeId, &out.Attr)
}

// SetAttr takes what changes nothing: times.
func (d *disk) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok && size != uint64(d.dev.Size()) {
		return fuse.EPERM
	}
	return d.attr(in.NodeId, &out.Attr)
}

func (d *disk) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

func (d *disk) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != fileNode {
		return fuse.Status(syscall.EISDIR)
	}
	if d.dev.ReadOnly() && in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return fuse.EROFS
	}
	return fuse.OK
}

func (d *disk) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

func (d *disk) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.Offset == 0 {
		out.AddDirEntry(fuse.DirEntry{Mode: syscall.S_IFREG, Name: fileName, Ino: fileNode})
	}
	return fuse.OK
}

func (d *disk) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.NameLen = 4096, 255
	return fuse.OK
}

func (d *disk) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	size := uint64(d.dev.Size())
	if in.Offset >= size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	n := min(uint64(in.Size), size-in.Offset)
	if err := d.dev.ReadAt(context.Background(), buf[:n], int64(in.Offset)); err != nil {
		return nil, statusOf(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// wait carries out one asynchronous operation.
func (d *disk) wait(f func(done func(error))) fuse.Status {
	done := make(chan error, 1)
	f(func(err error) { done <- err })
	d.dev.Kick()
	return statusOf(<-done)
}

func (d *disk) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	st := d.wait(func(done func(error)) { d.dev.Write(data, int64(in.Offset), false, done) })
	if st != fuse.OK {
		return 0, st
	}
	return uint32(len(data)), fuse.OK
}

// Flush is close(2), which promises nothing.
func (d *disk) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (d *disk) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return d.wait(d.dev.Flush) }

// Modes of fallocate (linux/falloc.h).
const (
	keepSize  = 0x01
	punchHole = 0x02
	zeroRange = 0x10
)

func (d *disk) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	size := uint64(d.dev.Size())
	if in.Mode&^(keepSize|punchHole|zeroRange) != 0 || in.Mode&(punchHole|zeroRange) == 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	if in.Offset > size || in.Length > size-in.Offset || in.Length == 0 {
		return fuse.EINVAL
	}
	return d.wait(func(done func(error)) { d.dev.Zero(int64(in.Offset), int64(in.Length), false, done) })
}

// statusOf is what a failure becomes at this edge.
func statusOf(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	switch fault.KindOf(err) {
	case fault.Invalid:
		return fuse.EINVAL
	case fault.NoSpace:
		return fuse.Status(syscall.ENOSPC)
	case fault.ReadOnly:
		return fuse.EROFS
	case fault.Denied:
		return fuse.EPERM
	}
	return fuse.EIO
}

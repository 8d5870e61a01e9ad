package vfs

import (
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
)

// DirectReader is an optional power of a File: a read of what the disk has, past
// the page cache, whose copy may be better than the disk's.
type DirectReader interface {
	// ReadDirectAt is ReadAt from the disk. What was written and not synced may
	// be missing or not. The page cache keeps what it has and gains nothing.
	ReadDirectAt(p []byte, off int64) (int, error)
}

// ReadDirect reads from the disk if f can, else as ReadAt does.
func ReadDirect(f File, p []byte, off int64) (int, error) {
	if d, ok := f.(DirectReader); ok {
		return d.ReadDirectAt(p, off)
	}
	return f.ReadAt(p, off)
}

// DirectWriter is an optional power of a File: a write past the page cache, so that
// the next sync finds nothing of it to write.
type DirectWriter interface {
	// WriteDirectAt writes the concatenation of bufs at off and waits for the disk to
	// take it; a sync makes it durable. off and the sum of the lengths are multiples of
	// 4096. It changes the elements of bufs, not what they hold. An error of kind NoSpace
	// is that of this write alone, any other as final as one of Sync.
	WriteDirectAt(bufs [][]byte, off int64) error
}

// WriteDirect writes to the disk if f can, else as WritevAt does.
func WriteDirect(f File, bufs [][]byte, off int64) error {
	if d, ok := f.(DirectWriter); ok {
		return d.WriteDirectAt(bufs, off)
	}
	_, err := f.WritevAt(bufs, off)
	return err
}

// directAlign is what O_DIRECT wants offsets, lengths and memory to be
// multiples of, in bytes: the largest that disks ask for.
const directAlign = 4096

// directMax is how much one direct read takes at most, in bytes.
const directMax = 1 << 20

// directBufs holds aligned buffers of directMax bytes.
var directBufs = sync.Pool{New: func() any {
	b := make([]byte, directMax+directAlign)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % directAlign)
	b = b[skip : skip+directMax]
	return &b
}}

// openDirect opens the file of f once more with O_DIRECT. Where the file system
// has no such thing, -1: then reads drop the cache first, and writes empty it.
func (f *osFile) openDirect() int {
	f.directOnce.Do(func() {
		f.direct = -1
		d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.fd), os.O_RDWR|unix.O_DIRECT, 0)
		if err == nil {
			f.directFile, f.direct = d, int(d.Fd())
		}
	})
	return f.direct
}

// ReadDirectAt implements DirectReader.
func (f *osFile) ReadDirectAt(p []byte, off int64) (int, error) {
	if err := f.enter("vfs.read"); err != nil {
		return 0, err
	}
	defer f.life.RUnlock()
	if off < 0 {
		return 0, fault.Newf(fault.Invalid, "vfs.read", f.name, "offset %d", off)
	}
	buf := directBufs.Get().(*[]byte)
	defer directBufs.Put(buf)
	done := 0
	for done < len(p) {
		at := off + int64(done)
		start := at &^ (directAlign - 1)
		want := (int64(len(p)-done) + at - start + directAlign - 1) &^ (directAlign - 1)
		b := (*buf)[:min(want, directMax)]
		n, err := f.preadDirect(b, start)
		if err != nil {
			return done, OSError("vfs.read", f.name, err)
		}
		if int64(n) <= at-start {
			return done, io.EOF
		}
		done += copy(p[done:], b[at-start:n])
		if n < len(b) && done < len(p) {
			return done, io.EOF
		}
	}
	return done, nil
}

func (f *osFile) preadDirect(b []byte, off int64) (n int, err error) {
	fd := f.openDirect()
	if fd < 0 {
		// Advice: pages that are dirty or in use stay, and are as good as the disk's.
		_ = unix.Fadvise(f.fd, off, int64(len(b)), unix.FADV_DONTNEED)
		fd = f.fd
	}
	for {
		n, err = unix.Pread(fd, b, off)
		if err == unix.EINVAL && fd == f.direct { // opened, but not able to
			fd = f.fd
			continue
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}

// WriteDirectAt implements DirectWriter.
func (f *osFile) WriteDirectAt(bufs [][]byte, off int64) error {
	if err := f.enter("vfs.write"); err != nil {
		return err
	}
	defer f.life.RUnlock()
	buf := directBufs.Get().(*[]byte)
	defer directBufs.Put(buf)
	for len(bufs) > 0 {
		n := 0
		for len(bufs) > 0 && n < len(*buf) {
			c := copy((*buf)[n:], bufs[0])
			n += c
			if bufs[0] = bufs[0][c:]; len(bufs[0]) == 0 {
				bufs = bufs[1:]
			}
		}
		if err := f.pwriteDirect((*buf)[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// pwriteDirect writes b, of aligned memory, length and offset.
func (f *osFile) pwriteDirect(b []byte, off int64) error {
	fd := f.openDirect()
	for len(b) > 0 && fd >= 0 {
		n, err := unix.Pwrite(fd, b, off)
		switch err {
		case nil:
			b, off = b[n:], off+int64(n)
			if n%directAlign != 0 { // the rest is not aligned any more
				fd = -1
			}
		case unix.EINTR:
		case unix.EINVAL: // opened, but not able to
			fd = -1
		default:
			return OSError("vfs.write", f.name, err)
		}
	}
	if len(b) == 0 {
		return nil
	}
	if _, err := f.writeAt(b, off); err != nil {
		return err
	}
	return f.clean(off, int64(len(b)))
}

// clean sends what was written to [off, off+n) to the disk and waits for that.
func (f *osFile) clean(off, n int64) error {
	for {
		err := unix.SyncFileRange(f.fd, off, n,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		switch err {
		case unix.EINTR:
			continue
		case nil, unix.ENOSYS, unix.ESPIPE:
			return nil // a file system without it: the sync does all
		}
		// It may tell of what others wrote, and will not be told again: no space is no excuse here.
		return fault.New(fault.Internal, "vfs.write", f.name, err)
	}
}

// Memory makes a file that has no name and lives in memory until it is closed,
// for what wants a file of the machine and must not touch a disk.
func Memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, OSError("vfs.memory", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ReadDirectAt implements DirectReader: what a lying disk has shows at once.
func (f *memFile) ReadDirectAt(p []byte, off int64) (int, error) {
	v, err := f.beginRange("read", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer f.m.mu.Unlock()
	if off < 0 {
		return 0, fault.Newf(fault.Invalid, "vfs.read", f.name, "offset %d", off)
	}
	n := f.read(p, off)
	for s, disk := range f.n.lost {
		from, to := max(off, s*sectorSize), min(off+int64(n), (s+1)*sectorSize)
		if from < to {
			copy(p[from-off:to-off], disk[from-s*sectorSize:])
		}
	}
	if v.after == nil && n < len(p) {
		v.after = io.EOF
	}
	return n, v.after
}

package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
)

// OS is the FS of a directory of the machine. Names that leave the directory,
// also through symbolic links, are refused with kind Invalid.
type OS struct {
	root *os.Root
	dir  string
}

// NewOS opens the directory dir, which must exist.
func NewOS(dir string) (*OS, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, OSError("vfs.root", dir, err)
	}
	return &OS{root: r, dir: dir}, nil
}

// Close releases the directory. Open files stay usable.
func (o *OS) Close() error { return o.root.Close() }

// Dir is the directory that OS was made with.
func (o *OS) Dir() string { return o.dir }

// checkName refuses names that leave the root before the kernel is asked.
func checkName(op, name string) error {
	if !filepath.IsLocal(name) {
		return fault.Newf(fault.Invalid, op, name, "the name leaves the directory of the disk")
	}
	return nil
}

func (o *OS) open(op, name string, flag int) (File, error) {
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	f, err := o.root.OpenFile(name, os.O_RDWR|flag, 0o600)
	if err != nil {
		return nil, OSError(op, name, err)
	}
	return &osFile{f: f, fd: int(f.Fd()), name: name}, nil
}

func (o *OS) Create(name string) (File, error) {
	return o.open("vfs.create", name, os.O_CREATE|os.O_EXCL)
}

func (o *OS) Open(name string) (File, error) { return o.open("vfs.open", name, 0) }

func (o *OS) Remove(name string) error {
	if err := checkName("vfs.remove", name); err != nil {
		return err
	}
	return OSError("vfs.remove", name, o.root.Remove(name))
}

func (o *OS) Rename(oldname, newname string) error {
	if err := errors.Join(checkName("vfs.rename", oldname), checkName("vfs.rename", newname)); err != nil {
		return err
	}
	return OSError("vfs.rename", oldname, o.root.Rename(oldname, newname))
}

func (o *OS) List(dir string) ([]string, error) {
	d, err := o.openDir("vfs.list", dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, OSError("vfs.list", dir, err)
	}
	slices.Sort(names)
	return names, nil
}

func (o *OS) openDir(op, dir string) (*os.File, error) {
	if dir == "" {
		dir = "."
	}
	if err := checkName(op, dir); err != nil {
		return nil, err
	}
	d, err := o.root.Open(dir)
	if err != nil {
		return nil, OSError(op, dir, err)
	}
	return d, nil
}

func (o *OS) MkdirAll(dir string) error {
	if err := checkName("vfs.mkdir", dir); err != nil {
		return err
	}
	return OSError("vfs.mkdir", dir, o.root.MkdirAll(dir, 0o700))
}

func (o *OS) SyncDir(dir string) error {
	d, err := o.openDir("vfs.syncdir", dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return OSError("vfs.syncdir", dir, d.Sync())
}

func (o *OS) Free() (free, total int64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(o.dir, &st)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, 0, OSError("vfs.free", o.dir, err)
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	return int64(st.Bavail) * unit, int64(st.Blocks) * unit, nil
}

func (o *OS) Lock(name string) (func(), error) {
	if err := checkName("vfs.lock", name); err != nil {
		return nil, err
	}
	f, err := o.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, OSError("vfs.lock", name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fault.Newf(fault.Busy, "vfs.lock", filepath.Join(o.dir, name),
				"another process holds the lock")
		}
		return nil, OSError("vfs.lock", name, err)
	}
	var once sync.Once
	return func() { once.Do(func() { f.Close() }) }, nil
}

// osFile is a file of OS. life keeps the descriptor alive under an operation:
// without it a Close elsewhere could hand the number to another file.
type osFile struct {
	life sync.RWMutex
	f    *os.File // nil after Close; guarded by life
	fd   int
	name string

	directOnce sync.Once // opens what follows, at the first direct read or write
	directFile *os.File
	direct     int // its descriptor; -1 without
}

// enter pins the descriptor; on success the caller calls life.RUnlock.
func (f *osFile) enter(op string) error {
	f.life.RLock()
	if f.f == nil {
		f.life.RUnlock()
		return fault.New(fault.Invalid, op, f.name, os.ErrClosed)
	}
	return nil
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.enter("vfs.read"); err != nil {
		return 0, err
	}
	defer f.life.RUnlock()
	n, err := f.f.ReadAt(p, off) // io.EOF passes as it is: io.ReaderAt says so
	if err != nil && n < len(p) && !isEOF(err) {
		err = OSError("vfs.read", f.name, err)
	}
	return n, err
}

// TryReadAt reads with RWF_NOWAIT: only what the page cache holds.
func (f *osFile) TryReadAt(p []byte, off int64) bool {
	if len(p) == 0 {
		return true
	}
	if off < 0 || !f.life.TryRLock() {
		return false
	}
	defer f.life.RUnlock()
	if f.f == nil {
		return false
	}
	iov := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(f.fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), 0, unix.RWF_NOWAIT)
	runtime.KeepAlive(p)
	return errno == 0 && int(n) == len(p)
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.enter("vfs.write"); err != nil {
		return 0, err
	}
	defer f.life.RUnlock()
	return f.writeAt(p, off)
}

func (f *osFile) writeAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, OSError("vfs.write", f.name, err)
		}
		done += n
	}
	return done, nil
}

// iovMax is the most vectors that one pwritev takes (IOV_MAX of Linux).
const iovMax = 1024

func (f *osFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	if err := f.enter("vfs.write"); err != nil {
		return 0, err
	}
	defer f.life.RUnlock()
	total := 0
	for len(bufs) > 0 {
		part := bufs[:min(len(bufs), iovMax)]
		n, err := unix.Pwritev(f.fd, part, off+int64(total))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return total, OSError("vfs.write", f.name, err)
		}
		total += n
		// Whole buffers are done; the rest of a torn one goes by itself.
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n > 0 {
			m, err := f.writeAt(bufs[0][n:], off+int64(total))
			total += m
			if err != nil {
				return total, err
			}
			bufs = bufs[1:]
		}
	}
	return total, nil
}

func (f *osFile) Sync() error {
	if err := f.enter("vfs.sync"); err != nil {
		return err
	}
	defer f.life.RUnlock()
	return OSError("vfs.sync", f.name, unix.Fdatasync(f.fd))
}

func (f *osFile) PunchHole(off, n int64) error {
	if err := f.enter("vfs.punch"); err != nil {
		return err
	}
	defer f.life.RUnlock()
	for {
		err := unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return fault.Newf(fault.Invalid, "vfs.punch", f.name, "the file system has no holes: %w", err)
		}
		return OSError("vfs.punch", f.name, err)
	}
}

func (f *osFile) Truncate(size int64) error {
	if err := f.enter("vfs.truncate"); err != nil {
		return err
	}
	defer f.life.RUnlock()
	return OSError("vfs.truncate", f.name, f.f.Truncate(size))
}

func (f *osFile) Size() (int64, error) {
	if err := f.enter("vfs.size"); err != nil {
		return 0, err
	}
	defer f.life.RUnlock()
	st, err := f.f.Stat()
	if err != nil {
		return 0, OSError("vfs.size", f.name, err)
	}
	return st.Size(), nil
}

// Close waits for operations that are under way.
func (f *osFile) Close() error {
	f.life.Lock()
	defer f.life.Unlock()
	if f.f == nil {
		return fault.New(fault.Invalid, "vfs.close", f.name, os.ErrClosed)
	}
	err := f.f.Close()
	f.f = nil
	if f.directFile != nil {
		_ = f.directFile.Close() // its errors are those of its writes and of the syncs of f
	}
	return OSError("vfs.close", f.name, err)
}

package ledger

import (
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// Device is a block device or file, past the page cache.
type Device struct {
	f    *os.File
	bufs sync.Pool // of *[]byte, aligned to BlockSize
}

// OpenDevice opens path with O_DIRECT.
func OpenDevice(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	return &Device{f: f}, nil
}

func (d *Device) aligned(n int) []byte {
	if b, ok := d.bufs.Get().(*[]byte); ok && len(*b) >= n {
		return (*b)[:n]
	}
	b := make([]byte, n+BlockSize)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (BlockSize - 1))
	return b[skip : skip+n]
}

func (d *Device) ReadAt(p []byte, off int64) error {
	b := d.aligned(len(p))
	defer d.bufs.Put(&b)
	_, err := d.f.ReadAt(b, off)
	copy(p, b)
	return err
}

func (d *Device) WriteAt(p []byte, off int64) error {
	b := d.aligned(len(p))
	defer d.bufs.Put(&b)
	copy(b, p)
	_, err := d.f.WriteAt(b, off)
	return err
}

func (d *Device) Flush() error { return syscall.Fdatasync(int(d.f.Fd())) }
func (d *Device) Close() error { return d.f.Close() }

package vfs

import (
	"errors"
	"io"
	"path"

	"github.com/gabion-storage/gabion/internal/fault"
)

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// tmpSuffix ends the name of a file that WriteFileAtomic has not finished. A
// file of that name left by a crash is dead and is overwritten.
const tmpSuffix = ".tmp"

// WriteFileAtomic gives name the content data: after a crash at any moment the
// file is the old one or the new one, and on return it is the new one, durably.
// One caller for a name at a time.
func WriteFileAtomic(fs FS, name string, data []byte) error {
	tmp := name + tmpSuffix
	if err := fs.Remove(tmp); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	f, err := fs.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = fs.Remove(tmp) // the write error is what matters; a leftover is overwritten
		return err
	}
	if err := fs.Rename(tmp, name); err != nil {
		return err
	}
	return fs.SyncDir(path.Dir(name))
}

// ReadFile returns the whole content of name; a file longer than max bytes is
// refused with kind Corrupt.
func ReadFile(fs FS, name string, max int64) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, fault.Newf(fault.Corrupt, "vfs.readfile", name, "%d bytes long, at most %d expected", n, max)
	}
	b := make([]byte, n)
	if m, err := f.ReadAt(b, 0); err != nil && !(isEOF(err) && int64(m) == n) {
		return nil, err
	}
	return b, nil
}

// Exists reports whether dir holds the entry name.
func Exists(fs FS, name string) (bool, error) {
	names, err := fs.List(path.Dir(name))
	if err != nil {
		return false, err
	}
	base := path.Base(name)
	for _, n := range names {
		if n == base {
			return true, nil
		}
	}
	return false, nil
}

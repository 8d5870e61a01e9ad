package vfs

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func TestErrorsOfTheSystemHaveKinds(t *testing.T) {
	if err := OSError("open", "x", nil); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, absent := os.Open(filepath.Join(dir, "absent"))
	_, under := os.Open(filepath.Join(file, "x"))
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{absent, fault.NotFound},
		{under, fault.Invalid},
		{os.Mkdir(file, 0o700), fault.Exists},
		{os.NewSyscallError("write", syscall.ENOSPC), fault.NoSpace},
		{&os.PathError{Op: "write", Path: file, Err: syscall.EROFS}, fault.ReadOnly},
		{os.NewSyscallError("bind", syscall.EADDRINUSE), fault.Busy},
		{syscall.EACCES, fault.Denied},
		{syscall.EIO, fault.Internal},
	} {
		if got := fault.KindOf(OSError("open", file, c.err)); got != c.want {
			t.Errorf("%v is %v, want %v", c.err, got, c.want)
		}
	}
}
